"""What stands for a run that is under way: wait for it, await it, cancel it, from any thread and either loop."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import anyio

from . import loops
from .arrivals import Arrivals
from .blocking import block_until_settled, refuse_to_hang
from .bodies import block_on
from .endings import stop
from .lending import lending
from .redact import shown
from .runs import Handle, Run, Yielded
from .states import COMPLETED, State
from .waiting import logger

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)  # a future only gives: one of a list of futures may give an int, the next a str

_NO_TIMEOUT = nullcontext()
_AWAIT_ALL = "write `await futures` (or `await futures.wait_async()`) instead"
_AWAIT = "write `await future` (or `await future.wait_async()`) instead"


class TaskFuture(Handle, Generic[R_co], eq=False):
    """A run that was submitted. Safe to use from any thread, and to wait for from both event loops.

    Dropping it does not stop the run. `await future` gives the run's value or raises its exception; that the waiter
    is cancelled does not cancel the run, `cancel()` does.
    """

    @property
    def task_run_id(self) -> UUID:
        return self.run.id

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def state(self) -> State:
        """The state the run is in now."""
        return self.run.state

    def get_state(self) -> State:
        """The state the run is in now."""
        return self.run.state

    def done(self) -> bool:
        """Whether the run is over and its hooks are done."""
        return self.run.is_settled

    def cancel(self, reason: str = "cancelled through its future") -> bool:
        """Ask the run, and every run started inside it, to stop. False if it is already over."""
        return stop(self.run, reason)

    def add_done_callback(self, fn: Callable[[TaskFuture[R_co]], object]) -> None:
        """Call `fn(future)` when the run is over, at once if it is; in whichever thread ends the run."""

        def call() -> None:
            try:
                fn(self)
            except BaseException:  # deliberate: told in the log; an exit would end the loop, and leave others who wait
                logger.exception("Callback %r of run %r raised", fn, self.run.name)

        self.run.when_settled(call)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R_co:
        """The run's value, blocking this thread until it is there, at most `timeout` seconds.

        Raises the run's exception (or returns it, with `raise_on_failure=False`), `TimeoutError` when the time is
        up, and `BlockingWaitError` on the event loop that has to run it.
        """
        if self.wait(timeout) is None:
            raise TimeoutError(f"run {self.run.name!r} is still {self.run.state_name} after {timeout:g} s")
        try:
            return outcome(self.run, raise_on_failure)  # type: ignore[no-any-return]
        finally:
            del self

    def wait(self, timeout: float | None = None) -> State | None:
        """Block this thread until the run is over; its final state, or None when `timeout` seconds are up."""
        run = self.run
        if not run.is_settled:
            with lending(run if timeout is None else None):
                if not block_until_settled(run, timeout, _AWAIT):
                    return None
        return run.state

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> R_co:
        """The run's value, awaited at most `timeout` seconds; raises as `result` does."""
        if await self.wait_async(timeout) is None:
            raise TimeoutError(f"run {self.run.name!r} is still {self.run.state_name} after {timeout:g} s")
        try:
            return outcome(self.run, raise_on_failure)  # type: ignore[no-any-return]
        finally:
            del self

    async def wait_async(self, timeout: float | None = None) -> State | None:
        """Await the end of the run; its final state, or None when `timeout` seconds are up."""
        run = self.run
        if not run.is_settled:
            with anyio.move_on_after(timeout) if timeout is not None else _NO_TIMEOUT:
                await self._settled(run if timeout is None else None)
        return run.state if run.is_settled else None

    async def _settled(self, target: Run | None) -> None:
        run = self.run
        loops.refuse_left_behind(run)
        with lending(target):
            waker = loops.here().waker()
            run.when_settled(waker.wake)
            try:
                await waker.wait()
            finally:
                run.forget(waker.wake)

    def __await__(self) -> Generator[Any, Any, R_co]:
        run = self.run
        if not run.is_settled:
            yield from self._settled(run).__await__()
        if run.states[-1].type is COMPLETED:
            return run.value  # type: ignore[no-any-return]
        try:
            return outcome(run)  # type: ignore[no-any-return]
        finally:
            del run, self

    def __iter__(self) -> Iterator[Any]:
        """The values of a submitted generator, as they come; blocks this thread between them."""
        yielded = self._yielded()
        taken = 0
        while True:
            is_over = self.run.is_settled  # before the look at the values: the last one may come between the two
            while taken < len(yielded.values):
                yield yielded.values[taken]
                taken += 1
            if is_over:
                break
            refuse_to_hang(self.run, "write `async for value in future` instead")
            ready = threading.Event()
            with lending(self.run), _Woken(self.run, yielded, ready.set, taken):
                block_on(ready)
        try:
            _complete(self.run, yielded)
            yield from yielded.values[taken:]
        finally:
            del self  # as in `outcome`

    def __aiter__(self) -> AsyncIterator[Any]:
        """The values of a submitted generator, as they come."""
        return _Values(self.run, self._yielded())

    def _yielded(self) -> Yielded:
        yielded = self.run.yielded
        if yielded is None:
            raise TypeError(f"run {self.run.name!r} cannot be iterated over: its task is not a generator")
        return yielded

    def __repr__(self) -> str:
        return f"<TaskFuture {self.run.name!r} {self.run.state_name}>"


