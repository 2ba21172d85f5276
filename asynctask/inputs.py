"""Arguments that are not values yet: find the handles and states in them, put values in, spread `map`.

Walks lists, tuples (named ones too), sets, dicts, dataclasses, msgspec structs, attrs classes and pydantic models,
at any depth, cycles included, without recursion limits of its own beyond the interpreter's. A container is copied
only if something in it changed, and keeps its type.
"""

from __future__ import annotations

import dataclasses
import io
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import msgspec

from .annotations import Mark, allow_failure, opaque, quote, unmapped
from .errors import MappingLengthMismatch, MappingMissingIterable, UpstreamTaskError
from .runs import Handle, Run
from .states import COMPLETED, State

#: Types that hold nothing; most arguments are of these, and one set look-up settles them.
ATOMS: frozenset[type] = frozenset(
    (int, str, float, bool, bytes, complex, type(None), bytearray, range, type, memoryview, type(len), type(lambda: 0))
)
_PLAIN_CONTAINERS: frozenset[type] = frozenset((list, tuple, set, frozenset, dict))


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
    """What a search found: the upstream runs and states, those of them that may fail, and whether there were marks."""

    __slots__ = ("allowed", "has_marks", "runs", "sources", "states")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.states: list[State] = []
        self.allowed: list[Run | State] = []
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
            if allowed:
                found.allowed.append(value.run)
        elif isinstance(value, State):
            found.states.append(value)
            if allowed:
                found.allowed.append(value)
        elif isinstance(value, Mark):
            found.has_marks = True
            if not isinstance(value, quote):
                stack.append((cast("Mark[Any]", value).value, allowed or isinstance(value, allow_failure)))
        else:
            source = lineage.source(value)
            if source is not None:
                found.sources.append(source)
            children = _children(value)
            key = id(value)  # deliberate: the arguments hold the object while this looks
            if children and key not in seen:
                seen.add(key)
                stack.extend((child, allowed) for child in reversed(children))
    return found


def failed_upstream(found: Found) -> UpstreamTaskError | None:
    """The error for the first upstream that is over and did not complete, unless its failure is allowed."""
    for run in found.runs:
        last = run.states[-1]
        if last.type is not COMPLETED and not any(one is run for one in found.allowed):
            error = UpstreamTaskError(f"upstream run {run.name!r} ended {last.name}: {last.message}".rstrip(": "))
            error.__cause__ = run.state.error()
            return error
    for state in found.states:
        if state.type is not COMPLETED and not any(one is state for one in found.allowed):
            who = f"upstream run {state.task_run_id}" if state.run_number is not None else "an upstream"
            error = UpstreamTaskError(f"{who} ended {state.name}: {state.message}".rstrip(": "))
            error.__cause__ = state.error()
            return error
    return None


def fill(value: Any) -> Any:
    """`value` with every handle and state in it replaced by its result; marks are taken off."""
    return _fill(value, allowed=False, done={})


def _fill(value: Any, *, allowed: bool, done: dict[int, Any]) -> Any:
    if value.__class__ in ATOMS:
        return value
    if isinstance(value, Handle):
        return value.run.state.result(raise_on_failure=not allowed)
    if isinstance(value, State):
        return value.result(raise_on_failure=not allowed)
    if isinstance(value, quote):
        return cast("quote[Any]", value).value
    if isinstance(value, opaque):
        inner = cast("opaque[Any]", value).value
        return _fill(inner, allowed=allowed, done=done) if isinstance(inner, (Handle, State, Mark)) else inner
    if isinstance(value, Mark):
        mark = cast("Mark[Any]", value)
        return _fill(mark.value, allowed=allowed or isinstance(mark, allow_failure), done=done)
    children = _children(value)
    key = id(value)  # deliberate: the arguments hold the object while this fills
    if not children or key in done:
        return done.get(key, value)
    done[key] = value  # a container inside itself stays as it is
    filled = [_fill(child, allowed=allowed, done=done) for child in children]
    if any(new is not old for new, old in zip(filled, children, strict=True)):
        done[key] = _rebuilt(value, filled)
    return done[key]


