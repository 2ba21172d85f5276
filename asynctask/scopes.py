"""Who owns what runs: a `Scope` owns the runs submitted in it, a `Runtime` owns scopes, store, threads and limits.

1. Every submitted run belongs to one scope: its flow's, or else its runtime's own. Nothing outlives its scope.
2. A scope's runs live on one event loop: that of the flow, or of the runtime, or the loop that submits. Where no
   loop can take them (plain code; a sync flow that blocks the very loop it is on) the runtime has a loop in a thread.
3. Ending a scope first ends its runs: waits for them, or cancels and then waits.
4. Each run ends in a final state, even if its loop is closed under it or it will not stop; this file sees to that.
5. The current runtime is the one entered in this context; else the one entered last in this process; else a default
   one, which opens at first use and is closed when the interpreter ends.
"""

from __future__ import annotations

import atexit
import contextvars
import inspect
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio

from .blocking import Blocking, drive, refuse_to_hang
from .bodies import is_uninterrupted, uninterrupted
from .clocks import Clock, Ids
from .endings import ask_to_stop, ending_hooks, program_was_interrupted
from .engine import execute
from .errors import RuntimeClosedError, RuntimeInUseError
from .futures import TaskFuture
from .hands import Hand
from .limits import Limits
from .loop_threads import LoopThread, LoopThreads
from .loops import EventLoop, Work, current_loop
from .observers import bits_to_log, log_transition
from .options import TaskRunner, check_runtime
from .records import TaskRun
from .runners import ThreadPoolTaskRunner, chosen_runner
from .runs import Journal, Run, Yielded, current_run, current_transaction, wake_all
from .settings import settings
from .states import CANCELLED, CRASHED
from .stores.base import Store
from .stores.urls import StoresAt, empty_stores, open_store
from .waiting import Loop, Port, Services, logger

if TYPE_CHECKING:
    import random

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]

#: Seconds that a cancelled run gets to end before its runtime, closing, gives it up.
LAST_SECONDS = 5.0


class Scope:
    """Owns the runs submitted in it; the group that a closing flow or runtime waits for."""

    __slots__ = ("_blocked", "_borrowed", "_cancel_reason", "_home", "_outer", "children", "is_closed", "journal",
                 "runtime", "wakes")  # fmt: skip

    def __init__(
        self,
        runtime: Runtime,
        outer: Scope | None = None,
        *,
        home: EventLoop | None = None,
        blocked: EventLoop | None = None,
    ) -> None:
        """`home` is the loop of an async flow; `blocked`, the one that a sync flow keeps from running, if any."""
        self.runtime = runtime
        self.journal = runtime.journal
        self.children: dict[int, Run] = {}
        self.is_closed = False
        self._outer = outer
        self._home = home
        self._blocked = blocked
        self._borrowed: LoopThread | None = None
        #: Who waits until there are no more children; runs, as they are settled, call them.
        self.wakes: list[Callable[[], None]] = []
        self._cancel_reason: str | None = None

    def submit(self, run: Run) -> TaskFuture[Any]:
        """Start `run` beside its caller. Raises `RuntimeClosedError` when nothing may be started here any more."""
        if self.is_closed or self.runtime.is_closing:
            self.refuse_if_closed(run, current_run.get())
        here = current_loop()
        if here is None and not is_uninterrupted():  # its body may be interrupted, but not between entry and start
            with uninterrupted():
                return self.submit(run)
        home = here if here is not None and self._outer is None else self.home_of(here)
        run.is_submitted = True
        run.home = home
        if run.spec.is_generator:
            run.yielded = Yielded()
        self.enlist(run, current_transaction.get())
        port = self.runtime.loop_port
        work: Work = execute(run, port)  # type: ignore[assignment]
        if home.begins_early:
            work.send(None)
        if home is here:
            child = run.child = home.start(work, contextvars.copy_context())
            if child is None:
                _refuse(run, work, port)
        elif not home.call_soon(partial(_start, run, work, contextvars.copy_context(), port)):
            _refuse(run, work, port)
        return TaskFuture(run)

    def enlist(self, run: Run, around: Any) -> None:
        """Own `run`, which was made inside the transaction `around`, if any."""
        if self._cancel_reason is not None:
            run.cancel_reason = self._cancel_reason  # of a body on its way out of a flow that was cancelled, say
        self.children[run.number] = self.journal.live[run.number] = run
        if around is not None:
            around.started(run)

    def refuse_if_closed(self, run: Run, caller: Run | None) -> None:
        runtime = self.runtime
        if self.is_closed or runtime.is_closed or caller is None:
            raise RuntimeClosedError(
                f"task {run.spec.name!r} cannot be submitted: runtime {runtime.name!r} is closed; "
                f"submit inside `async with Runtime()`"
            )

    def is_empty(self) -> bool:
        return not self.children

    def when_empty(self, wake: Callable[[], None]) -> None:
        self.wakes.append(wake)
        if not self.children:  # it may have become empty between the caller's look and the line above
            wake_all(self.wakes)

    def cancel(self, reason: str) -> None:
        """Ask every run in this scope to stop, those that are yet to come included."""
        self._cancel_reason = reason
        for run in list(self.children.values()):
            ask_to_stop(run, reason)

    def close(self) -> None:
        """Nothing more may start here; give back what was borrowed."""
        self.is_closed = True
        if self._borrowed is not None:
            self.runtime.loop_threads.give(self._borrowed)
            self._borrowed = None

    def home_of(self, here: EventLoop | None) -> EventLoop:
        """The loop for a run submitted here (rule 2), where `here` is the one that runs in this thread."""
        if self._home is not None:
            return here if here is not None and self._home.is_here() else self._home
        if self._outer is None:
            return self.runtime.own_loop() if here is None else here
        # The scope of a sync flow, whose thread is going to block: any loop but the one it blocks.
        home = self._outer.loop_for_blocking_flow(self._blocked)
        if home == self._blocked:
            self._borrowed = self.runtime.loop_threads.take(home.backend)
            home = self._borrowed.loop
        self._home = home
        return home

    def loop_for_blocking_flow(self, blocked: EventLoop | None) -> EventLoop:
        """The loop on which a sync flow inside this scope would have its runs, if it does not block that very loop."""
        if self._home is not None:
            return self._home
        return self.runtime.own_loop(blocked) if self._outer is None else self.home_of(None)


