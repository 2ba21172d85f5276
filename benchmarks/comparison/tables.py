"""What came of it as Markdown: an overview, a table for each work, the budgets, and who was measured.

1. A figure is microseconds for each thing, an import's milliseconds; three digits of it mean something.
2. First is who is fastest among those that keep as much of a run. Floors keep nothing and are never first.
3. Whatever was not measured stands there with its reason.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from .results import WORKS, Cell, floors, leaders, ranked

#: Between these a page has its table; the text around them is written by people.
MARKS = ("<!-- field:{} -->", "<!-- /field:{} -->")
#: Works for which only those count that put each run on disk.
ON_DISK = ("recorded",)
#: What the fewest are that a work is about; a figure of fewer says so.
SIZES = {
    "asleep": 10_000,
    "asleep, 100,000": 100_000,
    "limited": 2_000,
    "chain": 1_000,
    "tree": 1_024,
}


def number(value: float) -> str:
    """Three digits of it."""
    for limit, digits in ((0.995, 2), (9.95, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{float(f'{value:.3g}'):,.0f}"


def figure(cell: Cell) -> str:
    if not cell.is_measured:
        return "-" if cell.is_absent else cell.why.partition(":")[0]
    if cell.work == "import":
        return f"{number(cell.us / 1_000)} ms, {number((cell.bytes or 0) / 1e6)} MB"
    few = f" (N={cell.count:,})" if cell.count < SIZES.get(cell.work, 0) else ""
    memory = f", {number(cell.bytes / 1_000)} kB" if cell.bytes else ""
    return f"{number(cell.us)}{memory}{few}"


def plain(cells: list[Cell], works: list[str]) -> str:
    """For a terminal: each work, everybody who has it, fastest first, and who broke."""
    lines: list[str] = []
    for work in works:
        if all(cell.is_absent for cell in cells if cell.work == work):
            continue
        lines += ["", f"{work}: {WORKS[work]}"]
        for cell in sorted(
            (cell for cell in cells if cell.work == work and cell.is_measured), key=lambda cell: cell.us
        ):
            mark = "*" if cell.is_ours else " "
            lines.append(f"{mark} {cell.label:24} {figure(cell):>24}  {number(cell.ratio):>8} x floor  {cell.keeps}")
        lines += [f"! {cell.label:24} {cell.why}" for cell in cells if cell.work == work and is_broken(cell)]
    return "\n".join(lines[1:])


def overview(cells: list[Cell], works: list[str]) -> str:
    """A row for each work: the floor, ours, who is first, and the others, fastest first."""
    lines = ["| work | floor | asynctask | first | the others, fastest first |", "| --- | --- | --- | --- | --- |"]
    for work in works:
        ours = sorted((cell for cell in cells if cell.work == work and cell.is_ours), key=lambda cell: cell.variant)
        lowest = [f"{cell.label} {figure(cell)}" for cell in floors(cells, work)[:1]]
        own = [f"{cell.variant} {figure(cell)}".strip() for cell in ours if cell.is_measured]
        others = [f"{cell.label} {figure(cell)}" for cell in ranked(cells, work) if not cell.is_ours]
        broken = [f"{cell.label}: {figure(cell)}" for cell in cells if cell.work == work and is_broken(cell)]
        columns = [
            f"{WORKS[work]}",
            "; ".join(lowest),
            "; ".join(own),
            who_is_first(cells, work),
            "; ".join(others + broken),
        ]
        lines.append(f"| {' | '.join(column or '-' for column in columns)} |")
    return "\n".join(lines)


def is_broken(cell: Cell) -> bool:
    return not cell.is_measured and not cell.is_absent


def who_is_first(cells: list[Cell], work: str) -> str:
    """In words: of all, and where those keep less of a run than others do, of those that keep more."""
    found: dict[str, str] = {}
    groups = {"disk": ""} if work in ON_DISK else {"nothing": "", "runs": " of those that keep runs"}
    for keeping, among in groups.items():
        first = leaders(cells, work, keeping=keeping)
        names = " and ".join(dict.fromkeys("asynctask" if cell.is_ours else cell.label for cell in first))
        if names and names not in found:
            found[names] = f"**{names}**{among}" if "asynctask" in names else f"{names}{among}"
    return "; ".join(found.values())


def of_each_work(cells: list[Cell], works: list[str]) -> str:
    """A table for each work: everybody, fastest first, then who has no figure and why."""
    parts: list[str] = []
    for work in works:
        there = sorted((cell for cell in cells if cell.work == work and cell.is_measured), key=lambda cell: cell.us)
        parts += [f"### {work}: {WORKS[work]}", "", f"![{work}]({picture(work)})", "", one_work(there, cells, work), ""]
        reasons: dict[str, list[str]] = {}
        for cell in cells:
            if cell.work == work and not cell.is_measured:
                reasons.setdefault(cell.why.removeprefix("- "), []).append(cell.label)
        parts += [f"- {', '.join(labels)}: {html.escape(why, quote=False)}" for why, labels in reasons.items()]
        parts += [""]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip()


def one_work(there: list[Cell], cells: list[Cell], work: str) -> str:
    first = leaders(cells, work, keeping="disk" if work in ON_DISK else "nothing")
    unit, scale = ("ms", 1_000) if work == "import" else ("us", 1)
    lines = [
        f"| who | {unit} | spread | x floor | N | memory | keeps |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for cell in there:
        name = f"**{cell.label}**" if cell.is_ours else cell.label
        spread = f"{number(cell.low / scale)} to {number(cell.high / scale)}"
        memory = "" if cell.bytes is None else f"{number(cell.bytes / (1e6 if work == 'import' else 1e3))}"
        memory += (" MB" if work == "import" else " kB") if memory else ""
        keeps = f"{cell.keeps}{', first' if cell in first else ''}"
        shown = [name, number(cell.us / scale), spread, number(cell.ratio), f"{cell.count:,}", memory, keeps]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def picture(work: str) -> str:
    """The file with its plot."""
    return f"field-{work.replace(', ', '-').replace(',', '')}.svg"


def measured_with(report: dict[str, Any]) -> str:
    """The line under every table: when, on what, with which versions."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    rounds = f"{report['rounds']} rounds" if report["rounds"] > 1 else "one round"
    return f"{report['date']}, {rounds}, {report['machine']}; {versions}."


def who_was_measured(report: dict[str, Any]) -> Iterator[str]:
    for peer in report["peers"]:
        versions = ", ".join(f"{name} {version}" for name, version in peer["versions"].items())
        kept = ", ".join(f"{name} ({keeps})" if name else f"({keeps})" for name, keeps in peer["variants"].items())
        yield f"- **{peer['title']}** {kept}: {peer['about']}{f' ({versions}.)' if versions else ''}"


def budgets(rows: list[dict[str, Any]]) -> str:
    lines = ["| file | budget | against | bar | measured | |", "| --- | --- | --- | ---: | ---: | --- |"]
    for row in rows:
        shown = [row["file"], f"{row['name']}: {row['what']}", row["against"], row["bar"], row["measured"], row["word"]]
        lines.append(f"| {' | '.join(str(value) for value in shown)} |")
    return "\n".join(lines)


def between_marks(text: str, name: str, content: str) -> str:
    """The page with this content in its place. A page that has no such place is refused."""
    opening, closing = (mark.format(name) for mark in MARKS)
    before, found, rest = text.partition(opening)
    _, found_too, after = rest.partition(closing)
    if not found or not found_too:
        raise ValueError(f"the page has no {opening} followed by {closing}")
    return f"{before}{opening}\n{content}\n{closing}{after}"
