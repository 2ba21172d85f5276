"""The one file that tells asyncio from trio: which loop runs here, starting and cancelling children, waking.

1. Children are started natively (anyio's cost four times as much); everything else that waits goes through anyio.
2. `call_soon`, `cancel` and `Waker.wake` may be called from any thread; the rest on the loop itself.
3. A child never raises into its loop, except the loop's own cancellation.
4. A child that is cancelled before its first step learns of it like any other.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context, ContextVar
from functools import partial
from types import CoroutineType, FrameType, coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .errors import BlockingWaitError
from .runs import Run

if TYPE_CHECKING:
    import asyncio

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
    #: The process that runs it: a forked child has a copy that nobody runs.
    pid: int

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

    def for_begun(self) -> EventLoop:
        """This loop, for work that is begun in a child that is there already."""
        ...

    def askers(self, handle: Any) -> tuple[Callable[[], object], Callable[[], object]]:
        """What tell, on the loop, whether somebody has asked this child to stop: as it has not suspended, or has."""
        ...

    def waker(self) -> Waker: ...


class _AsyncioWaker:
    __slots__ = ("_future", "_loop")

    def __init__(self, loop: AsyncioLoop) -> None:
        self._loop = loop
        self._future = loop.new_future()

    def wake(self) -> None:
        if self._loop.is_here():
            self._set()
        else:
            self._loop.call_soon(self._set)  # if it is closed, so is whoever waited

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> Awaitable[None]:
        return self._future


class AsyncioLoop:
    """An asyncio event loop, uvloop's included."""

    __slots__ = ("_is_posted", "_loop", "_mail", "_running", "_task_type", "pid")
    backend = "asyncio"
    begins_early = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        module: Any = sys.modules["asyncio"]
        self._loop = loop
        self._running: Callable[[], asyncio.AbstractEventLoop | None] = module._get_running_loop
        self._task_type: type[asyncio.Task[Any]] = module.Task
        #: Calls from other threads, delivered together: each `call_soon_threadsafe` is a system call.
        self._mail: deque[Callable[[], object]] = deque()
        self._is_posted = False
        self.pid = _pid

    def new_future(self) -> asyncio.Future[None]:
        return self._loop.create_future()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncioLoop) and other._loop is self._loop

    def __hash__(self) -> int:
        return hash(self._loop)

    def is_here(self) -> bool:
        return self._running() is self._loop

    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def call_soon(self, call: Callable[[], object]) -> bool:
        if self._loop.is_closed():
            return False
        self._mail.append(call)
        return self._is_posted or self._post()

    def _post(self) -> bool:
        self._is_posted = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            return False
        except BaseException:  # an interrupt of the body in this thread: the mail must not lie here for ever
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver)
            raise
        return True

    def _deliver(self) -> None:
        self._is_posted = False  # before the mail is taken: what comes later is posted anew
        mail = self._mail
        try:
            while mail:
                mail.popleft()()
        finally:
            if mail:  # one of them raised, which the loop reports; the others are not to suffer
                self._post()

    def start(self, work: Work, context: Context) -> asyncio.Task[Any]:
        loop = self._loop
        if loop.get_task_factory() is not None:
            return loop.create_task(work, name=work.__name__, context=context)
        # What `create_task` does, 0.3 us faster; with a name, because asyncio would make one up for 0.2 us.
        return self._task_type(work, loop=loop, name=work.__name__, context=context)

    def cancel(self, handle: asyncio.Task[Any]) -> None:
        if self.is_here():
            handle.cancel()
        else:
            self.call_soon(handle.cancel)

    def for_begun(self) -> AsyncioLoop:
        return _AsyncioLoopForBegun(self._loop)

    def askers(self, handle: Any) -> tuple[Callable[[], object], Callable[[], object]]:
        # Also by a cancellation that its sender took back (`uncancel`) when nothing was awaited any more, as that of a
        # timeout at the last moment: until 3.13 it is thrown at the next suspension all the same.
        return handle.cancelling, lambda: handle._must_cancel or handle.cancelling()

    def waker(self) -> _AsyncioWaker:
        return _AsyncioWaker(self)


