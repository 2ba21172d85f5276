"""What a result is cached under: policies, and sums of them.

1. A policy is never changed: `+`, `-` and `configure` give another one.
2. A part that gives None is left out of a sum. If all do, there is no key, and the run is not cached.
"""

# Names with an underscore are for the files of this noun: a user's policy may have attributes of any other name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from enum import Enum
from typing import Any, Self, cast
from uuid import UUID

import msgspec

from .errors import CacheKeyError, HashError, OptionError
from .hashing import digest, inputs_digest, text_digest
from .redact import shown
from .runs import Run
from .shapes import code_of
from .specs import kind_of, name_of, public_module, unwrapped

_CONFIGURATION = ("key_storage", "isolation_level", "lock_manager")


class IsolationLevel(Enum):
    """Who waits for a run under the same key: callers in this process, or those of every process on the store."""

    READ_COMMITTED = "READ_COMMITTED"
    SERIALIZABLE = "SERIALIZABLE"


def checked_isolation_level(value: object) -> IsolationLevel:
    """The level, from itself or its name. Raises `OptionError` for anything else."""
    if isinstance(value, IsolationLevel):
        return value
    if isinstance(value, str) and value.upper() in IsolationLevel.__members__:
        return IsolationLevel[value.upper()]
    raise OptionError(f"isolation_level must be {' or '.join(IsolationLevel.__members__)}, not {shown(value, 80)}")


class CacheContext(msgspec.Struct, frozen=True):
    """What a `cache_key_fn`, and the `compute_key` of a policy, is told of the call."""

    task_run: Run
    #: The arguments by name, defaults included.
    parameters: dict[str, Any]

    @property
    def task(self) -> Any:
        return self.task_run.spec.task

    @property
    def task_run_id(self) -> UUID:
        return self.task_run.id

    @property
    def flow_run_id(self) -> UUID | None:
        return self.task_run.flow_run_id


class CachePolicy:
    """What the key of a cached result is made of; subclass it and write `compute_key` for one of your own."""

    #: Where the entries are kept, if not in the store.
    key_storage: Any = None
    isolation_level: IsolationLevel | None = None
    #: Who gives the locks of `SERIALIZABLE`, if not the store.
    lock_manager: Any = None

    def compute_key(
        self, task_ctx: CacheContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """The key, or None for no key. `inputs` are the arguments by name, with their defaults."""
        raise NotImplementedError(f"{type(self).__name__} is a cache policy without a compute_key method")

    @staticmethod
    def from_cache_key_fn(cache_key_fn: Callable[[CacheContext, dict[str, Any]], str | None]) -> CacheKeyFnPolicy:
        """The policy that takes its key from a function."""
        return CacheKeyFnPolicy(cache_key_fn)

    def configure(
        self,
        *,
        key_storage: str | os.PathLike[str] | None = None,
        isolation_level: IsolationLevel | str | None = None,
        lock_manager: Any = None,
    ) -> Self:
        """A copy with what is given. Raises `OptionError` for what can be none of these."""
        changes: dict[str, Any] = {}
        if key_storage is not None:
            if not isinstance(key_storage, (str, os.PathLike)) or not str(key_storage):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise OptionError(f"key_storage must be the path of a folder, not {shown(key_storage, 80)}")
            changes["key_storage"] = key_storage
        if isolation_level is not None:
            changes["isolation_level"] = checked_isolation_level(isolation_level)
        if lock_manager is not None:
            for method in ("acquire_lock", "release_lock"):
                if isinstance(lock_manager, type) or not callable(getattr(lock_manager, method, None)):
                    raise OptionError(f"lock_manager must have a method {method}, as {shown(lock_manager, 80)} has not")
            changes["lock_manager"] = lock_manager
        return self._changed(changes)

    def __add__(self, other: object) -> CachePolicy:
        if not isinstance(other, CachePolicy):
            hint = "; write CachePolicy.from_cache_key_fn(...)" if callable(other) else ""
            raise OptionError(f"only a cache policy can be added to {self!r}, not {shown(other, 80)}{hint}")
        if isinstance(other, _NoCache):
            return self
        if isinstance(self, _NoCache):
            return other
        configuration: dict[str, Any] = {}
        for name in _CONFIGURATION:
            mine, others = getattr(self, name), getattr(other, name)
            if mine is not None and others is not None and mine != others:
                raise OptionError(
                    f"policies that are joined must agree on {name}: {self!r} and {other!r} do not; "
                    f"join them first, and configure the sum"
                )
            configuration[name] = others if mine is None else mine
        return _joined((*self._parts(), *other._parts()), configuration)

    def __sub__(self, name: str) -> CachePolicy:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"what is left out of {self!r} must be the name of one parameter, not {shown(name, 80)}")
        return self._without(name)

    def _parts(self) -> tuple[CachePolicy, ...]:
        return (self,)

    def _without(self, name: str) -> CachePolicy:
        return self

    def _changed(self, changes: dict[str, Any]) -> Self:
        if all(getattr(self, name) == value for name, value in changes.items()):
            return self
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def _label(self) -> str:
        """What tells its key from those of other kinds of policies in a sum."""
        kind = type(self)
        return f"{public_module(kind.__module__)}:{kind.__qualname__}"

    def _text(self) -> str:
        own = ", ".join(
            f"{name}={shown(value, 80)}" for name, value in vars(self).items() if name not in _CONFIGURATION
        )
        return f"{type(self).__name__}({own})"

    def __repr__(self) -> str:
        text = self._text()
        given = ((name, getattr(self, name)) for name in _CONFIGURATION)
        configuration = ", ".join(
            f"{name}={value.name if isinstance(value, IsolationLevel) else shown(value, 80)}"
            for name, value in given
            if value is not None
        )
        if not configuration:
            return text
        return f"{f'({text})' if ' ' in text else text}.configure({configuration})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CachePolicy) and type(self) is type(other) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(type(self))

    def _content(self) -> Any:
        return {**dict.fromkeys(_CONFIGURATION), **vars(self)}

    def __setattr__(self, name: str, value: object) -> None:
        if name in _CONFIGURATION or type(self).__module__ == __name__:
            raise AttributeError(f"a cache policy is never changed ({name}): .configure(...) gives another one")
        super().__setattr__(name, value)


