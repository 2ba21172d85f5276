"""Loads: who calls what when, and what is noted of it.

1. A closed loop has clients, each of which calls again when its call is over. A stall holds all of them up, so it is
   noted once for each, however long it was.
2. An open loop has starts that nothing holds up: they are drawn beforehand, and latency counts from the intended one.
   A stall is noted by every call that it made late (no coordinated omission).
3. A call counts if it began, or was to begin, within the window: also if it ends later. Those that have not ended when
   the grace is over count with the time that they have taken, as unfinished; so do those that were never started.
4. Throughput counts what succeeded within the window, whenever it began.
5. Between calls that never wait, others get their turn every half millisecond.
"""

from __future__ import annotations

import contextvars
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio

from ..loops import begun, here, is_being_cancelled, is_cancellation
from .calls import Call
from .figures import WorkFigures
from .histogram import Histogram
from .pacing import Pacer, pacer

#: See rule 5; a turn of the loop is 5 us.
SLICE = 500_000
#: Seconds that calls which are given up get to end.
LAST_SECONDS = 2.0
clock = time.monotonic_ns


class Window:
    """The time that counts, in nanoseconds of `clock`."""

    __slots__ = ("begin", "end", "grace", "start")

    def __init__(self, warmup: float, duration: float, grace: float) -> None:
        self.start = clock()
        self.begin = self.start + int(warmup * 1e9)
        self.end = self.begin + int(duration * 1e9)
        #: When calls under way are given up.
        self.grace = self.end + int(grace * 1e9)

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) / 1e9

    @property
    def seconds_left(self) -> float:
        return max(0.0, (self.grace - clock()) / 1e9)


class CountedWork:
    """One work under load: how to call it, and what its calls gave."""

    __slots__ = ("call", "errors", "latency", "name", "succeeded", "unfinished", "window")

    def __init__(self, name: str, call: Call, window: Window) -> None:
        self.name = name
        self.call = call
        self.window = window
        self.latency = Histogram()
        self.succeeded = 0
        self.unfinished = 0
        self.errors: dict[str, int] = {}

    def done(self, began: int, now: int) -> None:
        window = self.window
        if began >= window.begin:
            self.latency.record(now - began)
        if window.begin <= now < window.end:
            self.succeeded += 1

    def failed(self, began: int, error: BaseException) -> None:
        if began >= self.window.begin:
            self.latency.record(clock() - began)
            name = type(error).__qualname__
            self.errors[name] = self.errors.get(name, 0) + 1

    def given_up(self, began: int) -> None:
        """It has not ended. One that began in the warm-up counts as well: it has outlasted the window."""
        self.latency.record(clock() - began)
        self.unfinished += 1

    def figures(self) -> WorkFigures:
        return WorkFigures(
            name=self.name,
            latency=self.latency,
            succeeded=self.succeeded,
            errors=self.errors,
            unfinished=self.unfinished,
        )


def picks(works: Sequence[CountedWork], weights: Sequence[float], seed: int) -> Callable[[], CountedWork]:
    """What gives the work of the next call: by weight, at random, and the same for the same seed."""
    if len(works) == 1:
        only = works[0]
        return lambda: only
    source = random.Random(seed)
    bounds = list(itertools.accumulate(weights))

    def pick() -> CountedWork:
        return source.choices(works, cum_weights=bounds)[0]

    return pick


class ClosedLoop:
    """So many clients, each of which calls again when its call is over."""

    def __init__(self, pick: Callable[[], CountedWork], window: Window, clients: int) -> None:
        self._pick = pick
        self._window = window
        self._clients = clients

    async def run(self) -> None:
        with anyio.move_on_after(self._window.seconds_left):
            async with anyio.create_task_group() as group:
                for _ in range(self._clients):
                    group.start_soon(self._client)

    async def _client(self) -> None:
        pick, end = self._pick, self._window.end
        rested = clock()
        while (began := clock()) < end:
            work = pick()
            try:
                await work.call()
            except Exception as error:
                work.failed(began, error)
            except BaseException as error:
                if is_being_cancelled():
                    work.given_up(began)
                    raise
                if not is_cancellation(error):
                    raise
                work.failed(began, error)  # the work's own: nobody has cancelled this client
            else:
                work.done(began, clock())
            if clock() - rested > SLICE:
                await anyio.lowlevel.checkpoint()
                rested = clock()


class OpenLoop:
    """Calls that start when they are to, whatever becomes of those before them."""

    def __init__(
        self, pick: Callable[[], CountedWork], window: Window, starts: Iterator[int], *, most_in_flight: int
    ) -> None:
        """`starts` are in nanoseconds from the start of the window's warm-up."""
        self._pick = pick
        self._window = window
        self._starts = starts
        self._most = most_in_flight
        self._children: dict[int, Any] = {}
        self._loop = here()
        #: Whom the end of a call wakes: the loop waits for room, or for all to end.
        self._waits: Any = None
        self._broken: BaseException | None = None
        self._rested = clock()
        self.lateness = Histogram()
        self.held_back = 0
        self.not_started = 0

    async def run(self) -> None:
        window = self._window
        moments = (window.start + offset for offset in self._starts)
        starts = itertools.takewhile(lambda moment: moment < window.end, moments)
        try:
            with anyio.move_on_after(window.seconds_left), pacer() as pace:
                for number, intended in enumerate(starts):
                    await self._start(number, intended, pace)
                while self._children:
                    await self._one_ends()
        finally:
            for child in list(self._children.values()):
                self._loop.cancel(child)
            with anyio.move_on_after(LAST_SECONDS, shield=True):
                while self._children:
                    await self._one_ends()
        if self._broken is not None:
            raise self._broken
        for intended in starts:
            self._never_started(intended)

    async def _start(self, number: int, intended: int, pace: Pacer) -> None:
        """Start the call at its moment, or later where it cannot be helped."""
        try:
            if intended > clock():
                await pace.until(intended)
                self._rested = clock()
            elif clock() - self._rested > SLICE:
                await anyio.lowlevel.checkpoint()
                self._rested = clock()
            if len(self._children) >= self._most:
                self.held_back += intended >= self._window.begin
                while len(self._children) >= self._most:
                    await self._one_ends()
        except BaseException:
            self._never_started(intended)
            raise
        if self._broken is not None:
            raise self._broken
        if intended >= self._window.begin:
            self.lateness.record(clock() - intended)
        child: Any = self._one(number, self._pick(), intended)
        if self._loop.begins_early:
            child.send(None)
        self._children[number] = self._loop.start(child, contextvars.copy_context())

    async def _one(self, number: int, work: CountedWork, intended: int) -> None:
        try:
            if self._loop.begins_early:
                await begun()
            await work.call()
        except Exception as error:
            work.failed(intended, error)
        except BaseException as error:
            if is_being_cancelled():
                work.given_up(intended)
                raise
            if is_cancellation(error):
                work.failed(intended, error)
            else:
                self._broken = error  # an exit, which a child must not raise into its loop
        else:
            work.done(intended, clock())
        finally:
            del self._children[number]
            waits, self._waits = self._waits, None
            if waits is not None:
                waits.wake()

    async def _one_ends(self) -> None:
        self._waits = waits = self._loop.waker()
        await waits.wait()

    def _never_started(self, intended: int) -> None:
        if intended >= self._window.begin:
            self.not_started += 1
            self._pick().given_up(intended)
