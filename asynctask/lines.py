"""Lines of limits: who holds slots of them, and who waits for some, in order.

1. A line is first come, first served. Who needs slots of several lines waits in all of them, and takes all at once.
2. Nothing here locks: `limits` does, around all of it. Who may lend to whom: see `loans`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import msgspec

from . import rates
from .errors import ConcurrencyLimitAborted
from .limit_records import MOST_SHOWN, NAMED, place_in_line, shown_name
from .runs import Run

#: More slots than anybody takes: the share of a process that shares with nobody.
ALL = 2**62


class Guest(msgspec.Struct, eq=False, frozen=True):
    """Code outside runs that holds slots or waits for them; what is asked of runs has an answer here as well."""

    name: str
    number: int = 0
    parent: None = None
    flow: None = None
    followers: None = None
    is_submitted: bool = False
    is_settled: bool = False
    slots: None = None
    guards: None = None
    awaits: None = None


Holder: TypeAlias = "Run | Guest"


class Wait(msgspec.Struct, eq=False):
    """What a run's body waits for."""

    #: A run; slots; what gives groups, of each of which somebody must go on; None: what may end by itself.
    target: Run | Slots | Callable[[], Iterable[Iterable[Any]]] | None
    #: The run that waits; those who called it have this wait as well.
    run: Run
    #: In which task or thread.
    strand: object = None
    #: What it waits for, for people, where `target` does not tell.
    text: str = ""
    #: The last of a chain of runs of which each waits for the next one, as `deadlocks` found it when as many waits as
    #: this had been cut short: ended before what they were for.
    beyond: Run | None = None
    cuts: int = 0


class Waiting(NamedTuple):
    """What `Limits.begin_wait` gives and `end_wait` takes: a wait, and the runs that are in it."""

    wait: Wait
    runs: list[Run]


class Slots(msgspec.Struct, eq=False):
    """What one run or block holds, or waits for: a place in the line of each of its limits."""

    table: Any
    run: Holder
    lines: Sequence[Line]
    #: Of each line.
    count: int = 1
    #: When it came into its lines, and when it got what it came for: monotonic seconds.
    came: float = 0.0
    since: float = 0.0
    #: The task or thread of a block (`concurrency`); None for the slots of a run's tags.
    strand: object = None
    #: The task or thread that a generator has given a value, and without which it does not go on.
    paused_in: object = None
    wake: Callable[[], None] | None = None
    granted: bool = False
    #: Whether what decays was paid for, and from when on it can be had.
    is_paid: bool = False
    due: float | None = None
    #: Why it will never be granted: a limit was set to less than it wants.
    refused: Exception | None = None
    #: By line: the holder whose slots this one uses, where it has none of its own.
    lender: dict[Line, Slots] | None = None
    #: By line: the descendant that uses this holder's slots at present.
    lent_to: dict[Line, Slots] | None = None
    #: The runs above it, by their numbers, under which it stands in `Line.near`.
    above: Sequence[int] = ()

    def __str__(self) -> str:
        """Why these slots are not granted, for people: the place in line, and who holds the slots."""
        with self.table.lock:
            now = self.table.monotonic()
            parts: list[str] = []
            for line in self.lines:
                if self in line.waiting:
                    first = islice(line.waiting, MOST_SHOWN)  # no further: every one that waits is asked this
                    place = next((place for place, one in enumerate(first, 1) if one is self), None)
                    held = [f"{one.run.name} for {now - one.since:.0f} s" for one in islice(line.holders, NAMED)]
                    parts.append(place_in_line(line.shown, place, held, line.used))
        return "; ".join(parts)

    def text(self) -> str:
        """What it wants, for people."""
        if len(self.lines) == 1:
            return self.lines[0].text
        return " and ".join(line.text for line in self.lines)

    @property
    def is_decided(self) -> bool:
        return self.granted or self.refused is not None


