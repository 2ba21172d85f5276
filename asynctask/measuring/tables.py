"""Reports and comparisons as rows of text, for terminals, pipes and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from .comparing import Change
from .plans import Closed
from .reports import CellReport, Figure, Report


class Table(msgspec.Struct):
    """Headings and rows; what `note` says is of the table as a whole."""

    columns: list[str]
    rows: list[list[str]]


Lines: TypeAlias = list[str]


def speed(report: Report) -> Table:
    """How many calls a second, and how long they took."""
    columns = ["LOOP", "RUNNER", "LOAD", "CALLS/S", "SPREAD", "P50", "P90", "P99", "P99.9", "MAX", "ERRORS", "VERDICT"]
    rows = [
        [
            one.cell.loop,
            one.cell.runner,
            str(one.cell.load),
            number(one.figures["throughput"].median),
            percent(decisive(one).spread),
            *(seconds(one.figures[name].median) for name in ("p50", "p90", "p99", "p999")),
            seconds(max(one.figures["max"].rounds)),
            errors(one),
            verdict(one),
        ]
        for one in report.cells
    ]
    return Table(columns, rows)


def costs(report: Report) -> Table:
    """What it took: processor, memory, the event loop's lag; and what the runs of tasks did."""
    columns = ["LOOP", "RUNNER", "LOAD", "CPU", "NO CPU", "MEMORY", "LOOP LAG P99", "OVERHEAD"]
    columns += ["RUNS", "RETRIES", "CACHED", "IN LINE", "RUNNING"]
    rows = [
        [
            one.cell.loop,
            one.cell.runner,
            str(one.cell.load),
            f"{one.figures['cpu'].median:.2f}",
            f"{one.figures['without_processor'].median:.0%}",
            size(one.figures["memory_peak"].median),
            seconds(one.figures["lag_p99"].median),
            seconds(one.figures["overhead"].median),
            *_of_runs(one),
        ]
        for one in report.cells
    ]
    return Table(columns, rows)


def _of_runs(one: CellReport) -> Lines:
    runs = one.runs
    if not runs.runs:
        return ["0", "", "", "", ""]
    waited, running = runs.seconds_waiting_for_limits, runs.seconds_running
    cached = f"{runs.cached:,} ({runs.cached / runs.runs:.0%})" if runs.cached else "0"
    return [f"{runs.runs:,}", f"{runs.retries:,}", cached, seconds(waited), seconds(running)]


def works(report: Report) -> Table | None:
    """The works of a scenario, where there are several: over all rounds."""
    rows: list[list[str]] = []
    for one in report.cells:
        names = [work.name for work in one.rounds[0].works]
        if len(names) < 2:
            return None
        for place, name in enumerate(names):
            each = [taken.works[place] for taken in one.rounds]
            latency = msgspec.structs.replace(each[0].latency, counts=dict(each[0].latency.counts))
            for work in each[1:]:
                latency.add(work.latency)
            failed = sum(sum(work.errors.values()) + work.unfinished for work in each)
            quantiles = [seconds(value / 1e9) for value in latency.quantiles([0.5, 0.9, 0.99])]
            label = [one.cell.loop, one.cell.runner, str(one.cell.load)]
            rows.append([*label, name, f"{latency.count:,}", *quantiles, f"{failed:,}"])
    return Table(["LOOP", "RUNNER", "LOAD", "WORK", "CALLS", "P50", "P90", "P99", "ERRORS"], rows)


def changes(found: Sequence[Change]) -> Table:
    """What changed, one figure a row."""
    columns = ["LOOP", "RUNNER", "LOAD", "FIGURE", "BEFORE", "AFTER", "CHANGE", "NOISE", "VERDICT"]
    rows = [
        [
            one.cell.loop,
            one.cell.runner,
            str(one.cell.load),
            {"throughput": "calls/s"}.get(one.figure, one.figure),
            figure(one.figure, one.before),
            figure(one.figure, one.after),
            f"{one.change:+.1%}",
            percent(one.noise),
            one.verdict,
        ]
        for one in found
        if one.figure != "errors" or one.before or one.after
    ]
    return Table(columns, rows)


def remarks(report: Report) -> Lines:
    """What people must know to read the tables."""
    lines = list(report.notes)
    for one in report.cells:
        lines += [f"{one.cell}: {note}" for note in one.notes]
        if one.errors:
            told = ", ".join(f"{count:,} x {name}" for name, count in one.errors.items())
            lines.append(f"{one.cell}: {told}")
    if any(one.is_noisy for one in report.cells):
        lines.append(
            "noisy: the quartiles of the rounds are over 10 % of their median apart, in throughput or p50. These lines "
            "are no verdict: measure longer, more often (--repeats), or on a machine that does nothing else"
        )
    if any(one.is_starved for one in report.cells):
        lines.append(
            "busy: for over 5 % of the time the event loop wanted a processor, and other processes (the workers of a "
            "runner, or somebody else's) had them all"
        )
    if not report.is_whole:
        lines.append("the measurement was broken off: not every line has all its rounds")
    return lines


def heading(report: Report) -> str:
    """What was measured, and how."""
    plan = report.plan
    args = "".join(f" {name}={value}" for name, value in report.args.items())
    rounds = f"{plan.repeats} {'round' if plan.repeats == 1 else 'rounds'} of {plan.duration:g} s"
    return f"{report.target}{args}: {rounds} after {plan.warmup:g} s of warm-up, store {plan.store}"


def setting(report: Report) -> str:
    """With what, where and when."""
    names = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return f"{names}; {report.machine}; {report.date}"


def text(report: Report) -> str:
    """The whole report as aligned text."""
    lines = [heading(report), setting(report)]
    for table in (speed(report), works(report), costs(report)):
        lines += ["", *aligned(table)] if table is not None else []
    return "\n".join([*lines, "", *remarks(report)]).rstrip()


def aligned(table: Table) -> Lines:
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    rows = (table.columns, *table.rows)
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


# -- single figures --


def decisive(one: CellReport) -> Figure:
    """What says how far the rounds are apart: throughput; in an open loop, where the rate sets that, the median."""
    return one.figures["throughput" if isinstance(one.cell.load, Closed) else "p50"]


def verdict(one: CellReport) -> str:
    """Why the line is none, if it is not."""
    words = ["one round"] if one.is_noisy is None else ["noisy"] * one.is_noisy
    return ", ".join([*words, *["busy"] * one.is_starved])


def errors(one: CellReport) -> str:
    failed = sum(taken.failed + taken.unfinished for taken in one.rounds)
    return f"{failed:,} ({failed / max(1, one.calls):.1%})" if failed else "0"


def figure(name: str, value: float) -> str:
    """A figure by its name."""
    if name == "throughput":
        return number(value)
    return f"{value:.1%}" if name == "errors" else seconds(value)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def seconds(value: float) -> str:
    """A duration with three digits and its unit."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g} {name}" if value < 999.5 * unit else f"{value:,.0f} {name}"
    return f"{value * 1e9:.0f} ns" if value else "0"


def size(value: float) -> str:
    return f"{value / 1e6:,.0f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"
