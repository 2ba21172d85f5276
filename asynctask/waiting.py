"""The one file that sleeps, waits, times out and calls user code.

1. The engine suspends only through a port. `Loop` never blocks its thread; `Blocking` never suspends, so that
   `drive` can run the whole life of a run with one `send`.
2. `Blocking` refuses (BlockingWaitError) to wait on a thread whose event loop would have to do the work.
3. Bodies in threads, and what a thread blocks on, are in `bodies`.
4. Clocks are handed in; a virtual one is moved forward instead of slept on.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio

from . import loops
from .bodies import Body, block_on, call_body, call_within, collect_async, timed_out, uninterrupted
from .errors import AsyncTaskError, BlockingWaitError
from .hooks import Afterwards, log_hook
from .limits import Limits, Slots
from .options import Hook
from .runs import Run, current_run
from .settings import settings
from .states import State
from .stores.base import Store

if TYPE_CHECKING:
    import random  # 1 ms at import; a runtime imports it when it is made

logger = logging.getLogger("asynctask")

T = TypeVar("T")


class Services:
    """What a port works with: the store with its limits, the dice and the executors of one runtime."""

    def __init__(self, store: Store, source: random.Random, executor: Callable[[Run], Executor]) -> None:
        self.store = store
        self.limits: Limits = store.limits
        self.random = source
        self.executor = executor
        #: Interrupted bodies that have not ended yet.
        self.abandoned: set[Body] = set()
        self.afterwards = Afterwards()


class Group(Protocol):
    """Something that is empty at some time: the children of a scope."""

    def is_empty(self) -> bool: ...

    def when_empty(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, from any thread, when it is empty; at once if it is."""
        ...