def outcome(run: Run, raise_on_failure: bool = True) -> Any:
    """The value of a settled run, or its exception, raised (or returned).

    However often it is raised, its traceback begins with the body's and grows by the frames of one reader. Whoever
    raises it lets go of the run: else the error -> its traceback -> the frame -> the run -> the error, which only the
    collector would free.
    """
    if run.error is not None:
        run.error.__traceback__ = run.trace
    state = run.state
    try:
        return state.result(raise_on_failure)
    finally:
        del run, state


def _complete(run: Run, yielded: Yielded) -> None:
    """A generator is over: the last values of a body in another process may have come with its result alone.

    Raises as `outcome` does.
    """
    try:
        given = outcome(run)
    finally:
        del run
    if len(yielded.values) < len(given):
        yielded.values[:] = given  # in one step: others may be at it as well


class _Values:
    """The values of a submitted generator for `async for`; no async generator, see `_AsyncArrivals`."""

    __slots__ = ("_run", "_taken", "_yielded")

    def __init__(self, run: Run, yielded: Yielded) -> None:
        self._run = run
        self._yielded = yielded
        self._taken = 0

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        run, values = self._run, self._yielded.values
        while True:
            is_over = run.is_settled  # before the look at the values: the last one may come between the two
            if self._taken < len(values):
                self._taken += 1
                return values[self._taken - 1]
            if is_over:
                try:
                    _complete(run, self._yielded)
                except BaseException:
                    del run, self  # as in `outcome`
                    raise
                if self._taken < len(values):
                    continue
                raise StopAsyncIteration
            waker = loops.here().waker()
            with lending(run), _Woken(run, self._yielded, waker.wake, self._taken):
                await waker.wait()


class _Woken:
    """For the length of a `with`: `wake` is called when a value beyond `taken` is there, or the run is over."""

    __slots__ = ("_run", "_taken", "_wake", "_yielded")

    def __init__(self, run: Run, yielded: Yielded, wake: Callable[[], None], taken: int) -> None:
        self._run = run
        self._yielded = yielded
        self._wake = wake
        self._taken = taken

    def __enter__(self) -> None:
        loops.refuse_left_behind(self._run)
        self._yielded.waiters.append(self._wake)
        self._run.when_settled(self._wake)
        if len(self._yielded.values) > self._taken:  # it may have come between the last look and the registration
            self._wake()

    def __exit__(self, *error: object) -> None:
        self._run.forget(self._wake)
        if self._wake in self._yielded.waiters:
            self._yielded.waiters.remove(self._wake)


