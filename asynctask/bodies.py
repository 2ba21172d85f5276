"""Bodies of sync tasks, and the threads they are in: calling, interrupting, blocking, lending a place in a pool.

1. A body is interrupted by an exception raised in its thread at its next bytecode, and only while it is in the body:
   not in the midst of ours, of `logging` or of another module whose locks it would leave locked.
2. Every blocking wait of ours is `block_on`, which an interrupt ends at once.
3. A body stuck in C is abandoned: its run ends on time, the thread is counted and named in a warning, and its pool may
   run others in its place.
4. A worker that waits lends its place, so that tasks that wait for tasks never fill their pool.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import GeneratorType
from typing import Any

from .errors import Interrupted, TaskTimeoutError, WorkerLostError
from .lines import Slots
from .loops import Waker, context_for_thread
from .runs import Run, Yielded
from .states import RUNNING

logger = logging.getLogger("asynctask")

#: How long an interrupted body may take to end before its thread is called abandoned, in seconds.
ABANDONED_AFTER = 0.2


#: The types of sync generators: Python's own, and that of generator tasks, which `tasks` adds.
GENERATORS: set[type] = {GeneratorType}


def call_body(run: Run) -> Any:
    """Call a sync body; a generator's values are collected into a list, and can be read while it runs."""
    spec, args, kwargs = run.spec, run.args, run.kwargs
    yielded = run.yielded
    if spec.is_generator and yielded is None:
        yielded = run.yielded = Yielded()
    del run  # the traceback of what the body raises leads to this frame; see `execute`
    made = spec.body(*args, **kwargs)
    if yielded is None:
        # A generator that the body returns is more of its work: done here, not later on the event loop.
        return list(made) if made.__class__ in GENERATORS else made  # type: ignore[call-overload]
    with contextlib.closing(made):
        for value in made:
            yielded.add(value)
    return list(yielded.values)


async def collect_async(run: Run) -> list[Any]:
    run.yielded = yielded = run.yielded or Yielded()
    async with contextlib.aclosing(run.spec.body(*run.args, **run.kwargs)) as made:
        async for value in made:
            yielded.add(value)
    return list(yielded.values)


def timed_out(run: Run) -> TaskTimeoutError:
    """The error of an attempt of `run` that took too long."""
    spec = run.spec
    error = TaskTimeoutError(f"{spec.what} {spec.name!r} exceeded its timeout of {spec.options.timeout:g} second(s)")
    run.timeout_error = error
    return error


def begin(run: Run, began: float | None = None) -> None:
    """The body of `run` begins, somewhere else than in its engine: Running, if that was not entered for its hooks.

    `began` says when, should that have been a while ago.
    """
    run.blocker = None
    states = run.states
    if states[-1].type is not RUNNING:
        run.enter(RUNNING, "Running" if len(states) == 1 or run.run_count == 0 else "Retrying", at=began)


