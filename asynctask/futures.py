"""What stands for a run that is under way: wait for it, await it, cancel it, from any thread and either loop."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import anyio

from . import loops
from .blocking import block_until_settled, refuse_to_hang
from .bodies import block_on
from .endings import stop
from .lending import lending
from .redact import shown
from .runs import Handle, Run, Yielded, current_run
from .states import COMPLETED, State
from .waiting import logger

R = TypeVar("R")

_NO_TIMEOUT = nullcontext()
_AWAIT = "write `await future` (or `await future.wait_async()`) instead"


class TaskFuture(Handle, Generic[R], eq=False):
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

    def add_done_callback(self, fn: Callable[[TaskFuture[R]], object]) -> None:
        """Call `fn(future)` when the run is over, at once if it is; in whichever thread ends the run."""

        def call() -> None:
            try:
                fn(self)
            except Exception:
                logger.exception("Callback %r of run %r raised", fn, self.run.name)

        self.run.when_settled(call)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
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

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
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
        with lending(target):
            waker = loops.here().waker()
            run.when_settled(waker.wake)
            try:
                await waker.wait()
            finally:
                run.forget(waker.wake)

    def __await__(self) -> Generator[Any, Any, R]:
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
            outcome(self.run)
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
                    outcome(run)
                finally:
                    del run, self  # as in `outcome`
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
        future = None
        try:
            for future in as_completed(self, timeout):
                if raise_on_failure:
                    outcome(future.run)
            return [outcome(future.run, raise_on_failure) for future in self]
        finally:
            del self, future  # as in `outcome`

    def wait(self, timeout: float | None = None) -> list[State] | None:
        """Block this thread until all are over; their final states, or None when `timeout` seconds are up."""
        _, rest = wait(self, timeout)
        return None if rest else [future.state for future in self]

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[R]:
        """Every value, awaited; raises as `result` does."""
        try:
            await self._all_settled(raise_on_failure, timeout)
            if timeout is not None and (count := sum(not future.done() for future in self)):
                raise TimeoutError(f"{count} (of {len(self)}) runs unfinished after {timeout:g} s")
            return [outcome(future.run, raise_on_failure) for future in self]
        finally:
            del self  # as in `outcome`

    async def wait_async(self, timeout: float | None = None) -> list[State] | None:
        """Await the end of all; their final states, or None when `timeout` seconds are up."""
        await self._all_settled(False, timeout)
        return [future.state for future in self] if all(future.done() for future in self) else None

    async def _all_settled(self, raise_on_failure: bool, timeout: float | None) -> None:
        """Return when all are over, or the time is up."""
        future = None
        end = None if timeout is None else time.monotonic() + timeout
        try:
            if raise_on_failure:
                async for future in as_completed(self, timeout):
                    outcome(future.run)
            else:
                for future in self:
                    await future.wait_async(None if end is None else max(0.0, end - time.monotonic()))
        finally:
            del self, future  # as in `outcome`

    def __await__(self) -> Generator[Any, Any, list[R]]:
        return self.result_async().__await__()


def _checked(what: str, futures: Iterable[TaskFuture[R]]) -> list[TaskFuture[R]]:
    """Each future once, in order. Raises `TypeError` for what is none, such as a coroutine that was not submitted."""
    several = list(dict.fromkeys(futures))
    for one in several:
        if not isinstance(one, TaskFuture):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{what}() takes futures, as task.submit() and task.map() give them, not {shown(one)}")
    return several


class DoneAndNotDone(NamedTuple):
    """What `wait` gives: the futures that are over, and those that are not."""

    done: set[TaskFuture[Any]]
    not_done: set[TaskFuture[Any]]


def wait(futures: Iterable[TaskFuture[Any]], timeout: float | None = None) -> DoneAndNotDone:
    """Block this thread until all are over or `timeout` seconds are up; never raises for a failed run."""
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must not be negative, not {timeout!r}")
    several = set(_checked("wait", futures))
    end = None if timeout is None else time.monotonic() + timeout
    for future in several:
        if future.wait(None if end is None else max(0.0, end - time.monotonic())) is None:
            break
    done = {future for future in several if future.done()}
    return DoneAndNotDone(done, several - done)


class as_completed(Generic[R]):
    """Iterate over futures in the order in which they end, with `for` or `async for`; each is given once.

    Raises `TimeoutError` when `timeout` seconds (from the start of the iteration) are up before all are over.
    """

    def __init__(self, futures: Iterable[TaskFuture[R]], timeout: float | None = None) -> None:
        self._futures = _checked("as_completed", futures)
        self._timeout = timeout

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        arrivals = _Arrivals(self._futures)
        end = None if self._timeout is None else time.monotonic() + self._timeout
        is_checked = False  # once is enough: no run moves to another loop
        try:
            while arrivals.left:
                if not arrivals.ended:
                    if not is_checked:
                        is_checked = True
                        self._refuse_to_hang()
                    ready = threading.Event()
                    arrivals.wake = ready.set
                    with lending(arrivals.awaited if end is None else None):
                        arrived = bool(arrivals.ended) or block_on(
                            ready, None if end is None else max(0.0, end - time.monotonic())
                        )
                    if not arrived and not arrivals.ended:
                        raise self._late(arrivals)
                yield arrivals.next()
        finally:
            arrivals.forget()

    def __aiter__(self) -> AsyncIterator[TaskFuture[R]]:
        return _AsyncArrivals(self._late, _Arrivals(self._futures), self._timeout)

    def _refuse_to_hang(self) -> None:
        for future in self._futures:
            if not future.done():
                refuse_to_hang(future.run, "write `async for future in as_completed(...)` instead")

    def _late(self, arrivals: _Arrivals[R]) -> TimeoutError:
        return TimeoutError(f"{arrivals.left} (of {len(self._futures)}) futures unfinished after {self._timeout:g} s")


class _AsyncArrivals(Generic[R]):
    """The same for `async for`. No async generator: trio complains of one that is left early and not closed."""

    def __init__(
        self, late: Callable[[_Arrivals[R]], TimeoutError], arrivals: _Arrivals[R], timeout: float | None
    ) -> None:
        self._late = late
        self._arrivals = arrivals
        self._end = None if timeout is None else time.monotonic() + timeout

    def __aiter__(self) -> AsyncIterator[TaskFuture[R]]:
        return self

    async def __anext__(self) -> TaskFuture[R]:
        arrivals = self._arrivals
        if not arrivals.left:
            raise StopAsyncIteration
        if not arrivals.ended:
            waker = loops.here().waker()
            arrivals.wake = waker.wake
            if not arrivals.ended:
                left = None if self._end is None else max(0.0, self._end - time.monotonic())
                awaited = arrivals.awaited if left is None else None
                with lending(awaited), anyio.move_on_after(left) if left is not None else _NO_TIMEOUT:
                    await waker.wait()
            if not arrivals.ended:
                raise self._late(arrivals)
        return arrivals.next()

    def __del__(self) -> None:
        self._arrivals.forget()


class _Arrivals(Generic[R]):
    """Futures in the order in which they end, filled from whatever threads end them."""

    def __init__(self, futures: list[TaskFuture[R]]) -> None:
        self.left = len(futures)
        self.ended: list[TaskFuture[R]] = []
        self.wake: Callable[[], None] | None = None
        #: Those that have not arrived. An OrderedDict, because to find the first one is to take one step in it.
        self._registered = OrderedDict((future, self._arrival(future)) for future in futures)
        is_of_run = current_run.get() is not None
        for future, arrive in list(self._registered.items()):
            future.run.is_awaited = is_of_run or future.run.is_awaited
            future.run.when_settled(arrive)

    def awaited(self) -> Iterable[Iterable[Run]]:
        """One of these runs is to end; asked by any thread."""
        return () if self.ended else (self._runs(),)

    def _runs(self) -> Iterator[Run]:
        try:
            for future in self._registered:
                yield future.run
        except RuntimeError:  # one of them arrived meanwhile; as a rule who asks wants the first one, and no copy
            yield from [future.run for future in list(self._registered)]

    def _arrival(self, future: TaskFuture[R]) -> Callable[[], None]:
        def arrive() -> None:
            self.ended.append(future)
            self._registered.pop(future, None)
            wake = self.wake
            if wake is not None:
                wake()

        return arrive

    def next(self) -> TaskFuture[R]:
        self.left -= 1
        return self.ended.pop(0)

    def forget(self) -> None:
        for future, arrive in list(self._registered.items()):
            future.run.forget(arrive)
