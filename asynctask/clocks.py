"""Time, randomness and ids, handed in: a runtime has one `Clock`, one `random.Random` and one `Ids`.

Tests hand in their own (`asynctask.testing.VirtualClock`, a seeded `Random`), so that a year of retries takes a
millisecond and a schedule can be replayed.
"""

from __future__ import annotations

import itertools
import math
import os
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random  # 1 ms at import; a runtime imports it when it is made


class Clock:
    """The real clock. `now` is for what people see; durations are measured with `monotonic`. Both in seconds."""

    #: A virtual clock is moved forward instead of slept on; see `waiting`.
    is_virtual: bool = False

    now: Callable[[], float] = staticmethod(time.time)
    monotonic: Callable[[], float] = staticmethod(time.monotonic)

    def advance(self, seconds: float) -> None:
        """Move a virtual clock; the real one moves by itself."""
        raise NotImplementedError("only a virtual clock can be moved")


_all_ids: weakref.WeakSet[Ids] = weakref.WeakSet()


class Ids:
    """Run ids in the layout of UUIDv7 (RFC 9562): milliseconds, then this process's random bits, then a counter.

    They sort by creation time. A counter costs 0.1 us where `uuid.uuid4` costs 2.7.
    """

    __slots__ = ("__weakref__", "_base", "_count", "_end", "_prefix")

    def __init__(self, source: random.Random) -> None:
        _all_ids.add(self)
        self._begin(source.getrandbits(12), source.getrandbits(30), source.getrandbits(16))

    def _begin(self, first: int, second: int, count: int) -> None:
        self._prefix = (0x7 << 76) | (first << 64) | (0b10 << 62) | (second << 32)
        self._count = itertools.count(count)
        #: What the ids of a millisecond have in common, and when it ends.
        self._base = 0
        self._end = -math.inf

    def begin_anew(self) -> None:
        """In a forked child, lest it make the ids that its parent makes: workers begin at one moment."""
        number = int.from_bytes(secret(8), "big")
        self._begin(number & 0xFFF, number >> 12 & 0x3FFFFFFF, number >> 42 & 0xFFFF)

    def new(self, seconds: float) -> int:
        """The 128 bits of a new id, for the time `seconds` since the epoch."""
        if seconds < self._end:  # also if the clock was set back: ids go on from where they were
            return self._base + next(self._count)
        # Shifting a large number takes longer than all the rest, so what a millisecond has in common is kept.
        milliseconds = int(seconds * 1000)
        base = (milliseconds << 80) + self._prefix
        self._base, self._end = base, (milliseconds + 1) / 1000
        return base + next(self._count)


def secret(size: int) -> bytes:
    """Bytes that nobody can guess, from the operating system: for keys. Never from a seed, so not handed in."""
    return os.urandom(size)


def _begin_anew() -> None:
    for ids in list(_all_ids):
        ids.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
