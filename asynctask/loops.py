"""The one file that tells asyncio from trio: which loop runs here, starting and cancelling children, waking.

1. Children are started natively (anyio's cost four times as much); everything else that waits goes through anyio.
2. `call_soon`, `cancel` and `Waker.wake` may be called from any thread; the rest on the loop itself.
3. A child never raises into its loop, except the loop's own cancellation.
4. A child that is cancelled before its first step learns of it like any other.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import anyio

if TYPE_CHECKING:
    import trio


Work: TypeAlias = "CoroutineType[Any, Any, Any]"


@coroutine
def begun() -> Generator[None, None, None]:
    """Suspends once.

    An asyncio task that is cancelled before its first step has that thrown into a coroutine that has not begun, of
    which no line is ever run. So our children are begun before asyncio has them, up to this point, and every
    cancellation finds them inside their `try`. (A done callback would tell as well, for 1 us a child.)
    """
    yield


class Waker(Protocol):
    """A one-shot wake-up: `wake` from any thread, `wait` on the loop that made it."""

    def wake(self) -> None: ...

    def wait(self) -> Awaitable[Any]: ...


class EventLoop(Protocol):
    """A running event loop, known by what we need of it."""

    backend: str

    def is_here(self) -> bool:
        """Whether this loop is running in the current thread, and this code under it."""
        ...

    def is_closed(self) -> bool: ...

    def call_soon(self, call: Callable[[], object]) -> bool:
        """Run `call` on the loop, soon. False if the loop is closed."""
        ...

    #: Whether a child's coroutine awaits `begun()` first, and is sent up to there before `start`.
    begins_early: bool

    def start(self, work: Work, context: Context) -> Any:
        """Start a child in `context`, on the loop; what to give to `cancel`, or None if the loop takes no more."""
        ...

    def cancel(self, handle: Any) -> None: ...

    def waker(self) -> Waker: ...


class _AsyncioWaker:
    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        if asyncio._get_running_loop() is self._loop:  # pyright: ignore[reportPrivateUsage]
            self._set()
            return
        try:
            self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:  # the loop is closed, and with it whoever waited
            return

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> Awaitable[None]:
        return self._future


class AsyncioLoop:
    """An asyncio event loop, uvloop's included."""

    __slots__ = ("_loop",)
    backend = "asyncio"
    begins_early = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def is_here(self) -> bool:
        return asyncio._get_running_loop() is self._loop  # pyright: ignore[reportPrivateUsage]

    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def call_soon(self, call: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            return False
        return True

    def start(self, work: Work, context: Context) -> asyncio.Task[Any]:
        loop = self._loop
        if loop.get_task_factory() is not None:
            return loop.create_task(work, name=work.__name__, context=context)
        # What `create_task` does, 0.3 us faster; with a name, because asyncio would make one up for 0.2 us.
        return asyncio.Task(work, loop=loop, name=work.__name__, context=context)

    def cancel(self, handle: asyncio.Task[Any]) -> None:
        if self.is_here():
            handle.cancel()
        else:
            self.call_soon(handle.cancel)

    def waker(self) -> _AsyncioWaker:
        return _AsyncioWaker(self._loop)


class _TrioWaker:
    __slots__ = ("_event", "_token")

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        import trio

        self._token = token
        self._event = trio.Event()

    def wake(self) -> None:
        import trio

        if trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token:
            self._event.set()
            return
        try:
            self._token.run_sync_soon(self._event.set)
        except trio.RunFinishedError:
            return

    def wait(self) -> Awaitable[None]:
        return self._event.wait()


class TrioLoop:
    """A trio run. Children are system tasks: they belong to a scope of ours, not to a nursery of the user's."""

    __slots__ = ("_token",)
    backend = "trio"
    begins_early = False

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token

    def is_here(self) -> bool:
        import trio

        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token

    def is_closed(self) -> bool:
        return not self.call_soon(_nothing)

    def call_soon(self, call: Callable[[], object]) -> bool:
        import trio

        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            return False
        return True

    def start(self, work: Work, context: Context) -> trio.CancelScope | None:
        import trio

        scope = trio.CancelScope()

        async def task() -> None:
            with scope:
                await work

        try:
            trio.lowlevel.spawn_system_task(task, name=work.__name__, context=context)
        except RuntimeError:  # the run is ending and takes no more system tasks
            return None
        return scope

    def cancel(self, handle: trio.CancelScope) -> None:
        if self.is_here():
            handle.cancel()
        else:
            self.call_soon(handle.cancel)

    def waker(self) -> _TrioWaker:
        return _TrioWaker(self._token)


def _nothing() -> None:
    pass


#: The last asyncio loop seen and our view of it, so that a loop is wrapped once and not at every submit.
_known: tuple[asyncio.AbstractEventLoop | None, AsyncioLoop | None] = (None, None)


def current_loop() -> EventLoop | None:
    """The event loop that runs in this thread, under which this code runs; None in plain code."""
    global _known
    running = asyncio._get_running_loop()  # pyright: ignore[reportPrivateUsage]
    if "trio" in sys.modules:
        import trio

        # In trio's guest mode both run in one thread; the task under way decides.
        if trio.lowlevel.in_trio_run() and (running is None or trio.lowlevel.in_trio_task()):
            return TrioLoop(trio.lowlevel.current_trio_token())
    if running is None:
        return None
    raw, known = _known
    if raw is not running or known is None:
        known = AsyncioLoop(running)
        _known = (running, known)
    return known


def here() -> EventLoop:
    """The event loop that runs here; only for code that is known to run under one."""
    loop = current_loop()
    assert loop is not None, "called outside any event loop"
    return loop


def is_cancellation(error: BaseException) -> bool:
    """Whether `error` is how the running loop tells a task that it is cancelled."""
    if isinstance(error, asyncio.CancelledError):
        return True
    if "trio" not in sys.modules:
        return False
    import trio

    return isinstance(error, trio.Cancelled)


def is_being_cancelled() -> bool:
    """Whether the current task was really asked to stop, rather than only having seen a CancelledError."""
    if asyncio._get_running_loop() is None:  # pyright: ignore[reportPrivateUsage]
        return True  # trio's Cancelled cannot be raised by hand
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class LoopThread:
    """An event loop of our own in a daemon thread, for runs submitted where no loop can take them."""

    def __init__(self, name: str, backend: str) -> None:
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self.loop: EventLoop
        self._stop: Waker
        self._thread = threading.Thread(target=self._run, args=(backend,), name=name, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self, backend: str) -> None:
        try:
            anyio.run(self._main, backend=backend)
        except BaseException as error:  # told to whoever starts the thread
            if self._ready.is_set():
                raise
            self._failure = error
            self._ready.set()

    async def _main(self) -> None:
        self.loop = here()
        self._stop = self.loop.waker()
        self._ready.set()
        await self._stop.wait()

    def stop(self, timeout: float | None = None) -> None:
        """End the loop, cancelling what still runs on it, and join the thread."""
        self._stop.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
