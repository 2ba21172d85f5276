"""Worker processes, each of which can be killed alone, and the calls of runs' bodies in them.

1. A call goes to a worker that has nothing to do; a worker is started when there is none and there may be one more.
   Each has a thread here that sends it calls and waits for what comes back.
2. A function is sent once to each worker, and then called by its number.
3. A body that must end is ended by killing its worker; the next call finds another one. A worker that dies fails the
   call that it was at, and no other, with `WorkerLostError`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .bodies import begin
from .errors import WorkerLostError
from .parcels import FAILED, LOG, Call, call_of, deliver, error_in, loads, outcome_in
from .runs import Run
from .wires import Message, unpacked
from .workers import END_SECONDS, Worker

#: Seconds after which a worker that has nothing to do ends, and that one gets to start.
IDLE_SECONDS, START_SECONDS = 60.0, 60.0
#: Seconds that a body gets to end which was sent together with others before it was stopped.
SHORT_SECONDS = 0.05
#: Calls that are sent together at most, seconds that they are to take, and bytes of each: all of them fit into the
#: wire, so that neither side waits for the other to read.
TOGETHER, TOGETHER_SECONDS, SMALL = 64, 0.005, 4096


class CallFuture(Future[Any]):
    """The future of a call; `stop` ends its body."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.worker: Worker | None = None
        self._is_stopped = False
        self._lock = threading.Lock()

    def begin(self, worker: Worker) -> bool:
        """The body begins, in this worker; False if it is not to, any more."""
        with self._lock:
            if self._is_stopped:
                return False
            self.worker = worker
            begin(self.call.run)
        if self.call.on_start is not None:
            self.call.on_start()
        return True

    def end(self) -> bool:
        """Its answer is there; False if its worker is killed all the same, and must be given no other call."""
        with self._lock:
            is_killed = self._is_stopped and self.worker is not None
            self.worker = None
        return not is_killed

    def stop(self) -> None:
        """End the call: it is taken out of the line, or its worker is killed. From any thread."""
        self.cancel()
        with self._lock:
            self._is_stopped = True
            if self.worker is not None:
                self.worker.kill()


