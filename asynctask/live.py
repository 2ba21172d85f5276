"""A live view of runs on a terminal, `with live(): ...`, and a table of what became of them at the end.

1. The observer only puts a finished run in a queue and is told of nothing else (0.3 us a run). The rest is read from
   the runs under way, in a thread of the view's own, at most 8 times a second and with a tenth of one core.
2. The view is never higher than the terminal: finished runs are counters, and of equal siblings three are shown.
3. Names and messages come from users: control characters are dropped, and nothing is read as markup.
4. A view that cannot be drawn changes nothing for the runs: it says so once in the log, and goes on counting.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from heapq import nsmallest
from itertools import islice
from types import TracebackType
from typing import NamedTuple, Self

import msgspec
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .measuring.histogram import Histogram
from .runs import Run
from .scopes import Runtime, runtime_here
from .states import CANCELLED, COMPLETED, CRASHED, FAILED, PENDING, RUNNING, State

logger = logging.getLogger("asynctask")

FRAME_SECONDS = 1 / 8
#: The share of the time that a view may take of one core (rule 1), which is slower frames with very many runs.
SHARE = 0.1
MOST_TASKS, MOST_SIBLINGS, MOST_ROWS, BAR = 12, 3, 40, 24
#: The types that end a run: PENDING because NotReady is an end.
ENDS = COMPLETED.bit | FAILED.bit | CRASHED.bit | CANCELLED.bit | PENDING.bit


class Signs(NamedTuple):
    full: str
    empty: str
    run: str
    more: str


SIGNS = Signs("━", "─", "•", "…")
PLAIN_SIGNS = Signs("#", "-", "*", "...")

_one_painter = threading.Lock()
_observers_change = threading.Lock()


class TaskSummary(msgspec.Struct, kw_only=True):
    """The runs of one task or flow that a view has seen. Durations are seconds in Running; None without any."""

    name: str
    is_flow: bool
    completed: int = 0
    failed: int = 0
    crashed: int = 0
    cancelled: int = 0
    not_ready: int = 0
    #: Runs under way: in the body; waiting for a slot or a retry; not begun.
    running: int = 0
    waiting: int = 0
    pending: int = 0
    #: Attempts beyond the first.
    retries: int = 0
    p50: float | None = None
    p95: float | None = None

    @property
    def finished(self) -> int:
        return self.completed + self.failed + self.crashed + self.cancelled + self.not_ready

    @property
    def runs(self) -> int:
        return self.finished + self.running + self.waiting + self.pending


class Tally:
    """The finished runs of one task, however many they are."""

    __slots__ = ("counts", "durations", "retries")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.retries = 0
        self.durations = Histogram()

    def add(self, run: Run) -> None:
        last = run.states[-1]
        field = "not_ready" if last.type is PENDING else last.type.value.lower()
        self.counts[field] = self.counts.get(field, 0) + 1
        attempts = run.run_count
        if attempts:
            self.retries += attempts - 1
            self.durations.record(round(run.total_run_time * 1e9))

    def summary(self, name: str, is_flow: bool) -> TaskSummary:
        p50 = p95 = None
        if self.durations.counts:
            p50, p95 = (value / 1e9 for value in self.durations.quantiles([0.5, 0.95]))
        return TaskSummary(name=name, is_flow=is_flow, retries=self.retries, p50=p50, p95=p95, **self.counts)


class Screen(Console):
    """Standard error. rich would end the thread and reroute standard output when nobody reads on (rule 4)."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class LiveView:
    """Counts the runs of one runtime while it is entered, and draws them where there is a terminal."""

    def __init__(self, runtime: Runtime | None, console: Console | None) -> None:
        self._runtime = runtime
        self._console = console or Screen(stderr=True)
        if console is None and not self._console.is_terminal:
            self._console.width = max(self._console.width, 120)  # a file has no edge
        self._ended: deque[Run] = deque()
        self._tallies: dict[tuple[str, bool], Tally] = {}
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self._screen: Live | None = None

    def __enter__(self) -> Self:
        journal = self._journal = (self._runtime or runtime_here()).journal
        self._began = journal.clock.now()
        self._observer = self._told  # kept: each look at a method makes another object
        with _observers_change:
            journal.observe(ENDS, self._observer)
        self._leaving.clear()
        self._open_screen()
        self._thread = threading.Thread(target=self._watch, name="asynctask-live", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        journal = self._journal
        with _observers_change:
            journal.ignore(self._observer)
        self._leaving.set()
        self._thread.join()
        self._close_screen()
        try:
            self._console.print(summary_table(self.tasks, journal.clock.now() - self._began, self._console.width))
        except (Exception, SystemExit):  # deliberate: rich exits when nobody reads on, and the block had no error
            logger.warning("the summary of runs could not be shown", exc_info=True)

    @property
    def tasks(self) -> list[TaskSummary]:
        """What has been seen so far: flows, then tasks, each in the order in which they were first seen."""
        with self._lock:
            self._count()
            return self._summaries(self._under_way())

    def _told(self, run: Run, state: State) -> None:
        if state.name != "RolledBack" and (state.type is not PENDING or state.name == "NotReady"):  # counted once
            self._ended.append(run)

    def _count(self) -> None:
        ended = self._ended
        while ended:
            run = ended.popleft()
            key = (run.spec.name, run.spec.is_flow)
            tally = self._tallies.get(key)
            if tally is None:
                tally = self._tallies[key] = Tally()
            tally.add(run)

    def _under_way(self) -> list[Run]:
        return [run for run in list(self._journal.live.values()) if not run.is_final]

    def _summaries(self, under_way: Iterable[Run]) -> list[TaskSummary]:
        found = {key: tally.summary(*key) for key, tally in self._tallies.items()}
        for run in under_way:
            key = (run.spec.name, run.spec.is_flow)
            summary = found.get(key)
            if summary is None:
                self._tallies[key] = Tally()  # keeps the place of its line
                summary = found[key] = TaskSummary(name=key[0], is_flow=key[1])
            states = run.states
            kind = states[-1].type
            if kind is PENDING:
                summary.pending += 1
            elif kind is RUNNING:
                summary.running += 1
            else:
                summary.waiting += 1
            if len(states) > 2:
                summary.retries += max(0, run.run_count - 1)
        return sorted(found.values(), key=lambda one: not one.is_flow)

    # -- the thread, and what it draws --

    def _watch(self) -> None:
        rest = FRAME_SECONDS
        while not self._leaving.wait(rest):
            start = time.thread_time()
            with self._lock:
                self._count()
                frame = None if self._screen is None else self._frame()
            if frame is not None:
                self._draw(frame)
            rest = max(FRAME_SECONDS, (time.thread_time() - start) / SHARE)

    def _frame(self) -> Group:
        under_way = self._under_way()
        now = self._journal.clock.now()
        summaries = self._summaries(under_way)
        height = min(self._console.size.height - 2, MOST_ROWS)
        signs = SIGNS if self._console.encoding.lower().startswith("utf") else PLAIN_SIGNS
        lines = task_lines(summaries, max(1, min(MOST_TASKS, height // 2)), signs)
        tree = tree_lines(under_way, now, height - lines.row_count, signs)
        return Group(headline(summaries, now - self._began), lines, *tree)

    def _open_screen(self) -> None:
        """Begin to draw, unless there is no terminal, or another view has it."""
        console = self._console
        if not console.is_terminal or console.is_dumb_terminal or not _one_painter.acquire(blocking=False):
            return
        # What the program prints appears above the view; what it prints into a file or a pipe still goes there.
        to_screen = sys.stdout is not None and sys.stdout.isatty()
        self._screen = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=to_screen)
        self._show(self._screen.start)

    def _draw(self, frame: Group) -> None:
        if self._screen is not None:
            self._show(partial(self._screen.update, frame, refresh=True))

    def _close_screen(self) -> None:
        if self._screen is not None:
            self._screen.update(Text())
            if self._show(self._screen.stop):
                self._screen = None
                _one_painter.release()

    def _show(self, step: Callable[[], None]) -> bool:
        """Whether it could be done; if not, this view draws no more (rule 4)."""
        try:
            step()
        except (Exception, SystemExit):  # deliberate: rich exits when nobody reads on, and runs must go on
            logger.warning("the live view of runs cannot be drawn; the runs are not affected", exc_info=True)
        else:
            return True
        screen, self._screen = self._screen, None
        _one_painter.release()
        try:
            if screen is not None:
                screen.stop()  # gives standard output and error back, then fails once more
        except (Exception, SystemExit):  # deliberate: it was told above
            pass
        return False


def live(runtime: Runtime | None = None, *, console: Console | None = None) -> LiveView:
    """Show the runs of `runtime` (default: the current one) for the length of a `with` block, then a summary.

    For plain and async code alike: `with live(): ...`; with `async with Runtime()`, inside it. It writes to
    standard error, or to `console`; where that is no terminal, only the summary. `view.tasks` has the counts.
    """
    return LiveView(runtime, console)


# -- lines: pure functions of what was counted --


def headline(summaries: list[TaskSummary], elapsed: float) -> Text:
    finished = sum(one.finished for one in summaries)
    running = sum(one.running for one in summaries)
    failed = sum(one.failed + one.crashed for one in summaries)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(shown_seconds(elapsed), style="bold")
    text.append(f"  {finished:,} of {sum(one.runs for one in summaries):,} runs finished, {running:,} running")
    if failed:
        text.append(f", {failed:,} failed", style="red")
    return text


def task_lines(summaries: list[TaskSummary], most: int, signs: Signs) -> Table:
    """One line for each task, at most `most`: those with runs under way first."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=32)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    chosen = summaries
    if len(chosen) > most:
        chosen = sorted(summaries, key=lambda one: one.runs == one.finished)[: most - 1]
    for one in chosen:
        name = Text(cleaned(one.name), style="bold" if one.is_flow else "")
        numbers = Text(f"{one.finished:,}/{one.runs:,}")
        table.add_row(name, bar(one, signs), numbers, counters(one))
    if len(chosen) < len(summaries):
        table.add_row(Text(f"and {len(summaries) - len(chosen):,} more tasks", style="dim"))
    return table


def bar(one: TaskSummary, signs: Signs) -> Text:
    """Completed, then everything else that ended, then what is to come."""
    runs = max(one.runs, 1)
    ended = BAR * one.finished // runs
    bad = min(ended, -(-BAR * (one.finished - one.completed) // runs))  # one failure in a million is seen
    text = Text(signs.full * (ended - bad), style="green")
    text.append(signs.full * bad, style="red")
    return text.append(signs.empty * (BAR - ended), style="dim")


def counters(one: TaskSummary) -> Text:
    parts = (
        (one.running, "running", "cyan"),
        (one.waiting, "waiting", "yellow"),
        (one.pending, "pending", "dim"),
        (one.retries, "retries", "yellow"),
        (one.failed, "failed", "red"),
        (one.crashed, "crashed", "red"),
        (one.cancelled, "cancelled", "magenta"),
        (one.not_ready, "not ready", "magenta"),
    )
    told = [(f"{count:,} {word}", style) for count, word, style in parts if count]
    return Text("  ").join(Text(word, style=style) for word, style in told)


def tree_lines(under_way: list[Run], now: float, most: int, signs: Signs) -> list[Text]:
    """The runs that have begun, below who started them; at most `most` lines."""
    if most <= 0:
        return []
    begun = [run for run in under_way if run.states[-1].type is not PENDING]
    numbers = {run.number for run in begun}
    below: dict[int | None, list[Run]] = {}
    for run in begun:
        below.setdefault(run.parent_number if run.parent_number in numbers else None, []).append(run)
    lines = list(islice(branches(below, None, "", partial(run_line, now=now, sign=signs.run)), most + 1))
    if len(lines) > most:
        lines[most - 1 :] = [Text(signs.more, style="dim")]
    return lines


def branches(
    below: dict[int | None, list[Run]], parent: int | None, indent: str, line: Callable[[Run, str], Text]
) -> Iterator[Text]:
    """The lines under one run: MOST_SIBLINGS of each task; first those with runs below them, then those in the body."""
    by_task: dict[str, list[Run]] = {}
    for run in below.get(parent, ()):
        by_task.setdefault(run.spec.name, []).append(run)
    for name, runs in by_task.items():
        shown = nsmallest(
            MOST_SIBLINGS, runs, lambda run: (run.number not in below, run.states[-1].type is not RUNNING)
        )
        for run in shown:
            yield line(run, indent)
            if len(indent) < 16:  # eight deep
                yield from branches(below, run.number, indent + "  ", line)
        if len(runs) > len(shown):
            text = f"{indent}  and {len(runs) - len(shown):,} more {cleaned(name)}"
            yield Text(text, style="dim", no_wrap=True, overflow="ellipsis")


def run_line(run: Run, indent: str, *, now: float, sign: str) -> Text:
    state = run.states[-1]
    text = Text(f"{indent}{sign} ", no_wrap=True, overflow="ellipsis")
    text.append(cleaned(run.name), style="bold" if run.spec.is_flow else "")
    text.append(f"  {shown_seconds(now - state.time)}", style="dim")
    attempts = run.run_count
    if attempts > 1:
        text.append(f"  attempt {attempts}", style="yellow")
    waits = run.waiting_on or state.name
    if state.type is not RUNNING and not state.is_final():  # it may have ended since it was chosen
        text.append(f"  {cleaned(waits)}", style="yellow")
    return text


def summary_table(summaries: list[TaskSummary], elapsed: float, width: int) -> Table:
    """Per task: how many runs, how they ended, how often they were retried, how long they took.

    In a `width` that is too small names lose their ends, before any number is touched.
    """
    columns = {
        "runs": [number(one.runs) for one in summaries],
        "completed": [number(one.completed, "green") for one in summaries],
        "failed": [number(one.failed, "red") for one in summaries],
        "crashed": [number(one.crashed, "red") for one in summaries],
        "cancelled": [number(one.cancelled, "magenta") for one in summaries],
        "not ready": [number(one.not_ready, "magenta") for one in summaries],
        "unfinished": [number(one.runs - one.finished, "magenta") for one in summaries],
        "retried": [number(one.retries, "yellow") for one in summaries],
        "p50": [Text("" if one.p50 is None else shown_seconds(one.p50)) for one in summaries],
        "p95": [Text("" if one.p95 is None else shown_seconds(one.p95)) for one in summaries],
    }
    for rare in ("crashed", "cancelled", "not ready", "unfinished"):
        if all(cell.plain == "0" for cell in columns[rare]):
            del columns[rare]
    title = f"{sum(one.runs for one in summaries):,} runs in {shown_seconds(elapsed)}"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    taken = sum(2 + max([len(heading), *(len(cell) for cell in cells)]) for heading, cells in columns.items())
    table.add_column("task", no_wrap=True, overflow="ellipsis", max_width=max(6, width - taken - 4))
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, one in enumerate(summaries):
        name = Text(cleaned(one.name), style="bold" if one.is_flow else "")
        table.add_row(name, *(cells[row] for cells in columns.values()))
    return table


def number(count: int, style: str = "") -> Text:
    return Text(f"{count:,}", style=style if count else "dim")


def cleaned(text: str, longest: int = 200) -> str:
    """Text that a terminal only shows: on one line, without escapes, overrides of direction, or half characters."""
    text = text[:longest]
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " if one.isspace() else "" for one in text)


def shown_seconds(seconds: float) -> str:
    """A duration with two or three digits and its unit."""
    if seconds < 1e-3:
        return f"{max(0.0, seconds) * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
