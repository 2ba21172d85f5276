"""Slots: how many runs with a tag may be Running at once, and who is next.

1. A run takes the slots of all its limited tags at once, or none.
2. First come, first served: a run waits behind every earlier run in the line of any tag that both need, even if
   there is room for it elsewhere. So a run that needs several tags is never starved, and since a run enters all
   its lines in one step, two runs never wait for each other.
3. A slot is handed over by the release itself: whoever gives it back wakes the next in line before returning.
4. A limit of 0 refuses. A changed or deleted limit takes effect for those waiting at once.
5. Borrowing: while a holder waits for its own descendants, its slot may be lent to one of them at a time, so that
   nested runs cannot block each other, and siblings still respect the limit. Who called a waiting run waits as well.
   A run whose result others wait for, having its cache key, counts as a descendant of what is above those as well.
6. Nothing here waits or calls user code: `take` says yes or gives a place in line, and `when_granted` calls back.
   One lock guards it all, for every thread and loop.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice

import msgspec

from .errors import ConcurrencyLimitAborted, ObjectNotFound
from .runs import Run


class ConcurrencyLimit(msgspec.Struct, frozen=True):
    """A tag limit as people see it; `active_slots` are the ids of the runs that hold its slots."""

    tag: str
    concurrency_limit: int
    active_slots: list[str]
    waiting: int = 0


class Slots:
    """What one run holds, or waits for: a place in the line of each of its limited tags."""

    __slots__ = ("_table", "granted", "lender", "lent_to", "lines", "refused", "run", "wake")

    def __init__(self, table: Limits, run: Run, lines: list[_Line]) -> None:
        self._table = table
        self.run = run
        self.lines = lines
        self.wake: Callable[[], None] | None = None
        self.granted = False
        #: Why it will never be granted, once a limit was set to 0.
        self.refused: ConcurrencyLimitAborted | None = None
        #: By line: the holder whose slot this one uses, where it has none of its own.
        self.lender: dict[_Line, Slots] = {}
        #: By line: the descendant that uses this holder's slot at present.
        self.lent_to: dict[_Line, Slots] = {}

    def __str__(self) -> str:
        """Why these slots are not granted, for people."""
        return self._table.describe(self)


class _Line:
    """One tag's limit: who holds its slots, and who waits, in order."""

    __slots__ = ("holders", "limit", "tag", "waiting")

    def __init__(self, tag: str, limit: int) -> None:
        self.tag = tag
        self.limit = limit
        self.holders: dict[Slots, None] = {}
        # An OrderedDict, because finding the first entry of a plain dict gets slower with each one deleted before it.
        self.waiting: OrderedDict[Slots, None] = OrderedDict()


