"""Where bodies run. A task runner is a source of a `concurrent.futures.Executor`; this one's is a pool of threads.

1. The pool grows to `max_workers` threads and lets idle ones go.
2. A worker that waits for another run lends its place: one more thread may run meanwhile. So tasks that submit
   tasks and wait for them never stop the pool, whatever the depth and the size.
3. Threads are daemons: a body stuck in C does not keep the interpreter from ending. Closing joins those that end.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from .bodies import place
from .errors import OptionError
from .late import late
from .options import TaskRunner
from .redact import shown
from .runs import Run
from .settings import settings
from .waiting import Services

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds after which an idle thread ends.
IDLE_SECONDS = 5.0
_numbers = itertools.count(1)
#: Processes in a pool, unless its runner says so; and at most, in a worker, where any number of pools may be begun by
#: bodies that submit bodies: two by each of two would be a thousand, ten levels down.
_usual, _most = os.cpu_count() or 1, sys.maxsize


def begin_in_worker() -> None:
    """This process is a worker of a pool."""
    global _most
    _most = 1


class ThreadPool(Executor):
    """Threads that run calls, first come, first served; see the rules above."""

    def __init__(self, max_workers: int, name: str) -> None:
        self._max_workers = max_workers
        self._name = name
        self._calls: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._idle = 0
        self._lent = 0
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("this thread pool is closed")
            self._calls.append((future, fn, args, kwargs))
            self._provide()
        return future

    def lend(self) -> None:
        """The calling worker is about to wait; another thread may take its place."""
        with self._changed:
            self._lent += 1
            self._provide()

    def take_back(self) -> None:
        """The calling worker goes on."""
        with self._changed:
            self._lent -= 1

    def _provide(self) -> None:
        """See that a queued call finds a thread: wake an idle one, or start one if there may be one more."""
        if not self._calls:
            return
        if self._idle >= len(self._calls):
            self._changed.notify()
        elif len(self._threads) < self._max_workers + self._lent:
            thread = threading.Thread(target=self._work, name=f"{self._name}-{next(_numbers)}", daemon=True)
            self._threads.add(thread)
            thread.start()
        elif self._idle:
            self._changed.notify()

    def _work(self) -> None:
        place.pool = self
        while (call := self._next_call()) is not None:
            future, fn, args, kwargs = call
            if future.set_running_or_notify_cancel():
                try:
                    value = fn(*args, **kwargs)
                except BaseException as error:  # deliberate: it is the outcome of the call, whatever it is
                    future.set_exception(error)
                else:
                    future.set_result(value)
                    del value
            del call, future, fn, args, kwargs  # an idle thread must not keep arguments alive

    def _next_call(self) -> Any:
        with self._changed:
            while True:
                if self._calls and len(self._threads) <= self._max_workers + self._lent:
                    return self._calls.popleft()
                too_many = len(self._threads) > self._max_workers + self._lent
                self._idle += 1
                told = not too_many and not self._closed and self._changed.wait(IDLE_SECONDS)
                self._idle -= 1
                if not told and not (self._calls and not too_many):
                    self._threads.discard(threading.current_thread())
                    if self._calls:  # the call it was woken for is another one's now
                        self._changed.notify()
                    return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait`, join the threads once the queue is empty."""
        with self._changed:
            self._closed = True
            if cancel_futures:
                for future, *_ in self._calls:
                    future.cancel()
                self._calls.clear()
            self._changed.notify_all()
            threads = list(self._threads)
        if wait:
            for thread in threads:
                if thread is not threading.current_thread():
                    thread.join()

    def join(self, timeout: float) -> None:
        """After `shutdown(wait=False)`: wait for the threads, at most `timeout` seconds."""
        end = time.monotonic() + timeout
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))

    def begin_in_child(self) -> None:
        """In a forked child: the calls in the line are its parent's, also where a body that forked lends its place."""
        self._calls.clear()
        self._threads.clear()
        self._idle = self._lent = 0
        self._changed = threading.Condition(threading.Lock())


def chosen_runner(run: Run) -> TaskRunner | None:
    """The runner that a run's task names, or a flow round it."""
    runner = run.spec.options.task_runner
    flow = run.flow
    while runner is None and flow is not None:
        runner, flow = flow.spec.options.task_runner, flow.flow
    return runner


def _without_pool(runner: object) -> dict[str, Any]:
    """What a runner is made of, for another process: a body of `__main__` takes along the tasks that it refers to, and
    these their runners. There it has a pool of its own, from when a body submits to it."""
    return {
        name: None if name in ("_pool", "_server") else value for name, value in vars(runner).items() if name != "_lock"
    }


#: Runners that have been made, for forked children.
_runners: WeakSet[ThreadPoolTaskRunner | ProcessPoolTaskRunner] = WeakSet()


def _begin_anew() -> None:
    """In a forked child: the threads of all pools were left behind, and what is given to them would wait for ever."""
    for runner in list(_runners):
        runner.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


