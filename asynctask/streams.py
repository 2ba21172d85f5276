"""A window of runs that moves over an input of any length, for `Task.stream`.

1. At most `size` runs are in flight, results not yet taken included; the input is pulled only when there is room.
2. A plain input is pulled by who asks for a result. An async one is pulled by a child of its own, the feeder: a
   result that is there must not wait for an input that is slow.
3. Leaving the stream (a failure, a cancellation, `aclose()`, or just dropping it) cancels what is in flight and
   closes the input. Hence no async generator: one that is left early is closed late, and trio complains of it.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

import anyio

from . import loops
from .blocking import refuse_to_hang
from .bodies import block_on
from .errors import CancelledRun, OptionError
from .futures import TaskFuture, outcome
from .lending import lending
from .runs import Run

logger = logging.getLogger("asynctask")

R = TypeVar("R")


class Stream(AsyncIterator[R], Iterator[R]):
    """The results of a window, for `async for`, or `for` in plain code; whoever drops it leaves it."""

    def __init__(self, window: Window, return_exceptions: bool) -> None:
        self._window = window
        self._return_exceptions = return_exceptions

    async def __anext__(self) -> R:
        try:
            future = await self._window.next()
            if future is None:
                raise StopAsyncIteration
            return outcome(future.run, raise_on_failure=not self._return_exceptions)  # type: ignore[no-any-return]
        except BaseException:
            self._window.leave()
            raise

    def __next__(self) -> R:
        try:
            future = self._window.next_blocking()
            if future is None:
                raise StopIteration
            return outcome(future.run, raise_on_failure=not self._return_exceptions)  # type: ignore[no-any-return]
        except BaseException:
            self._window.leave()
            raise

    def close(self) -> None:
        """Leave the stream, in plain code."""
        self._window.leave()

    async def aclose(self) -> None:
        """Leave the stream and wait until its input is closed."""
        self._window.leave()
        await self._window.closed()

    def __del__(self) -> None:
        self._window.leave()


class Window:
    """The runs in flight and the input they come from. All of it on one event loop, but for `_land`."""

    def __init__(
        self,
        submit: Callable[[Any], TaskFuture[Any]],
        source: Iterable[Any] | AsyncIterable[Any],
        size: int,
        ordered: bool,
    ) -> None:
        self._submit = submit
        self._source = source
        self._ordered = ordered
        #: How many more may be in flight, and how many results were taken since the last one was asked for.
        self._room = size
        self._taken = 0
        #: In the order of the input; and, for results as they come, in the order in which they end.
        self._flying: deque[TaskFuture[Any]] = deque()
        self._landed: deque[TaskFuture[Any]] = deque()
        self._pull: Iterator[Any] | None = None
        #: The feeder, as its loop knows it.
        self._feeder: Any = None
        self._loop: loops.EventLoop | None = None
        #: Wakes who waits for a result, the feeder that waits for room, and who waits for the input to be closed.
        self._waker: loops.Waker | _Alarm | None = None
        self._room_waker: loops.Waker | None = None
        self._close_waker: loops.Waker | None = None
        self._error: BaseException | None = None
        self._is_exhausted = False
        self._is_left = False

    async def next(self) -> TaskFuture[Any] | None:
        """The next run that is over; None at the end. Raises what the input raises."""
        self._make_room()
        if isinstance(self._source, AsyncIterable):
            self._feed_from(self._source)
        else:
            self._pull_from(self._source)
        while (future := self._take()) is None and not self._is_over():
            waker = self._waker = loops.here().waker()
            if not self._is_ready():  # a run may have landed, in another thread, just before the waker was there
                with lending(self._awaited):
                    await waker.wait()
            self._waker = None
        return future

    def next_blocking(self) -> TaskFuture[Any] | None:
        """The same for plain code, which it blocks. Raises `OptionError` for an async input, and `BlockingWaitError`
        on the event loop that has to run what is in flight."""
        if not isinstance(self._source, Iterable):  # a stream is both, so that one may be the input of another
            raise OptionError("a stream over an async input is taken with `async for`")
        self._make_room()
        self._pull_from(self._source)
        while (future := self._take()) is None and not self._is_over():
            refuse_to_hang(self._flying[0].run, "write `async for` instead")
            alarm = self._waker = _Alarm()
            if not self._is_ready():
                with lending(self._awaited):
                    block_on(alarm.rung)
            self._waker = None
        return future

    def _make_room(self) -> None:
        self._room += self._taken
        self._taken = 0

    def _take(self) -> TaskFuture[Any] | None:
        """One that is over, if there is one."""
        if self._error is not None and not self._is_left:
            raise self._error
        if self._is_left or not self._is_ready():
            return None
        future = self._flying[0] if self._ordered else self._landed.popleft()
        self._flying.remove(future)
        self._taken += 1
        return future

    def _is_over(self) -> bool:
        return self._is_left or (self._is_exhausted and not self._flying)

    def leave(self) -> None:
        """Cancel what is in flight and close the input. From any thread; once."""
        if self._is_left:
            return
        self._is_left = True
        for future in self._flying:
            future.cancel("its stream was left")
        if self._feeder is not None and self._loop is not None and not self._is_exhausted:
            self._loop.cancel(self._feeder)
        if isinstance(self._pull, Generator):  # not a file, say, which the caller may want to go on with
            self._pull.close()  # pyright: ignore[reportUnknownMemberType]

    async def closed(self) -> None:
        """Wait until the feeder has closed the input."""
        if self._feeder is not None and not self._is_exhausted:
            waker = self._close_waker = loops.here().waker()
            await waker.wait()

    def _is_ready(self) -> bool:
        if self._ordered:
            return bool(self._flying) and self._flying[0].done()
        return bool(self._landed)

    def _awaited(self) -> list[list[Run]]:
        """One of those in flight is to end; a source that is to give more may do so by itself."""
        if not self._is_exhausted and self._room > 0:
            return []
        return [[future.run for future in (list(self._flying)[:1] if self._ordered else list(self._flying))]]

    def _start(self, value: Any) -> None:
        future = self._submit(value)
        self._room -= 1
        self._flying.append(future)
        future.run.is_awaited = True
        future.run.when_settled(lambda: self._land(future))

    def _land(self, future: TaskFuture[Any]) -> None:
        if not self._ordered:
            self._landed.append(future)
        _wake(self._waker)

    def _pull_from(self, source: Iterable[Any]) -> None:
        if self._pull is None:
            self._pull = iter(source)
        while self._room and not self._is_exhausted and not self._is_left:
            try:
                value = next(self._pull)
            except StopIteration:
                self._is_exhausted = True
            else:
                self._start(value)

    def _feed_from(self, source: AsyncIterable[Any]) -> None:
        if self._loop is not None:
            _wake(self._room_waker)
            return
        loop = self._loop = loops.here()
        work: Any = self._feed(source, loop)
        if loop.begins_early:
            work.send(None)
        self._feeder = loop.start(work, contextvars.copy_context())
        if self._feeder is None:  # the loop is ending
            work.close()
            self._is_exhausted = True

    async def _feed(self, source: AsyncIterable[Any], loop: loops.EventLoop) -> None:
        pull: Any = None
        try:
            if loop.begins_early:
                await loops.begun()
            pull = aiter(source)
            while not self._is_left:
                if self._room:
                    self._start(await anext(pull))
                else:
                    waker = self._room_waker = loop.waker()
                    await waker.wait()
        except StopAsyncIteration:
            pass
        except BaseException as error:  # deliberate: who asks for results is told
            self._error = error
            if loops.is_cancellation(error):
                self._error = CancelledRun("the input of the stream was cancelled")
                raise
        finally:
            await self._close(pull)
            self._is_exhausted = True
            _wake(self._waker)
            _wake(self._close_waker)

    async def _close(self, pull: Any) -> None:
        if not hasattr(pull, "aclose"):
            return
        try:
            with anyio.CancelScope(shield=True):  # its cleaning up may await, though the feeder is being cancelled
                await pull.aclose()
        except Exception:
            logger.exception("Closing the input of a stream raised")


class _Alarm:
    """Wakes a thread that blocks."""

    def __init__(self) -> None:
        self.rung = threading.Event()

    def wake(self) -> None:
        self.rung.set()


def _wake(waker: loops.Waker | _Alarm | None) -> None:
    if waker is not None:
        waker.wake()
