"""`@flow`: a function whose run owns the runs started inside it. The same engine, with a scope around the body."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Never, ParamSpec, Self, TypeVar, Unpack, cast, overload

import msgspec

from .bodies import timed_out
from .definitions import Definition, driven, final_state
from .engine import execute
from .errors import OptionError, ParameterValidationError
from .inputs import failed_upstream, fill, find
from .loops import current_loop
from .redact import MASK, Secret, is_secret_name, shown_as, text_of
from .runs import Run
from .scopes import Scope
from .specs import TaskSpec, colour_of, plain_function, refuse_unusable
from .states import State, aggregate
from .waiting import Port

if TYPE_CHECKING:
    from .keywords import FlowOptions

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")


class FlowDefinition(Definition[P]):
    """What sync and async flows have in common."""

    what = "flow"

    def __init__(self, fn: Any, given: dict[str, Any], bound: tuple[Any, ...] = ()) -> None:
        super().__init__(fn, given, bound)
        if self.spec.is_generator:
            raise OptionError(f"flow {self.name!r}: a flow cannot be a generator; return a list, or make it a task")
        self.spec.enclose = enclosed
        self._checks = checks_of(self.spec) if self.spec.options.validate_parameters else {}
        if self._checks:
            self.spec.check_filled = self._validated

    def with_options(self, **options: Unpack[FlowOptions]) -> Self:
        """A copy with the named options replaced; None clears one. Raises `OptionError` as the decorator does."""
        return self._with(cast("dict[str, Any]", options))

    def _new_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        run = super()._new_run(args, kwargs)
        if self._checks:
            run.args, run.kwargs = self._validated(run.args, run.kwargs)
        return run

    def _validated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        spec = self.spec
        bound = spec.signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            annotation = self._checks.get(name)
            if annotation is not None and not find((value,)).is_to_fill:
                bound.arguments[name] = coerced(spec, name, value, annotation)
        return bound.args, bound.kwargs


class Flow(FlowDefinition[P], Generic[P, R]):
    """A flow whose function is plain: `f(x)` runs in this thread; it may submit async tasks all the same."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run now, in this thread; the value, or with `return_state=True` the final `State`."""
        return driven(*self._special_run(args, kwargs))  # type: ignore[no-any-return]

    @overload
    def __get__(self, instance: None, owner: type) -> Flow[P, R]: ...
    @overload
    def __get__(self: Flow[Concatenate[Any, Q], R], instance: object, owner: type | None = None) -> Flow[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bind(instance, owner)


class AsyncFlow(FlowDefinition[P], Generic[P, R]):
    """A flow whose function is async: `await f(x)`."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """A coroutine that runs the flow here and gives its value, or with `return_state=True` its final `State`."""
        run, return_state = self._special_run(args, kwargs)
        work = execute(run, run.inside.runtime.loop_port)
        if return_state:
            return final_state(run, work)  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
        return work

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncFlow[P, R]: ...
    @overload
    def __get__(
        self: AsyncFlow[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> AsyncFlow[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bind(instance, owner)


async def enclosed(run: Run, port: Port) -> Any:
    """One attempt of a flow: its body inside a scope of its own, which ends before the attempt does."""
    outer: Scope = run.inside
    limits = outer.runtime.limits
    monotonic = run.journal.clock.monotonic
    timeout = run.spec.options.timeout
    here = current_loop()
    scope = Scope(outer.runtime, outer, home=here) if run.spec.is_async else Scope(outer.runtime, outer, blocked=here)
    run.inside = scope
    start = monotonic()
    try:
        made = port.call(run)
        value = await made if port.is_async else made
        lent = limits.begin_wait(run, lambda: [[one] for one in list(scope.children.values())], "its children")
        try:
            left = None if timeout is None else max(0.0, timeout - (monotonic() - start))
            if not await port.until_empty(scope, left):
                raise timed_out(run)
            return await returned(run, value, port)
        finally:
            limits.end_wait(lent)
    except BaseException as error:
        scope.cancel(f"its flow {run.name!r} ended with {type(error).__name__}")
        await port.until_empty_shielded(scope)
        raise
    finally:
        scope.close()
        run.inside = outer
        del run  # the traceback of what the body raises leads to this frame; see `execute`


async def returned(run: Run, value: Any, port: Port) -> Any:
    """What a flow's return value stands for: futures and states in it become their results, or one state of failure."""
    found = find((value,))
    for one in found.runs:
        if not one.is_settled:
            lent = port.services.limits.begin_wait(run, one)
            try:
                await port.until_settled(one)
            finally:
                port.services.limits.end_wait(lent)
    if not found.is_to_fill:
        return value
    if failed_upstream(found) is not None:
        states = [*(run.state for run in found.runs), *found.states]
        return states[0] if len(states) == 1 and states[0].type.is_final else aggregate(states)
    return value if isinstance(value, State) else fill(value)


def checks_of(spec: TaskSpec) -> dict[str, Any]:
    """The annotations that arguments are checked against, by parameter; those that cannot be resolved are left out."""
    try:
        hints = typing.get_type_hints(spec.fn, include_extras=True)
    except Exception:  # a name that exists only for type checkers, say: then there is nothing to check against
        return {}
    variable = (
        name
        for name, parameter in spec.signature.parameters.items()
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )
    skipped = {"return", *variable}
    return {name: hint for name, hint in hints.items() if name not in skipped and hint is not Any}


def coerced(spec: TaskSpec, name: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` says. Raises `ParameterValidationError`, naming the flow and the parameter."""
    if isinstance(annotation, type) and isinstance(value, annotation):
        return value
    if isinstance(value, Iterator):  # looking inside would use it up
        return value  # pyright: ignore[reportUnknownVariableType]
    try:
        if _is_pydantics(annotation):
            return _by_pydantic(value, annotation)
        return msgspec.convert(value, annotation, strict=False, dec_hook=_converted)  # pyright: ignore[reportUnknownVariableType]
    except (msgspec.ValidationError, ValueError) as error:
        reasons = _reasons(name, error)
        is_quoted = MASK in reasons or hasattr(error, "errors")  # pydantic's own text always quotes what it was given
        raise ParameterValidationError(
            f"{spec.what} {spec.name!r}: parameter {name!r}: {reasons}; it was given {shown_as(name, value)}"
        ) from (None if is_quoted else error)
    except TypeError:  # an annotation that msgspec does not know (a class of the user's, a protocol)
        if isinstance(annotation, type) and not getattr(annotation, "_is_protocol", False):
            raise ParameterValidationError(
                f"{spec.what} {spec.name!r}: parameter {name!r} must be {annotation.__qualname__}, "
                f"got {shown_as(name, value)}"
            ) from None
        return value


def _reasons(name: str, error: Exception) -> str:
    """What is wrong, in one line; pydantic's own text has three for each error, one of them an address.

    What is wrong with a secret may quote it ("Invalid enum value 'hunter2'"), so of that only the place is told.
    """
    errors = getattr(error, "errors", None)
    if errors is None:
        text = text_of(error)
        place = text.rpartition(" - at `$")[2].rstrip("`") if " - at `$" in text else ""
        if text.startswith("Expected ") or not any(map(is_secret_name, (name, *place.split(".")))):
            return text
        return f"{MASK} does not fit" + (f" - at `${place}`" if place else "")
    reasons: list[str] = []
    for one in errors():
        places = [str(place) for place in one["loc"]]
        text = MASK + " does not fit" if any(map(is_secret_name, (name, *places))) else one["msg"]
        reasons.append(f"{'.'.join(places)}: {text}".removeprefix(": "))
    return text_of(ValueError("; ".join(reasons)))


def _converted(kind: Any, value: Any) -> Any:
    """What msgspec asks about types that it does not know."""
    if (typing.get_origin(kind) or kind) is Secret and not isinstance(cast("object", value), Secret):
        return Secret[Any](value)  # as from a command line, where nobody can write one
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or isinstance(value, kind):
        return value
    pathlib = sys.modules.get("pathlib")  # imported by whoever wrote the annotation
    if pathlib is not None and isinstance(value, str) and issubclass(kind, pathlib.PurePath):
        return kind(value)
    raise TypeError(f"expected {kind.__qualname__}")


def _is_pydantics(annotation: Any) -> bool:
    """Whether pydantic must judge: a model, dataclass or constraint of its own is in the annotation."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None:
        return False
    if isinstance(annotation, type):
        if issubclass(annotation, pydantic.BaseModel) or hasattr(annotation, "__pydantic_validator__"):
            return True
    elif type(annotation).__module__.partition(".")[0] in ("pydantic", "annotated_types"):
        return True  # Annotated[int, pydantic.Field(gt=0)], pydantic.PositiveInt
    return any(_is_pydantics(part) for part in typing.get_args(annotation))


def _by_pydantic(value: Any, annotation: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(annotation).validate_python(value)


# A coroutine is also a plain value, so the overloads overlap on purpose: the first one that fits is the right one.
# `Never` is for functions that return Any; see `tasks`.
@overload
def flow(fn: Callable[P, Never], /) -> Flow[P, Any]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
@overload
def flow(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncFlow[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
@overload
def flow(fn: Callable[P, R], /) -> Flow[P, R]: ...
@overload
def flow(**options: Unpack[FlowOptions]) -> FlowDecorator: ...
def flow(fn: Any = None, /, **options: Unpack[FlowOptions]) -> Any:
    """Make a flow of a function: `@flow`, `@flow(retries=1)` or `flow(fn)`.

    Raises `OptionError` at once for a wrong option, naming it.
    """
    if fn is None:
        return FlowDecorator(cast("dict[str, Any]", options))
    return make_flow(fn, cast("dict[str, Any]", options))


class FlowDecorator:
    """`@flow(...)` with options, waiting for its function."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Never], /) -> Flow[P, Any]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncFlow[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Flow[P, R]: ...
    def __call__(self, fn: Any, /) -> Any:
        return make_flow(fn, self._options)


def make_flow(fn: Any, options: dict[str, Any]) -> FlowDefinition[Any]:
    """The flow of a function, of the class that fits its kind."""
    plain = plain_function(fn)
    if isinstance(plain, Definition):
        raise OptionError(f"{plain!r} is decorated already; use with_options(...) to change its options")
    refuse_unusable("flow", plain)
    is_async, _ = colour_of(plain)
    return (AsyncFlow[Any, Any] if is_async else Flow[Any, Any])(fn, options)