class Body:
    """One call of a sync body in a worker thread, which can be interrupted from outside."""

    __slots__ = (
        "__weakref__", "_is_over", "_lent", "_lock", "_on_end", "_pool", "_sent", "_thread", "_watch", "on_start",
        "run", "slots", "thread_name",
    )  # fmt: skip

    def __init__(self, run: Run) -> None:
        self.run = run
        self.slots: Slots | None = run.slots
        self.on_start: Callable[[], None] | None = None
        self.thread_name = ""
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._is_over = False
        self._sent = False
        self._on_end: Callable[[], None] | None = None
        self._watch: threading.Timer | None = None
        self._pool: Any = None
        #: The pool, while it runs others in place of an abandoned thread.
        self._lent: Any = None

    @property
    def is_in_thread(self) -> bool:
        return self._thread is not None

    def __call__(self) -> Any:
        run = self.run
        self.thread_name = threading.current_thread().name
        try:
            with self._lock:
                if self._sent:  # in the moment between the pool's taking it and this line
                    raise Interrupted
                self._thread = threading.get_ident()
                self._begin()
            self._pool = place.pool
            if self.on_start is not None:
                self.on_start()
            return call_body(run)
        finally:
            try:
                self._leave()
            except Interrupted:  # sent just before, and landed only here; there is no second one
                self._leave()
            del self, run  # the traceback of what the body raised leads to this frame; see `execute`

    def _begin(self) -> None:
        """Enter Running here, where the body begins, unless its hooks had to see that before: a queue is no running.

        Under the lock, so that who interrupts it, and then enters another state, does so before or after.
        """
        begin(self.run)

    def interrupt(self, on_end: Callable[[], None]) -> bool:
        """Raise `Interrupted` in the body at its next bytecode. False if it is not in the body (any more).

        `on_end` is called in the thread when the body does end, which is late if it is stuck in C.
        """
        with self._lock:
            if self._is_over or self._sent:
                return False
            self._sent = True
            if self._thread is None:  # it has not begun, and now it never will
                return False
            self._on_end = on_end
            watch = self._watch = threading.Timer(ABANDONED_AFTER, self._report)
            has_landed = raise_in_thread(self._thread, Interrupted)
        watch.daemon = True
        watch.start()
        if not has_landed:
            threading.Thread(target=self._insist, name="asynctask-interrupt", daemon=True).start()
        return True

    def _insist(self) -> None:
        """Interrupt the body as soon as it is where that does no harm."""
        pause = 0.0005
        while True:
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
            with self._lock:
                if self._thread is None or raise_in_thread(self._thread, Interrupted):
                    return

    def when_left(self, call: Callable[[], None]) -> bool:
        """Call `call` as well when the interrupted body does end. False if it has ended."""
        with self._lock:
            first = self._on_end
            if self._thread is None or first is None:
                return False

            def both() -> None:
                first()
                call()

            self._on_end = both
            return True

    def _leave(self) -> None:
        with self._lock:
            self._thread = None
            self._is_over = True
            if self._sent:  # one that has not landed yet must not land in the pool's own code
                raise_in_thread(threading.get_ident(), None)
            on_end, self._on_end = self._on_end, None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._lent is not None:
            self._lent.take_back()
            self._lent = None
        if on_end is not None:
            on_end()

    def _report(self) -> None:
        """Say that the thread is abandoned, and let its pool run others in its place: retries, to begin with."""
        with self._lock:
            is_abandoned = self._thread is not None
            if is_abandoned and self._pool is not None:
                self._lent = self._pool
                self._lent.lend()
        if is_abandoned:
            logger.warning(
                "Thread %r is abandoned: the body of run %r is over (%s) but stuck in a call that can't be interrupted",
                self.thread_name, self.run.name, self.run.state_name,
            )  # fmt: skip


class InExecutor:
    """A body in an executor of this process, and what becomes of it."""

    __slots__ = ("_abandoned", "_body", "_executor", "_future")
    blocker = "a free thread"

    def __init__(self, executor: Executor, abandoned: set[Body]) -> None:
        """`abandoned` has those that were interrupted and have not ended yet."""
        self._executor = executor
        self._abandoned = abandoned
        self._body: Body
        self._future: Future[Any]

    def start(self, run: Run, store: str, on_start: Callable[[], None] | None) -> InExecutor:
        body = self._body = Body(run)
        body.on_start = on_start
        self._future = self._executor.submit(context_for_thread().run, body)
        if on_start is not None:  # an executor that is shut down may drop what it has not begun
            self._future.add_done_callback(lambda _: on_start())
        return self

    def wake_when_done(self, waker: Waker) -> None:
        self._future.add_done_callback(lambda _: waker.wake())

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        try:
            if self._future.cancelled():
                name = self._body.run.name
                raise WorkerLostError(f"the body of run {name!r} was dropped by its executor before it began")
            return self._future.result()
        finally:
            del self  # the traceback leads here, and must not lead on to the error

    def stop(self) -> None:
        body = self._body
        if self._future.done() or self._future.cancel():
            return
        abandoned = self._abandoned
        if body.interrupt(on_end=lambda: abandoned.discard(body)):
            abandoned.add(body)
            if not body.is_in_thread:  # it ended between the two lines above
                abandoned.discard(body)


def call_within(run: Run, seconds: float, call: Callable[[], Any]) -> Any:
    """Call in this thread; past `seconds`, raise `TaskTimeoutError` as soon as Python runs again."""
    lock = threading.Lock()
    thread = threading.get_ident()
    over = False
    sent = False

    def interrupt() -> None:
        nonlocal sent
        while True:
            with lock:
                sent = not over  # before it lands, which may be at once
                if over or raise_in_thread(thread, Interrupted):
                    return
                sent = False
            time.sleep(0.0005)

    watch = threading.Timer(seconds, interrupt)
    watch.daemon = True
    value = None
    try:
        try:
            with uninterrupted():
                watch.start()  # inside, because the time may be up before it returns
            value = call()
        except Interrupted:
            if not sent:  # somebody else's: an outer call of this thread timed out
                raise
        finally:
            with lock:
                over = True
            watch.cancel()
            if sent:
                raise_in_thread(thread, None)
        if sent:
            raise timed_out(run)
        return value
    except Interrupted:  # landed as late as in the `finally` above
        if not sent:
            raise
        raise timed_out(run) from None
    finally:
        del run, call  # the traceback leads to this frame; see `execute`


