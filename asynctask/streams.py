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
from .endings import stop
from .errors import CancelledRun, OptionError
from .futures import TaskFuture, outcome
from .hands import Hands
from .lending import lending
from .patterns import Pattern
from .runs import NO_KWARGS, Run, wake_all
from .states import COMPLETED

logger = logging.getLogger("asynctask")

R = TypeVar("R")

LEFT = "its stream was left"


class Stream(AsyncIterator[R], Iterator[R]):
    """The results of a window, for `async for`, or `for` in plain code; whoever drops it leaves it."""

    def __init__(self, window: Window, return_exceptions: bool) -> None:
        self._window = window
        self._return_exceptions = return_exceptions

    async def __anext__(self) -> R:
        window = self._window
        run = None
        try:
            run = window.take_next() or await window.next()
            if run is None:
                raise StopAsyncIteration
            if run.states[-1].type is COMPLETED:
                return run.value  # type: ignore[no-any-return]
            return outcome(run, raise_on_failure=not self._return_exceptions)  # type: ignore[no-any-return]
        except BaseException:
            window.leave()
            raise
        finally:
            del run  # as in `outcome`

    def __next__(self) -> R:
        window = self._window
        run = None
        try:
            run = window.next_blocking()
            if run is None:
                raise StopIteration
            return outcome(run, raise_on_failure=not self._return_exceptions)  # type: ignore[no-any-return]
        except BaseException:
            window.leave()
            raise
        finally:
            del run

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
    """The runs in flight and the input they come from. All of it on one event loop, but for `_land` and `leave`; or,
    in plain code, in one thread."""

    def __init__(
        self,
        new_run: Callable[[tuple[Any, ...], dict[str, Any]], Run],
        submit: Callable[[Any], TaskFuture[Any]],
        source: Iterable[Any] | AsyncIterable[Any],
        size: int,
        ordered: bool,
    ) -> None:
        self._new_run = new_run
        self._submit = submit
        self._source = source
        self._size = size
        #: How many more may be in flight, and how many results were taken since the last one was asked for.
        self._room = size
        self._taken = 0
        #: Runs in the order in which they end; or, ordered, in that of the input, and not over yet.
        self._results: deque[Run] = deque()
        self._ordered = ordered
        #: In plain code, those in flight.
        self._submitted: dict[int, Run] = {}
        #: On an event loop, who runs them.
        self._hands: Hands | None = None
        self._input: Iterator[Any] | None = None
        #: On an event loop, what gives the next value of a plain input.
        self._pull: Callable[[], Any] | None = None
        #: The feeder, as its loop knows it.
        self._feeder: Any = None
        self._loop: loops.EventLoop | None = None
        #: Wake who waits for a result, the feeder that waits for room, and who waits for the input to be closed.
        self._wakes: list[Callable[[], None]] = []
        self._room_waker: loops.Waker | None = None
        self._close_waker: loops.Waker | None = None
        self._is_exhausted = False
        self._is_left = False

    # -- on an event loop ---------------------------------------------------------------------------------------------

    def take_next(self) -> Run | None:
        """Pull what there is room for; a run that is over, if there is one. Raises what the input raises."""
        if self._is_left:
            return None
        hands = self._hands or self._begin()
        room = self._room = self._room + self._taken
        self._taken = 0
        pull = self._pull
        if pull is None:
            _wake(self._room_waker)
        else:
            while room and not self._is_exhausted:
                try:
                    value = pull()
                except StopIteration:
                    self._is_exhausted = True
                else:
                    if self._is_left:  # by its own input
                        return None
                    self._give(value, hands)
                    room -= 1
            self._room = room
        results = self._results
        if results and (not self._ordered or results[0].is_settled) and hands.error is None:
            self._taken += 1
            return results.popleft()
        return None

    async def next(self) -> Run | None:
        """The next run that is over; None at the end."""
        hands = self._hands
        while (run := self._take()) is None and not self._is_over():
            assert hands is not None  # what is not left was begun
            hands.see_to(1)  # one that was called may have been cancelled since
            waker = hands.loop.waker()
            self._wakes.append(waker.wake)
            if not self._is_ready():  # one may have landed, in another thread, just before
                with lending(self._awaited):
                    await waker.wait()
        return run

    def _begin(self) -> Hands:
        loop = self._loop = loops.here()
        _open.add(self)
        hands = self._hands = Hands(loop, self._results, self._ordered, self._wakes)
        if not isinstance(self._source, AsyncIterable):
            if self._input is None:
                self._input = iter(self._source)
            self._pull = self._input.__next__
            return hands
        work: Any = self._feed(self._source, loop, hands)
        if loop.begins_early:
            work.send(None)
        self._feeder = loop.start(work, contextvars.copy_context())
        if self._feeder is None:  # the loop is ending
            work.close()
            self._is_exhausted = True
        return hands

    def _give(self, value: Any, hands: Hands) -> None:
        maker = hands.maker
        if maker is None or (maker.reader is not None and maker.reader.is_settled):
            hands.maker = Pattern(self._new_run((value,), NO_KWARGS), hands.loop)
        hands.waiting.append(value)
        if not hands.called:
            hands.call()

    # -- in plain code ------------------------------------------------------------------------------------------------

    def next_blocking(self) -> Run | None:
        """The next run that is over, for plain code, which it blocks; None at the end.

        Raises what the input raises, `OptionError` for an async input, and `BlockingWaitError` on the event loop that
        has to run what is in flight.
        """
        if not isinstance(self._source, Iterable):  # a stream is both, so that one may be the input of another
            raise OptionError("a stream over an async input is taken with `async for`")
        self._room += self._taken
        self._taken = 0
        if self._input is None:
            self._input = iter(self._source)
        while self._room and not self._is_exhausted and not self._is_left:
            try:
                value = next(self._input)
            except StopIteration:
                self._is_exhausted = True
            else:
                self._submit_one(value)
        while (run := self._take()) is None and not self._is_over():
            for one in list(self._submitted.values())[:1]:
                refuse_to_hang(one, "write `async for` instead")
            ready = threading.Event()
            self._wakes.append(ready.set)
            if not self._is_ready():  # one may have landed, in another thread, just before
                with lending(self._awaited):
                    block_on(ready)
        return run

    def _submit_one(self, value: Any) -> None:
        run = self._submit(value).run
        run.is_awaited = True
        self._room -= 1
        self._submitted[run.number] = run
        if self._ordered:
            self._results.append(run)
        run.when_settled(lambda: self._land(run))

    def _land(self, run: Run) -> None:
        del self._submitted[run.number]
        if not self._ordered:
            self._results.append(run)
        wake_all(self._wakes)

    # -- both ---------------------------------------------------------------------------------------------------------

    def _take(self) -> Run | None:
        """One that is over, if there is one."""
        if self._is_left:
            return None
        if self._hands is not None and self._hands.error is not None:
            raise self._hands.error
        if not self._is_ready():
            return None
        self._taken += 1
        return self._results.popleft()

    def _is_ready(self) -> bool:
        results = self._results
        return bool(results) and (not self._ordered or results[0].is_settled)

    def _is_over(self) -> bool:
        return self._is_left or (self._is_exhausted and self._room + self._taken == self._size)

    def leave(self) -> None:
        """Cancel what is in flight and close the input. From any thread; once."""
        if self._is_left:
            return
        self._is_left = True
        for run in list(self._submitted.values()):
            stop(run, LEFT)
        if self._hands is not None:
            self._hands.leave(LEFT)
        if self._feeder is not None and self._loop is not None and not self._is_exhausted:
            self._loop.cancel(self._feeder)
        _open.discard(self)
        # Not a file, say, which the caller may want to go on with; nor a generator that leaves its own stream.
        given: Any = self._input
        if isinstance(self._input, (Stream, Generator)) and not getattr(given, "gi_running", False):
            given.close()

    def _in_flight(self) -> list[Run]:
        several = list(self._submitted.values())
        return several if self._hands is None else several + self._hands.in_flight()

    async def closed(self) -> None:
        """Wait until the feeder has closed the input."""
        if self._feeder is not None and not self._is_exhausted:
            waker = self._close_waker = loops.here().waker()
            await waker.wait()

    def _awaited(self) -> list[list[Run]]:
        """One of those in flight is to end; a source that is to give more may do so by itself."""
        if (not self._is_exhausted and self._room > 0) or (self._hands is not None and self._hands.waiting):
            return []
        return [list(self._results)[:1] if self._ordered else self._in_flight()]

    async def _feed(self, source: AsyncIterable[Any], loop: loops.EventLoop, hands: Hands) -> None:
        pull: Any = None
        try:
            if loop.begins_early:
                await loops.begun()
            pull = aiter(source)
            while not self._is_left:
                if self._room:
                    value = await anext(pull)
                    if not self._is_left:  # by its own input
                        self._room -= 1
                        self._give(value, hands)
                    del value
                else:
                    waker = self._room_waker = loop.waker()
                    await waker.wait()
        except StopAsyncIteration:
            pass
        except BaseException as error:  # deliberate: who asks for results is told
            if loops.is_cancellation(error):
                hands.fail(CancelledRun("the input of the stream was cancelled"))
                raise
            hands.fail(error)
        finally:
            await self._close(pull)
            self._is_exhausted = True
            wake_all(self._wakes)
            _wake(self._close_waker)

    async def _close(self, pull: Any) -> None:
        if not hasattr(pull, "aclose"):
            return
        try:
            with anyio.CancelScope(shield=True):  # its cleaning up may await, though the feeder is being cancelled
                await pull.aclose()
        except Exception:
            logger.exception("Closing the input of a stream raised")


#: An event loop refers to its tasks weakly: hands and feeder are held here until their stream is left.
_open: set[Window] = set()


def _wake(waker: loops.Waker | None) -> None:
    if waker is not None:
        waker.wake()
