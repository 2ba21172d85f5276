"""The hands of a stream: children of an event loop that make and run its runs, each one after another.

A child for each run would cost 1 to 3 us more on asyncio and 8 on trio, which is as much as the run itself.

1. A hand has one run at a time, which lives in a context of its own. Who cancels that run cancels the hand, which ends.
2. As long as runs do not suspend, one hand takes one after another; the first that does has others called.
3. A hand that has nothing to do waits to be called. It ends when its stream is left.
4. A hand that was asked to stop takes no more, whoever asked: the next run is not to suffer for the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextvars import Context
from types import coroutine
from typing import Any, Protocol

from . import loops
from .endings import stop
from .errors import CrashedRun
from .runs import Run, wake_all


class Maker(Protocol):
    """Makes runs; `patterns.Pattern` is one."""

    context: Context
    #: In which run, if in any.
    reader: Run | None
    #: Whether they are begun here, and not on another loop.
    is_here: bool

    def run(self, value: Any) -> tuple[Run, loops.Work]:
        """A run, and what takes it to its end."""
        ...


class Hands:
    """As many hands as are needed for the values that wait. All of it on one event loop, but for `land` and `leave`."""

    def __init__(
        self, loop: loops.EventLoop, results: deque[Run], ordered: bool, wakes: list[Callable[[], None]]
    ) -> None:
        """Runs are put into `results` as they end, or `ordered`, as they are made; `wakes` are called when one ends."""
        self.loop = loop
        self.results = results
        self.ordered = ordered
        self.wakes = wakes
        #: Values for which there is no run yet, and what makes one.
        self.waiting: deque[Any] = deque()
        self.maker: Maker | None = None
        self.all: set[Hand] = set()
        self.idle: list[Hand] = []
        #: How many were called and have not looked for a value since.
        self.called = 0
        self.why_left: str | None = None
        #: Why a run could not be made.
        self.error: BaseException | None = None

    def see_to(self, hands: int) -> None:
        """See that so many hands are on their way to what waits, if that is as much."""
        while self.called < hands and self.called < len(self.waiting):
            self.call()

    def call(self) -> None:
        if self.idle:
            self.idle.pop().call()
        else:
            Hand(self).start()

    def fail(self, error: BaseException) -> None:
        self.error = error
        wake_all(self.wakes)

    def land(self, run: Run) -> None:
        """It is over; from any thread."""
        if not self.ordered:
            self.results.append(run)
        wake_all(self.wakes)

    def in_flight(self) -> list[Run]:
        return [run for hand in list(self.all) if (run := hand.run) is not None]

    def leave(self, reason: str) -> None:
        """Cancel what is in flight, and take no more values; from any thread."""
        self.why_left = reason
        self.waiting.clear()
        for run in self.in_flight():
            stop(run, reason)
        if self.loop.is_here():
            self._dismiss()
        else:
            self.loop.call_soon(self._dismiss)

    def _dismiss(self) -> None:
        while self.idle:
            self.idle.pop().call()

    def forget(self, hand: Hand) -> None:
        self.all.discard(hand)
        if hand in self.idle:
            self.idle.remove(hand)
        wake_all(self.wakes)  # who waits for what it would have taken next, calls another


class Hand:
    """One of them, and the run that it has in hand."""

    __slots__ = ("_handle", "_hands", "_is_called", "_waker", "run")

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._handle: Any = None
        self._waker: Any = None
        self._is_called = False
        self.run: Run | None = None

    def start(self) -> None:
        hands = self._hands
        hands.all.add(self)
        self._expect()
        child: Any = self._child()
        if hands.loop.begins_early:
            child.send(None)
        self._handle = hands.loop.start(child, Context())  # an empty one: nothing in it leads to a run
        if self._handle is None:
            child.close()
            self._end()
            hands.waiting.clear()
            hands.fail(CrashedRun("ended by its event loop, which is closing"))

    def call(self) -> None:
        self._expect()
        self._waker.wake()

    def _expect(self) -> None:
        self._is_called = True
        self._hands.called += 1

    def cancel(self) -> None:
        """As `run.child.cancel`: stop the run that was asked to, which may have ended since."""
        if self.run is not None and self.run.cancel_reason is not None:
            self._hands.loop.cancel(self._handle)

    def give_up(self) -> None:
        """The run was ended, though its body would not stop."""
        run, self.run = self.run, None
        if run is not None:
            self._hands.land(run)

    async def _child(self) -> None:
        try:
            await self._work()
        finally:
            self._end()

    @coroutine
    def _work(self) -> Generator[Any, Any, None]:
        hands = self._hands
        loop, waiting, results, wakes, at_once = hands.loop, hands.waiting, hands.results, hands.wakes, hands.ordered
        if loop.begins_early:
            yield  # as in `loops.begun`
        while self._handle is None:  # an eager task, which goes on before `start` knows of it
            yield
        was_asked, is_stopping = loop.askers(self._handle)
        while True:
            self._is_called = False
            hands.called -= 1
            while waiting:
                maker: Any = hands.maker
                try:
                    run, work = maker.run(waiting.popleft())
                except BaseException as error:  # deliberate: who asks for results is told
                    hands.fail(error)
                    continue
                self.run = run
                if hands.why_left is not None:  # in another thread, which may not have seen this run
                    run.cancel_reason = hands.why_left
                if at_once:
                    results.append(run)
                context = maker.context.copy()
                try:
                    request = context.run(work.send, None)
                except StopIteration:  # the run is over, and has never suspended
                    is_over = was_asked()
                else:
                    hands.see_to(2)  # it waits, and so may those that they will take
                    if maker.is_here:
                        run.child = self
                        if run.cancel_reason is not None:  # cancelled before its child was there to be cancelled
                            self.cancel()
                    yield from _carry(context.run, work, request)
                    is_over = is_stopping()
                if self.run is run:
                    self.run = None
                    if not at_once:
                        results.append(run)
                    if wakes:
                        wake_all(wakes)
                del run, work, context
                if is_over:
                    return
            if hands.why_left is not None:
                return
            waker = self._waker = loop.waker()
            hands.idle.append(self)
            yield from waker.wait().__await__()

    def _end(self) -> None:
        hands = self._hands
        if self._is_called:
            self._is_called = False
            hands.called -= 1
        run, self.run = self.run, None
        if run is not None:
            run.when_settled(lambda: hands.land(run))
        hands.forget(self)


def _carry(advance: Callable[..., Any], work: loops.Work, request: Any) -> Generator[Any, Any, None]:
    """The other steps of a run: what it suspends with goes to the loop, and what the loop says comes to it."""
    answer: Any = None
    thrown: BaseException | None = None
    told: BaseException | None = None
    try:
        while True:
            try:
                answer = yield request
            except GeneratorExit:
                advance(work.close)
                raise
            except BaseException as error:  # deliberate: the run says what follows
                thrown = error
            if thrown is None:
                request = advance(work.send, answer)
                continue
            # Out of the `except`: else what the run raises, having dealt with this one, would have it as its context.
            trace = thrown.__traceback__
            told, thrown = thrown.with_traceback(trace and trace.tb_next), None  # without this frame
            request = advance(work.throw, told)
            told = None
    except StopIteration:
        return
    finally:
        del advance, work, request, answer, told  # the traceback of what is raised here leads to this frame
