"""What a measurement was taken with: versions, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import msgspec

#: Whose versions make a difference, where they are installed.
LIBRARIES = ("anyio", "msgspec", "trio", "uvloop")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine: its system, processors and memory, and how busy it was as the measurement began."""

    system: str
    processor: str
    processors: int
    memory_bytes: int
    #: The average number of processes that want a processor, over the last minute; None where nobody tells.
    load: float | None

    def __str__(self) -> str:
        busy = "" if self.load is None else f", load {self.load:.1f}"
        return f"{self.processors} x {self.processor}, {self.memory_bytes / 1e9:.1f} GB, {self.system}{busy}"


def this_machine() -> Machine:
    return Machine(
        system=platform.platform(terse=True),
        processor=_processor(),
        processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def versions() -> dict[str, str]:
    """Of Python, of this library, and of those that it runs on."""
    found = {"python": platform.python_version(), "asynctask": str(sys.modules["asynctask"].__version__)}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
