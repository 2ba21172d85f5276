"""Gauges of a process: how late its event loop is, what processor time and memory it takes, its children included.

1. The loop is to wake up every 10 ms. What came late is counted for each moment that it made late, not once.
2. How long the thread of the loop was ready to run, and another process had its processor, tells how busy the machine
   was with something else. Linux notes it.
3. Children that are under way are read from /proc, where there is one; elsewhere they count when they have ended.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .figures import Gauges
from .histogram import Histogram
from .pacing import pacer

EVERY = 10_000_000
_PROC = Path("/proc/self")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Gauge:
    """Watches one window, from within the event loop that it is about."""

    def __init__(self, begin: int, end: int, each: Callable[[int], None]) -> None:
        """The window is in nanoseconds of `time.monotonic_ns`; `each(now)` is called with every look."""
        self._begin, self._end = begin, end
        self._each = each
        self.figures = Gauges(lag=Histogram())

    async def watch(self) -> None:
        """Until the end of the window; to be cancelled where that is not waited for."""
        figures = self.figures
        with pacer() as pace:
            moment = time.monotonic_ns()
            while moment < self._begin:  # the warm-up is shown, and not counted
                await pace.until(moment)
                self._each(time.monotonic_ns())
                moment += EVERY
            await pace.until(self._begin)
            began, spent, waited = time.monotonic_ns(), cpu_seconds(), _seconds_without_processor()
            figures.memory_before = figures.memory_after = memory()
            moment = self._begin
            while (moment := moment + EVERY) < self._end:
                await pace.until(moment)
                now = time.monotonic_ns()
                figures.lag.record(now - moment)
                self._each(now)
            await pace.until(self._end)
            figures.cpu_seconds = cpu_seconds() - spent
            figures.seconds_without_processor = _seconds_without_processor() - waited
            figures.seconds = (time.monotonic_ns() - began) / 1e9
            figures.memory_after, figures.memory_peak = memory(), memory_peak()


def cpu_seconds() -> float:
    """Processor time of this process and of its children, so far."""
    return sum(os.times()[:4]) + sum(_cpu_seconds_of(child) for child in children())


def memory() -> int:
    """Bytes in memory now, of this process and of its children; where nobody tells, the most that there were."""
    found = _status("self", "VmRSS")
    return memory_peak() if found is None else found + sum(_status(child, "VmRSS") or 0 for child in children())


def memory_peak() -> int:
    """The most bytes in memory, of this process and of each of its children, since they began."""
    found = _status("self", "VmHWM")  # `ru_maxrss` is that of the parent, if that had more when it started this one
    if found is not None:
        return found + sum(_status(child, "VmHWM") or 0 for child in children())
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def children() -> list[str]:
    """The processes that this one has started and that have not ended, by number."""
    found: list[str] = []
    for thread in _PROC.glob("task/[0-9]*/children"):
        try:
            found += thread.read_text().split()
        except OSError:  # the thread has ended
            continue
    return found


def _seconds_without_processor() -> float:
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # a system that does not tell
        return 0.0


def _cpu_seconds_of(process: str) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _status(process: str, name: str) -> int | None:
    """A number of bytes in /proc/PID/status."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
