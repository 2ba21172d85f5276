"""Plots of the field as SVG files that stand by themselves: bars for each work, and one picture of all."""

from __future__ import annotations

import html
from collections.abc import Sequence

from asynctask.measuring.plots import Axis

from .results import WORKS, Cell
from .tables import figure

WIDTH, NAMES, RIGHT, LINE = 760, 170, 110, 20
#: What each colour means: ours, those that keep as much of a run or more, those that keep nothing, floors.
STYLE = """<style>
svg { font: 12px system-ui, sans-serif; }
.ours { fill: #0b62c4 } .kept { fill: #d55e00 } .nothing { fill: #c9a227 } .floor { fill: #b8b8b8 }
.grid { stroke: #ddd } .us { font-weight: bold } .quiet { fill: #666 }
</style>"""
KEYS = (("ours", "asynctask"), ("kept", "keeps runs"), ("nothing", "keeps nothing"), ("floor", "a floor"))


def bars(cells: Sequence[Cell], work: str) -> str:
    """Everybody who has the work, fastest first, on a logarithmic scale."""
    there = sorted((cell for cell in cells if cell.work == work and cell.is_measured), key=lambda cell: cell.us)
    top, bottom = 30, 34
    height = top + LINE * len(there) + bottom
    unit, scale = ("ms", 1_000) if work == "import" else ("us for each", 1)
    values = [max(cell.us / scale, 0.01) for cell in there]
    axis = Axis([min(values, default=1.0) / 2, max(values, default=1.0)], NAMES, WIDTH - RIGHT)
    body = [f'<text x="8" y="18">{html.escape(WORKS[work])}: {unit}, on a logarithmic scale</text>']
    body += grid(axis, top, height - bottom)
    for place, (cell, value) in enumerate(zip(there, values, strict=True)):
        y, x = top + LINE * place, axis.at(value)
        mark = ' class="us"' if cell.is_ours else ""
        body += [
            f'<text{mark} x="{NAMES - 8}" y="{y + 14}" text-anchor="end">{html.escape(cell.label)}</text>',
            f'<rect class="{colour(cell)}" x="{NAMES}" y="{y + 3}" width="{x - NAMES:.1f}" height="{LINE - 6}"/>',
            f'<text class="quiet" x="{x + 6:.1f}" y="{y + 14}">{html.escape(figure(cell))}</text>',
        ]
    return picture([*body, *keys(height - 8)], height, WORKS[work])


def overview(cells: Sequence[Cell], works: Sequence[str]) -> str:
    """A line for each work, a dot for everybody who has it, by microseconds for each thing."""
    top, bottom, names = 30, 56, 290
    height = top + LINE * 1.3 * len(works) + bottom
    measured = [cell for cell in cells if cell.is_measured and cell.work in works]
    axis = Axis([max(cell.us, 0.1) for cell in measured] or [1.0], names, WIDTH - 20)
    body = ['<text x="8" y="18">Microseconds for each, by work; point at a dot to see whose it is</text>']
    body += grid(axis, top, height - bottom)
    for place, work in enumerate(works):
        y = top + LINE * 1.3 * (place + 0.5)
        body.append(f'<text x="{names - 8}" y="{y + 4:.0f}" text-anchor="end">{html.escape(WORKS[work])}</text>')
        there = [cell for cell in measured if cell.work == work]
        for cell in sorted(there, key=lambda cell: cell.is_ours):  # ours are drawn last, over the others
            title = f"<title>{html.escape(f'{cell.label}: {figure(cell)}')}</title>"
            x = axis.at(max(cell.us, 0.1))
            body.append(
                f'<circle class="{colour(cell)}" cx="{x:.1f}" cy="{y:.1f}" r="5" fill-opacity="0.8">{title}</circle>'
            )
    return picture([*body, *keys(height - 8)], height, "Microseconds for each, by work")


def colour(cell: Cell) -> str:
    if cell.is_ours:
        return "ours"
    return cell.keeps if cell.keeps in ("floor", "nothing") else "kept"


def grid(axis: Axis, top: float, bottom: float) -> list[str]:
    ticks = axis.ticks()
    return [
        f'<line class="grid" x1="{axis.at(tick):.1f}" x2="{axis.at(tick):.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text class="quiet" x="{axis.at(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{text(tick)}</text>'
        for tick in ticks[:: max(1, len(ticks) // 8)]
    ]


def text(tick: float) -> str:
    return f"{tick:g}" if tick < 1 else f"{tick:,.0f}"


def keys(y: float) -> list[str]:
    return [
        f'<rect class="{name}" x="{NAMES + 140 * place}" y="{y - 9}" width="10" height="10"/>'
        f'<text class="quiet" x="{NAMES + 14 + 140 * place}" y="{y}">{meaning}</text>'
        for place, (name, meaning) in enumerate(KEYS)
    ]


def picture(body: Sequence[str], height: float, label: str) -> str:
    drawn = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="{html.escape(label, quote=True)}">\n{STYLE}\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{drawn}\n</svg>\n'
    )
