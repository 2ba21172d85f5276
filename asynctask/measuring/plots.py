"""Plots as SVG: lines over loads, and how latency is distributed. Nothing is loaded from anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

import msgspec

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 620, 320, 74, 16, 14, 46
#: Colours that people with any kind of colour vision can tell apart (Okabe and Ito), by the style sheet of the page.
COLOURS = 8


class Point(msgspec.Struct, frozen=True):
    """A value at a place, the least and the greatest that were measured there, and what to say of it."""

    x: float
    y: float
    low: float
    high: float
    label: str


class Line(msgspec.Struct, frozen=True):
    name: str
    points: list[Point]
    #: Of `COLOURS`; lines that belong together have one colour, and all but the first are dashed.
    colour: int
    is_dashed: bool = False
    #: Whether the points are drawn as well.
    has_dots: bool = True


class Axis:
    """Values on a logarithmic scale, from `first` to `last` on the page."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        known = [value for value in values if value > 0] or [1.0]
        low, high = math.log10(min(known)), math.log10(max(known))
        margin = max(0.04 * (high - low), 0.03)
        self._low, self._high = low - margin, high + margin
        self._first, self._last = first, last

    def at(self, value: float) -> float:
        share = (math.log10(max(value, 1e-30)) - self._low) / (self._high - self._low)
        return self._first + (self._last - self._first) * min(1.0, max(0.0, share))

    def ticks(self) -> list[float]:
        """Round numbers on the axis: powers of ten, with 2 and 5 between them where there is room."""
        powers = range(math.floor(self._low), math.ceil(self._high) + 1)
        steps = (1,) if self._high - self._low > 3 else (1, 2, 5) if self._high - self._low > 0.7 else range(1, 10)
        ticks = [step * 10.0**power for power in powers for step in steps]
        return [tick for tick in ticks if self._low <= math.log10(tick) <= self._high]


def plot(
    lines: Sequence[Line], *, x_name: str, y_name: str, x_text: Callable[[float], str], y_text: Callable[[float], str]
) -> str:
    """Lines over a logarithmic x, on a logarithmic y, with what was measured at each point to be read by pointing."""
    points = [point for line in lines for point in line.points]
    places = sorted({point.x for point in points})
    x_axis = Axis(places, LEFT, WIDTH - RIGHT)
    y_axis = Axis([value for point in points for value in (point.low, point.y, point.high)], HEIGHT - BOTTOM, TOP)
    body = [_grid(y_axis, y_text)]
    ticks = places if len(places) <= 8 else x_axis.ticks()
    body += [_below(x_axis.at(tick), x_text(tick)) for tick in ticks]
    body += [_drawn(line, x_axis, y_axis) for line in lines]
    return framed(body, lines, x_name, y_name)


def distribution(lines: Sequence[Line], *, y_name: str, y_text: Callable[[float], str], shares: Sequence[float]) -> str:
    """Latency over the share of calls that were faster; the further to the right, the rarer. x is 1 / (1 - share)."""
    x_axis = Axis([1.0, *(1 / (1 - share) for share in shares)], LEFT, WIDTH - RIGHT)
    y_axis = Axis([point.y for line in lines for point in line.points], HEIGHT - BOTTOM, TOP)
    body = [_grid(y_axis, y_text)]
    body += [_below(x_axis.at(1 / (1 - share)), f"{100 * share:g} %") for share in shares]
    body += [_drawn(line, x_axis, y_axis) for line in lines]
    return framed(body, lines, "share of the calls that took no longer", y_name)


def framed(body: Sequence[str], lines: Sequence[Line], x_name: str, y_name: str) -> str:
    """The picture with its axes named, and below it what each line is."""
    middle = (TOP + HEIGHT - BOTTOM) / 2
    names = [
        f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{html.escape(x_name)}</text>",
        f'<text class="name" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_name)}</text>",
    ]
    picture = "\n".join([*body, *names])
    keys = "".join(
        f'<span class="key"><i class="c{line.colour % COLOURS}{" dashed" if line.is_dashed else ""}"></i>'
        f"{html.escape(line.name)}</span>"
        for line in lines
    )
    label = html.escape(f"{y_name} by {x_name}", quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n{picture}\n</svg>\n'
        f'<p class="keys">{keys}</p>'
    )


def _grid(axis: Axis, text: Callable[[float], str]) -> str:
    rows: list[str] = []
    for tick in axis.ticks():
        y = axis.at(tick)
        rows.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rows.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{html.escape(text(tick))}</text>')
    return "\n".join(rows)


def _below(x: float, text: str) -> str:
    top, bottom = TOP, HEIGHT - BOTTOM
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{html.escape(text)}</text>'
    )


def _drawn(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    colour = f"c{line.colour % COLOURS}"
    path = " ".join(f"{x_axis.at(point.x):.1f},{y_axis.at(point.y):.1f}" for point in line.points)
    drawn = [f'<polyline class="{colour}{" dashed" if line.is_dashed else ""}" points="{path}"/>']
    for point in line.points:
        x, y = x_axis.at(point.x), y_axis.at(point.y)
        title = f"<title>{html.escape(point.label)}</title>"
        if point.high > point.low:  # how far the rounds are apart
            low, high = y_axis.at(point.low), y_axis.at(point.high)
            drawn.append(f'<line class="{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        if line.has_dots:
            drawn.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>')
    return "\n".join(drawn)
