"""Slots that come back by themselves, so many a second: when the next ones can be had, to the millisecond.

A limit of n slots that decay at r a second is a bucket of n that refills at r. All there is to know of it is one
number: when it is full again, if nobody takes anything. (The generic cell rate algorithm, ITU-T I.371; times are
monotonic seconds.)
"""

from __future__ import annotations

#: Seconds by which somebody may be late and still count as having come in time: what a disk or a loop may take, so
#: that 6 slots at 5 a second take 1.0 s and not 1.0 s and six delays.
LATE = 0.1


def due(full: float, count: int, limit: int, decay: float) -> float:
    """When `count` slots can be had."""
    return full + (count - limit) / decay


def full_after(full: float, count: int, limit: int, decay: float, *, came: float, now: float) -> float:
    """When it is full again once `count` slots are taken now, for somebody who has waited since `came`."""
    time = max(came, due(full, count, limit, decay))
    if now - time > LATE:
        time = now
    return max(full, time) + count / decay


def in_use(full: float, limit: int, decay: float, now: float) -> int:
    """How many slots are not back yet."""
    left = (full - now) * decay
    return min(limit, max(0, -int(-left // 1)))