class TaskFutureList(list[TaskFuture[R]]):
    """The futures of a `map`, in the order of its input; results come in that order."""

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[R]:
        """Every value, blocking this thread; raises the first failure as soon as there is one.

        Raises `TimeoutError` when `timeout` seconds are up before all are there.
        """
        arrivals = self._arrivals(raise_on_failure)
        try:
            is_enough = arrivals.block(None if timeout is None else time.monotonic() + timeout, _AWAIT_ALL)
            return self._results(arrivals, is_enough, timeout, raise_on_failure)
        finally:
            arrivals.forget()
            del self, arrivals  # as in `outcome`

    def wait(self, timeout: float | None = None) -> list[State] | None:
        """Block this thread until all are over; their final states, or None when `timeout` seconds are up."""
        _, rest = wait(self, timeout)
        return None if rest else [future.state for future in self]

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[R]:
        """Every value, awaited; raises as `result` does."""
        arrivals = self._arrivals(raise_on_failure)
        try:
            is_enough = await arrivals.wait(None if timeout is None else time.monotonic() + timeout)
            return self._results(arrivals, is_enough, timeout, raise_on_failure)
        finally:
            arrivals.forget()
            del self, arrivals  # as in `outcome`

    async def wait_async(self, timeout: float | None = None) -> list[State] | None:
        """Await the end of all; their final states, or None when `timeout` seconds are up."""
        arrivals = self._arrivals(False)
        try:
            is_enough = await arrivals.wait(None if timeout is None else time.monotonic() + timeout)
        finally:
            arrivals.forget()
        return [future.state for future in self] if is_enough else None

    def _arrivals(self, raise_on_failure: bool) -> Arrivals:
        return Arrivals((future.run for future in self), until="failed" if raise_on_failure else "all")

    def _results(self, arrivals: Arrivals, is_enough: bool, timeout: float | None, raise_on_failure: bool) -> list[R]:
        """Raises the failure that came first, or that the time is up."""
        try:
            if raise_on_failure and (failed := arrivals.failed) is not None:
                outcome(failed)
            if not is_enough:
                count = sum(not future.done() for future in self)
                raise TimeoutError(f"{count} (of {len(self)}) futures unfinished after {timeout:g} s")
            return [outcome(future.run, raise_on_failure) for future in self]
        finally:
            del self, arrivals
            failed = None

    def __await__(self) -> Generator[Any, Any, list[R]]:
        return self.result_async().__await__()


def _checked(what: str, futures: Iterable[TaskFuture[R]]) -> list[TaskFuture[R]]:
    """Each future once, in order. Raises `TypeError` for what is none, such as a coroutine that was not submitted."""
    several = list(dict.fromkeys(futures))
    for one in several:
        if not isinstance(one, TaskFuture):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{what}() takes futures, as task.submit() and task.map() give them, not {shown(one)}")
    return several


class DoneAndNotDone(NamedTuple, Generic[R]):
    """What `wait` gives: the futures that are over, and those that are not."""

    done: set[TaskFuture[R]]
    not_done: set[TaskFuture[R]]


def wait(futures: Iterable[TaskFuture[R]], timeout: float | None = None) -> DoneAndNotDone[R]:
    """Block this thread until all are over or `timeout` seconds are up; never raises for a failed run."""
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must not be negative, not {timeout!r}")
    several = set(_checked("wait", futures))
    arrivals = Arrivals((future.run for future in several), until="all")
    try:
        arrivals.block(None if timeout is None else time.monotonic() + timeout, _AWAIT)
    finally:
        arrivals.forget()
    done = {future for future in several if future.done()}
    return DoneAndNotDone(done, several - done)


class as_completed(Generic[R]):
    """Iterate over futures in the order in which they end, with `for` or `async for`; each is given once.

    Raises `TimeoutError` when `timeout` seconds (from the start of the iteration) are up before all are over.
    """

    def __init__(self, futures: Iterable[TaskFuture[R]], timeout: float | None = None) -> None:
        self._futures = {future.run: future for future in _checked("as_completed", futures)}
        self._timeout = timeout

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        arrivals = Arrivals(self._futures)
        end = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            for given in range(len(self._futures)):
                if not arrivals.block(end, "write `async for future in as_completed(...)` instead"):
                    raise self._late(given)
                yield self._futures[arrivals.ended.popleft()]
        finally:
            arrivals.forget()

    def __aiter__(self) -> AsyncIterator[TaskFuture[R]]:
        return _AsyncArrivals(self._late, self._futures, self._timeout)

    def _late(self, given: int) -> TimeoutError:
        count = len(self._futures)
        return TimeoutError(f"{count - given} (of {count}) futures unfinished after {self._timeout:g} s")


class _AsyncArrivals(Generic[R]):
    """The same for `async for`. No async generator: trio complains of one that is left early and not closed."""

    def __init__(
        self, late: Callable[[int], TimeoutError], futures: dict[Run, TaskFuture[R]], timeout: float | None
    ) -> None:
        self._late = late
        self._futures = futures
        self._given = 0
        self._arrivals = Arrivals(futures)
        self._end = None if timeout is None else time.monotonic() + timeout

    def __aiter__(self) -> AsyncIterator[TaskFuture[R]]:
        return self

    async def __anext__(self) -> TaskFuture[R]:
        if self._given == len(self._futures):
            raise StopAsyncIteration
        if not await self._arrivals.wait(self._end):
            raise self._late(self._given)
        self._given += 1
        return self._futures[self._arrivals.ended.popleft()]

    def __del__(self) -> None:
        self._arrivals.forget()
