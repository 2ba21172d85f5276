"""A report as one HTML file with plots: no script, and nothing from the network."""

from __future__ import annotations

import html
from collections.abc import Sequence

from . import tables
from .comparing import Change
from .plans import Closed
from .plots import COLOURS, Line, Point, distribution, plot
from .reports import CellReport, Report

SHARES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
#: Points of the curve between those shares.
STEPS = 12

STYLE = """
:root { --ink: #1b1f24; --faint: #6a737d; --rule: #d8dee4; --paper: #fff; --warn: #9a5b00; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 84rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.faint, figcaption { color: var(--faint); } .warn { color: var(--warn); font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; flex: 1 1 32rem; max-width: 42rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; } .l { text-align: left; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--faint); }
svg .name { fill: var(--ink); } svg polyline { fill: none; stroke-width: 2; } .grid { stroke: var(--rule); }
svg .dashed { stroke-dasharray: 5 4; } svg circle { stroke: var(--paper); } svg line { stroke-width: 1.5; }
.keys { margin: 0; } .key { margin-right: 1.2rem; white-space: nowrap; }
.key i { display: inline-block; width: 1.6rem; margin-right: .4rem; border-top: 3px solid; vertical-align: middle; }
.key i.dashed { border-top-style: dashed; }
"""
#: For light and for dark pages.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#6a51a3", "#444")
DARK = """:root { --ink: #e6edf3; --faint: #9aa4ae; --rule: #30363d; --paper: #0d1117; --warn: #e3b341; }
.c0 { --c: #58a6ff } .c6 { --c: #b39ddb } .c7 { --c: #bbb }"""


def page(report: Report, changes: Sequence[Change] = ()) -> str:
    """The whole page; `changes` are shown as well, where there was something to compare."""
    title = html.escape(report.target)
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="faint">{html.escape(tables.heading(report))}<br>{html.escape(tables.setting(report))}</p>',
        *(f'<p class="warn">{html.escape(line)}</p>' for line in tables.remarks(report)),
        '<div class="plots">',
        *_plots(report),
        "</div>",
    ]
    if changes:
        parts += ["<h2>Changes</h2>", _table(tables.changes(changes))]
    parts += ["<h2>How many, how fast</h2>", _table(tables.speed(report))]
    works = tables.works(report)
    if works is not None:
        parts += ["<h2>Works</h2>", _table(works)]
    parts += ["<h2>What it took</h2>", _table(tables.costs(report)), f'<p class="faint">{html.escape(READ)}</p>']
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}: asynctask bench</title>\n'
        f"<style>{_style()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


READ = (
    "Figures are medians of the rounds, but for the longest call, runs and errors, which are of all rounds. "
    "Vertical lines in plots go from the least to the greatest round. In an open loop (a rate) latency counts from the "
    "intended start of a call; in a closed one (clients) from its start, so a stall shows once for each client."
)


def _style() -> str:
    colours = "".join(f".c{number} {{ --c: {colour} }}" for number, colour in enumerate(PALETTE))
    drawn = "polyline[class^=c], line[class^=c] { stroke: var(--c) } circle[class^=c] { fill: var(--c) }"
    return f"{STYLE}{colours}{drawn}.key i {{ border-color: var(--c) }}@media (prefers-color-scheme: dark) {{ {DARK} }}"


def _plots(report: Report) -> list[str]:
    closed = _groups([one for one in report.cells if isinstance(one.cell.load, Closed)])
    opened = _groups([one for one in report.cells if not isinstance(one.cell.load, Closed)])
    plots: list[str] = []
    if closed:
        lines = [_line(name, cells, "throughput", colour) for colour, (name, cells) in enumerate(closed.items())]
        drawn = plot(lines, x_name="clients", y_name="calls a second", x_text=_plain, y_text=tables.number)
        plots.append(_figure("Throughput by concurrency", drawn))
    for groups, x_name, caption in (
        (closed, "clients", "Latency by concurrency"),
        (opened, "calls a second", "Latency by rate, from the intended start"),
    ):
        if groups:
            drawn = plot(_latencies(groups), x_name=x_name, y_name="latency", x_text=_plain, y_text=tables.seconds)
            plots.append(_figure(f"{caption}: p50, and p99 dashed", drawn))
    shown = [one for one in report.cells if one.calls]
    if shown:
        curves = [_curve(one, colour) for colour, one in enumerate(shown)]
        drawn = distribution(curves, y_name="latency", y_text=tables.seconds, shares=SHARES[1:])
        plots.append(_figure("How latency is distributed, over all rounds", drawn))
    return plots


def _groups(cells: list[CellReport]) -> dict[str, list[CellReport]]:
    """The cells that make one line: they differ in how much load there is."""
    groups: dict[str, list[CellReport]] = {}
    for one in cells:
        kind = "" if isinstance(one.cell.load, Closed) else f", {one.cell.load.arrivals}"
        groups.setdefault(f"{one.cell.loop}, {one.cell.runner}{kind}", []).append(one)
    return groups


def _latencies(groups: dict[str, list[CellReport]]) -> list[Line]:
    return [
        _line(f"{name}, {figure}", cells, figure, colour, is_dashed=figure == "p99")
        for colour, (name, cells) in enumerate(groups.items())
        for figure in ("p50", "p99")
    ]


def _line(name: str, cells: list[CellReport], figure: str, colour: int, *, is_dashed: bool = False) -> Line:
    points = [_point(one, figure) for one in cells if one.figures[figure].median > 0]
    return Line(name, sorted(points, key=lambda point: point.x), colour, is_dashed)


def _point(one: CellReport, figure: str) -> Point:
    load, found = one.cell.load, one.figures[figure]
    text = f"{one.cell}: {tables.figure(figure, found.median)}"
    x = float(load.clients if isinstance(load, Closed) else load.rate)
    return Point(x, found.median, min(found.rounds), max(found.rounds), text)


def _curve(one: CellReport, colour: int) -> Line:
    latency = one.latency
    count = latency.count
    # Beyond the last call but one there is nothing to be said.
    known = [share for share in _between() if (1 - share) * count >= 1]
    values = latency.quantiles(known)
    points = [
        Point(1 / (1 - share), max(value, 1.0) / 1e9, 0.0, 0.0, "") for share, value in zip(known, values, strict=True)
    ]
    return Line(str(one.cell), points, colour, is_dashed=colour >= COLOURS, has_dots=False)


def _between() -> list[float]:
    """Shares that are evenly spread on the axis of the plot."""
    last = 1 / (1 - SHARES[-1])
    return [1 - last ** -(step / (STEPS * 5)) for step in range(STEPS * 5 + 1)]


def _figure(caption: str, drawn: str) -> str:
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>\n{drawn}</figure>"


def _table(table: tables.Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        left = {"LOOP", "RUNNER", "LOAD", "WORK", "FIGURE", "VERDICT"}
        told = zip(table.columns, cells, strict=True)
        marked = (f"<{tag}{' class=l' if column in left else ''}>{html.escape(cell)}</{tag}>" for column, cell in told)
        return f"<tr>{''.join(marked)}</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    return f'<div class="scroll"><table>\n{row(table.columns, "th")}\n{rows}\n</table></div>'


def _plain(value: float) -> str:
    return f"{value:g}"
