"""Arguments that are not values yet: find the handles and states in them, put values in, spread `map`.

Walks lists, tuples (named ones too), sets, dicts, dataclasses, msgspec structs, attrs classes and pydantic models,
at any depth (nothing here recurses), cycles included. A container is copied only if something in it changed, and keeps
its type.
"""

# It looks into values of every type, so what pyright does not know of them is no news.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import copy
import io
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .annotations import Mark, allow_failure, opaque, quote, unmapped
from .errors import MappingLengthMismatch, MappingMissingIterable, UpstreamTaskError
from .redact import shown
from .runs import Handle, Run
from .states import COMPLETED, State

#: Types that hold nothing; most arguments are of these, and one set look-up settles them.
ATOMS: frozenset[type] = frozenset(
    (int, str, float, bool, bytes, complex, type(None), bytearray, range, type, memoryview, type(len), type(lambda: 0))
)


def is_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the arguments are atoms only, so that there is nothing to search."""
    for value in args:
        if value.__class__ not in ATOMS:
            return False
    if kwargs:
        for value in kwargs.values():
            if value.__class__ not in ATOMS:
                return False
    return True


class Lineage:
    """Which run a plain result came from, where its identity is certain: a weak reference that still holds it."""

    __slots__ = ("_sources",)

    def __init__(self) -> None:
        self._sources: dict[int, tuple[weakref.ref[Any], int, bool]] = {}

    def note(self, value: Any, run: Run) -> None:
        """Remember that `run` gave `value`; forgotten with the value. Values that take no weak reference are not."""
        key = id(value)  # deliberate: never trusted alone: `source` compares the object itself
        forget = self._sources.pop
        try:
            reference = weakref.ref(value, lambda _: forget(key, None))
        except TypeError:
            return
        self._sources[key] = (reference, run.number, run.spec.is_generator)

    def source(self, value: Any) -> tuple[int, bool] | None:
        """The number of the run that gave this very object, and whether that is a generator; None if unknown."""
        known = self._sources.get(id(value))  # deliberate: proved by the `is` below
        return (known[1], known[2]) if known is not None and known[0]() is value else None


lineage = Lineage()


class Found:
    """What a search found: the upstream runs and states, those of them that must complete, and if there were marks."""

    __slots__ = ("has_marks", "required", "runs", "sources", "states")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.states: list[State] = []
        #: Without those found only inside `allow_failure`; one that is found inside and outside must complete.
        self.required: list[Run | State] = []
        self.has_marks = False
        #: Runs whose plain results were found among the arguments.
        self.sources: list[tuple[int, bool]] = []

    @property
    def is_to_fill(self) -> bool:
        return bool(self.runs or self.states or self.has_marks)


def find(values: Iterable[Any]) -> Found:
    """Every handle and state in `values`, in order."""
    found = Found()
    seen: set[int] = set()  # of containers that `values` keeps alive for the length of this call
    stack: list[tuple[Any, bool]] = [(value, False) for value in reversed(list(values))]
    while stack:
        value, allowed = stack.pop()
        if value.__class__ in ATOMS:
            continue
        if isinstance(value, Handle):
            found.runs.append(value.run)
            if not allowed:
                found.required.append(value.run)
        elif isinstance(value, State):
            found.states.append(value)
            if not allowed:
                found.required.append(value)
        elif isinstance(value, Mark):
            found.has_marks = True
            inner, allowed, is_closed = _unmark(value, allowed)
            if not is_closed:
                stack.append((inner, allowed))
        else:
            source = lineage.source(value)
            if source is not None:
                found.sources.append(source)
            children = _children(value)
            key = _key(value, allowed)
            if children and key not in seen:
                seen.add(key)
                stack.extend((child, allowed) for child in reversed(children) if child.__class__ not in ATOMS)
    return found


def _key(value: Any, allowed: bool) -> int:
    """For a container: itself, told apart by whether failures in it are allowed where it was found."""
    key = id(value)  # deliberate: the arguments hold the object while `find` and `fill` are at work
    return -key if allowed else key


def failed_upstream(found: Found) -> UpstreamTaskError | None:
    """The error for the first upstream that is over and did not complete, unless its failure is allowed."""
    return next((upstream_error(one) for one in found.required if not _is_completed(one)), None)


def _is_completed(upstream: Run | State) -> bool:
    return (upstream.states[-1] if isinstance(upstream, Run) else upstream).type is COMPLETED


def upstream_error(upstream: Run | State) -> UpstreamTaskError:
    """The error for a run that cannot start because `upstream` did not complete, with its exception as the cause."""
    state = upstream.state if isinstance(upstream, Run) else upstream
    if isinstance(upstream, Run):
        who = f"upstream run {upstream.name!r}"
    else:
        who = "an upstream" if state.run_number is None else f"upstream run {state.task_run_id}"
    error = UpstreamTaskError(f"{who} ended {state.name}: {state.message}".rstrip(": "))
    error.__cause__ = state.error()
    return error


def fill(value: Any) -> Any:
    """`value` with every handle and state in it replaced by its result; marks are taken off."""
    done: dict[int, Any] = {}
    # A container is met twice: first it goes back below its children, and when they are done it is filled itself.
    stack: list[tuple[Any, bool, list[Any] | None]] = [(value, False, None)]
    while stack:
        container, allowed, children = stack.pop()
        if children is not None:
            filled = [_filled(child, allowed, done) for child in children]
            if any(new is not old for new, old in zip(filled, children, strict=True)):
                done[_key(container, allowed)] = _rebuilt(container, children, filled)
            continue
        container, allowed, is_closed = _unmark(container, allowed)
        if is_closed or container.__class__ in ATOMS or isinstance(container, (Handle, State)):
            continue
        key = _key(container, allowed)
        children = _children(container)
        if children and key not in done:
            done[key] = container  # until it is filled; so a container inside itself stays as it is
            stack.append((container, allowed, children))
            stack.extend((child, allowed, None) for child in children if child.__class__ not in ATOMS)
    return _filled(value, False, done)


def _filled(value: Any, allowed: bool, done: dict[int, Any]) -> Any:
    """What takes the place of `value`, once the containers in it are `done`."""
    if value.__class__ in ATOMS:
        return value
    value, allowed, is_closed = _unmark(value, allowed)
    if is_closed or value.__class__ in ATOMS:
        return value
    if isinstance(value, Handle):
        return value.run.state.result(raise_on_failure=not allowed)
    if isinstance(value, State):
        return value.result(raise_on_failure=not allowed)
    return done.get(_key(value, allowed), value)


def _unmark(value: Any, allowed: bool) -> tuple[Any, bool, bool]:
    """Take the marks off: the value, whether failures in it are allowed, and whether it is to be passed as it is."""
    while isinstance(value, Mark):
        allowed = allowed or isinstance(value, allow_failure)
        is_quoted, is_opaque = isinstance(value, quote), isinstance(value, opaque)
        value = value.value
        if is_quoted or (is_opaque and not isinstance(value, (Handle, State, Mark))):
            return value, allowed, True
    return value, allowed, False


#: In the place of a field that was never set.
_UNSET: Any = object()


def _children(value: Any) -> list[Any]:
    """What a container holds, in the order in which `_rebuilt` takes it; empty for anything else."""
    kind: Any = type(value)  # not __class__ or isinstance: proxies and mocks only say that they are containers
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        return list(value)
    if kind is dict or issubclass(kind, dict):
        return [*value.keys(), *value.values()]
    if issubclass(kind, (list, tuple, set, frozenset)):
        return list(value)
    if issubclass(kind, (type, State)):
        return []
    if (
        issubclass(kind, msgspec.Struct)
        or hasattr(kind, "__dataclass_fields__")
        or _is_attrs(value)
        or _is_pydantic(value)
    ):
        return [getattr(value, name, _UNSET) for name in _field_names(value)]
    return []


def _field_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if hasattr(type(value), "__dataclass_fields__"):  # so somebody has imported the module
        return tuple(field.name for field in sys.modules["dataclasses"].fields(value))
    if _is_attrs(value):
        return tuple(attribute.name for attribute in value.__attrs_attrs__)
    return (*type(value).model_fields, *(value.model_extra or {}))


def _is_attrs(value: Any) -> bool:
    return "attr" in sys.modules and hasattr(type(value), "__attrs_attrs__")


def _is_pydantic(value: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(type(value), pydantic.BaseModel)


def _rebuilt(value: Any, children: list[Any], filled: list[Any]) -> Any:
    """A container like `value` that holds `filled` in place of `children`."""
    try:
        return _copy_with(value, children, filled)
    except Exception as error:  # a list for a key, a value that the class refuses: told apart from the body's own
        raise TypeError(
            f"a {type(value).__name__} among the arguments cannot hold the results of its upstream runs: {shown(error)}"
        ) from error


def _copy_with(value: Any, children: list[Any], filled: list[Any]) -> Any:
    kind: Any = type(value)
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        return kind(filled)
    if issubclass(kind, dict):
        half = len(filled) // 2
        new = {} if kind is dict else _empty_copy(value)
        new.update(zip(filled[:half], filled[half:], strict=True))
        return new
    if issubclass(kind, (list, set)):
        new = _empty_copy(value)
        new.extend(filled) if issubclass(kind, list) else new.update(filled)
        return new
    if issubclass(kind, (tuple, frozenset)):
        base: Any = tuple if issubclass(kind, tuple) else frozenset
        new = base.__new__(kind, filled)
        getattr(new, "__dict__", {}).update(getattr(value, "__dict__", {}))
        return new
    names = _field_names(value)
    changed = {name: new for name, old, new in zip(names, children, filled, strict=True) if new is not old}
    if issubclass(kind, msgspec.Struct):
        return msgspec.structs.replace(value, **changed)
    if _is_pydantic(value):
        return value.model_copy(update=changed)
    # Dataclasses and attrs: a copy with fields set, because __init__ may take none of them (init=False, frozen).
    new = object.__new__(kind)
    getattr(new, "__dict__", {}).update(getattr(value, "__dict__", {}))
    for name, held in zip(names, filled, strict=True):
        if held is not _UNSET:
            object.__setattr__(new, name, held)
    return new


def _empty_copy(value: Any) -> Any:
    """An empty container of the same type and settings (a defaultdict keeps its factory, a subclass its attributes)."""
    new = copy.copy(value)
    new.clear()
    return new


# -- map ----------------------------------------------------------------------------------------------------------


def spread(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of each run of `map`. Futures among the mapped arguments must be settled.

    Raises `MappingMissingIterable` and `MappingLengthMismatch`, naming the task and the arguments, and
    `UpstreamTaskError` when a future that is to be mapped over did not complete.
    """
    mapped: dict[int | str, list[Any]] = {}
    static: dict[int | str, Any] = {}
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for place, value in given:
        elements = _elements(value)
        if elements is None:
            static[place] = value.value if isinstance(value, unmapped) else value
        else:
            mapped[place] = elements
    if not mapped:
        raise MappingMissingIterable(
            f"task {name!r}: map() was given nothing to map over; give it a list or another iterable "
            f"(strings, bytes and unmapped(...) are passed to every run as they are)"
        )
    lengths = {place: len(elements) for place, elements in mapped.items()}
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{_place(place)}: {length}" for place, length in lengths.items())
        raise MappingLengthMismatch(
            f"task {name!r}: map() needs iterables of one length, but got {each}; wrap what is the same for all runs "
            f"in unmapped(...)"
        )
    if not kwargs and len(args) == 1:
        nothing: dict[str, Any] = {}
        return [((element,), nothing) for element in mapped[0]]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for index in range(next(iter(lengths.values()))):
        one = {**static, **{place: elements[index] for place, elements in mapped.items()}}
        calls.append((tuple(one[place] for place in range(len(args))), {key: one[key] for key in kwargs}))
    return calls