class _AsyncioLoopForBegun(AsyncioLoop):
    __slots__ = ()
    begins_early = False


class _TrioWaker:
    __slots__ = ("_event", "_loop")

    def __init__(self, loop: TrioLoop) -> None:
        self._loop = loop
        self._event: trio.Event = _trio().Event()

    def wake(self) -> None:
        if self._loop.is_here():
            self._event.set()
        else:
            self._loop.call_soon(self._event.set)

    def wait(self) -> Awaitable[None]:
        return self._event.wait()


class TrioLoop:
    """A trio run. Children are system tasks: they belong to a scope of ours, not to a nursery of the user's."""

    __slots__ = ("_token", "pid")
    backend = "trio"
    begins_early = False

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self.pid = _pid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrioLoop) and other._token is self._token

    def __hash__(self) -> int:
        return hash(self._token)

    def is_here(self) -> bool:
        lowlevel = _trio().lowlevel
        return lowlevel.in_trio_run() and lowlevel.current_trio_token() is self._token

    def is_closed(self) -> bool:
        return not self.call_soon(_nothing)

    def call_soon(self, call: Callable[[], object]) -> bool:
        try:
            self._token.run_sync_soon(call)
        except _trio().RunFinishedError:
            return False
        return True

    def start(self, work: Work, context: Context) -> trio.CancelScope | None:
        trio = _trio()
        scope = trio.CancelScope()
        try:
            trio.lowlevel.spawn_system_task(_in_scope, scope, work, name=work.__name__, context=context)
        except RuntimeError:  # the run is ending and takes no more system tasks
            return None
        return scope  # type: ignore[no-any-return]

    def cancel(self, handle: trio.CancelScope) -> None:
        if self.is_here():
            handle.cancel()
        else:
            self.call_soon(handle.cancel)

    def for_begun(self) -> TrioLoop:
        return self

    def askers(self, handle: trio.CancelScope) -> tuple[Callable[[], object], Callable[[], object]]:
        was_asked = partial(getattr, handle, "cancel_called")
        return was_asked, was_asked

    def waker(self) -> _TrioWaker:
        return _TrioWaker(self)


async def _in_scope(scope: trio.CancelScope, work: Work) -> None:
    with scope:
        await work


def _trio() -> Any:
    """The trio module, for code that runs only where somebody has imported it."""
    return sys.modules["trio"]


def _nothing() -> None:
    pass


#: The last asyncio loop seen and our view of it, so that a loop is wrapped once and not at every submit.
_known: tuple[asyncio.AbstractEventLoop | None, AsyncioLoop | None] = (None, None)
_known_trio: tuple[trio.lowlevel.TrioToken | None, TrioLoop | None] = (None, None)
#: A look-up less at each submit.
_modules = sys.modules
#: Of this process; to ask the system takes each wait 0.1 us.
_pid = os.getpid()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_pid=os.getpid()))


def current_loop() -> EventLoop | None:
    """The event loop that runs in this thread, under which this code runs; None in plain code."""
    global _known, _known_trio
    asyncio = _modules.get("asyncio")  # as in `_asyncio_running`; a call less, at each submit
    running = None if asyncio is None else asyncio._get_running_loop()
    if "trio" in _modules:
        lowlevel = _modules["trio"].lowlevel
        # In trio's guest mode both run in one thread; the task under way decides.
        if lowlevel.in_trio_run() and (running is None or lowlevel.in_trio_task()):
            token = lowlevel.current_trio_token()
            if _known_trio[0] is not token:
                _known_trio = (token, TrioLoop(token))
            return _known_trio[1]
    if running is None:
        return None
    raw, known = _known
    if raw is not running or known is None:
        known = AsyncioLoop(running)
        _known = (running, known)
    return known


#: Whether code on an event loop may not suspend, because a sync call is being driven there.
_must_block: ContextVar[bool] = ContextVar("asynctask_must_block", default=False)


