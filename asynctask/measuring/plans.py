"""What is to be measured, as plain data: cells of a loop, a runner and a load, and how long and how often."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from ..errors import OptionError
from ..redact import shown
from ..stores.urls import missing_file

LOOPS = ("asyncio", "uvloop", "trio")
RUNNERS = ("loop", "threads", "processes")
ARRIVALS = ("poisson", "constant")
#: What to install for a loop, beside asyncio's own.
PACKAGES = {"uvloop": "uvloop", "trio": "asynctask[trio]"}


class Closed(msgspec.Struct, frozen=True, tag="closed", tag_field="kind"):
    """So many clients, each of which calls again when its call is over."""

    clients: int

    def __str__(self) -> str:
        return f"{self.clients} client{'' if self.clients == 1 else 's'}"


class Open(msgspec.Struct, frozen=True, tag="open", tag_field="kind"):
    """So many calls a second, whatever becomes of them."""

    rate: float
    arrivals: str = "poisson"

    def __str__(self) -> str:
        return f"{self.rate:g}/s {self.arrivals}"


Load: TypeAlias = Closed | Open


class Cell(msgspec.Struct, frozen=True):
    """One line of the report: which event loop, where bodies run, which load."""

    loop: str
    runner: str
    load: Load

    def __str__(self) -> str:
        return f"{self.loop}, {self.runner}, {self.load}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How each cell is measured. Durations are in seconds."""

    duration: float = 5.0
    warmup: float = 1.0
    repeats: int = 3
    #: What calls under way at the end get to come to theirs; those that do not are told as unfinished.
    grace: float = 5.0
    #: The most calls that an open loop has in flight.
    most_in_flight: int = 10_000
    #: Threads, or processes, of the runner; None: as many as it has by default.
    workers: int | None = None
    store: str = "memory://"
    #: Which calls come when: the same for the same seed.
    seed: int = 0


def cells_of(loops: Iterable[str], runners: Iterable[str], loads: Iterable[Load]) -> list[Cell]:
    """Every loop with every runner under every load. Raises `OptionError` for what does not exist."""
    loads = list(loads)
    found = [Cell(loop, runner, load) for loop in loops for runner in runners for load in loads]
    for cell in found:
        if cell.loop not in LOOPS:
            raise OptionError(f"there is no event loop {cell.loop!r}; there are: {', '.join(LOOPS)}")
        if cell.runner not in RUNNERS:
            raise OptionError(f"there is no runner {cell.runner!r}; there are: {', '.join(RUNNERS)}")
        if cell.loop in PACKAGES and importlib.util.find_spec(cell.loop) is None:
            raise OptionError(f"{cell.loop} is not installed: pip install '{PACKAGES[cell.loop]}'")
    if not found:
        raise OptionError("there is nothing to measure: name at least one loop, one runner and one load")
    return list(dict.fromkeys(found))


def loads_of(concurrency: Sequence[int], rates: Sequence[float], arrivals: str) -> list[Load]:
    """Closed loops, then open ones. Raises `OptionError` for what is no load."""
    if arrivals not in ARRIVALS:
        raise OptionError(f"arrivals must be one of {', '.join(ARRIVALS)}, not {shown(arrivals)}")
    for clients in concurrency:
        _check("concurrency", clients, whole=True)
    for rate in rates:
        _check("rate", rate)
    return [*map(Closed, concurrency), *(Open(float(rate), arrivals) for rate in rates)]


def checked(plan: Plan) -> Plan:
    """The plan. Raises `OptionError` for a value that cannot be."""
    _check("duration", plan.duration)
    _check("warmup", plan.warmup, least=0)
    _check("grace", plan.grace, least=0)
    _check("repeats", plan.repeats, whole=True)
    _check("most_in_flight", plan.most_in_flight, whole=True)
    if plan.workers is not None:
        _check("workers", plan.workers, whole=True)
    missing_file(plan.store)  # raises for a URL that is none
    return plan


def _check(name: str, value: Any, *, whole: bool = False, least: float | None = None) -> None:
    kinds = int if whole else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (value <= 0 if least is None else value < least):
        wanted = "a whole number from 1" if whole else "a number above 0" if least is None else "a number from 0"
        raise OptionError(f"{name} must be {wanted}, not {shown(value)}")


#: For annotations of those who choose arrivals.
Arrivals: TypeAlias = Literal["poisson", "constant"]
