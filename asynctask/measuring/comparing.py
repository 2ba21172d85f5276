"""What changed between two reports, beyond the noise of both.

1. A change is beyond the noise if no round of the one report reaches into the rounds of the other, and the medians
   differ by more than both spreads together. A single round has no spread, so nothing can be said of it.
2. A change is for the worse if throughput fell, or a latency or the share of errors rose. Of errors the difference
   counts, of all else the ratio.
3. Cells are the same if loop, runner and load are.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .plans import Cell
from .reports import Figure, Report

#: What is compared: throughput, which is to be high, and others, which are to be low.
COMPARED = ("throughput", "p50", "p99", "errors")

Verdict = Literal["better", "worse", "within the noise", "unknown"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one cell, before and after."""

    cell: Cell
    figure: str
    before: float
    after: float
    #: As a share of what was before; of `errors`, the difference of the two shares.
    change: float
    #: How far the rounds of both are apart anyway: the sum of their spreads. None where one has a single round.
    noise: float | None
    verdict: Verdict

    def is_worse_by(self, share: float) -> bool:
        """Whether it is for the worse, beyond the noise, by more than `share`."""
        return self.verdict == "worse" and abs(self.change) > share


def compare(before: Report, after: Report) -> list[Change]:
    """Every figure of every cell that both reports have."""
    known = {one.cell: one for one in before.cells}
    return [
        _change(one.cell, name, known[one.cell].figures[name], one.figures[name])
        for one in after.cells
        if one.cell in known
        for name in COMPARED
    ]


def differences(before: Report, after: Report) -> list[str]:
    """What else is not the same, so that people can judge what a change comes from."""
    told: list[str] = []
    for name in ("system", "processor", "processors"):
        old, new = getattr(before.machine, name), getattr(after.machine, name)
        if old != new:
            told.append(f"another machine: {name} was {old}, is {new}")
    for name in sorted(before.versions.keys() | after.versions.keys()):
        old, new = before.versions.get(name, "none"), after.versions.get(name, "none")
        if old != new:
            told.append(f"another version: {name} was {old}, is {new}")
    if (before.target, before.args) != (after.target, after.args):
        told.append(f"another target: it was {_called(before)}, is {_called(after)}")
    for name in ("duration", "warmup", "workers", "store", "seed"):
        old, new = getattr(before.plan, name), getattr(after.plan, name)
        if old != new:
            told.append(f"another plan: {name} was {old}, is {new}")
    missing = len({one.cell for one in before.cells} ^ {one.cell for one in after.cells})
    if missing:
        told.append(f"{missing} {'line is' if missing == 1 else 'lines are'} in one of the reports only")
    return told


def _called(report: Report) -> str:
    args = ", ".join(f"{name}={value}" for name, value in report.args.items())
    return f"{report.target}({args})" if args else report.target


def _change(cell: Cell, name: str, before: Figure, after: Figure) -> Change:
    difference = after.median - before.median
    is_share = name == "errors"
    change = difference if is_share or not before.median else difference / before.median
    noise = None
    if before.spread is not None and after.spread is not None:
        noise = before.spread + after.spread
        if is_share:  # spreads are shares of the medians, which here are shares themselves
            noise = before.spread * before.median + after.spread * after.median
    return Change(
        cell=cell,
        figure=name,
        before=before.median,
        after=after.median,
        change=change,
        noise=noise,
        verdict=_verdict(name, before, after, change, noise),
    )


def _verdict(name: str, before: Figure, after: Figure, change: float, noise: float | None) -> Verdict:
    if noise is None:
        return "unknown"
    is_apart = max(before.rounds) < min(after.rounds) or max(after.rounds) < min(before.rounds)
    if not is_apart or abs(change) <= noise:
        return "within the noise"
    return "better" if (change > 0) == (name == "throughput") else "worse"