def _start(run: Run, work: Work, context: contextvars.Context, port: Port) -> None:
    """Start a run that was submitted in another thread as a child of its loop; called on the loop."""
    child = run.child = run.home.start(work, context)
    if child is None:
        _refuse(run, work, port)
    elif run.cancel_reason is not None:  # cancelled before it was there to be cancelled
        run.home.cancel(child)


def _refuse(run: Run, work: Work, port: Port) -> None:
    """Its loop takes no more: the run ends here (rule 4)."""
    work.close()  # a coroutine that was begun ends its run itself
    if not run.is_final:
        if run.cancel_reason is not None:
            run.enter(CANCELLED, "Cancelled", run.cancel_reason)
        else:
            run.enter(CRASHED, "Crashed", "ended by its event loop, which is closing")
        port.call_hooks_now(ending_hooks(run), run, run.state)
    run.settle()


class Runtime:
    """Everything that runs need: a store, limits, threads, and the loop it was entered on.

    Enter it with `async with`, on asyncio, uvloop or trio; on leaving, runs under way are waited for at most
    `shutdown_timeout` seconds (default: `settings.shutdown_timeout`), then cancelled. It installs no signal handler.
    Raises `RuntimeInUseError` if it is entered a second time before it is left; after that it can be entered again.
    """

    def __init__(
        self,
        *,
        store: Store | str | None = None,
        task_runner: TaskRunner | None = None,
        name: str = "asynctask",
        shutdown_timeout: float | None = None,
        clock: Clock | None = None,
        source: random.Random | None = None,
    ) -> None:
        check_runtime(name, shutdown_timeout, task_runner)
        if source is None:
            import random  # 1 ms, which `import asynctask` need not spend

            source = random.Random()
        self.name = name
        self.store = open_store(store)
        self.task_runner: TaskRunner = task_runner or ThreadPoolTaskRunner()
        self.shutdown_timeout = shutdown_timeout
        self.journal = Journal(clock or Clock(), Ids(source), self.store.keep, self.store.keep_log)
        self.journal.observe(bits_to_log(), log_transition)
        self.services = Services(self.store, source, self._runner, StoresAt())
        self.loop_port = Loop(self.services)
        self.blocking_port = Blocking(self.services)
        self._is_attached = self.is_entered = False
        self.is_closing = False
        self.is_closed = False
        self.root = Scope(self)
        #: The event loop in which it was entered.
        self.home: EventLoop | None = None
        self.loop_threads = LoopThreads(name)
        #: Those of tasks and flows that were used here.
        self._runners: list[TaskRunner] = []
        self._tokens: tuple[contextvars.Token[Runtime | None], contextvars.Token[Run | None]] | None = None

    @property
    def limits(self) -> Limits:
        """The tag limits in force."""
        return self.store.limits

    @property
    def runs(self) -> list[TaskRun]:
        """The runs of this runtime that are not over, the oldest first."""
        return [run.record() for run in list(self.journal.live.values())]

    @property
    def abandoned_threads(self) -> list[str]:
        """Names of threads whose body is stuck in a call that could not be interrupted."""
        return [body.thread_name for body in list(self.services.abandoned)]

    async def __aenter__(self) -> Runtime:
        if self.is_entered:
            raise RuntimeInUseError(f"runtime {self.name!r} is already entered; make another one with Runtime()")
        self.open()
        self.is_entered = True
        self.is_closing = self.is_closed = False
        self.root = Scope(self)
        self.home = current_loop()
        # Inside a run, what is called in this block belongs to this runtime, and not to that run's scope.
        self._tokens = (current_runtime.set(self), current_run.set(None))
        _entered.append(self)
        return self

    def open(self) -> None:
        """Begin to use the store; until it is closed."""
        if not self._is_attached:
            self._is_attached = True
            self.store.attach(self.journal)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tokens is not None:
            try:
                current_runtime.reset(self._tokens[0])
                current_run.reset(self._tokens[1])
            except ValueError:  # left in another context than entered, as some servers do with a lifespan
                pass
            self._tokens = None
        await self.aclose(cancel="its runtime was left by an exception" if kind is not None else None)

    async def aclose(self, *, cancel: str | None = None) -> None:
        """End what runs (cancelling it at once for the reason `cancel`), flush the store, join threads. Idempotent.

        Cancelled while it waits for runs, it cancels them, and closes all the same.
        """
        await self._close(self.loop_port, cancel)

    async def flush(self) -> None:
        """Return when every run so far is recorded as durably as the store does it. Raises `StoreError`."""
        await self.store.flush()

    def close(self) -> None:
        """The same from plain code, for a runtime that lives in no event loop. Raises `BlockingWaitError` on one."""
        for run in list(self.root.children.values()):
            refuse_to_hang(run, "write `await runtime.aclose()` instead")
        drive(self._close(self.blocking_port, None))

    async def _close(self, port: Port, cancel: str | None) -> None:
        if self.is_closing:
            return
        self.is_closing = True
        timeout = settings.values.shutdown_timeout if self.shutdown_timeout is None else self.shutdown_timeout
        try:
            dead = [run for run in list(self.root.children.values()) if run.home.is_closed()]
            self._give_up(dead, "its loop is closed")  # which did not end them
            if cancel is None and not await port.until_empty(self.root, timeout):
                cancel = f"its runtime closed and it did not end within {timeout:g} s"
        except BaseException:
            cancel = "its runtime was cancelled as it closed"
            raise
        finally:
            with anyio.CancelScope(shield=True) if port.is_async else nullcontext():
                await self._end(port, cancel)

    async def _end(self, port: Port, cancel: str | None) -> None:
        """The second half of closing, after waiting for runs: cancels those still under way, or gives them up."""
        root = self.root
        try:
            if cancel is not None:
                root.cancel(cancel)
                await port.until_empty(root, LAST_SECONDS)
            await port.until_empty(self.services.afterwards, LAST_SECONDS)
        finally:  # reached early when asyncio cancels once more, which passes the shield
            self._give_up(list(root.children.values()), "would not stop when its runtime closed")
            root.close()
            self.is_closed, self.is_entered = True, False
            if self in _entered:
                _entered.remove(self)
            runners, self._runners, self.home = [self.task_runner, *self._runners], [], None
            async with AsyncExitStack() as last:  # the last one first, and each whatever becomes of the others
                last.callback(self.loop_threads.stop, LAST_SECONDS)
                for runner in runners:
                    last.callback(runner.close)
                last.push_async_callback(port.ask, self.services.stores_at.release())
                if self._is_attached:
                    self._is_attached = False
                    last.push_async_callback(port.ask, self.store.detach(self.journal))

    def _give_up(self, runs: list[Run], why: str) -> None:
        for run in runs:
            logger.error("Run %r of runtime %r is given up: %s", run.name, self.name, why)
            if not run.is_final:
                run.enter(CRASHED, "Crashed", why)
            child = run.child
            run.settle()
            if isinstance(child, Hand):
                child.give_up()

    def lifespan(self, app: Any) -> Any:
        """For `Starlette(lifespan=rt.lifespan)`, FastAPI and Litestar: entered with the application, drained with it.

        Given the application's own lifespan function instead, as `lifespan=rt.lifespan(own)`, it makes one that
        enters this runtime inside: tasks that drain still have what `own` set up.
        """
        if inspect.isroutine(app) or isinstance(app, partial):
            return partial(self._inside, app)
        return self._alone(app)

    @asynccontextmanager
    async def _alone(self, app: Any) -> AsyncGenerator[None, None]:
        async with self:
            yield

    @asynccontextmanager
    async def _inside(self, outer: Lifespan, app: Any) -> AsyncGenerator[Any, None]:
        async with outer(app) as state, self:
            yield state

    def own_loop(self, blocked: EventLoop | None = None) -> EventLoop:
        """The loop for runs submitted where none runs, or `blocked` does: that of this runtime, or one in a thread."""
        if self.home is not None and self.home != blocked:
            return self.home
        here = self.home or blocked
        return self.loop_threads.own("asyncio" if here is None else here.backend)

    def _runner(self, run: Run) -> TaskRunner:
        """Where its body runs: as the task says, its flow, or the runtime."""
        runner = chosen_runner(run)
        if self.is_closed:  # the body of a flow whose caller was given up, on its way out of its thread
            raise RuntimeClosedError(f"runtime {self.name!r} is closed: run {run.name!r} has no thread to run in")
        if runner is not None and not any(one is runner for one in self._runners):
            self._runners.append(runner)
        return runner or self.task_runner

    def __repr__(self) -> str:
        return f"<Runtime {self.name!r}, {len(self.journal.live)} runs under way>"