class ProcessPool:
    """At most `max_workers` processes that call functions, first come, first served; see the rules above."""

    def __init__(self, max_workers: int, setup: Callable[[], Message], max_calls: int | None = None) -> None:
        self._max_workers = max_workers
        self._setup = setup
        self._max_calls = max_calls
        self._calls: deque[CallFuture] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._workers: set[Worker] = set()
        self._closed = False
        #: How long a call of each function takes, as a rule.
        self._seconds: dict[int, float] = {}

    def start(self, run: Run, store: str, on_start: Callable[[], None] | None) -> CallFuture:
        """Put the call of a run's body into the line; see `waiting.Elsewhere`."""
        future = CallFuture(call_of(run, store, on_start))
        with self._changed:
            if self._closed:
                raise RuntimeError("this process pool is closed")
            self._calls.append(future)
            if self._idle >= len(self._calls) or len(self._threads) >= self._max_workers:
                self._changed.notify()
            else:
                thread = threading.Thread(target=self._work, name="asynctask-process", daemon=True)
                self._threads.add(thread)
                thread.start()
        return future

    def _work(self) -> None:
        """The thread of one worker."""
        worker: Worker | None = None
        try:
            while futures := self._next_calls():
                if worker is not None and worker.is_gone():  # killed while it had nothing to do: nobody's attempt
                    self._let_go(worker)
                    worker = None
                try:
                    worker = worker or self._started()
                except BaseException as error:  # deliberate: it is the outcome of the call, whatever it is
                    futures.popleft().set_exception(error)
                    self._put_back(futures)
                    continue
                worker = self._at_work(worker, futures)
                del futures
        finally:
            if worker is not None:
                self._let_go(worker)

    def _at_work(self, worker: Worker, futures: deque[CallFuture]) -> Worker | None:
        """Have calls answered, one after the other; None if the worker is there no more."""
        try:
            worker.put([future.call for future in futures])
            while futures:
                future = futures[0]
                began = time.monotonic()
                is_wanted = future.begin(worker)
                # It was stopped after it was sent: a short body may as well end, a long one is killed.
                worker.wire.settimeout(None if is_wanted else SHORT_SECONDS)
                outcome, error = _answer(worker, future.call)
                is_alive = future.end()
                futures.popleft()
                if error is None:
                    future.set_result(outcome)
                else:
                    future.set_exception(error)
                del outcome, error
                worker.calls += 1
                self._took(future.call.number, time.monotonic() - began)
                del future
                if not is_alive:  # it was stopped as its answer came
                    self._let_go(worker)
                    self._put_back(futures)
                    return None
        except (EOFError, OSError, MemoryError):  # it is dead, or is to be; or what it sends cannot be read on
            worker.kill()
            future = futures.popleft()
            future.end()
            who = f"the worker process (pid {worker.process.pid}) of run {future.call.run.name!r}"
            future.set_exception(WorkerLostError(f"{who} {self._let_go(worker)}"))
            self._put_back(futures)
            return None
        if self._max_calls is not None and worker.calls >= self._max_calls:
            self._let_go(worker)
            return None
        return worker

    def _took(self, number: int, seconds: float) -> None:
        before = self._seconds.get(number, seconds)
        self._seconds[number] = before + (seconds - before) / 8

    def _put_back(self, futures: deque[CallFuture]) -> None:
        """Calls that were sent, but not begun, when their worker was lost: first in line again."""
        if futures:
            with self._changed:
                self._calls.extendleft(reversed(futures))
                self._changed.notify()

    def _started(self) -> Worker:
        worker = Worker(self._setup())
        with self._changed:
            self._workers.add(worker)
        worker.wire.settimeout(START_SECONDS)
        try:
            message = worker.reader.receive()
            worker.wire.settimeout(None)
            if message.kind == FAILED:
                raise error_in(message)
        except (EOFError, OSError) as error:
            how = self._let_go(worker)
            raise WorkerLostError(f"a worker process could not start: it {how}") from error
        except BaseException:
            self._let_go(worker)
            raise
        return worker

    def _let_go(self, worker: Worker) -> str:
        with self._changed:
            self._workers.discard(worker)
        return worker.close()

    def _next_calls(self) -> deque[CallFuture]:
        """The next call, or several short ones, which are sent together; none if this worker is not needed any more."""
        with self._changed:
            while True:
                taken: deque[CallFuture] = deque()
                while self._calls and (not taken or self._goes_with(taken)):
                    future = self._calls.popleft()
                    if future.running() or future.set_running_or_notify_cancel():  # the first: it was put back
                        taken.append(future)
                if taken:
                    return taken
                if self._closed:
                    break
                self._idle += 1
                told = self._changed.wait(IDLE_SECONDS)
                self._idle -= 1
                if not told and not self._calls:
                    break
            self._threads.discard(threading.current_thread())
            return taken

    def _goes_with(self, taken: deque[CallFuture]) -> bool:
        """Whether the next call is to be sent together with those before it: they are short, and fit into the wire."""
        call, first = self._calls[0].call, taken[0].call
        if call.number != first.number or call.size > SMALL or self._max_calls is not None:
            return False
        most = min(TOGETHER, int(TOGETHER_SECONDS / max(self._seconds.get(call.number, 1.0), 1e-6)))
        return len(taken) < min(most, 1 + len(self._calls) // self._max_workers)

    def stop(self, future: Future[Any]) -> None:
        assert isinstance(future, CallFuture)
        future.stop()

    def close(self, timeout: float) -> None:
        """Take no more calls, and wait for the workers to end, at most `timeout` seconds; then kill them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads = list(self._threads)
        end = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        for thread in threads:
            thread.join(END_SECONDS)


def _answer(worker: Worker, call: Call) -> tuple[Any, BaseException | None]:
    """What the worker answers: a result, or an exception. What it logs before that is delivered.

    Raises only what reading raises: an OSError of the body's says nothing of the worker.
    """
    while (message := worker.reader.receive()).kind == LOG:
        deliver(call.run, unpacked(message, loads))
    return outcome_in(message)
