"""How a measurement is doing, on a terminal: a table that is drawn anew while it runs; elsewhere a line for each round.

1. The view is drawn by the process that waits, four times a second at most: what is measured runs in another one.
2. Figures of a cell under way are those so far; of one that has had rounds, the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from .figures import Progress, Round
from .plans import Cell, Plan
from .tables import number, seconds

FRAME_SECONDS = 0.25
#: What starting a process, its setup and its end take, for the estimate of what is left.
START_SECONDS = 1.0


class Lines:
    """A line for each round that is over."""

    def __init__(self, cells: Sequence[Cell], plan: Plan, write: Callable[[str], None]) -> None:
        self._repeats = plan.repeats
        self._width = max(len(str(cell)) for cell in cells)
        self._write = write

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def began(self, cell: Cell, number: int) -> None: ...

    def went_on(self, cell: Cell, progress: Progress) -> None: ...

    def tick(self) -> None: ...

    def ended(self, cell: Cell, number: int, found: Round) -> None:
        self._write(f"round {number}/{self._repeats}  {cell!s:<{self._width}}  {line_of(found)}")


class Screen:
    """A table on a terminal, drawn while a measurement runs."""

    def __init__(self, cells: Sequence[Cell], plan: Plan, console: Any) -> None:
        from rich.live import Live  # 60 ms, and only who looks at it needs it

        self._cells, self._plan, self._console = list(cells), plan, console
        self._rounds: dict[Cell, list[Round]] = {cell: [] for cell in cells}
        self._now: tuple[Cell, int, Progress | None] | None = None
        self._done = 0
        self._drawn = 0.0
        self._began = time.monotonic()
        self._each = plan.warmup + plan.duration + START_SECONDS
        self._live: Any = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def began(self, cell: Cell, number: int) -> None:
        self._now = (cell, number, None)
        self._draw()

    def went_on(self, cell: Cell, progress: Progress) -> None:
        if self._now is not None:
            self._now = (cell, self._now[1], progress)

    def ended(self, cell: Cell, number: int, found: Round) -> None:
        self._rounds[cell].append(found)
        self._now = None
        self._done += 1
        self._each = (time.monotonic() - self._began) / self._done
        self._draw()

    def tick(self) -> None:
        if time.monotonic() - self._drawn >= FRAME_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._live.update(self.frame(), refresh=True)

    def frame(self) -> Any:
        """What is to be seen now."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("loop", "runner", "load"):
            table.add_column(name, no_wrap=True)
        for name in ("calls/s", "p50", "p99", "errors"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for cell in self._shown():
            figures, what, style = self._row(cell)
            cells = [cell.loop, cell.runner, str(cell.load), *figures, what]
            table.add_row(*(Text(one, style=style) for one in cells))
        if len(self._shown()) < len(self._cells):
            table.add_row(Text(f"and {len(self._cells) - len(self._shown())} more", style="dim"))
        return Group(Text(self._headline(), style="bold", no_wrap=True), table)

    def _shown(self) -> list[Cell]:
        """As many cells as fit, the one under way among them."""
        room = max(1, self._console.size.height - 7)
        if len(self._cells) <= room:
            return self._cells
        place = 0 if self._now is None else self._cells.index(self._now[0])
        first = min(max(0, place - room // 2), len(self._cells) - room)
        return self._cells[first : first + room]

    def _headline(self) -> str:
        rounds = len(self._cells) * self._plan.repeats
        elapsed = time.monotonic() - self._began
        left = max(0.0, rounds * self._each - elapsed)
        return f"{self._done} of {rounds} rounds, {elapsed:.0f} s, about {left:.0f} s left"

    def _row(self, cell: Cell) -> tuple[list[str], str, str]:
        rounds = self._rounds[cell]
        if self._now is not None and self._now[0] == cell:
            _, turn, progress = self._now
            what = f"round {turn}/{self._plan.repeats}"
            if progress is None:
                return self._medians(rounds), f"{what}, starts", "cyan"
            if not progress.is_warm:
                return self._medians(rounds), f"{what}, warm-up", "cyan"
            rate = progress.succeeded / progress.seconds if progress.seconds else 0.0
            failed = f"{progress.failed:,}"
            figures = [number(rate), seconds(progress.p50), seconds(progress.p99), failed]
            return figures, f"{what}, {progress.share:.0%}", "cyan"
        if not rounds:
            return ["", "", "", ""], "waits", "dim"
        return self._medians(rounds), f"{len(rounds)}/{self._plan.repeats}", ""

    def _medians(self, rounds: list[Round]) -> list[str]:
        if not rounds:
            return ["", "", "", ""]
        quantiles = [one.latency.quantiles([0.5, 0.99]) for one in rounds]
        p50, p99 = (statistics.median(column) / 1e9 for column in zip(*quantiles, strict=True))
        rate = statistics.median(one.throughput for one in rounds)
        return [number(rate), seconds(p50), seconds(p99), f"{sum(one.failed + one.unfinished for one in rounds):,}"]


def line_of(found: Round) -> str:
    """A round in one line."""
    p50, p99 = (seconds(value / 1e9) for value in found.latency.quantiles([0.5, 0.99]))
    failed = found.failed + found.unfinished
    errors = f", {failed:,} failed" if failed else ""
    return f"{number(found.throughput)} calls/s, p50 {p50}, p99 {p99}{errors}"
