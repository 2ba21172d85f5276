"""What was measured: the rounds of each cell, what they have in common, and whether that says anything.

1. A figure is the median of the rounds. Its spread is the distance between their quartiles, as a share of the median;
   there is none of a single round.
2. A cell is noisy if the spread of its throughput or of its median latency is over 10 %: then its figures are no
   verdict. In an open loop the rate sets the throughput, so only the latency counts.
3. A cell is starved if for over 5 % of the time the event loop was ready to run, and others had all processors.
4. The longest call is that of all rounds. What a call that did not end would have taken, nobody knows: it counts with
   what it had taken by then, so with such calls the higher quantiles are lower bounds.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..errors import BenchmarkError
from ..redact import text_of
from .figures import Round, RunFigures
from .histogram import Histogram, merged
from .machine import Machine
from .plans import Cell, Closed, Plan

#: The version of the document that `--json` writes.
FORMAT = 1
#: See rules 2 and 3.
NOISY, STARVED = 0.1, 0.05
#: Of an open loop: the share of calls that is over by the end of the time if the rate can be had.
REACHED = 0.9
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
#: What a figure is of; durations are in seconds, memory in bytes.
FIGURES = (
    *("throughput", "mean", *QUANTILES, "max", "errors"),
    *("lag_p99", "cpu", "without_processor", "memory_peak", "overhead"),
    *("retries", "cached", "waiting_for_limits", "running"),
)


class Figure(msgspec.Struct, frozen=True):
    """The median over the rounds, the spread (rule 1; None if it cannot be told), and what each round gave."""

    median: float
    spread: float | None
    rounds: list[float]


class CellReport(msgspec.Struct, kw_only=True):
    """One cell: what its rounds gave, and what they have in common."""

    cell: Cell
    rounds: list[Round]
    #: By name, see `FIGURES`; `errors` and `cached` are shares, `without_processor` is one of the time, `cpu` is in
    #: processors, and the last two are seconds over all runs of a round.
    figures: dict[str, Figure]
    #: Whether the rounds differ too much for a verdict; None for a single round.
    is_noisy: bool | None
    #: Whether its processor was often taken by others (rule 3).
    is_starved: bool
    notes: list[str] = []

    @property
    def latency(self) -> Histogram:
        """Of the calls of all rounds."""
        return merged(one.latency for one in self.rounds)

    @property
    def errors(self) -> dict[str, int]:
        """How many calls of all rounds failed, by the name of the exception."""
        counts: Counter[str] = Counter()
        for one in self.rounds:
            counts.update(one.errors)
        return dict(counts.most_common())

    @property
    def calls(self) -> int:
        return sum(one.calls for one in self.rounds)

    @property
    def runs(self) -> RunFigures:
        """The runs of all rounds."""
        names = RunFigures.__struct_fields__
        return RunFigures(**{name: sum(getattr(one.runs, name) for one in self.rounds) for name in names})


class Report(msgspec.Struct, kw_only=True):
    """A measurement, as `--json` writes it and `--compare` reads it."""

    format: int = FORMAT
    #: What was measured, and with which arguments.
    target: str
    args: dict[str, str] = {}
    #: When it began, in ISO 8601 and UTC.
    date: str
    versions: dict[str, str]
    machine: Machine
    plan: Plan
    cells: list[CellReport]
    #: What people must know to read the figures.
    notes: list[str] = []
    #: Whether all rounds were measured.
    is_whole: bool = True

    def to_json(self) -> bytes:
        """The document, on one line."""
        return msgspec.json.encode(self)


def read_report(path: str | Path) -> Report:
    """The report in a file that `--json` or `Report.to_json` has written. Raises `BenchmarkError` if there is none."""
    try:
        data = Path(path).read_bytes()
        found = msgspec.json.decode(data, type=Report)
    except OSError as error:
        raise BenchmarkError(f"the report {str(path)!r} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BenchmarkError(f"{str(path)!r} is no report of asynctask bench: {text_of(error)}") from error
    if found.format != FORMAT:
        raise BenchmarkError(f"the report {str(path)!r} has format {found.format}; this version reads {FORMAT}")
    return found


def cell_report(cell: Cell, rounds: Sequence[Round]) -> CellReport:
    """What the rounds of a cell have in common."""
    each = [_figures_of(one) for one in rounds]
    figures = {name: _figure([one[name] for one in each]) for name in FIGURES}
    decisive = ["p50"] if not isinstance(cell.load, Closed) else ["throughput", "p50"]
    spreads = [figures[name].spread for name in decisive]
    told = [spread for spread in spreads if spread is not None]
    is_noisy = max(told) > NOISY if told else None
    is_starved = figures["without_processor"].median > STARVED
    return CellReport(
        cell=cell,
        rounds=list(rounds),
        figures=figures,
        is_noisy=is_noisy,
        is_starved=is_starved,
        notes=_notes(cell, rounds),
    )


def _figures_of(one: Round) -> dict[str, float]:
    latency, runs, gauges = one.latency, one.runs, one.gauges
    quantiles = dict(zip(QUANTILES, latency.quantiles(QUANTILES.values()), strict=True))
    durations = {"mean": latency.mean, **quantiles, "max": float(latency.greatest)}
    return {
        "throughput": one.throughput,
        **{name: value / 1e9 for name, value in durations.items()},
        "errors": (one.failed + one.unfinished) / max(1, one.calls),
        "lag_p99": gauges.lag.quantile(0.99) / 1e9,
        "cpu": gauges.cpu_seconds / gauges.seconds if gauges.seconds else 0.0,
        "without_processor": gauges.seconds_without_processor / gauges.seconds if gauges.seconds else 0.0,
        "memory_peak": float(gauges.memory_peak),
        "overhead": one.overhead_seconds,
        "retries": float(runs.retries),
        "cached": runs.cached / max(1, runs.runs),
        "waiting_for_limits": runs.seconds_waiting_for_limits,
        "running": runs.seconds_running,
    }


def _figure(values: list[float]) -> Figure:
    median = statistics.median(values)
    if len(values) < 2:
        return Figure(median, None, values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(median, (third - first) / median if median else float(third > first), values)


def _notes(cell: Cell, rounds: Sequence[Round]) -> list[str]:
    notes: list[str] = []
    held_back = sum(one.held_back for one in rounds)
    not_started = sum(one.not_started for one in rounds)
    unfinished = sum(one.unfinished for one in rounds) - not_started
    calls = sum(one.calls for one in rounds)
    if not calls:
        notes.append("no call was over: give it a longer --duration")
    if held_back:
        notes.append(f"{held_back:,} of {calls:,} calls waited because too many were in flight; their latency has that")
    over = sum(one.failed + sum(work.succeeded for work in one.works) for one in rounds)
    if not isinstance(cell.load, Closed) and over < REACHED * calls:
        notes.append(f"the rate was not reached: of {calls:,} calls that were to begin, {over:,} were over in time")
    if not_started:
        notes.append(f"{not_started:,} calls were never started; quantiles are lower bounds")
    if unfinished > 0:
        notes.append(f"{unfinished:,} of {calls:,} calls were given up before their end; quantiles are lower bounds")
    return notes