class Limits:
    """The tag limits of one process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        #: Whether the limits that a store keeps are in here yet; see `Store.ready`.
        self.is_known = True

    def empty_copy(self) -> Limits:
        """The same limits with nobody in them. Takes no lock, which a thread that a fork left behind may hold."""
        copy = Limits()
        copy._lines = {tag: _Line(tag, line.limit) for tag, line in list(self._lines.items())}
        return copy

    def begin_anew(self) -> None:
        """In a forked child: no limits. Takes no lock either."""
        self._lock = threading.Lock()
        self._lines = {}

    def set(self, tag: str, limit: int) -> None:
        """Create the limit of a tag, or change it; who waits and now has room starts, and by 0 is refused."""
        with self._lock:
            line = self._lines.setdefault(tag, _Line(tag, limit))
            line.limit = limit
            refused = list(line.waiting) if limit == 0 else []
            changed = {line: None}
            for slots in refused:
                slots.refused = _aborted(slots.run, line)
                for other in slots.lines:
                    self._leave(slots, other)
                    changed[other] = None
            granted = self._grant_waiting(changed)
        _wake([*refused, *granted])

    def delete(self, tag: str) -> None:
        """Remove the limit of a tag; who waits for it alone starts. Raises `ObjectNotFound`."""
        with self._lock:
            line = self._line(tag)
            del self._lines[tag]
            line.limit = _NO_LIMIT  # for those in its line, who may wait for other tags as well
            granted = self._grant_waiting([line])
        _wake(granted)

    def reset(self, tag: str) -> None:
        """Free every slot of a tag, whoever holds it. Raises `ObjectNotFound`."""
        with self._lock:
            line = self._line(tag)
            line.holders.clear()
            granted = self._grant_waiting([line])
        _wake(granted)

    def read(self, tag: str) -> ConcurrencyLimit:
        """The limit of a tag. Raises `ObjectNotFound`."""
        with self._lock:
            return _shown(self._line(tag))

    def read_all(self) -> list[ConcurrencyLimit]:
        """Every limit, by tag."""
        with self._lock:
            return [_shown(self._lines[tag]) for tag in sorted(self._lines)]

    def take(self, run: Run) -> Slots | None:
        """Slots for all limited tags of `run`, or places in their lines; `granted` tells which.

        None when none of its tags is limited. Raises `ConcurrencyLimitAborted` for a limit of 0.
        """
        if not self._lines:
            return None
        with self._lock:
            lines = [line for tag in run.tags if (line := self._lines.get(tag)) is not None]
            if not lines:
                return None
            for line in lines:
                if line.limit == 0:
                    raise _aborted(run, line)
            slots = Slots(self, run, lines)
            for line in lines:
                line.waiting[slots] = None
            self._grant(slots)
        return slots

    def when_granted(self, slots: Slots, wake: Callable[[], None]) -> None:
        """Call `wake` once the slots are granted or refused, in the thread that does it; at once if they are."""
        with self._lock:
            decided = slots.granted or slots.refused is not None
            slots.wake = wake
        if decided:
            wake()

    def give(self, slots: Slots) -> None:
        """Give back what was taken, or leave the line; the next in line is woken before this returns."""
        with self._lock:
            # Only a loan that comes back, or passes on, can make room for a borrower further back in a line.
            with_loans = bool(slots.lender or slots.lent_to)
            for line in slots.lines:
                self._leave(slots, line)
            slots.granted = False
            granted = self._grant_waiting(slots.lines, with_loans=with_loans)
        _wake(granted)

    def begin_wait(self, run: Run) -> list[Run]:
        """`run` waits for other runs from here on, and so do those who called it: their slots may be lent.

        Gives what `end_wait` takes: the holders of slots among them.
        """
        waiting: list[Run] = []
        one: Run | None = run
        while one is not None:
            if one.slots is not None:
                waiting.append(one)
            one = None if one.is_submitted else one.parent
        if waiting:
            with self._lock:
                for one in waiting:
                    one.waits += 1
                granted = self._grant_waiting((line for one in waiting for line in one.slots.lines), with_loans=True)
            _wake(granted)
        return waiting

    def begin_following(self, run: Run) -> list[Run]:
        """The same where `run` waits for the result of a stranger, to whom those above it may lend from here on."""
        waiting = self.begin_wait(run)
        above: list[Slots] = []
        one: Run | None = run.parent
        while one is not None:
            slots: Slots | None = one.slots  # read once: it may be giving them back
            if slots is not None:
                above.append(slots)
            one = one.parent
        if above:
            with self._lock:
                granted = self._grant_waiting((line for slots in above for line in slots.lines), with_loans=True)
            _wake(granted)
        return waiting

    def end_wait(self, waiting: list[Run]) -> None:
        """Their bodies go on."""
        if waiting:
            with self._lock:
                for one in waiting:
                    one.waits -= 1

    def describe(self, slots: Slots) -> str:
        """Why these slots are not granted: which tags are full, the place in line, and who holds the slots."""
        with self._lock:
            parts: list[str] = []
            for line in slots.lines:
                if slots not in line.waiting:
                    continue
                place = list(line.waiting).index(slots) + 1
                holders = ", ".join(holder.run.name for holder in islice(line.holders, 3)) or "nobody"
                parts.append(f"tag {line.tag!r} (limit {line.limit}): number {place} in line, held by {holders}")
        return "; ".join(parts)

    def _line(self, tag: str) -> _Line:
        line = self._lines.get(tag)
        if line is None:
            raise ObjectNotFound(f"there is no concurrency limit for the tag {tag!r}")
        return line

    def _leave(self, slots: Slots, line: _Line) -> None:
        line.waiting.pop(slots, None)
        borrower = slots.lent_to.pop(line, None)
        lender = slots.lender.pop(line, None)
        if lender is not None:
            del lender.lent_to[line]
        held = line.holders.pop(slots, line) is None
        if borrower is None:
            return
        # The lender ends first: what it lent passes to the borrower, with whatever stood behind it.
        del borrower.lender[line]
        if lender is not None:
            borrower.lender[line] = lender
            lender.lent_to[line] = borrower
        elif held:
            line.holders[borrower] = None

    def _grant(self, slots: Slots) -> bool:
        """Give `slots` what it waits for, if all of it can be had now."""
        lenders: dict[_Line, Slots] = {}
        for line in slots.lines:
            if len(line.holders) < line.limit and next(iter(line.waiting)) is slots:
                continue
            lender = _lender(slots, line)
            if lender is None:
                return False
            lenders[line] = lender
        for line in slots.lines:
            del line.waiting[slots]
            lender = lenders.get(line)
            if lender is None:
                line.holders[slots] = None
            else:
                lender.lent_to[line] = slots
                slots.lender[line] = lender
        slots.granted = True
        return True

    def _grant_waiting(self, lines: Iterable[_Line], *, with_loans: bool = False) -> list[Slots]:
        """Grant what can be granted after a change in `lines`: to heads of lines and, `with_loans`, to a borrower."""
        granted: list[Slots] = []
        changed = list(lines)
        while changed:
            line = changed.pop()
            while line.waiting and self._grant(head := next(iter(line.waiting))):
                granted.append(head)
                changed.extend(other for other in head.lines if other is not line)
            if with_loans:
                for slots in list(line.waiting):
                    if _lender(slots, line) is not None and self._grant(slots):
                        granted.append(slots)
                        changed.extend(other for other in slots.lines if other is not line)
                        break
        return granted


_NO_LIMIT = 2**62


def _aborted(run: Run, line: _Line) -> ConcurrencyLimitAborted:
    return ConcurrencyLimitAborted(f"run {run.name!r} was aborted: its tag {line.tag!r} has a concurrency limit of 0")


def _shown(line: _Line) -> ConcurrencyLimit:
    holders = [str(slots.run.id) for slots in line.holders]
    return ConcurrencyLimit(line.tag, line.limit, holders, len(line.waiting))


def _waits_for(holder: Run, below: Run) -> bool:
    """Whether the body of `holder` waits for its child `below`: called in line, or waited for through a future."""
    return holder.waits > 0 or not below.is_submitted


def _lender(slots: Slots, line: _Line) -> Slots | None:
    """The nearest ancestor that uses a slot of this line, if it may lend it: it waits, and has lent it to nobody.

    Those who wait for the result of a run, having the same cache key, and their ancestors count as its own.
    """
    asked: set[int] = set()
    to_ask = [slots.run]
    while to_ask:
        below = to_ask.pop()
        ancestor = below.parent
        while True:
            if below.followers:
                followers = [seat.run for seat in tuple(below.followers)]
                to_ask += [one for one in followers if one.number not in asked]
                asked.update(one.number for one in followers)
            if ancestor is None:
                break
            held: Slots | None = ancestor.slots
            if held is not None and held.granted and line in held.lines:
                if line not in held.lent_to and _waits_for(ancestor, below):
                    return held
                break
            # A settled run has let go of those above it; the flow that owns the run below it is among them, and waits.
            below, ancestor = ancestor, below.flow if ancestor.is_settled else ancestor.parent
    return None


def _wake(granted: list[Slots]) -> None:
    for slots in granted:
        if slots.wake is not None:
            slots.wake()
