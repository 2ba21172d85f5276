"""A histogram of durations in nanoseconds, in buckets that grow with them.

1. Below 256 ns each number has a bucket of its own; from there on, each power of two has 128 buckets. So a bucket is at
   most 1/128 of its numbers wide, and what is told of a number, the middle of its bucket, is off by 1/256 (0.4 %).
2. The least, the greatest and the sum are exact.
3. Only buckets that were hit are kept: some hundred, however many numbers there are. Two histograms add up to the one
   of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Self

import msgspec

#: Buckets for each power of two, as a power of two; see rule 1.
BITS = 7
_EXACT = 2 << BITS


class Histogram(msgspec.Struct):
    """How often durations came, in nanoseconds: exact to 0.4 %, mergeable, and plain data for JSON.

    `counts` has how many fell into each bucket, by the bucket's number (see `bucket_of`); `least` and `greatest` are 0
    while it is empty.
    """

    counts: dict[int, int] = {}
    sum: int = 0
    least: int = 0
    greatest: int = 0

    def record(self, duration: int) -> None:
        """Count a duration; what is negative counts as 0."""
        if duration < _EXACT:
            index = duration = max(duration, 0)
        else:
            shift = duration.bit_length() - BITS - 1
            index = (shift << BITS) + (duration >> shift)
        counts = self.counts
        if index in counts:
            counts[index] += 1
        else:
            self.least = duration if not counts else min(duration, self.least)
            counts[index] = 1
        self.sum += duration
        if duration > self.greatest:
            self.greatest = duration
        elif duration < self.least:
            self.least = duration

    def add(self, other: Histogram) -> Self:
        """Count also what `other` has counted."""
        if other.counts:
            self.least = min(self.least, other.least) if self.counts else other.least
            self.greatest = max(self.greatest, other.greatest)
            self.sum += other.sum
            for index, count in other.counts.items():
                self.counts[index] = self.counts.get(index, 0) + count
        return self

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """In nanoseconds; 0 while it is empty."""
        return self.sum / self.count if self.counts else 0.0

    def quantile(self, share: float) -> float:
        """The duration that `share` of all do not exceed (the nearest rank), in nanoseconds; 0 while it is empty."""
        [found] = self.quantiles([share])
        return found

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """The same for several shares in rising order, in one walk."""
        walk = self._walk()
        value, reached = next(walk, (0.0, 0))
        found: list[float] = []
        count = self.count
        for share in shares:
            rank = min(count, max(1, math.ceil(share * count)))
            while reached < rank:
                value, reached = next(walk)
            # The ends are known, and nothing lies beyond them.
            told = float(self.greatest) if rank == count else min(max(value, self.least), self.greatest)
            found.append(told)
        return found

    def _walk(self) -> Iterator[tuple[float, int]]:
        """The middle of each bucket that was hit, and how many durations are up to there."""
        reached = 0
        for index in sorted(self.counts):
            reached += self.counts[index]
            yield middle_of(index), reached


def bucket_of(duration: int) -> int:
    """The number of a duration's bucket."""
    shift = max(0, duration.bit_length() - BITS - 1)
    return (shift << BITS) + (duration >> shift)


def middle_of(index: int) -> float:
    """The middle of a bucket, by its number."""
    if index < _EXACT:
        return float(index)
    shift = (index >> BITS) - 1
    first = (index - (shift << BITS)) << shift
    return first + ((1 << shift) - 1) / 2


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """One histogram of all that these have counted."""
    whole = Histogram()
    for one in histograms:
        whole.add(one)
    return whole
