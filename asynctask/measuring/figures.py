"""What one round of one cell gives, as plain data for JSON. Durations are in seconds; in histograms, nanoseconds."""

from __future__ import annotations

from collections import Counter

import msgspec

from .histogram import Histogram, merged


class WorkFigures(msgspec.Struct, kw_only=True):
    """The calls of one work that began within the round; of an open loop, that were to begin within it."""

    name: str
    #: Of all calls, also those that failed: from the start, or the intended start, to the end. A call that did not end
    #: counts with the time that it had taken by then.
    latency: Histogram
    #: How many succeeded within the round, whenever they began: its share of the throughput.
    succeeded: int = 0
    #: How many failed, by the name of the exception.
    errors: dict[str, int] = {}
    #: How many had not ended when they were given up.
    unfinished: int = 0


class RunFigures(msgspec.Struct, kw_only=True):
    """The runs of tasks and flows that began within the round and ended, in the process that measures."""

    runs: int = 0
    #: Attempts beyond the first.
    retries: int = 0
    #: Runs whose value came from the cache.
    cached: int = 0
    #: Over all runs: in line for slots of limits; waiting for a retry; not begun (inputs, a free thread); in the body.
    seconds_waiting_for_limits: float = 0.0
    seconds_waiting_for_retries: float = 0.0
    seconds_pending: float = 0.0
    seconds_running: float = 0.0


class Gauges(msgspec.Struct, kw_only=True):
    """What a round took of its process and of its children."""

    #: How late the event loop came to what was due, every 10 ms.
    lag: Histogram
    #: Of processor time, and the seconds in which it was spent.
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    #: How long the event loop's thread was ready to run and had no processor, because others had them all.
    seconds_without_processor: float = 0.0
    #: Bytes in memory at the beginning and at the end, and the most that there were since the process began.
    memory_before: int = 0
    memory_after: int = 0
    memory_peak: int = 0


class Round(msgspec.Struct, kw_only=True):
    """One cell, measured once, in a process of its own."""

    seconds: float
    works: list[WorkFigures]
    runs: RunFigures
    gauges: Gauges
    #: What measuring itself takes for each call, by calls that do nothing.
    overhead_seconds: float
    #: Of an open loop: how late calls were started, after their intended start.
    lateness: Histogram
    #: Of an open loop: how many calls waited because so many were in flight, and how many were never started.
    held_back: int = 0
    not_started: int = 0

    @property
    def latency(self) -> Histogram:
        return merged(work.latency for work in self.works)

    @property
    def calls(self) -> int:
        return sum(work.latency.count for work in self.works)

    @property
    def throughput(self) -> float:
        """Calls that succeeded within the round, a second."""
        return sum(work.succeeded for work in self.works) / self.seconds

    @property
    def errors(self) -> dict[str, int]:
        """How many failed, by the name of the exception."""
        counts: Counter[str] = Counter()
        for work in self.works:
            counts.update(work.errors)
        return dict(counts.most_common())

    @property
    def failed(self) -> int:
        return sum(sum(work.errors.values()) for work in self.works)

    @property
    def unfinished(self) -> int:
        return sum(work.unfinished for work in self.works)


class Progress(msgspec.Struct, kw_only=True):
    """How a round under way is doing."""

    #: Of the round, warm-up included, from 0 to 1.
    share: float
    is_warm: bool
    succeeded: int = 0
    seconds: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    failed: int = 0
