"""Single flight: of concurrent runs with one cache key, one runs its body and the others wait for what comes of it.

1. The first run under a key leads; those that come later wait for it, in order.
2. When the leader lands with a result, all who wait have it. When it ends otherwise (it failed for good, it was
   cancelled), the next in line leads, and the others wait for that one.
3. A run never waits for a leader that waits for it, or for a run above it: it is told so, and runs by itself.
4. Nothing here waits or calls user code. One lock guards it all, for every thread and loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .runs import Run


class Seat:
    """A run's place in a flight; `is_empty` and `when_empty` are what a port waits with until it is called."""

    __slots__ = ("flight", "is_called", "leads", "line", "result", "run", "wake")

    def __init__(self, run: Run, flight: _Flight, leads: bool) -> None:
        self.run: Run = run
        self.flight = flight
        self.leads = leads
        self.is_called = leads
        #: The numbers of the runs that wait with this seat: its own, and those above it.
        self.line: list[int] = []
        #: What the leader brought, once it has landed.
        self.result: Any = None
        self.wake: Callable[[], None] | None = None

    def is_empty(self) -> bool:
        return self.is_called

    def when_empty(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        if self.is_called:
            wake()


class _Flight:
    __slots__ = ("key", "leader", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.leader: Seat
        self.waiting: deque[Seat] = deque()


class Flights:
    """The flights of one store in this process, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        #: By the number of a run: the flights for which it waits, or runs below it do, and how many of them. Asking
        #: all that wait instead took 1 ms for each of 8,000 runs at once.
        self._awaited: dict[int, dict[_Flight, int]] = {}

    def board(self, key: str, run: Run) -> Seat | None:
        """A seat that leads, or one to wait in; None if waiting could never end (rule 3)."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight(key)
                flight.leader = Seat(run, flight, leads=True)
                run.followers = flight.waiting  # whose slots it may borrow; see `limits`
                return flight.leader
            line = [one.number for one in _with_ancestors(run)]
            if self._waits_for(flight.leader.run, set(line)):
                return None
            seat = Seat(run, flight, leads=False)
            seat.line = line
            flight.waiting.append(seat)
            for number in line:
                flights = self._awaited.setdefault(number, {})
                flights[flight] = flights.get(flight, 0) + 1
            return seat

    def land(self, seat: Seat, result: Any = None) -> None:
        """The leader is back: with what all who wait get, or with nothing, so that the next one leads."""
        called: list[Seat] = []
        with self._lock:
            flight = seat.flight
            if flight.leader is not seat or self._flights.get(flight.key) is not flight:
                return
            seat.run.followers = None
            if result is None and flight.waiting:
                flight.leader = flight.waiting.popleft()
                flight.leader.leads = True
                flight.leader.run.followers = flight.waiting
                called = [flight.leader]
            else:
                del self._flights[flight.key]
                called = list(flight.waiting)
            for one in called:
                self._wait_ended(one)
                one.result = result
                one.is_called = True
        for one in called:
            if one.wake is not None:
                one.wake()

    def leave(self, seat: Seat) -> None:
        """Its run waits no longer; if it was just called to lead, it hands that on."""
        with self._lock:
            if not seat.leads:
                if seat in seat.flight.waiting:
                    seat.flight.waiting.remove(seat)
                    self._wait_ended(seat)
                return
        self.land(seat)

    def _waits_for(self, leader: Run, numbers: set[int]) -> bool:
        """Whether `leader`, or a run below it, waits for one of these runs, directly or through other flights."""
        asked: set[int] = set()
        to_ask = [leader]
        while to_ask:
            one = to_ask.pop()
            if one.number in numbers:
                return True
            if one.number in asked:
                continue
            asked.add(one.number)
            to_ask.extend(flight.leader.run for flight in self._awaited.get(one.number, ()))
        return False

    def _wait_ended(self, seat: Seat) -> None:
        line, seat.line = seat.line, []  # it may be called, and leave
        for number in line:
            flights = self._awaited[number]
            flights[seat.flight] -= 1
            if not flights[seat.flight]:
                del flights[seat.flight]
                if not flights:
                    del self._awaited[number]


def _with_ancestors(run: Run | None) -> Iterator[Run]:
    while run is not None:
        yield run
        run = run.parent
