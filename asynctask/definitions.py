"""A decorated function, before its kind matters: options, binding, hooks, new runs; submitting, for tasks.

`tasks` and `flows` make of it what people call.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, Unpack, cast, overload

import msgspec

from . import inputs
from .annotations import allow_failure
from .blocking import block_until_settled, drive
from .engine import execute
from .errors import BlockingWaitError, OptionError
from .futures import TaskFuture, TaskFutureList
from .late import late
from .lending import lending
from .logging import route_prints
from .options import Around, Hook, TransactionHook, check_options
from .redact import shown
from .runs import NO_KWARGS, Handle, Run, are_small, current_batch, current_run, current_tags
from .scopes import Scope, runtime_here
from .settings import settings
from .specs import TaskSpec, make_spec, name_of, plain_function, unwrapped
from .states import PENDING, State
from .streams import Stream, Window

if TYPE_CHECKING:
    from .keywords import TaskOptions

P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Hook)
T = TypeVar("T", bound=TransactionHook)
K = TypeVar("K", bound=Callable[..., Any])


#: Options that need more than the engine, which is imported when somebody uses one of them: it takes 10 ms.
KEEPING = (
    "cache_policy", "cache_key_fn", "persist_result", "result_storage", "result_storage_key", "result_serializer",
    "on_commit", "on_rollback",
)  # fmt: skip


def keep_results(spec: TaskSpec) -> None:
    """Have the results of a task looked up and kept. Raises `OptionError` for options that cannot be."""
    late("results").prepare(spec)


class _BoundSignature:
    """What `inspect.signature` asks for first: of a task that is bound, the parameters that a caller has to give.

    Where there is none, as for every other, it asks the function.
    """

    def __get__(self, definition: Definition[Any] | None, owner: type) -> inspect.Signature:
        if definition is None or not definition._bound:  # pyright: ignore[reportPrivateUsage]
            raise AttributeError("__signature__")
        signature = definition.spec.signature
        given = len(definition._bound)  # pyright: ignore[reportPrivateUsage]
        first = next(iter(signature.parameters.values()), None)
        if first is None or first.kind is first.VAR_POSITIONAL:
            return signature
        return signature.replace(parameters=list(signature.parameters.values())[given:])


class Definition(Generic[P]):
    """A decorated function: what tasks and flows have in common."""

    what = "task"
    __signature__ = _BoundSignature()

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
        if given.get("result_serializer") is not None or any(given.get(option) for option in KEEPING):
            keep_results(spec)
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
    def _is_coroutine(self) -> object:
        """The mark that `asyncio.iscoroutinefunction` looks for, by which web frameworks judge before Python 3.12."""
        is_coroutine = self.spec.is_async and not self.spec.is_generator
        return getattr(sys.modules.get("asyncio.coroutines"), "_is_coroutine", None) if is_coroutine else None

    def __eq__(self, other: object) -> bool:
        """The same method of the same object is equal each time that it is looked up, as Python's own methods are."""
        if self is other or not isinstance(other, Definition):
            return self is other
        mine, others = self._bound, other._bound
        is_of_same = self.spec is other.spec and len(mine) == len(others) > 0
        return is_of_same and all(one is another for one, another in zip(mine, others, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(map(object.__hash__, (self.spec, *self._bound)))) if self._bound else object.__hash__(self)

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
            spec.parameters(args, kwargs)  # raises if they do not fit; the common case cost a comparison
        is_small = not kwargs and (not args or are_small(args))
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
                spec, number, states, tags, None, None, None, None, args, kwargs or NO_KWARGS,
                None, journal,
                # One that is over may have a body on its way out, whose slots may be lent.
                parent if parent is not None and (parent.slots or parent.guards) else None, None, root, is_small,
            )  # fmt: skip
        journal = parent.journal
        now = journal.now()
        flow = parent if parent.spec.is_flow else parent.flow
        return Run(
            spec, journal.new_id(now), (State(PENDING, "Pending", now),), tags, parent.number,
            None if flow is None else flow.number, None, None, args, kwargs or NO_KWARGS, None,
            journal, parent, flow, scope, is_small,
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
                f"{self.what} {self.name!r}: wait_for must be a list of futures or states, not {shown(wait_for)}"
            )
        return tuple(wait_for)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]

    def _add_hook(self, option: str, hook: K) -> K:
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
        if option in KEEPING:
            keep_results(self.spec)
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

    def on_commit(self, hook: T) -> T:
        """Decorator: call `hook(txn)` when the transaction that a run is in is committed; alone, when it completes."""
        return self._add_hook("on_commit", hook)

    def on_rollback(self, hook: T) -> T:
        """Decorator: call `hook(txn)` when the transaction that a run is in is rolled back; alone, when it fails."""
        return self._add_hook("on_rollback", hook)

    def on_crashed(self, hook: H) -> H:
        """Decorator: call `hook(task, run, state)` when a run was ended by an interrupt, an exit or a lost worker."""
        return self._add_hook("on_crashed", hook)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class TaskDefinition(Definition[P], Generic[P, R]):
    """What the four kinds of task have in common: submitting, in all forms. A submitted run gives an `R`."""

    @property
    def task_key(self) -> str:
        """A stable hash of name and qualified name."""
        return self.spec.key

    @property
    def retries(self) -> int | None:
        return self.spec.options.retries

    @property
    def retry_delay_seconds(self) -> float | list[float] | None:
        """Seconds before every retry, or a list of them whose last one repeats; what a function gave, too."""
        delays = self.spec.options.retry_delays
        return None if delays is None else delays[0] if len(delays) == 1 else list(delays)

    @property
    def isasync(self) -> bool:
        return self.spec.is_async

    @property
    def isgenerator(self) -> bool:
        return self.spec.is_generator

    @property
    def timeout_seconds(self) -> float | None:
        return self.spec.options.timeout

    def with_options(self, **options: Unpack[TaskOptions]) -> Self:
        """A copy with the named options replaced; None clears one. Raises `OptionError` as the decorator does."""
        return self._with(cast("dict[str, Any]", options))

    @overload
    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...
    @overload
    def submit(self, /, *args: Any, wait_for: Iterable[Any] | None = ..., **kwargs: Any) -> TaskFuture[R]: ...
    def submit(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFuture[R]:
        """Start a run beside the caller and return its future at once: on a thread, or if async on an event loop.

        Futures and states among the arguments are waited for first; so is `wait_for`, without passing data. The result
        of a generator is the list of its values; its future can be iterated over while it runs. `return_state=True`
        blocks until the run is over and gives its final `State`, for scripts that want it here too.
        """
        return_state = kwargs.pop("return_state", False) if kwargs else False
        run = self._new_run(args, kwargs)
        if wait_for is not None:
            run.wait_for = self._checked_wait_for(wait_for)
        scope: Scope = run.inside
        future = scope.submit(run)
        return cast("Any", future.wait()) if return_state else future

    def map(self, /, *args: Any, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> TaskFutureList[R]:
        """Submit one run per element of the iterable arguments; `unmapped(v)`, strings and bytes are passed to all.

        `batch_size=N` has N bodies sent to a worker process together, to be called there one after the other; without
        it, short ones are, as many as take some milliseconds. Each is still a run of its own. It says nothing where
        bodies run in this process, and is an ordinary argument of a task that has a parameter of that name.
        """
        return_state = kwargs.pop("return_state", False)
        batch_size = None if "batch_size" in self.spec.signature.parameters else kwargs.pop("batch_size", None)
        upstream = self._checked_wait_for(wait_for)  # once: an iterator serves every run
        for future in inputs.mapped_futures(args, kwargs):
            try:
                with lending(future.run):
                    block_until_settled(future.run, None, "await the future first, then map over its value")
            except BlockingWaitError as error:
                raise BlockingWaitError(f"task {self.name!r}: map() over a future: {error}") from None
            upstream = (*upstream, allow_failure(future))  # so that each run knows where its element came from
        calls = inputs.spread(self.name, args, kwargs)
        token = None if batch_size is None else current_batch.set((self.spec, self._checked_batch_size(batch_size)))
        try:
            futures = TaskFutureList(self._submitted(calls, upstream))
        finally:
            if token is not None:
                current_batch.reset(token)
        return cast("Any", futures.wait()) if return_state else futures

    def _submitted(
        self, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], wait_for: tuple[Any, ...]
    ) -> Iterator[TaskFuture[R]]:
        for args, kwargs in calls:
            run = self._new_run(args, kwargs)
            run.wait_for = wait_for
            scope: Scope = run.inside
            yield scope.submit(run)

    def _checked_batch_size(self, size: object) -> int:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(f"task {self.name!r}: map(batch_size=...) must be a number from 1, not {shown(size)}")
        return size

    def _stream(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        concurrency: int,
        ordered: bool,
        return_exceptions: bool,
    ) -> Stream[Any]:
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(
                f"task {self.name!r}: stream(concurrency=...) must be a number from 1, not {shown(concurrency)}"
            )
        if not isinstance(source, (Iterable, AsyncIterable)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"task {self.name!r}: stream() needs an iterable or async iterable, not {shown(source)}")
        window = Window(self._new_run, self.submit, source, concurrency, ordered)
        return Stream(window, return_exceptions)


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


async def final_state(run: Run, work: Coroutine[Any, Any, Any]) -> State:
    try:
        await work
    except Exception:
        if not run.is_settled:
            raise
    return run.state


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