class Port(Protocol):
    """How a run waits and how its body is called."""

    services: Services
    is_async: bool

    def call(self, run: Run) -> Any:
        """Run the body once, within its timeout: an awaitable of the value if `is_async`, else the value.

        Raises what the body raises, or `TaskTimeoutError`.
        """
        ...

    async def ask(self, question: Awaitable[T]) -> T:
        """What a store answers."""
        ...

    async def sleep(self, run: Run, seconds: float) -> None: ...

    async def until_settled(self, run: Run) -> None: ...

    async def until_empty(self, group: Group, seconds: float | None = None) -> bool:
        """Wait until nothing in `group` is under way, at most `seconds`; False if the time is up."""
        ...

    async def until_empty_shielded(self, group: Group) -> None:
        """The same for the cancelled path: goes on waiting when it is cancelled."""
        ...

    async def until_granted(self, slots: Slots) -> None: ...

    async def call_hooks(self, hooks: Iterable[Hook], run: Run, state: State) -> None: ...

    def call_hooks_now(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        """The same for a run that is being cancelled and may not wait."""
        ...

    async def call_user(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the user's that may be sync or async."""
        ...

    async def step(self, run: Run, step: Callable[[], Any], left: float | None) -> Any:
        """Advance a generator's body by one step, within `left` seconds."""
        ...


class Loop:
    """Waits on an event loop, asyncio's or trio's."""

    is_async = True

    def __init__(self, services: Services) -> None:
        self.services = services

    def call(self, run: Run) -> Awaitable[Any]:
        spec = run.spec
        if not spec.is_async:
            return self._call_in_executor(run)
        # For a plain body, no coroutine of ours between the engine and the body.
        body = collect_async(run) if spec.is_generator else spec.body(*run.args, **run.kwargs)
        return body if spec.options.timeout is None else self._call_in_time(run, body, spec.options.timeout)

    async def _call_in_time(self, run: Run, body: Awaitable[Any], timeout: float) -> Any:
        try:
            with in_time(timeout):
                return await body
            raise timed_out(run)
        finally:
            del run, body  # the traceback of what the body raises leads to this frame; see `execute`

    async def _call_in_executor(self, run: Run) -> Any:
        body = Body(run)
        timeout = run.spec.options.timeout
        loop = loops.here()
        started = None if timeout is None else loop.waker()
        ended = loop.waker()
        if started is not None:
            body.on_start = started.wake
        run.blocker = "a free thread"
        future = self.services.executor(run).submit(loops.context_for_thread().run, body)
        future.add_done_callback(lambda _: ended.wake())
        if started is not None:  # an executor that is shut down may drop what it has not begun
            future.add_done_callback(lambda _: started.wake())
        try:
            if timeout is None or started is None:
                await ended.wait()
            else:
                # Waiting for a free thread is not part of the attempt, so the time counts from the body's start.
                await started.wait()
                with in_time(timeout):
                    await ended.wait()
                if not future.done():
                    self._interrupt(body)
                    raise timed_out(run)
        except BaseException:
            if not future.done() and not future.cancel():
                self._interrupt(body)
            raise
        return future.result()

    def _interrupt(self, body: Body) -> None:
        abandoned = self.services.abandoned
        if body.interrupt(on_end=lambda: abandoned.discard(body)):
            abandoned.add(body)
            if not body.is_in_thread:  # it ended between the two lines above
                abandoned.discard(body)

    async def ask(self, question: Awaitable[T]) -> T:
        return await question

    async def sleep(self, run: Run, seconds: float) -> None:
        clock = run.journal.clock
        if clock.is_virtual:
            clock.advance(seconds)
            await anyio.lowlevel.checkpoint()
            return
        await anyio.sleep(seconds)

    async def until_settled(self, run: Run) -> None:
        waker = loops.here().waker()
        run.when_settled(waker.wake)
        try:
            await waker.wait()
        finally:
            run.forget(waker.wake)

    async def until_empty(self, group: Group, seconds: float | None = None) -> bool:
        if group.is_empty():
            return True
        with anyio.move_on_after(seconds):
            while not group.is_empty():  # again, for what was added in the moment between the wake-up and this
                await self._empty(group)
        return group.is_empty()

    async def until_empty_shielded(self, group: Group) -> None:
        later: BaseException | None = None
        while not group.is_empty():
            # anyio's shield does not keep out a native `asyncio.Task.cancel()`; whoever cancels twice waits as well,
            # as in asyncio.TaskGroup. The cancellation goes on afterwards: the flow may be ending for another reason.
            try:
                with anyio.CancelScope(shield=True):
                    await self._empty(group)
            except anyio.get_cancelled_exc_class() as error:  # deliberate: raised once the group is empty
                later = error
        if later is not None:
            try:
                raise later
            finally:
                del later  # its traceback leads here

    async def _empty(self, group: Group) -> None:
        waker = loops.here().waker()
        group.when_empty(waker.wake)
        await waker.wait()

    async def until_granted(self, slots: Slots) -> None:
        waker = loops.here().waker()
        self.services.limits.when_granted(slots, waker.wake)
        await waker.wait()

    async def call_hooks(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        for hook in hooks:
            try:
                made = hook(run.spec.task, run, state)
                if inspect.isawaitable(made):
                    await made
            except Exception:
                log_hook(hook, run, state)

    def call_hooks_now(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        for hook in hooks:
            try:
                made = hook(run.spec.task, run, state)
            except Exception:
                log_hook(hook, run, state)
                continue
            if inspect.isawaitable(made):
                self._afterwards(hook, made, run, state)

    def _afterwards(self, hook: Hook, made: Awaitable[Any], run: Run, state: State) -> None:
        """Let an async hook of a cancelled run go on in a child of its own, which the runtime waits for."""

        loop = loops.here()
        work = self.services.afterwards.go_on(hook, made, run, state, loop)
        if loop.begins_early:
            work.send(None)
        if loop.start(work, contextvars.copy_context()) is None:
            work.close()
            self.services.afterwards.leave()

    async def call_user(self, function: Callable[..., Any], *args: Any) -> Any:
        made = function(*args)
        return await made if inspect.isawaitable(made) else made

    async def step(self, run: Run, step: Callable[[], Any], left: float | None) -> Any:
        if left is None:
            return await step()
        try:
            with in_time(left):
                return await step()
            raise timed_out(run)
        finally:
            del run, step


class in_time:
    """`anyio.move_on_after`, for the code of a run.

    A timer of asyncio has a copy of the context in which it was made, and may be kept, though it is cancelled, until
    its time comes; so it is made in a context that does not lead to the run and its value.
    """

    __slots__ = ("_scope",)

    def __init__(self, seconds: float) -> None:
        self._scope = anyio.move_on_after(seconds)

    def __enter__(self) -> None:
        token = current_run.set(None)
        try:
            self._scope.__enter__()
        finally:
            current_run.reset(token)

    def __exit__(self, *error: Any) -> bool:
        return self._scope.__exit__(*error)


class Blocking:
    """Waits by blocking the current thread; its coroutines never suspend."""

    is_async = False

    def __init__(self, services: Services) -> None:
        self.services = services

    def call(self, run: Run) -> Any:
        spec = run.spec
        start = time.monotonic()
        try:
            if spec.options.timeout is not None:
                return call_within(run, spec.options.timeout, partial(call_body, run))
            return call_body(run) if spec.is_generator else spec.body(*run.args, **run.kwargs)
        finally:
            taken = time.monotonic() - start
            if taken > 0.001:
                _warn_of_blocking(run, taken)
            del run  # the traceback of what the body raised leads to this frame; see `execute`

    async def ask(self, question: Awaitable[T]) -> T:
        with loops.blocking():
            return await question

    async def sleep(self, run: Run, seconds: float) -> None:
        clock = run.journal.clock
        if clock.is_virtual:
            clock.advance(seconds)
            return
        block_on(threading.Event(), seconds)
        _warn_of_blocking(run, seconds)

    async def until_settled(self, run: Run) -> None:
        block_until_settled(run, None, f"use `await task.submit(...)`, or await {run.name!r} before this call")

    async def until_empty(self, group: Group, seconds: float | None = None) -> bool:
        end = None if seconds is None else time.monotonic() + seconds
        while not group.is_empty():
            ready = threading.Event()
            group.when_empty(ready.set)
            if not block_on(ready, None if end is None else max(0.0, end - time.monotonic())):
                break
        return group.is_empty()

    async def until_empty_shielded(self, group: Group) -> None:
        await self.until_empty(group)

    async def until_granted(self, slots: Slots) -> None:
        if loops.current_loop() is not None:
            raise BlockingWaitError(
                f"run {slots.run.name!r} would block the event loop to wait for a slot "
                f"({self.services.limits.describe(slots)}); write `await {slots.run.spec.name}.submit(...)` instead"
            )
        ready = threading.Event()
        self.services.limits.when_granted(slots, ready.set)
        block_on(ready)

    async def call_hooks(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        self.call_hooks_now(hooks, run, state)

    def call_hooks_now(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        for hook in hooks:
            try:
                made = hook(run.spec.task, run, state)
                if inspect.iscoroutine(made):
                    _run_coroutine(made)
            except Exception:
                log_hook(hook, run, state)

    async def call_user(self, function: Callable[..., Any], *args: Any) -> Any:
        made = function(*args)
        return _run_coroutine(made) if inspect.iscoroutine(made) else made

    async def step(self, run: Run, step: Callable[[], Any], left: float | None) -> Any:
        try:
            return step() if left is None else call_within(run, left, step)
        finally:
            del run, step


def _warn_of_blocking(run: Run, seconds: float) -> None:
    """Say so if `run` has kept this thread, and the event loop in it, for long."""
    if seconds > settings.values.blocking_warning_seconds and loops.current_loop() is not None:
        kind, name = run.spec.what.capitalize(), run.spec.name
        advice = "make it async, or call it in a thread" if run.spec.is_flow else f"await {name}.submit(...)"
        logger.warning("%s %r blocked the event loop for %.2f s; %s", kind, name, seconds, advice)


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never suspends: the whole life of a blocking run, in one `send`."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AsyncTaskError("the engine suspended inside a blocking run; this is a defect of asynctask")


def block_until_settled(run: Run, timeout: float | None, instead: str) -> bool:
    """Block this thread until `run` is settled, at most `timeout` seconds. False if it is not.

    Raises `BlockingWaitError` where this thread's event loop is the one that must run it.
    """
    if run.is_settled:
        return True
    refuse_to_hang(run, instead)
    ready = threading.Event()
    run.when_settled(ready.set)
    try:
        return block_on(ready, timeout)
    finally:
        run.forget(ready.set)


def refuse_to_hang(run: Run, instead: str) -> None:
    """Raise `BlockingWaitError` if a blocking wait for `run` in this thread could only hang."""
    if run.home is not None and run.home.is_here():
        raise BlockingWaitError(
            f"waiting for run {run.name!r} here would block the event loop that has to run it; {instead}"
        )


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine of the user's from blocking code: on a loop of its own, in a thread if this one has a loop."""
    loop = loops.current_loop()
    if loop is None:
        with uninterrupted():  # half a loop would leave its sockets open
            return anyio.run(_as_coroutine, coroutine)
    box: list[Any] = []
    context = loops.context_for_thread()

    def work() -> None:
        try:
            box.append((anyio.run(_as_coroutine, coroutine, backend=loop.backend), None))
        except BaseException as error:  # deliberate: handed to the thread that waits below
            box.append((None, error))

    thread = threading.Thread(target=context.run, args=(work,), name="asynctask-hook")
    with uninterrupted():
        thread.start()
        thread.join()
    value, error = box[0]
    if error is not None:
        raise error
    return value


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
