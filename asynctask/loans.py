"""Slots that are lent: so that nested runs cannot block each other.

1. While a holder waits for its own descendants, its slot may be lent to one of them at a time. Who called a waiting
   run waits as well. A run whose result others wait for, having its cache key, counts as a descendant of what is above
   those as well.
2. A slot that a block took (`concurrency`) is lent only while the code of that block waits, not other code beside it.
3. What comes back by itself is not lent: everybody pays, or the pace would not be kept.
4. Nothing here locks: `limits` does, around all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .lines import Holder, Line, Slots
from .runs import Run


def above(run: Holder) -> Iterator[tuple[Run, Holder, bool]]:
    """The runs above `run`, the nearest first, each with the one below it through which it is; see rule 1.

    And whether that is the first one of a way upwards: there is one from `run`, and one from each who follows.
    """
    asked: set[int] = set()
    to_ask: list[Holder] = [run]
    while to_ask:
        below = to_ask.pop()
        ancestor = below.parent
        is_first = True
        while True:
            if below.followers:
                followers = [seat.run for seat in tuple(below.followers)]
                to_ask += [one for one in followers if one.number not in asked]
                asked.update(one.number for one in followers)
            if ancestor is None:
                break
            yield ancestor, below, is_first
            is_first = False
            # A settled run has let go of those above it; the flow that owns the run below it is among them, and waits.
            below, ancestor = ancestor, below.flow if ancestor.is_settled else ancestor.parent


def note_follower(run: Run, leader: Run, lines: Iterable[Line]) -> None:
    """`run` follows `leader`: what is above it is now above what that one waits for, and the runs below that one.

    Not all who wait are looked at: there may be 100,000 of them, and as many who follow.
    """
    numbers = [one.number for one, _, _ in above(run)]
    if not numbers:
        return
    own = (one for one in (leader.blocker, *(leader.guards or ())) if isinstance(one, Slots) and not one.granted)
    below = (slots for line in lines for slots in line.near.get(leader.number, ()))
    for slots in dict.fromkeys((*own, *below)):
        more = [number for number in numbers if number not in slots.above]
        slots.above = [*slots.above, *more]
        for line in slots.lines:
            if slots in line.waiting:
                line.put_below(slots, more)


def held_in(run: Holder, line: Line) -> Iterator[Slots]:
    """What a run has of a line, its own or lent: by its tags, and by blocks of its body."""
    for slots in (run.slots, *(run.guards or ())):
        if slots is not None and slots.granted and line in slots.lines:
            yield slots


def lender_of(slots: Slots, line: Line) -> Slots | None:
    """The nearest run above that has slots of this line, if it may lend them: it waits, and has lent them to nobody."""
    if line.decay:  # rule 3
        return None
    is_blocked = False
    for ancestor, below, is_first in above(slots.run):
        is_blocked = is_blocked and not is_first
        if is_blocked:
            continue
        for held in held_in(ancestor, line):
            if (held.lent_to is None or line not in held.lent_to) and held.count >= slots.count and _waits(held, below):
                return held
            is_blocked = True  # what is nearer has slots, and lends none
    return None


def _waits(held: Slots, below: Holder) -> bool:
    """Whether what holds these slots waits for its child `below`: called in line, or waited for through a future."""
    awaits = held.run.awaits or ()
    if held.strand is not None:
        return any(wait.strand == held.strand for wait in awaits)
    return bool(awaits) or not below.is_submitted


def lend(lender: Slots, line: Line, borrower: Slots) -> None:
    if lender.lent_to is None:
        lender.lent_to = {}
    if borrower.lender is None:
        borrower.lender = {}
    lender.lent_to[line] = borrower
    borrower.lender[line] = lender


def give_up(slots: Slots, line: Line) -> bool:
    """`slots` has nothing of `line` any more: what it lent passes to the borrower, with whatever stood behind it.

    Whether a loan came back by that, or passed on.
    """
    borrower = None if slots.lent_to is None else slots.lent_to.pop(line, None)
    lender = None if slots.lender is None else slots.lender.pop(line, None)
    if lender is not None:
        assert lender.lent_to is not None
        del lender.lent_to[line]
    had = line.drop(slots)
    if borrower is not None:
        assert borrower.lender is not None
        del borrower.lender[line]
        if lender is not None:
            lend(lender, line, borrower)
        elif had:
            line.holders[borrower] = None
            line.used += borrower.count
    return borrower is not None or lender is not None
