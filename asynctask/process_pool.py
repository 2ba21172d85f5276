"""Calls of runs' bodies in worker processes, each of which can be killed alone.

1. A call goes to a worker that has nothing to do; a worker is started when there is none and there may be one more.
   Each has a thread here that sends it calls and waits for what comes back.
2. A function is sent once to each worker, and then called by its number. Calls of it that are short, as those before
   were, go together, as many as take 5 ms; so do as many as `map(batch_size=)` says. Their answers come home together
   as well, after 5 ms at the latest; none is lost with its worker.
3. A body that must end is ended by killing its worker; the next call finds another one. A worker that dies fails the
   call that it was at, and no other, with `WorkerLostError`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from .blocking import drive
from .bodies import begin
from .errors import WorkerLostError
from .loops import Waker, here
from .parcels import LOG, READY, SKIPPED, Call, answer_in, call_of, deliver, loads
from .progress import MOST
from .redact import text_of
from .runs import Run, current_batch
from .wires import Message, unpacked
from .workers import END_SECONDS, START_SECONDS, Process, Spawned, Worker

#: Seconds after which a worker that has nothing to do ends.
IDLE_SECONDS = 60.0
#: Calls that are sent together at most, unless somebody says so, and seconds that they are to take.
TOGETHER, TOGETHER_SECONDS = 512, 0.005
#: Seconds that answers may lie here unread, and that one body may take then before the others are taken back.
UNREAD_SECONDS, LONG_SECONDS = 0.005, 0.02


class CallFuture(Call, eq=False):
    """What becomes of a call. (A `concurrent.futures.Future` has locks of its own, which take 5 us.)"""

    #: How many calls are to go together, if somebody said so.
    batch: int | None = None
    #: Where it is, and its place among the calls that were sent with it; None before that, and afterwards.
    worker: Worker | None = None
    place: int = 0
    has_begun: bool = False
    is_stopped: bool = False
    is_done: bool = False
    waker: Waker | None = None
    value: Any = None
    error: BaseException | None = None

    def done(self) -> bool:
        return self.is_done

    def result(self) -> Any:
        """What the body gave. Raises its error, or `WorkerLostError`."""
        if self.error is None:
            return self.value
        try:
            raise self.error
        finally:
            del self  # the traceback leads here, and must not lead on to the error

    def wake_when_done(self, waker: Waker) -> None:
        with _changing:
            if not self.is_done:
                self.waker = waker
                return
        waker.wake()

    def begin(self, began: float | None = None) -> None:
        """The body has begun, then or now."""
        with _changing:
            if self.has_begun or self.is_stopped:
                return
            self.has_begun = True
            begin(self.run, began)
        if self.on_start is not None:
            self.on_start()

    def settle(self, value: Any, error: BaseException | None = None, began: float | None = None) -> None:
        """It is over; if the body had begun, and nobody knew, it did so then."""
        if not self.has_begun and began is not None:
            self.begin(began)
        if self.guests is not None:
            drive(self.guests.over())
        with _changing:
            self.value, self.error, self.worker, self.is_done = value, error, None, True
            waker, self.waker = self.waker, None
        if self.on_start is not None:
            self.on_start()
        if waker is not None:
            waker.wake()

    def stop(self) -> None:
        """End the call: it is not begun any more, or its worker is killed. From any thread."""
        with _changing:
            self.is_stopped = True
            worker = self.worker
            if worker is not None and worker.progress.stop(self.place):
                worker.kill()


#: Held to change what a future says: any, because a lock for each takes longer than all of them ever wait.
_changing = threading.RLock()  # what is told of a run that begins may ask for its future


#: What was sent together and is not answered yet, in order; None for what was taken back.
Sent: TypeAlias = "deque[CallFuture | None]"


class ProcessPool:
    """At most `max_workers` processes that call functions, first come, first served; see the rules above."""

    blocker = "a free worker"

    def __init__(
        self, max_workers: int, setup: Callable[[], Message], max_calls: int | None = None,
        process: Callable[[Sequence[int]], Process] = Spawned,
    ) -> None:  # fmt: skip
        self._max_workers = max_workers
        self._setup = setup
        self._process = process
        self._max_calls = max_calls
        self._calls: deque[CallFuture] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._workers: set[Worker] = set()
        self._is_closed = False
        self._is_over = False
        self._is_due = False

    def start(self, run: Run, store: str, on_start: Callable[[], None] | None) -> CallFuture:
        """Put the call of a run's body into the line; see `waiting.Elsewhere`."""
        future = call_of(CallFuture, run, store, on_start)
        batch = current_batch.get()
        if batch is not None and batch[0] is run.spec:
            future.batch = batch[1]
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this process pool is closed")
            self._calls.append(future)
            if future.batch is None:
                if self._idle or len(self._threads) < self._max_workers:
                    self._provide()
            elif not self._is_due:  # once all are here that are to go together
                self._is_due = True
                here().call_soon(self._provide_now)
        return future

    def _provide_now(self) -> None:
        with self._changed:
            self._is_due = False
            for _ in range(min(self._max_workers, len(self._calls))):
                self._provide()

    def _provide(self) -> None:
        """See that a call in the line finds a worker."""
        if self._idle >= len(self._calls) or len(self._threads) >= self._max_workers:
            self._changed.notify()
        else:
            thread = threading.Thread(target=self._work, name="asynctask-process", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _work(self) -> None:
        """The thread of one worker."""
        worker: Worker | None = None
        try:
            while futures := self._next_calls(worker):
                if worker is not None and worker.is_gone():  # killed while it had nothing to do: nobody's attempt
                    self._let_go(worker)
                    worker = None
                try:
                    worker = worker or self._started()
                except BaseException as error:  # deliberate: it is the outcome of the call, whatever it is
                    futures.pop(0).settle(None, error)
                    self._put_back(futures)
                    continue
                worker = self._at_work(worker, deque(futures))
                del futures
        finally:
            if worker is not None:
                self._let_go(worker)

    def _at_work(self, worker: Worker, futures: Sent) -> Worker | None:
        """Have calls answered, one after the other; None if the worker is there no more."""
        count = len(futures)
        began = time.monotonic()
        first = futures[0]
        assert first is not None
        try:
            self._hand_over(worker, futures)
            first.begin()
            if count == 1:
                while futures:
                    self._hear(worker, first, futures)
            else:
                count -= self._hear_together(worker, first, futures)
        except (EOFError, OSError, MemoryError):  # it is dead, or is to be; or what it sends cannot be read on
            self._lose(worker, futures)
            return None
        first.function.took((time.monotonic() - began) / count)
        worker.calls += count
        if self._max_calls is not None and worker.calls >= self._max_calls:
            self._let_go(worker)
            return None
        return worker

    def _hand_over(self, worker: Worker, futures: Sent) -> None:
        calls = [future for future in futures if future is not None]
        with _changing:
            worker.progress.clear(len(calls))
            for place, future in enumerate(calls):
                future.worker, future.place = worker, place
                if future.is_stopped:
                    worker.progress.stop(place)
        worker.put(calls)

    def _hear(self, worker: Worker, sent: CallFuture, futures: Sent) -> None:
        """Take the next answer, or what is logged before it."""
        message = worker.reader.receive()
        if message.kind == LOG:
            deliver(futures[0] or sent, unpacked(message, loads))
            return
        if message.left != len(futures) - 1:  # a run must never be given the result of another
            raise OSError(f"{message.left} answers are said to follow, of {len(futures)}")
        future = futures.popleft()
        if message.kind == SKIPPED:
            if future is not None:
                self._put_back([future])
            return
        assert future is not None, "a call that was taken back has been answered"
        value, began, error = answer_in(message)
        future.settle(value, error, began)

    def _hear_together(self, worker: Worker, sent: CallFuture, futures: Sent) -> int:
        """Take the answers of all calls, as many at once as there are; how many calls were taken back."""
        taken_back = 0
        seconds: float | None = UNREAD_SECONDS
        while futures:
            worker.wait(seconds)
            is_news = False
            while futures and worker.reader.is_there():
                self._hear(worker, sent, futures)
                is_news = True
            first = futures[0] if futures else None
            if first is None:
                continue
            first.begin()
            if is_news:
                seconds = UNREAD_SECONDS
            elif seconds == UNREAD_SECONDS:
                seconds = LONG_SECONDS
            elif seconds is not None:  # when a long body ends, or logs something, the bell is rung
                seconds = None
                if first.batch is None and len(futures) > 1 and not taken_back:
                    taken_back = self._take_back(worker, futures)
        return taken_back

    def _take_back(self, worker: Worker, futures: Sent) -> int:
        """What is behind a long body need not wait for it: another worker may have nothing to do.

        Their answers, which say nothing, still come: before that, nothing else can be sent.
        """
        behind = [future for future in futures if future is not None][1:]
        first = worker.progress.take_back(behind[0].place, behind[-1].place + 1)
        taken = [future for future in behind if future.place >= first]
        for place in range(len(futures) - len(taken), len(futures)):
            futures[place] = None
        self._put_back(taken)
        return len(taken)

    def _lose(self, worker: Worker, futures: Sent) -> None:
        """The worker is gone: the call that it was at fails, and all others are in the line again."""
        was_killed = worker.is_killed
        worker.kill()
        how = self._let_go(worker)
        left = [future for future in futures if future is not None]
        if not left:
            return
        begun = worker.progress.begun
        is_at_fault = begun > left[0].place if begun else not was_killed
        if is_at_fault and not worker.progress.is_halted:
            future = left.pop(0)
            future.begin()
            who = f"the worker process (pid {worker.process.pid}) of run {future.run.name!r}"
            future.settle(None, WorkerLostError(f"{who} {how}"))
        self._put_back(left)

    def _put_back(self, futures: Sequence[CallFuture]) -> None:
        """Calls that were not begun: first in line again."""
        if not futures:
            return
        with _changing:
            for future in futures:
                future.worker = None
        with self._changed:
            if not self._is_over:
                self._calls.extendleft(reversed(futures))
                self._provide()
                return
        self._refuse(futures)

    def _refuse(self, futures: Iterable[CallFuture]) -> None:
        for future in futures:
            future.settle(None, WorkerLostError(f"the process pool of run {future.run.name!r} was closed"))

    def _started(self) -> Worker:
        try:
            worker = Worker(self._setup(), self._process)
        except OSError as error:  # no interpreter where it was, no room for a process
            raise WorkerLostError(f"a worker process could not start: {text_of(error)}") from error
        with self._changed:
            self._workers.add(worker)
        worker.wire.settimeout(START_SECONDS)
        try:
            message = worker.reader.receive()
            worker.wire.settimeout(None)
        except (EOFError, OSError) as error:
            how = self._let_go(worker)
            raise WorkerLostError(f"a worker process could not start: it {how}") from error
        _, _, error_there = (None, None, None) if message.kind == READY else answer_in(message)
        if error_there is not None:
            self._let_go(worker)
            if isinstance(error_there, Exception):
                raise error_there
            what = f"{type(error_there).__name__}({text_of(error_there)})"  # not of the run, which has not begun
            raise WorkerLostError(f"a worker process could not start: its initializer raised {what}") from error_there
        return worker

    def _let_go(self, worker: Worker) -> str:
        with self._changed:
            self._workers.discard(worker)
        return worker.close()

    def _next_calls(self, worker: Worker | None) -> list[CallFuture]:
        """The next call, or several that are sent together; none if this worker is not needed any more."""
        room = MOST if self._max_calls is None else min(MOST, self._max_calls - (0 if worker is None else worker.calls))
        taken: list[CallFuture] = []
        with self._changed:
            while True:
                while self._is_next_ready() and (not taken or (len(taken) < room and self._goes_with(taken))):
                    future = self._calls.popleft()
                    if not future.is_stopped:
                        taken.append(future)
                if taken:
                    return taken
                if self._is_closed:
                    break
                self._idle += 1
                told = self._changed.wait(IDLE_SECONDS)
                self._idle -= 1
                if not told and not self._calls:
                    break
            self._threads.discard(threading.current_thread())
            return taken

    def _is_next_ready(self) -> bool:
        """Whether a call is in the line that need not wait for others which are to go with it."""
        return bool(self._calls) and not (self._is_due and self._calls[0].batch is not None)

    def _goes_with(self, taken: list[CallFuture]) -> bool:
        """Whether the next call is to be sent together with those before it."""
        next_one, first = self._calls[0], taken[0]
        if next_one.setting is not first.setting or next_one.batch != first.batch:
            return False
        if next_one.small is None or first.small is None:
            return False
        if first.batch is not None:
            return len(taken) < first.batch
        seconds = first.function.seconds
        most = 1 if seconds is None else min(TOGETHER, int(TOGETHER_SECONDS / max(seconds, 1e-6)))
        return len(taken) < min(most, 1 + len(self._calls) // self._max_workers)

    def close(self, timeout: float) -> None:
        """Take no more calls, and wait for the workers to end, at most `timeout` seconds; then kill them."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            threads = list(self._threads)
        end = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            workers, left = list(self._workers), list(self._calls)
            self._calls.clear()
            self._is_over = True
        for worker in workers:
            worker.kill()
        self._refuse(left)
        for thread in threads:
            thread.join(END_SECONDS)

    def begin_in_child(self) -> None:
        """In a forked child: let go of the workers, which are its parent's; else they would outlive that."""
        for worker in list(self._workers):
            worker.begin_in_child()


def _begin_anew() -> None:
    """In a forked child: a thread that was left behind may have held it."""
    global _changing
    _changing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