def raise_in_thread(thread: int, error: type[BaseException] | None) -> bool:
    """Raise in another thread at its next bytecode; None takes back one that has not landed.

    False, and nothing done, while the thread is where that could leave a lock locked for good: try again soon.
    """
    with _sending:
        careful = _careful.get(thread)
        if careful is not None and error is not None:
            careful.interrupt(error)
            return True
        if error is not None:
            time.sleep(0)  # having just got the interpreter back, we have it for some milliseconds: to look, and to act
            if _is_delicate(thread):
                return False
        _set_error(thread, error)
        return True


#: Modules whose locks others need: one left locked, by an interrupt between taking it and the `try`, stops them all.
_DELICATE = ("asynctask.", "logging", "concurrent.futures", "queue", "importlib._bootstrap", "_frozen_importlib")
#: What is in this one of ours are bodies.
_THEIRS = "asynctask.witnesses"
#: Modules that such code calls in its turn; who called them decides.
_TRANSPARENT = {"threading", "contextlib", "weakref", "_weakrefset"}


def _is_delicate(thread: int) -> bool:
    """Whether the innermost code of a thread holds, or is about to take, a lock that is not its own alone."""
    # In 3.11 a thread that is being started goes by the number of the one that starts it, until its first line. It
    # would get the interrupt instead, and die of it, and the other would wait for it for ever.
    if sys.version_info < (3, 12) and _private._limbo:
        return True
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        module: str = frame.f_globals.get("__name__", "")
        if module not in _TRANSPARENT:
            return module.startswith(_DELICATE) and module != _THEIRS
        frame = frame.f_back
    return False


def _set_error(thread: int, error: type[BaseException] | None) -> None:
    import ctypes  # 2 ms, for who needs to interrupt something

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error) if error else None)


class uninterrupted:
    """For the length of a `with`, an interrupt of this thread waits for the end of it, and sets `ready` meanwhile.

    Landing between two bytecodes of ours, it could leave a lock of a pool or of an event locked for good.
    """

    __slots__ = ("_error", "_outer", "_ready", "_thread")

    def __init__(self, ready: threading.Event | None = None) -> None:
        self._ready = ready
        self._error: type[BaseException] | None = None
        self._thread = threading.get_ident()
        self._outer = _careful.get(self._thread)

    def __enter__(self) -> None:
        try:
            with _sending:
                _careful[self._thread] = self
        except BaseException:  # one that was under way lands here at the latest, and there is no `__exit__` then
            self._leave()
            raise

    def __exit__(self, *error: object) -> None:
        self._leave()
        if self._error is None:
            return
        if self._outer is None:
            raise self._error
        self._outer.interrupt(self._error)

    def interrupt(self, error: type[BaseException]) -> None:
        self._error = error
        if self._ready is not None:
            self._ready.set()

    def _leave(self) -> None:
        with _sending:
            if self._outer is None:
                _careful.pop(self._thread, None)
            else:
                _careful[self._thread] = self._outer


def is_uninterrupted() -> bool:
    """Whether this thread is inside such a `with`."""
    return threading.get_ident() in _careful


#: For what Python 3.11 does not tell: which threads are being started.
_private: Any = threading
_careful: dict[int, uninterrupted] = {}
_sending = threading.Lock()


def block_on(ready: threading.Event, timeout: float | None = None) -> bool:
    """Block this thread until `ready` is set, at most `timeout` seconds, lending its place in its pool; False if not.

    Every blocking wait of ours is this one: a timeout or a cancellation of the body in this thread ends it at once.
    """
    with uninterrupted(ready), place_lent():
        return ready.wait(timeout)


class _Place(threading.local):
    """The pool whose worker this thread is, if it is one."""

    pool: Any = None


place = _Place()


class place_lent:
    """For a thread of a pool that is about to wait: the pool may run somebody else in its place meanwhile.

    Without it, tasks that submit tasks and wait for them would fill the pool with waiters and stop it for good.
    """

    __slots__ = ("_pool",)

    def __enter__(self) -> None:
        self._pool = place.pool
        if self._pool is not None:
            self._pool.lend()

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.take_back()
