"""Benchmarks of tasks, flows and plain functions: under how much load they do how many calls a second, and how fast.

    from asynctask.bench import Scenario, Work, measure, table

    report = measure(Scenario(Work(fetch, ("/a",), weight=3), Work(store, ("/b",)), setup=connect), concurrency=[1, 8])
    print(table(report))

On the command line: `asynctask bench module:name --concurrency 1,8,64`. The guide says what is measured, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .measuring.comparing import Change as Change
from .measuring.comparing import compare as compare
from .measuring.comparing import differences as differences
from .measuring.figures import Gauges as Gauges
from .measuring.figures import Progress as Progress
from .measuring.figures import Round as Round
from .measuring.figures import RunFigures as RunFigures
from .measuring.figures import WorkFigures as WorkFigures
from .measuring.histogram import Histogram as Histogram
from .measuring.machine import Machine as Machine
from .measuring.page import page as page
from .measuring.plans import Arrivals, Plan, cells_of, checked, loads_of
from .measuring.plans import Cell as Cell
from .measuring.plans import Closed as Closed
from .measuring.plans import Open as Open
from .measuring.reports import CellReport as CellReport
from .measuring.reports import Figure as Figure
from .measuring.reports import Report as Report
from .measuring.reports import read_report as read_report
from .measuring.rounds import Measurement, Quiet
from .measuring.rounds import View as View
from .measuring.scenarios import Scenario as Scenario
from .measuring.scenarios import Work as Work
from .measuring.scenarios import scenario_of
from .measuring.tables import text as table

__all__ = [
    "Cell",
    "CellReport",
    "Change",
    "Closed",
    "Figure",
    "Gauges",
    "Histogram",
    "Machine",
    "Open",
    "Plan",
    "Progress",
    "Quiet",
    "Report",
    "Round",
    "RunFigures",
    "Scenario",
    "View",
    "Work",
    "WorkFigures",
    "compare",
    "differences",
    "measure",
    "page",
    "read_report",
    "table",
]


def measure(
    target: Scenario | Work | Callable[..., Any],
    *,
    concurrency: Sequence[int] | None = None,
    rate: Sequence[float] = (),
    arrivals: Arrivals = "poisson",
    runner: Sequence[str] = ("loop",),
    loop: Sequence[str] = ("asyncio",),
    duration: float = 5.0,
    warmup: float = 1.0,
    repeats: int = 3,
    grace: float = 5.0,
    most_in_flight: int = 10_000,
    workers: int | None = None,
    store: str = "memory://",
    seed: int = 0,
    view: View | None = None,
) -> Report:
    """Measure a scenario, task, flow or function under each load, on each runner, on each event loop.

    `concurrency` has numbers of clients that call again when their call is over (1 and 8, if no `rate` is given);
    `rate`, of calls a second that come whatever became of those before. Each is measured `repeats` times, by turns, in
    a process of its own, which is sent the scenario: what cannot be pickled is made by its `setup`. It blocks its
    thread. Raises `OptionError` for what cannot be measured, and `BenchmarkError` when a round fails.
    """
    if concurrency is None:
        concurrency = () if rate else (1, 8)
    plan = Plan(
        duration=duration,
        warmup=warmup,
        repeats=repeats,
        grace=grace,
        most_in_flight=most_in_flight,
        workers=workers,
        store=store,
        seed=seed,
    )
    cells = cells_of(loop, runner, loads_of(concurrency, rate, arrivals))
    measurement = Measurement(scenario_of(target), cells, checked(plan))
    measurement.run(view or Quiet())
    return measurement.report()
