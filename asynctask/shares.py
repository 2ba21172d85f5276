"""How processes share the slots of one limit: what one of them may have, given what the others have and want.

1. Nobody has more than the limit leaves: what all have together is counted from what each has told, never kept apart.
2. The slots that are free go to the process whose oldest run has waited longest, then to the next one.
3. Where nobody else waits, a process takes twice what it had, and keeps what it does not use: so that the common case
   asks nobody. Where others wait, it keeps what it uses and what its own older runs are about to use.
4. What is in use is never taken away; when a limit was lowered, it is given back as runs end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .lines import Line


class Other(NamedTuple):
    """What another process has told: slots it has, slots it wants, and since when (monotonic seconds)."""

    process: str
    held: int
    wanted: int
    since: float


class Share(NamedTuple):
    """What this process is to have, what it still wants and since when; whom to tell; since when others wait."""

    held: int
    wanted: int
    since: float
    foreign: float | None
    to_tell: list[str]


def settled(line: Line, others: Sequence[Other], process: str, *, is_idle: bool) -> Share:
    """The share of `process` in a line whose slots come back by hand; `is_idle`: it has not used them for a while."""
    size = line.size if line.is_active else math.inf
    head = next(iter(line.waiting), None)
    need = min(line.wanted(), max(0, line.size - line.used)) if line.is_active else 0
    since = head.came if head is not None and need else math.inf
    waiting = sorted((one for one in others if one.wanted), key=lambda one: (one.since, one.process))
    ahead = sum(one.wanted for one in waiting if (one.since, one.process) < (since, process))
    elsewhere = sum(one.held for one in others)
    target = line.used + need
    if not waiting and not is_idle:
        target = max(line.share, target + line.share if need else 0)
    held = max(line.used, int(min(target, size - elsewhere - ahead)))
    wanted = max(0, line.used + need - held)
    free = size - elsewhere - held
    to_tell: list[str] = []
    room = free
    for one in waiting:
        if room > 0:
            to_tell.append(one.process)
        room -= one.wanted
    foreign = waiting[0].since if waiting and room < 0 else None
    if wanted and not line.published:  # those who have some do not know yet that we wait
        to_tell += [one.process for one in others if one.held and one.process not in to_tell]
    return Share(held, wanted, since if wanted else 0.0, foreign, to_tell)


def comes_first(line: Line, others: Sequence[Other], process: str) -> bool:
    """Whether the oldest of those who wait for what decays is one of ours."""
    head = next(iter(line.waiting), None)
    if head is None:
        return False
    return all((head.came, process) < (one.since, one.process) for one in others if one.wanted)