class Inputs(CachePolicy):
    """`INPUTS`, and what is left out of them."""

    excluded: frozenset[str] = frozenset()

    def compute_key(
        self, task_ctx: Any, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        return self._digest(inputs, "")

    def _digest(self, inputs: dict[str, Any], salt: str) -> str | None:
        if not inputs:
            return None
        excluded = self.excluded
        if excluded:
            inputs = {name: value for name, value in inputs.items() if name not in excluded}
        return inputs_digest(inputs, salt=salt)

    def _without(self, name: str) -> CachePolicy:
        return self._changed({"excluded": self.excluded | {name}})

    def _label(self) -> str:
        return "inputs"

    def _text(self) -> str:
        return " - ".join(["INPUTS", *map(repr, sorted(self.excluded))])


class TaskSource(CachePolicy):
    """`TASK_SOURCE`."""

    def compute_key(
        self, task_ctx: CacheContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        spec = task_ctx.task_run.spec
        if spec.source is None:
            spec.source = source_of(spec.fn)
        return text_digest(spec.source)

    def _label(self) -> str:
        return "source"

    def _text(self) -> str:
        return "TASK_SOURCE"


class _RunId(CachePolicy):
    def compute_key(
        self, task_ctx: CacheContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        return str(task_ctx.flow_run_id or task_ctx.task_run_id)

    def _label(self) -> str:
        return "run"

    def _text(self) -> str:
        return "RUN_ID"


class _FlowParameters(CachePolicy):
    def compute_key(
        self, task_ctx: CacheContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        return inputs_digest(flow_parameters, of_flow=True) if flow_parameters else None

    def _label(self) -> str:
        return "flow"

    def _text(self) -> str:
        return "FLOW_PARAMETERS"


class _NoCache(CachePolicy):
    def compute_key(
        self, task_ctx: CacheContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        return None

    def _text(self) -> str:
        return "NO_CACHE"


class CacheKeyFnPolicy(CachePolicy):
    """Takes its key from a function of the context and the arguments by name; alone, that is the key as it is."""

    cache_key_fn: Callable[[CacheContext, dict[str, Any]], str | None]

    def __init__(self, cache_key_fn: Callable[[CacheContext, dict[str, Any]], str | None]) -> None:
        refuse_key_fn("CacheKeyFnPolicy: cache_key_fn", cache_key_fn)
        vars(self)["cache_key_fn"] = cache_key_fn

    def compute_key(
        self, task_ctx: CacheContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        return self.cache_key_fn(task_ctx, inputs)

    def _text(self) -> str:
        return f"CachePolicy.from_cache_key_fn({name_of(self.cache_key_fn)})"


class _Sum(CachePolicy):
    members: tuple[CachePolicy, ...]
    labels: tuple[str, ...]

    def __init__(self, parts: tuple[CachePolicy, ...]) -> None:
        vars(self).update(members=parts, labels=_labels(parts))

    def compute_key(
        self, task_ctx: CacheContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        keys: list[str] = []
        for label, part in zip(self.labels, self.members, strict=True):
            key = usable(part.compute_key(task_ctx, inputs, flow_parameters, **kwargs), part)
            if key is not None:
                keys.append(framed(label, key))
        return text_digest("".join(sorted(keys))) if keys else None

    def _parts(self) -> tuple[CachePolicy, ...]:
        return self.members

    def _without(self, name: str) -> CachePolicy:
        return self._changed({"members": tuple(part - name for part in self.members)})

    def _label(self) -> str:
        return "sum"

    def _text(self) -> str:
        return " + ".join(f"({text})" if " " in (text := repr(part)) else text for part in self.members)

    def _content(self) -> Any:
        order = sorted(range(len(self.members)), key=self.labels.__getitem__)
        content: dict[str, Any] = {**super()._content(), "labels": None}
        return {**content, "members": [self.members[place] for place in order]}


def _joined(parts: tuple[CachePolicy, ...], configuration: dict[str, Any]) -> CachePolicy:
    """The sum of parts: each once, one INPUTS without all that any of them leaves out, configured as a whole."""
    excluded = frozenset[str]().union(*(part.excluded for part in parts if isinstance(part, Inputs)))
    kept: list[CachePolicy] = []
    for part in parts:
        bare = part._changed(dict.fromkeys(_CONFIGURATION))
        if isinstance(bare, Inputs):
            bare = bare._changed({"excluded": excluded})
        if bare not in kept:
            kept.append(bare)
    policy = kept[0] if len(kept) == 1 else _Sum(tuple(kept))
    return policy._changed(configuration)


def _labels(parts: tuple[CachePolicy, ...]) -> tuple[str, ...]:
    """A label for each part that does not depend on their order; several of one kind are told apart by what is in them.

    Without that, two key functions that give "a" and "b", and then "b" and "a", would share a key.
    """
    kinds = [part._label() for part in parts]
    labels: list[str] = []
    for place, kind in enumerate(kinds):
        inside = ""
        if kinds.count(kind) > 1:
            try:
                inside = digest(vars(parts[place]))
            except HashError:  # then by their order
                inside = str(place)
        labels.append(f"{kind} {inside}")
    return tuple(f"{label} {labels[:place].count(label)}" for place, label in enumerate(labels))


def framed(*texts: str) -> str:
    """Several texts as one, from which they could be read again."""
    return "".join(f"{len(text)}:{text}" for text in texts)


#: The arguments of the call, by name, defaults and `self` included.
INPUTS = Inputs()
#: The text of the function, as it was when the task was defined; functions that it calls are not looked at.
TASK_SOURCE = TaskSource()
#: The flow run, or outside any the task run: nothing is shared with another one.
RUN_ID = _RunId()
#: The arguments of the flow run.
FLOW_PARAMETERS = _FlowParameters()
#: Nothing is cached; in a sum it changes nothing.
NO_CACHE = _NoCache()
NONE = NO_CACHE
DEFAULT = INPUTS + TASK_SOURCE + RUN_ID


def refuse_key_fn(where: str, cache_key_fn: object) -> None:
    """Raise `OptionError` for what cannot give a key."""
    if not callable(cache_key_fn) or inspect.iscoroutinefunction(kind_of(cache_key_fn)):
        raise OptionError(f"{where} must be a plain function of (context, parameters), not {shown(cache_key_fn, 80)}")


def source_of(fn: Callable[..., Any]) -> str:
    """The text of a function or callable, with the arguments of partials; where there is none (a REPL), its code."""
    inner: Any = unwrapped(fn)
    try:
        text = inspect.getsource(cast("Any", inner if inspect.isroutine(inner) else type(inner)))
    except (OSError, TypeError):
        text = digest(code_of(kind_of(fn)))
    while inner is not fn:
        text = f"{text}\n{digest((fn.args, fn.keywords))}"  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
        fn = fn.func  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
    return text


def usable(key: Any, who: object) -> str | None:
    """A key that somebody gave, or None. Raises `CacheKeyError` for one that is no text."""
    if key is None or type(key) is str:
        return key
    if isinstance(key, str):
        return str.__str__(key)
    if inspect.iscoroutine(key):
        key.close()
    giver = who if isinstance(who, str) else f"cache policy {shown(who)}"
    raise CacheKeyError(f"{giver} gave {shown(key, 80)} as key; a key is a string, or None for no caching")