class Line:
    """One limit: who holds its slots in this process, and who waits here, in order."""

    __slots__ = (
        "decay", "foreign", "full", "holders", "is_active", "name", "near", "published", "refund", "resets", "share",
        "shown", "size", "text", "turns", "used", "waiting",
    )  # fmt: skip

    def __init__(self, name: str, size: int, *, decay: float = 0.0, is_active: bool = True, share: int = ALL) -> None:
        self.name = name
        #: For people.
        self.shown = shown_name(name)
        self.text = f"a slot of {self.shown}"
        self.size = size
        #: Slots that come back by themselves in a second.
        self.decay = decay
        self.is_active = is_active
        #: When all slots are back, where they decay: monotonic seconds; see `rates`.
        self.full = 0.0
        #: Seconds by which it will be full earlier, of which the store does not know yet.
        self.refund = 0.0
        #: How many of the slots this process may give to its runs.
        self.share = share
        #: Slots in use, of this process.
        self.used = 0
        self.holders: dict[Slots, None] = {}
        # An OrderedDict, because finding the first entry of a plain dict gets slower with each one deleted before it.
        self.waiting: OrderedDict[Slots, None] = OrderedDict()
        #: Those who wait, by the numbers of the runs above them, who may have something to lend.
        self.near: dict[int, OrderedDict[Slots, None]] = {}
        #: Since when another process waits for what we may have to spare; monotonic seconds.
        self.foreign: float | None = None
        #: What the store was last told: how many more are wanted. And how often slots were taken, to tell idleness.
        self.published = 0
        self.turns = 0
        self.resets = 0

    def has_room(self, slots: Slots) -> bool:
        """Whether `slots`, the first in this line, could be given what it wants of it."""
        if not self.is_active:
            return True
        if self.decay:
            return slots.is_paid
        if self.foreign is not None and self.foreign < slots.came:
            return False
        return self.used + slots.count <= self.size and self.used + slots.count <= self.share

    def enter(self, slots: Slots) -> None:
        self.waiting[slots] = None
        self.put_below(slots, slots.above)

    def put_below(self, slots: Slots, numbers: Iterable[int]) -> None:
        """The runs of these numbers are above `slots`, which waits here."""
        for number in numbers:
            self.near.setdefault(number, OrderedDict())[slots] = None

    def leave(self, slots: Slots) -> bool:
        """Wait no longer; whether it did."""
        if slots not in self.waiting:
            return False
        del self.waiting[slots]
        for number in slots.above:
            beside = self.near[number]
            beside.pop(slots, None)
            if not beside:
                del self.near[number]
        return True

    def hold(self, slots: Slots) -> None:
        self.turns += 1
        if not self.decay:
            self.holders[slots] = None
            self.used += slots.count

    def drop(self, slots: Slots) -> bool:
        """Hold nothing of this line any more; whether it did."""
        if slots not in self.holders:
            return False
        del self.holders[slots]
        self.used -= slots.count
        return True

    def is_short(self) -> bool:
        """Whether the store may have to tell more: the limit is for others as well, and not asked enough yet."""
        return self.share < self.size and (self.published == 0 or self.published < self.wanted())

    def sets_aside(self) -> bool:
        """Whether a slot that was given back is for another process, which has waited for longer than anybody here."""
        foreign = self.foreign
        if foreign is None or (self.waiting and next(iter(self.waiting)).came < foreign):
            return False
        self.share = self.used
        return True

    def wanted(self) -> int:
        """Slots that those who wait here could use, as far as the limit goes; at least what the first one wants."""
        most = self.size if self.decay else self.size - self.used
        count = 0
        for slots in self.waiting:
            if count and count + slots.count > most:
                break
            count += slots.count
        return count


def due(slots: Slots, lines: Iterable[Line]) -> float:
    """When `slots` can have what it wants of these limits, which decay."""
    return max(rates.due(line.full, slots.count, line.size, line.decay) for line in lines)


def charge(slots: Slots, lines: Iterable[Line], time: float, now: float) -> None:
    """`slots` takes that, which it could from `time` on."""
    came = max(slots.came, time)
    for line in lines:
        line.full = rates.full_after(line.full, slots.count, line.size, line.decay, came=came, now=now)
    slots.is_paid = True


def leave_run(slots: Slots) -> None:
    """Its run has this block's slots no more."""
    if slots.strand is not None and isinstance(slots.run, Run):
        slots.run.guards = [one for one in slots.run.guards or () if one is not slots] or None


def turn_away(slots: Slots, why: Exception) -> None:
    """It waits no longer, and gets nothing."""
    slots.refused = why
    for line in slots.lines:
        line.leave(slots)


def aborted(slots: Slots, line: Line) -> ConcurrencyLimitAborted:
    who = "code" if isinstance(slots.run, Guest) else "run"
    what = f"{line.shown} has a concurrency limit of {line.size}"
    if line.size:
        return ConcurrencyLimitAborted(f"{who} {slots.run.name!r} wants {slots.count} slots at once, but {what}")
    return ConcurrencyLimitAborted(f"{who} {slots.run.name!r} was aborted: {what}")