@contextlib.contextmanager
def blocking() -> Generator[None, None, None]:
    """In this block, what is asked of a store is waited for by blocking the thread, also on an event loop."""
    token = _must_block.set(True)
    try:
        yield
    finally:
        _must_block.reset(token)


def loop_to_wait_on() -> EventLoop | None:
    """The loop on which code may suspend here; None where it must block."""
    return None if _must_block.get() else current_loop()


def here() -> EventLoop:
    """The event loop that runs here; only for code that is known to run under one."""
    loop = current_loop()
    assert loop is not None, "called outside any event loop"
    return loop


def refuse_left_behind(run: Run) -> None:
    """Raise `BlockingWaitError` if nobody will end `run`: a fork took its loop along as a copy, or it was closed."""
    home: EventLoop | None = run.home
    if home is None:
        return
    # A loop of trio's ends all that it runs. One of asyncio's does so by `asyncio.run`, and not by `loop.close()`.
    if home.backend == "asyncio" and home.is_closed() and not run.is_settled:
        raise BlockingWaitError(
            f"run {run.name!r} will never end: its event loop was closed under it; "
            f"await it before that, or use `asyncio.run`, which cancels what is left"
        )
    if home.pid != _pid:
        raise BlockingWaitError(
            f"run {run.name!r} was submitted in the process that this one was forked from, and ends there; "
            f"wait for it there, or submit it here as well"
        )


def strand_here() -> object:
    """What runs this code, and waits when it waits: the task of an event loop, or the thread."""
    asyncio, trio_now = _modules.get("asyncio"), _modules.get("trio")
    if trio_now is not None and trio_now.lowlevel.in_trio_task():
        return trio_now.lowlevel.current_task()
    task = None if asyncio is None or asyncio._get_running_loop() is None else asyncio.current_task()
    return threading.get_ident() if task is None else task


def context_for_thread() -> Context:
    """A copy of this context, for code in another thread.

    anyio notes the name of the running library in the context; taken along, it would tell the code in the thread that
    trio runs there, and `anyio.run` and `asyncio.run` would not work in it.
    """
    context = contextvars.copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None and context.get(sniffio.current_async_library_cvar) is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context


def is_cancellation(error: BaseException) -> bool:
    """Whether `error` is how a loop tells a task that it is cancelled."""
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    return (asyncio is not None and isinstance(error, asyncio.CancelledError)) or (
        trio is not None and isinstance(error, trio.Cancelled)
    )


def must_pass(error: BaseException) -> bool:
    """Whether a child must let `error` through to its loop: its own cancellation.

    asyncio's, raised by a body that runs under trio, would end the whole trio run.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return isinstance(error, trio.Cancelled)
    return is_cancellation(error)


def is_being_cancelled() -> bool:
    """Whether the current task was really asked to stop, rather than only having seen a CancelledError."""
    if _asyncio_running() is None:
        trio = sys.modules.get("trio")
        return bool(trio and trio.lowlevel.in_trio_task() and trio.current_effective_deadline() == -math.inf)
    task = sys.modules["asyncio"].current_task()
    return task is not None and task.cancelling() > 0


def was_cancelled_before(error: BaseException) -> bool:
    """Whether `error` was raised by code that was being cancelled, in place of the cancellation: in a `finally`, say.

    That alone is not enough: the code may clean up after somebody else's cancellation, which is its right. So the
    cancellation must have come through one of the frames that `error` came through.
    """
    frames = set(_frames(error))
    cause = error.__context__
    for _ in range(100):  # a chain made by hand may be a ring
        if cause is None:
            return False
        if is_cancellation(cause) and not frames.isdisjoint(_frames(cause)):
            return is_being_cancelled()
        cause = cause.__context__
    return False


def _frames(error: BaseException) -> Generator[FrameType, None, None]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _asyncio_running() -> asyncio.AbstractEventLoop | None:
    """asyncio's loop in this thread. Who has not imported asyncio (60 % of our own import time) runs none."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()