def _children(value: Any) -> list[Any]:
    """What a container holds, in the order in which `_rebuilt` takes it; empty for anything else."""
    kind = value.__class__
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        return list(value)
    if kind is dict or isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(cast("Iterable[Any]", value))
    if isinstance(value, type):
        return []
    if isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value) or _is_attrs(value) or _is_pydantic(value):
        return [getattr(value, name, None) for name in _field_names(value)]
    return []


def _field_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if dataclasses.is_dataclass(value):
        return tuple(field.name for field in dataclasses.fields(value))
    if _is_attrs(value):
        return tuple(attribute.name for attribute in value.__attrs_attrs__)
    return (*type(value).model_fields, *(value.model_extra or {}))


def _is_attrs(value: Any) -> bool:
    return "attr" in sys.modules and hasattr(type(value), "__attrs_attrs__")


def _is_pydantic(value: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(value, pydantic.BaseModel)


def _rebuilt(value: Any, filled: list[Any]) -> Any:
    """A container like `value` that holds `filled`."""
    kind = type(value)
    if isinstance(value, dict):
        half = len(filled) // 2
        new = kind() if kind is dict else _empty_copy(cast("dict[Any, Any]", value))
        new.update(zip(filled[:half], filled[half:], strict=True))
        return new
    if isinstance(value, tuple):
        return kind(*filled) if hasattr(kind, "_fields") else kind(filled)
    if isinstance(value, (list, set, frozenset)):
        return kind(filled)
    names = _field_names(value)
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **dict(zip(names, filled, strict=True)))
    if _is_pydantic(value):
        return value.model_copy(update=dict(zip(names, filled, strict=True)))
    # Dataclasses and attrs: a copy with fields set, because __init__ may take none of them (init=False, frozen).
    new = object.__new__(kind)
    for holder in (getattr(value, "__dict__", {}),):
        for name, held in holder.items():
            object.__setattr__(new, name, held)
    for name, held in zip(names, filled, strict=True):
        object.__setattr__(new, name, held)
    return new


def _empty_copy(value: dict[Any, Any]) -> dict[Any, Any]:
    """An empty mapping of the same type and settings (a defaultdict keeps its factory)."""
    new = value.copy()
    new.clear()
    return new


# -- map ----------------------------------------------------------------------------------------------------------


def spread(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of each run of `map`. Futures among the mapped arguments must be settled.

    Raises `MappingMissingIterable` and `MappingLengthMismatch`, naming the task and the arguments.
    """
    mapped: dict[int | str, list[Any]] = {}
    static: dict[int | str, Any] = {}
    for place, value in [*enumerate(args), *kwargs.items()]:
        elements = _elements(value)
        if elements is None:
            static[place] = cast("unmapped[Any]", value).value if isinstance(value, unmapped) else value
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
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for index in range(next(iter(lengths.values()))):
        pick: Callable[[int | str], Any] = lambda place, i=index: mapped[place][i] if place in mapped else static[place]  # noqa: E731
        calls.append((tuple(pick(place) for place in range(len(args))), {key: pick(key) for key in kwargs}))
    return calls


def mapped_runs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Run]:
    """Runs whose results are to be mapped over: futures given directly as arguments of `map`."""
    return [inner.run for value in [*args, *kwargs.values()] if isinstance(inner := _unmarked(value), Handle)]


def _unmarked(value: Any) -> Any:
    while isinstance(value, Mark) and not isinstance(value, (unmapped, quote)):
        value = cast("Mark[Any]", value).value
    return value


def _elements(value: Any) -> list[Any] | None:
    """What `map` spreads `value` into, each with the marks of the whole; None for a static value."""
    if isinstance(value, Mark):
        if isinstance(value, (unmapped, quote)):
            return None
        mark = cast("Mark[Any]", value)
        inner = _elements(mark.value)
        return None if inner is None else [mark.rewrap(one) for one in inner]
    if isinstance(value, Handle):
        value = value.run.state.result()
    elif isinstance(value, State):
        value = value.result()
    if isinstance(value, (str, bytes, bytearray, io.IOBase)) or not isinstance(value, Iterable):
        return None
    if isinstance(value, Mapping) or _is_pydantic(value):
        return list(cast("Mapping[Any, Any]", value)) if isinstance(value, Mapping) else None
    return list(cast("Iterable[Any]", value))


def _place(place: int | str) -> str:
    return f"argument {place + 1}" if isinstance(place, int) else repr(place)
