"""`@task` and what it makes of a function: a `Task`, `AsyncTask`, `GeneratorTask` or `AsyncGeneratorTask`.

Four classes, because each is called, submitted and awaited with other types, and one class with self-typed overloads
is inferred wrongly by type checkers. Everything they do is done by the engine and by scopes.
"""

from __future__ import annotations

import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Never, ParamSpec, TypeVar, Unpack, cast, overload

from .blocking import drive
from .bodies import GENERATORS
from .definitions import Definition, TaskDefinition, driven, final_state
from .endings import NEED_CARE
from .engine import execute, stream
from .errors import OptionError
from .late import late
from .retries import exponential_backoff as exponential_backoff
from .runs import Run, current_tags
from .specs import colour_of, plain_function, refuse_unusable
from .streams import Stream

if TYPE_CHECKING:
    from .keywords import TaskOptions

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
Y = TypeVar("Y")


class Task(TaskDefinition[P, R]):
    """A task whose function is plain: `t(x)` runs in this thread and returns the value."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run now, in this thread; the value, or with `return_state=True` the final `State`."""
        if kwargs and ("return_state" in kwargs or "wait_for" in kwargs):
            return driven(*self._special_run(args, kwargs))  # type: ignore[no-any-return]
        run = self._new_run(args, kwargs)
        try:
            return drive(execute(run, run.inside.runtime.blocking_port))  # type: ignore[no-any-return]
        finally:
            del run  # the traceback of what the body raises leads to this frame; see `execute`

    def stream(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int,
        ordered: bool = False,
        return_exceptions: bool = False,
    ) -> Stream[R]:
        """Results over an input of any length, at most `concurrency` runs in flight (results not yet taken included).

        For `async for`; in plain code, for `for`.

        The input is pulled only when there is room. A failure ends the stream, unless `return_exceptions=True`.
        Leaving the loop early cancels what is in flight and closes the input.
        """
        return self._stream(source, concurrency, ordered, return_exceptions)

    @overload
    def __get__(self, instance: None, owner: type) -> Task[P, R]: ...
    @overload
    def __get__(self: Task[Concatenate[Any, Q], R], instance: object, owner: type | None = None) -> Task[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bind(instance, owner)


class AsyncTask(TaskDefinition[P, R]):
    """A task whose function is async: `await t(x)`."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """A coroutine that runs the task here and gives its value, or with `return_state=True` its final `State`."""
        if kwargs and ("return_state" in kwargs or "wait_for" in kwargs):
            run, return_state = self._special_run(args, kwargs)
            work = execute(run, run.inside.runtime.loop_port)
            return final_state(run, work) if return_state else work  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
        run = self._new_run(args, kwargs)
        coroutine = execute(run, run.inside.runtime.loop_port)
        coroutine.__qualname__ = self.spec.options.name  # type: ignore[attr-defined]  # in "was never awaited"; 30 ns
        return coroutine

    def stream(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int,
        ordered: bool = False,
        return_exceptions: bool = False,
    ) -> Stream[R]:
        """Results over an input of any length, with bounded concurrency; see `Task.stream`."""
        return self._stream(source, concurrency, ordered, return_exceptions)

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncTask[P, R]: ...
    @overload
    def __get__(
        self: AsyncTask[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> AsyncTask[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bind(instance, owner)


class GeneratorTask(TaskDefinition[P, list[Y]], Generic[P, Y]):
    """A task whose function is a generator: `for value in t(x)`; submitted, its result is the list of values."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Generator[Y, Any, Any]:
        """An iterator over the values; the run is Running while it yields."""
        run, return_state = self._special_run(args, kwargs)
        if not return_state:
            return GeneratorRun(run, stream(run, run.inside.runtime.blocking_port))
        try:
            return driven(run, return_state)  # type: ignore[no-any-return]
        finally:
            del run  # as in Task.__call__

    @overload
    def __get__(self, instance: None, owner: type) -> GeneratorTask[P, Y]: ...
    @overload
    def __get__(
        self: GeneratorTask[Concatenate[Any, Q], Y], instance: object, owner: type | None = None
    ) -> GeneratorTask[Q, Y]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bind(instance, owner)


class AsyncGeneratorTask(TaskDefinition[P, list[Y]], Generic[P, Y]):
    """A task whose function is an async generator: `async for value in t(x)`."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Y, Any]:
        """An async iterator over the values; the run is Running while it yields."""
        run, return_state = self._special_run(args, kwargs)
        port = run.inside.runtime.loop_port
        if return_state:
            return final_state(run, execute(run, port))  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
        return stream(run, port)

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncGeneratorTask[P, Y]: ...
    @overload
    def __get__(
        self: AsyncGeneratorTask[Concatenate[Any, Q], Y], instance: object, owner: type | None = None
    ) -> AsyncGeneratorTask[Q, Y]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bind(instance, owner)


class GeneratorRun(Generator[Any, Any, Any]):
    """A sync generator task's run, driven step by step in the thread that asks for the next value.

    One that is dropped is closed by Python as any generator is: `stream` never suspends on the blocking port. It has no
    `__del__`, which could not even be entered at the bottom of an endless recursion.
    """

    def __init__(self, run: Run, steps: AsyncGenerator[Any, Any]) -> None:
        self._run: Run | None = run
        self._steps = steps

    def __next__(self) -> Any:
        return self._drive(self._steps.__anext__)

    def send(self, value: Any) -> Any:
        return self._drive(self._steps.asend, value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        error = typ if isinstance(typ, BaseException) else typ() if val is None else val
        return self._drive(self._steps.athrow, error)

    def close(self) -> None:
        self._drive(self._steps.aclose)

    def _drive(self, step: Callable[..., Any], *args: Any) -> Any:
        # These hooks are for loops that own async generators; this one belongs to nobody's loop. The step is made only
        # here, because making the first one calls the hooks.
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)
        try:
            return drive(step(*args))
        except StopAsyncIteration:
            run, self._run = self._run, None  # what the body returned is given once, for `yield from`
            raise StopIteration(None if run is None else run.value) from None
        except BaseException:
            self._run = None  # it is over; its error leads to this frame
            raise
        finally:
            sys.set_asyncgen_hooks(*hooks)


# A body may return the iterator of a generator task; it is consumed like a generator of Python's own.
GENERATORS.add(GeneratorRun)
NEED_CARE.add(GeneratorRun)


# A coroutine or generator is also a plain value, so the overloads overlap on purpose: the first that fits is right.
# `Never` is for functions that return Any, which would fit a coroutine as well: to pyright, they were async tasks.
@overload
def task(fn: Callable[P, Never], /) -> Task[P, Any]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
@overload
def task(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
@overload
def task(fn: Callable[P, AsyncGenerator[Y, Any]], /) -> AsyncGeneratorTask[P, Y]: ...  # type: ignore[overload-overlap]
@overload
def task(fn: Callable[P, Generator[Y, Any, Any]], /) -> GeneratorTask[P, Y]: ...  # type: ignore[overload-overlap]
@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(**options: Unpack[TaskOptions]) -> TaskDecorator: ...
def task(fn: Any = None, /, **options: Unpack[TaskOptions]) -> Any:
    """Make a task of a function: `@task`, `@task(retries=3, tags=["db"])` or `task(fn)`.

    Works on functions, coroutine functions, generators, async generators, callable objects and methods, with
    `@classmethod` or `@staticmethod` on either side. Raises `OptionError` at once for a wrong option, naming it.
    """
    if fn is None:
        return TaskDecorator(cast("dict[str, Any]", options))
    return make_task(fn, cast("dict[str, Any]", options))


class TaskDecorator:
    """`@task(...)` with options, waiting for its function."""

    def __init__(self, options: dict[str, Any]) -> None:
        tags = options.get("tags")
        if isinstance(tags, Iterator):  # it may decorate several functions
            options = {**options, "tags": list(tags)}  # pyright: ignore[reportUnknownArgumentType]
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Never], /) -> Task[P, Any]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, fn: Callable[P, AsyncGenerator[Y, Any]], /) -> AsyncGeneratorTask[P, Y]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, Generator[Y, Any, Any]], /) -> GeneratorTask[P, Y]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    def __call__(self, fn: Any, /) -> Any:
        return make_task(fn, self._options)


def make_task(fn: Any, options: dict[str, Any]) -> TaskDefinition[Any, Any]:
    """The task of a function, of the class that fits its kind."""
    plain = plain_function(fn)
    if isinstance(plain, Definition):
        raise OptionError(f"{plain!r} is decorated already; use with_options(...) to change its options")
    refuse_unusable("task", plain)
    is_async, is_generator = colour_of(plain)
    if is_generator:
        return AsyncGeneratorTask[Any, Any](fn, options) if is_async else GeneratorTask[Any, Any](fn, options)
    return AsyncTask[Any, Any](fn, options) if is_async else Task[Any, Any](fn, options)


def task_input_hash(context: Any, parameters: dict[str, Any]) -> str | None:
    """For `cache_key_fn`: a key of the task, its function's code and its arguments.

    None, so that the run is not cached, with a warning that names the argument, if one cannot be hashed.
    """
    key: str | None = late("cache_keys").task_input_hash(context, parameters)
    return key


class tags:
    """`with tags("a", "b"):` adds tags to every run started inside, here and in what those runs start."""

    def __init__(self, *names: str) -> None:
        for name in names:
            if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise OptionError(f"tags(...) takes strings that are not empty, not {name!r}")
        self._names = frozenset(names)

    def __enter__(self) -> frozenset[str]:
        before = current_tags.get()
        joined = self._names if before is None else self._names | before
        _tags_before.set((*_tags_before.get(), before))
        current_tags.set(joined)
        return joined

    def __exit__(self, *error: object) -> None:
        *rest, before = _tags_before.get()
        _tags_before.set(tuple(rest))
        current_tags.set(before)


#: What each enclosing `with tags(...)` block replaced. Not kept in the block's object, which may be shared: one
#: `production = tags("production")` is entered by many tasks and threads at once.
_tags_before: ContextVar[tuple[frozenset[str] | None, ...]] = ContextVar("asynctask_tags_before", default=())