class ThreadPoolTaskRunner:
    """Runs bodies of submitted sync tasks in at most `max_workers` threads, started as they are needed."""

    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is not None and (
            not isinstance(max_workers, int) or isinstance(max_workers, bool) or max_workers < 1  # pyright: ignore[reportUnnecessaryIsInstance]
        ):
            raise OptionError(f"ThreadPoolTaskRunner: max_workers must be a whole number from 1, not {max_workers!r}")
        self._max_workers = max_workers
        self._pool: ThreadPool | None = None
        self._lock = threading.Lock()
        _runners.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return _without_pool(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
        _runners.add(self)

    def executor(self) -> ThreadPool:
        """The pool, made at first use."""
        pool = self._pool
        if pool is None:
            with self._lock:
                pool = self._pool = self._pool or ThreadPool(
                    self._max_workers or settings.values.thread_pool_max_workers, "asynctask-worker"
                )
        return pool

    def close(self, timeout: float = 0.2) -> None:
        """Let the threads end, and wait for them at most `timeout` seconds: an idle one takes a millisecond.

        It can be used again. Calls that another runtime has queued are still run.
        """
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)
            pool.join(timeout)

    def begin_in_child(self) -> None:
        """In a forked child: the next use makes a pool."""
        pool, self._pool = self._pool, None
        self._lock = threading.Lock()
        if pool is not None:
            pool.begin_in_child()


class ProcessPoolTaskRunner:
    """Runs bodies, sync and async, in at most `max_workers` processes of their own (default: one per processor).

    A timeout or a cancellation kills the process of the body, and no other. With the `start_method` "spawn" each worker
    is a new interpreter; with "forkserver" it is forked from a small one that the pool keeps, in 4 ms instead of 130.
    `initializer(*initargs)` is called in each before its first body; after `max_tasks_per_child` bodies a worker is
    replaced. Arguments and results are pickled; functions that workers cannot import go by value. In a worker, where
    what a body submits to such a runner goes to a pool of that worker's own, each pool has one process.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        start_method: str = "spawn",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
    ) -> None:
        for name, value in (("max_workers", max_workers), ("max_tasks_per_child", max_tasks_per_child)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise OptionError(f"ProcessPoolTaskRunner: {name} must be a whole number from 1, not {shown(value)}")
        if start_method not in ("spawn", "forkserver"):
            raise OptionError(
                f"ProcessPoolTaskRunner: start_method must be 'spawn' or 'forkserver', not {shown(start_method)}: what "
                f"threads have locked stays locked in a process that is forked from theirs"
            )
        if start_method == "forkserver" and not hasattr(os, "fork"):
            raise OptionError(
                "ProcessPoolTaskRunner: start_method 'forkserver' needs a system that forks processes; this one has "
                "'spawn' alone"
            )
        if initializer is not None and not callable(initializer):
            raise OptionError(f"ProcessPoolTaskRunner: initializer must be a function, not {shown(initializer)}")
        self._max_workers = max_workers
        self._max_calls = max_tasks_per_child
        self._initializer, self._initargs = initializer, tuple(initargs)
        self._is_forking = start_method == "forkserver"
        self._pool: Any = None
        self._server: Any = None
        self._lock = threading.Lock()
        _runners.add(self)
        Services.may_be_elsewhere = True

    def __getstate__(self) -> dict[str, Any]:
        return _without_pool(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
        _runners.add(self)
        Services.may_be_elsewhere = True

    def executor(self) -> Executor:
        """Only for bodies that run here: there are none."""
        raise OptionError("a ProcessPoolTaskRunner runs bodies in processes: it has no executor for this one")

    def elsewhere(self) -> Any:
        """The pool, made at first use."""
        if self._pool is not None:
            return self._pool
        with self._lock:
            if self._pool is None:
                self._server = late("fork_server").ForkServer() if self._is_forking else None
                self._pool = late("process_pool").ProcessPool(
                    min(self._max_workers or _usual, _most),
                    functools.partial(late("parcels").setup_of, self._initializer, self._initargs),
                    self._max_calls,
                    self._server.start if self._is_forking else late("workers").Spawned,
                )
            return self._pool

    def close(self, timeout: float = 10.0) -> None:
        """Let the workers end, and wait for them at most `timeout` seconds; those that do not are killed."""
        with self._lock:
            pool, self._pool = self._pool, None
            server, self._server = self._server, None
        if pool is not None:
            pool.close(timeout)
        if server is not None:
            server.close()

    def begin_in_child(self) -> None:
        """In a forked child: the next use makes a pool. Workers and fork server are its parent's, and end with that."""
        pool, self._pool = self._pool, None
        server, self._server = self._server, None
        self._lock = threading.Lock()
        if pool is not None:
            pool.begin_in_child()
        if server is not None:
            server.begin_in_child()
