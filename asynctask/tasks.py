"""`@task` and what it makes of a function: a `Task`, `AsyncTask`, `GeneratorTask` or `AsyncGeneratorTask`.

Four classes, because each is called, submitted and awaited with other types, and one class with self-typed overloads
is inferred wrongly by type checkers. Everything they do is done by the engine and by scopes.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from contextvars import ContextVar
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack, cast, overload

import msgspec

from . import inputs
from .annotations import allow_failure
from .bodies import GENERATORS
from .engine import NEED_CARE, execute, stream
from .errors import BlockingWaitError, OptionError
from .futures import TaskFuture, TaskFutureList, lending
from .logging import route_prints
from .options import Around, Hook, TaskOptions, check_options
from .retries import exponential_backoff as exponential_backoff
from .runs import Handle, Run, current_run, current_tags
from .scopes import Scope, runtime_here
from .settings import settings
from .specs import TaskSpec, colour_of, make_spec, name_of, plain_function, refuse_unusable, unwrapped
from .states import PENDING, State
from .streams import Stream, Window
from .waiting import block_until_settled, drive

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
Y = TypeVar("Y")
H = TypeVar("H", bound=Hook)


#: Shared by all runs without keyword arguments: nobody writes to it, and 100,000 runs keep no empty dicts.
NO_KWARGS: dict[str, Any] = {}


class Definition(Generic[P]):
    """A decorated function: what tasks and flows have in common."""

    what = "task"

    def __init__(self, fn: Any, given: dict[str, Any], bound: tuple[Any, ...] = ()) -> None:
        self._function = fn
        self._given = given
        self._bound = bound
        plain = plain_function(fn)
        values = settings.values
        default = values.flow_default_retries if self.what == "flow" else values.task_default_retries
        options = check_options(self.what, name_of(plain), given, default_retries=default)
        if options.tags:  # kept as read: an iterator could not be read again by `with_options`
            self._given = {**given, "tags": options.tags}
        spec = make_spec(self.what, plain, options)
        spec.task = self
        spec.body = around_body(spec, options.around)
        self.spec: TaskSpec = spec
        functools.update_wrapper(cast("Any", self), plain, updated=())
        self.fn: Callable[..., Any] = plain
        mark = getattr(inspect, "markcoroutinefunction", None)  # from Python 3.12 on
        if mark is not None and spec.is_async and not spec.is_generator:
            mark(self)  # so that web frameworks, which ask, await what a call gives
        self.__isabstractmethod__ = bool(getattr(plain, "__isabstractmethod__", False))
        if options.log_prints or values.logging_log_prints:
            route_prints()

    @property
    def name(self) -> str:
        return self.spec.options.name

    @property
    def description(self) -> str | None:
        return self.spec.options.description or inspect.getdoc(unwrapped(self.fn))

    @property
    def version(self) -> str | None:
        return self.spec.options.version

    @property
    def tags(self) -> frozenset[str]:
        return self.spec.options.tags

    def _with(self, changes: dict[str, Any]) -> Self:
        return type(self)(self._function, {**self._given, **changes}, self._bound)

    def _bind(self, instance: object, owner: type | None) -> Any:
        """This task with `self` or `cls` as its first argument; the shared one is never written to."""
        if isinstance(self._function, staticmethod):
            return self
        if isinstance(self._function, classmethod):
            instance = owner
        if instance is None or not hasattr(self.fn, "__get__") or isinstance(self.fn, MethodType):
            return self  # taken from the class; or what would not bind as a plain attribute either (a builtin, say)
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound._bound = (instance, *self._bound)
        return bound

    def _new_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        spec = self.spec
        if self._bound:
            args = self._bound + args
        if kwargs or not spec.least <= len(args) <= spec.most:
            spec.check_call(args, kwargs)
        tags = current_tags.get()
        tags = spec.options.tags if tags is None else spec.options.tags | tags
        parent = current_run.get()
        if parent is None or (scope := parent.inside) is None:
            root = runtime_here().root
            journal = root.journal
            now = journal.now()
            number = journal.new_id(now)
            states = (State(PENDING, "Pending", now),)
            return Run(
                spec, number, states, tags, None, None, None, None, args, kwargs or NO_KWARGS, journal, None, None, root
            )  # fmt: skip
        journal = parent.journal
        now = journal.now()
        flow = parent if parent.spec.is_flow else parent.flow
        return Run(
            spec, journal.new_id(now), (State(PENDING, "Pending", now),), tags, parent.number,
            None if flow is None else flow.number, None, None, args, kwargs or NO_KWARGS, journal, parent, flow, scope,
        )  # fmt: skip

    def _special_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Run, bool]:
        """A run for a call that has `wait_for` or `return_state` among its keywords, and whether the latter is set."""
        return_state = bool(kwargs.pop("return_state", False))
        wait_for = self._checked_wait_for(kwargs.pop("wait_for", None))
        run = self._new_run(args, kwargs)
        run.wait_for = wait_for
        return run, return_state

    def _checked_wait_for(self, wait_for: object) -> tuple[Any, ...]:
        if wait_for is None:
            return ()
        if isinstance(wait_for, (Handle, State)):  # a future is iterable (over what it yields), which is not meant
            return (wait_for,)
        if isinstance(wait_for, (str, bytes)) or not isinstance(wait_for, Iterable):
            raise OptionError(
                f"{self.what} {self.name!r}: wait_for must be a list of futures or states, not {wait_for!r}"
            )
        return tuple(wait_for)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]

    def _add_hook(self, option: str, hook: H) -> H:
        shared = self.spec.task
        if shared is not self:  # bound, and so made anew at each look-up
            if not isinstance(self._bound[0], type):
                raise OptionError(
                    f"{self.what} {self.name!r}: a hook cannot be added to the method of one instance, only to the "
                    f"class's (Class.{self.name}.{option}); for one instance, keep what with_options({option}=...) "
                    f"gives"
                )
            shared._add_hook(option, hook)
            return hook
        hooks = [*getattr(self.spec.options, option), hook]
        options = check_options(self.what, self.name, {option: hooks}, default_retries=0)
        self._given = {**self._given, option: hooks}
        self.spec.options = msgspec.structs.replace(self.spec.options, **{option: getattr(options, option)})
        return hook

    def on_running(self, hook: H) -> H:
        """Decorator: call `hook(task, run, state)` when an attempt starts, before the body."""
        return self._add_hook("on_running", hook)

    def on_completion(self, hook: H) -> H:
        """Decorator: call `hook(task, run, state)` when a run completes."""
        return self._add_hook("on_completion", hook)

    def on_failure(self, hook: H) -> H:
        """Decorator: call `hook(task, run, state)` when a run has failed and is not tried again."""
        return self._add_hook("on_failure", hook)

    def on_cancellation(self, hook: H) -> H:
        """Decorator: call `hook(task, run, state)` when a run was cancelled."""
        return self._add_hook("on_cancellation", hook)

    def on_crashed(self, hook: H) -> H:
        """Decorator: call `hook(task, run, state)` when a run was ended by an interrupt, an exit or a lost worker."""
        return self._add_hook("on_crashed", hook)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class TaskDefinition(Definition[P]):
    """What the four kinds of task have in common: submitting, in all forms."""

    @property
    def task_key(self) -> str:
        """A stable hash of name and qualified name."""
        return self.spec.key

    @property
    def retries(self) -> int | None:
        return self.spec.options.retries

    @property
    def timeout_seconds(self) -> float | None:
        return self.spec.options.timeout

    def with_options(self, **options: Unpack[TaskOptions]) -> Self:
        """A copy with the named options replaced; None clears one. Raises `OptionError` as the decorator does."""
        return self._with(cast("dict[str, Any]", options))

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any], wait_for: object) -> TaskFuture[Any]:
        return_state = kwargs.pop("return_state", False) if kwargs else False
        run = self._new_run(args, kwargs)
        if wait_for is not None:
            run.wait_for = self._checked_wait_for(wait_for)
        scope: Scope = run.inside
        future = scope.submit(run)
        return cast("Any", future.wait()) if return_state else future

    def _map(self, args: tuple[Any, ...], kwargs: dict[str, Any], wait_for: object) -> TaskFutureList[Any]:
        return_state = kwargs.pop("return_state", False)
        upstream = self._checked_wait_for(wait_for)  # once: an iterator serves every run
        for future in inputs.mapped_futures(args, kwargs):
            try:
                with lending():
                    block_until_settled(future.run, None, "await the future first, then map over its value")
            except BlockingWaitError as error:
                raise BlockingWaitError(f"task {self.name!r}: map() over a future: {error}") from None
            upstream = (*upstream, allow_failure(future))  # so that each run knows where its element came from
        calls = inputs.spread(self.name, args, kwargs)
        futures = TaskFutureList(self._submit(*call, upstream) for call in calls)
        return cast("Any", futures.wait()) if return_state else futures

    def _stream(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        concurrency: int,
        ordered: bool,
        return_exceptions: bool,
    ) -> AsyncIterator[Any]:
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(
                f"task {self.name!r}: stream(concurrency=...) must be a number from 1, not {concurrency!r}"
            )
        if not isinstance(source, (Iterable, AsyncIterable)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"task {self.name!r}: stream() needs an iterable or async iterable, not {source!r}")
        window = Window(lambda value: self._submit((value,), {}, None), source, concurrency, ordered)
        return Stream(window, return_exceptions)


class Task(TaskDefinition[P], Generic[P, R]):
    """A task whose function is plain: `t(x)` runs in this thread and returns the value."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run now, in this thread; the value, or with `return_state=True` the final `State`."""
        if kwargs and ("return_state" in kwargs or "wait_for" in kwargs):
            return self._call_specially(args, kwargs)  # type: ignore[no-any-return]
        run = self._new_run(args, kwargs)
        try:
            return drive(execute(run, run.inside.runtime.blocking_port))  # type: ignore[no-any-return]
        finally:
            del run  # the traceback of what the body raises leads to this frame; see `execute`

    def _call_specially(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return driven(*self._special_run(args, kwargs))

    @overload
    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...
    @overload
    def submit(self, /, *args: Any, wait_for: Iterable[Any] | None = ..., **kwargs: Any) -> TaskFuture[R]: ...
    def submit(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFuture[R]:
        """Start a run beside the caller, on a thread, and return its future at once.

        Futures and states among the arguments are waited for first; so is `wait_for`, without passing data.
        `return_state=True` blocks until the run is over and gives its final `State`, for scripts that want it here too.
        """
        return self._submit(args, kwargs, wait_for)

    def map(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFutureList[R]:
        """Submit one run per element of the iterable arguments; `unmapped(v)`, strings and bytes are passed to all."""
        return self._map(args, kwargs, wait_for)

    def stream(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int,
        ordered: bool = False,
        return_exceptions: bool = False,
    ) -> AsyncIterator[R]:
        """Results over an input of any length, at most `concurrency` runs in flight (results not yet taken included).

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


class AsyncTask(TaskDefinition[P], Generic[P, R]):
    """A task whose function is async: `await t(x)`."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """A coroutine that runs the task here and gives its value, or with `return_state=True` its final `State`."""
        if kwargs and ("return_state" in kwargs or "wait_for" in kwargs):
            return self._call_specially(args, kwargs)
        run = self._new_run(args, kwargs)
        return execute(run, run.inside.runtime.loop_port)

    def _call_specially(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        run, return_state = self._special_run(args, kwargs)
        work = execute(run, run.inside.runtime.loop_port)
        return _final_state(run, work) if return_state else work

    @overload
    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...
    @overload
    def submit(self, /, *args: Any, wait_for: Iterable[Any] | None = ..., **kwargs: Any) -> TaskFuture[R]: ...
    def submit(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFuture[R]:
        """Start a run beside the caller, on the event loop, and return its future at once; see `Task.submit`."""
        return self._submit(args, kwargs, wait_for)

    def map(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFutureList[R]:
        """Submit one run per element of the iterable arguments; see `Task.map`."""
        return self._map(args, kwargs, wait_for)

    def stream(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int,
        ordered: bool = False,
        return_exceptions: bool = False,
    ) -> AsyncIterator[R]:
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


class GeneratorTask(TaskDefinition[P], Generic[P, Y]):
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

    def submit(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFuture[list[Y]]:
        """Run the generator beside the caller, on a thread; the future can be iterated over while it runs."""
        return self._submit(args, kwargs, wait_for)

    def map(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFutureList[list[Y]]:
        """Submit one run per element of the iterable arguments; see `Task.map`."""
        return self._map(args, kwargs, wait_for)

    @overload
    def __get__(self, instance: None, owner: type) -> GeneratorTask[P, Y]: ...
    @overload
    def __get__(
        self: GeneratorTask[Concatenate[Any, Q], Y], instance: object, owner: type | None = None
    ) -> GeneratorTask[Q, Y]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bind(instance, owner)


class AsyncGeneratorTask(TaskDefinition[P], Generic[P, Y]):
    """A task whose function is an async generator: `async for value in t(x)`."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Y, Any]:
        """An async iterator over the values; the run is Running while it yields."""
        run, return_state = self._special_run(args, kwargs)
        port = run.inside.runtime.loop_port
        if return_state:
            return _final_state(run, execute(run, port))  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
        return stream(run, port)

    def submit(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFuture[list[Y]]:
        """Run the generator beside the caller; the future can be iterated over while it runs."""
        return self._submit(args, kwargs, wait_for)

    def map(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFutureList[list[Y]]:
        """Submit one run per element of the iterable arguments; see `Task.map`."""
        return self._map(args, kwargs, wait_for)

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncGeneratorTask[P, Y]: ...
    @overload
    def __get__(
        self: AsyncGeneratorTask[Concatenate[Any, Q], Y], instance: object, owner: type | None = None
    ) -> AsyncGeneratorTask[Q, Y]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bind(instance, owner)


def driven(run: Run, return_state: bool) -> Any:
    """Execute a run in this thread: its value, or its final state."""
    try:
        work = execute(run, run.inside.runtime.blocking_port)
        if not return_state:
            return drive(work)
        try:
            drive(work)
        except Exception:
            if not run.is_settled:
                raise
        return run.state
    finally:
        del run  # as in Task.__call__


async def _final_state(run: Run, work: Coroutine[Any, Any, Any]) -> State:
    try:
        await work
    except Exception:
        if not run.is_settled:
            raise
    return run.state


class GeneratorRun(Generator[Any, Any, Any]):
    """A sync generator task's run, driven step by step in the thread that asks for the next value."""

    def __init__(self, run: Run, steps: AsyncGenerator[Any, Any]) -> None:
        self._run: Run | None = run
        self._steps = steps

    def __next__(self) -> Any:
        return self._drive(self._steps.__anext__())

    def send(self, value: Any) -> Any:
        return self._drive(self._steps.asend(value))

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        error = typ if isinstance(typ, BaseException) else typ() if val is None else val
        return self._drive(self._steps.athrow(error))

    def close(self) -> None:
        self._drive(self._steps.aclose())

    def __del__(self) -> None:
        self.close()

    def _drive(self, step: Any) -> Any:
        # These hooks are for loops that own async generators; this one belongs to nobody's loop.
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)
        try:
            return drive(step)
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


def around_body(spec: TaskSpec, around: tuple[Around, ...]) -> Callable[..., Any]:
    """The function with the user's `around` wrapped about it, the first one outermost; composed once."""
    fn = spec.fn
    if not around:
        return fn
    if spec.is_generator:
        raise OptionError(f"task {spec.name!r}: option 'around' cannot be used with a generator")
    if not spec.is_async:
        for wrapper in around:
            if inspect.iscoroutinefunction(wrapper):
                raise OptionError(
                    f"task {spec.name!r}: option 'around' has the async function {name_of(wrapper)!r}, "
                    f"but the task is sync; make the one fit the other"
                )

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inner: Callable[[], Any] = functools.partial(fn, *args, **kwargs)
        run = current_run.get()
        for wrapper in reversed(around):
            inner = functools.partial(wrapper, inner, run)
        return inner()

    def sync_body(*args: Any, **kwargs: Any) -> Any:
        return call(args, kwargs)

    async def async_body(*args: Any, **kwargs: Any) -> Any:
        made = call(args, kwargs)
        return await made if inspect.isawaitable(made) else made

    return async_body if spec.is_async else sync_body


# A coroutine or generator is also a plain value, so the overloads overlap on purpose: the first that fits is right.
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
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, fn: Callable[P, AsyncGenerator[Y, Any]], /) -> AsyncGeneratorTask[P, Y]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, Generator[Y, Any, Any]], /) -> GeneratorTask[P, Y]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    def __call__(self, fn: Any, /) -> Any:
        return make_task(fn, self._options)


def make_task(fn: Any, options: dict[str, Any]) -> TaskDefinition[Any]:
    """The task of a function, of the class that fits its kind."""
    plain = plain_function(fn)
    if isinstance(plain, Definition):
        raise OptionError(f"{plain!r} is decorated already; use with_options(...) to change its options")
    refuse_unusable("task", plain)
    is_async, is_generator = colour_of(plain)
    if is_generator:
        return AsyncGeneratorTask[Any, Any](fn, options) if is_async else GeneratorTask[Any, Any](fn, options)
    return AsyncTask[Any, Any](fn, options) if is_async else Task[Any, Any](fn, options)


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