def mapped_futures(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Handle]:
    """The futures whose results are to be mapped over: those given directly as arguments of `map`."""
    return [inner for value in [*args, *kwargs.values()] if isinstance(inner := _unmarked(value), Handle)]


def _unmarked(value: Any) -> Any:
    while isinstance(value, Mark) and not isinstance(value, (unmapped, quote)):
        value = value.value
    return value


def _elements(value: Any, *, allowed: bool = False) -> list[Any] | None:
    """What `map` spreads `value` into, each with the marks of the whole; None for a static value."""
    if isinstance(value, Mark):
        if isinstance(value, (unmapped, quote)):
            return None
        inner = _elements(value.value, allowed=allowed or isinstance(value, allow_failure))
        return None if inner is None else [value.rewrap(one) for one in inner]
    if isinstance(value, (Handle, State)):
        state = value.run.state if isinstance(value, Handle) else value
        if state.type is not COMPLETED:
            if allowed:
                return None  # every run gets the exception
            raise upstream_error(value.run if isinstance(value, Handle) else value)
        value = state.result()
    if isinstance(value, (str, bytes, bytearray, io.IOBase)) or not isinstance(value, Iterable):
        return None
    if isinstance(value, Mapping) or _is_pydantic(value):
        return list(value) if isinstance(value, Mapping) else None
    return list(value)


def _place(place: int | str) -> str:
    return f"argument {place + 1}" if isinstance(place, int) else repr(place)
