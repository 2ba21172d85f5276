"""Waits of several processes for each other: found from what each has told of those who hold its slots.

1. A line moves when one of those who hold its slots, in any process, goes on. Who waits for slots goes on when all the
   lines move in which it waits. What is not told moves.
2. So a process tells for each line, of each holder, in which lines it waits, through whatever runs, and since when.
3. What each has told at a time of its own proves nothing, unless there is one instant at which all of it held: what was
   first told before it, and told once more after it.
4. Of those who wait in lines that never move, the one that came last is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from .deadlocks import Node, groups_of, node_of, waits_of
from .limit_records import shown_name
from .lines import Line, Slots
from .loans import lender_of

#: Of one holder: the names of lines in which it waits, and since when (monotonic seconds).
Needs: TypeAlias = "list[tuple[str, float]]"
#: Holders and runs that are looked at for one line; with more, it moves.
MOST = 100
#: Slots of a limit that is not there.
MANY = 2**62


class Told(NamedTuple):
    """What a process has told of one line: its slots, what it wants, and what its holders wait for, if all do."""

    name: str
    process: str
    held: int
    wanted: int
    since: float
    needs: list[Needs] | None
    first_told: float
    last_told: float


def needs_of(line: Line) -> list[Needs] | None:
    """What each holder of a line in this process waits for; None if the line moves."""
    if line.decay or line.share > line.used or len(line.holders) > MOST:
        return None
    found: list[Needs] = []
    for holder in line.holders:
        needs: set[tuple[str, float]] = set()
        if not _collect(node_of(holder), needs) or not needs:
            return None
        found.append(sorted(needs))
    return sorted(found)


def _collect(start: Node, needs: set[tuple[str, float]]) -> bool:
    """Add the lines that must move before `start` goes on; False if there is no telling."""
    seen: set[Node] = {start}
    to_look: list[Node] = [start]
    for node in to_look:
        for wait in waits_of(node):
            if isinstance(wait.target, Slots):
                needs.update(_waited_for(wait.target))
                continue
            for group in groups_of(wait):
                several = list(group)
                if len(several) != 1 or len(seen) > MOST:
                    return False
                if several[0] not in seen:
                    seen.add(several[0])
                    to_look.append(several[0])
    return True


def _waited_for(slots: Slots) -> Iterable[tuple[str, float]]:
    for line in slots.lines:
        is_stuck = slots in line.waiting and line.is_active and not line.decay
        if is_stuck and (not slots.above or lender_of(slots, line) is None):
            yield line.name, slots.came


def standing(rows: Sequence[Told], sizes: Mapping[str, int]) -> set[str]:
    """The lines that never move, by what was told; `sizes` are those of the limits in force."""
    holding = [row for row in rows if row.held]
    held_of: Counter[str] = Counter()
    for row in holding:
        held_of[row.name] += row.held
    # Where a slot is free, somebody is about to take it, and only does not know yet.
    still = {name for name, held in held_of.items() if held >= sizes.get(name, MANY)}
    count = -1
    while count != len(still):
        count = len(still)
        for row in holding:
            if row.needs is None or any(all(name not in still for name, _ in one) for one in row.needs):
                still.discard(row.name)
    held = [row for row in holding if row.name in still]
    if not held or max(row.first_told for row in held) > min(row.last_told for row in held):
        return set()
    return still


def refused(rows: Sequence[Told], sizes: Mapping[str, int], process: str) -> str | None:
    """The name of the line whose first one here is to be refused; None if there is none, or another process's is."""
    still = standing(rows, sizes)
    waiting = [row for row in rows if row.wanted and row.name in still]
    last = max(waiting, key=lambda row: (row.since, row.process), default=None)
    return last.name if last is not None and last.process == process else None


def drawn(rows: Sequence[Told], sizes: Mapping[str, int]) -> str:
    """Which processes wait for each other."""
    still = standing(rows, sizes)
    lines = ["these processes wait for each other"]
    for row in sorted(rows):
        if row.held and row.name in still:
            names = sorted({shown_name(name) for one in row.needs or () for name, _ in one})
            pid = row.process.partition("-")[0]
            lines.append(f"  process {pid} holds {shown_name(row.name)}, waits for {', '.join(names)}")
    return "\n".join(lines)