#: The runtime entered in this context.
current_runtime: ContextVar[Runtime | None] = ContextVar("asynctask_current_runtime", default=None)
_entered: list[Runtime] = []
_default: Runtime | None = None
_default_lock = threading.Lock()


def runtime_here() -> Runtime:
    """The current runtime (rule 5). Raises `RuntimeClosedError` if it was entered in this context and is closed."""
    runtime = current_runtime.get()
    if runtime is None:
        while _entered and (home := _entered[-1].home) is not None and home.is_closed():
            _entered.pop()  # its loop ended without leaving it
        return _entered[-1] if _entered else _default or _open_default()
    if runtime.is_closed:
        raise RuntimeClosedError(f"runtime {runtime.name!r} is closed; call tasks inside `async with Runtime()`")
    return runtime


def _open_default() -> Runtime:
    global _default
    with _default_lock:
        if _default is None:
            _default = Runtime(name="asynctask-default")
            _default.open()
            _close_with_process()
        return _default


def _close_with_process() -> None:
    """Children of multiprocessing end by `os._exit`, so nothing of `atexit` is called in them."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        sys.modules["multiprocessing.util"].Finalize(None, close_default, exitpriority=0)


def close_default(timeout: float | None = None) -> None:
    """Close the default runtime: wait for its runs (`timeout` seconds, if given; none when Ctrl-C has ended the
    program), end its threads. The next use opens another."""
    global _default
    with _default_lock:
        runtime, _default = _default, None
    if runtime is not None:
        if timeout is not None or program_was_interrupted():
            runtime.shutdown_timeout = timeout or 0.0
        runtime.close()


def _begin_anew() -> None:
    """In a forked child: threads and loops were left behind, so a run submitted to them would wait for ever."""
    global _default
    _default = None
    _entered.clear()
    current_runtime.set(None)
    current_run.set(None)
    empty_stores()
    _default_lock.release()


atexit.register(close_default)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_default_lock.acquire, after_in_parent=_default_lock.release, after_in_child=_begin_anew)
