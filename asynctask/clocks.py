"""Time, randomness and ids, handed in: a runtime has one `Clock`, one `random.Random` and one `Ids`.

Tests hand in their own (`asynctask.testing.VirtualClock`, a seeded `Random`), so that a year of retries takes a
millisecond and a schedule can be replayed.
"""

from __future__ import annotations

import itertools
import os
import time
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


class Ids:
    """Run ids in the layout of UUIDv7 (RFC 9562): milliseconds, then this process's random bits, then a counter.

    They sort by creation time. A counter costs 0.1 us where `uuid.uuid4` costs 2.7.
    """

    __slots__ = ("_base", "_count", "_milliseconds", "_prefix")

    def __init__(self, source: random.Random) -> None:
        self._prefix = (0x7 << 76) | (source.getrandbits(12) << 64) | (0b10 << 62) | (source.getrandbits(30) << 32)
        self._count = itertools.count(source.getrandbits(16))
        self._milliseconds = -1
        self._base = 0

    def new(self, seconds: float) -> int:
        """The 128 bits of a new id, for the time `seconds` since the epoch."""
        milliseconds = int(seconds * 1000)
        if milliseconds <= self._milliseconds:  # less: the clock was set back, and ids go on from where they were
            return self._base + next(self._count)
        # Shifting a large number takes longer than all the rest, so what a millisecond has in common is kept.
        base = (milliseconds << 80) + self._prefix
        self._base, self._milliseconds = base, milliseconds
        return base + next(self._count)


def secret(size: int) -> bytes:
    """Bytes that nobody can guess, from the operating system: for keys. Never from a seed, so not handed in."""
    return os.urandom(size)
