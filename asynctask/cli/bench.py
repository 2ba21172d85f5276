"""`asynctask bench`: how many calls a second a task, flow, function or scenario does under load, and how fast."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cyclopts import Parameter

from ..errors import BenchmarkError, UsageError
from ..measuring import tables
from ..measuring.comparing import Change, differences
from ..measuring.comparing import compare as differ
from ..measuring.page import page
from ..measuring.plans import Plan, cells_of, checked, loads_of
from ..measuring.reports import Report, read_report
from ..measuring.rounds import Measurement
from ..measuring.view import Lines, Screen
from ..redact import shown_as
from .run import failed
from .show import note, out, screen, table
from .targets import bench_target

T = TypeVar("T", int, float)


def bench(
    target: str,
    /,
    *,
    concurrency: str | None = None,
    rate: str | None = None,
    arrivals: Literal["poisson", "constant"] = "poisson",
    duration: float = 5.0,
    warmup: float = 1.0,
    repeats: int = 3,
    arg: list[str] | None = None,
    runner: str = "loop",
    loop: str = "asyncio",
    workers: int | None = None,
    in_flight: int = 10_000,
    seed: int = 0,
    json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    html: str | None = None,
    compare: str | None = None,
    fail_over: str | None = None,
    store: str = "memory://",
) -> int:
    """Measure a task, flow, function or scenario under load.

    Each load is measured on each runner and each event loop, several times, by turns, in processes of their own. The
    exit code is 0; 1 if a round fails, or something is worse than --fail-over allows; 2 for wrong use, or
    if --fail-over could judge nothing.

    Args:
        target: FILE.py:NAME or module:name, of a task, a flow, a function or a Scenario.
        concurrency: Numbers of clients that call again when their call is over, such as 1,8,64 (the default).
        rate: Calls a second that come whatever became of those before, such as 100,500.
        arrivals: Whether these come at random or at even distances.
        duration: Seconds that are measured in each round, 5 if nothing is said.
        warmup: Seconds before, which do not count: 1.
        repeats: How many rounds each line has: 3.
        arg: A value for a parameter, as name=value; as often as needed. The value is JSON or text.
        runner: Where bodies run: loop, threads, processes, or several.
        loop: The event loop: asyncio, uvloop, trio, or several.
        workers: How many threads, or processes, a runner has; without it, as many as it has by default.
        in_flight: The most calls that --rate has under way.
        seed: Which calls come when; the same seed, the same calls.
        json: Write the report as JSON into this file; to standard output for -.
        html: Write it as a page with plots into this file.
        compare: A file that --json has written: say what has changed since, beyond the noise of both.
        fail_over: With --compare: exit code 1 if a figure is worse by more than this, such as 10%.
        store: The URL of the store of the processes that measure.
    """
    allowed, before = _asked(compare, fail_over)
    _check_folders(json, html)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the module prints as it is loaded is not the report
            scenario = bench_target(target, arg or [])
    except UsageError:
        raise
    except Exception as error:  # deliberate: the user's module raised as it was loaded
        return failed(error)
    plan = Plan(
        duration=duration,
        warmup=warmup,
        repeats=repeats,
        most_in_flight=in_flight,
        workers=workers,
        store=store,
        seed=seed,
    )
    clients = _numbers("--concurrency", concurrency or ("" if rate else "1,8,64"), int)
    loads = loads_of(clients, _numbers("--rate", rate or "", float), arrivals)
    cells = cells_of(_words("--loop", loop), _words("--runner", runner), loads)
    shown = {name: shown_as(name, value) for name, value in (text.split("=", 1) for text in arg or [])}
    measurement = Measurement(scenario, cells, checked(plan), target=target, args=arg or [], shown_args=shown)
    code = _run(measurement)
    report = measurement.report()
    if not report.cells:
        return code
    changes = [] if before is None else differ(before, report)
    if json != "-":  # a document goes there alone
        _tell(report, before, changes)
    if json is not None:
        _write(json, report.to_json().decode())
    if html is not None:
        _write(html, page(report, changes))
    return code or (0 if allowed is None else _judged(changes, allowed))


def _judged(changes: list[Change], allowed: float) -> int:
    """The exit code for these changes, said if it is not 0."""
    if any(one.is_worse_by(allowed) for one in changes):
        note(f"asynctask: something is worse by more than {100 * allowed:g}%, beyond the noise")
        return 1
    if all(one.verdict == "unknown" for one in changes):
        note(
            "asynctask: --fail-over could judge nothing: it takes lines that both reports have, and two rounds or more "
            "of each in both (--repeats)"
        )
        return 2
    return 0


def _run(measurement: Measurement) -> int:
    """Measure, and show how it goes on standard error; the exit code."""
    cells, plan = measurement.cells, measurement.plan
    view = Screen(cells, plan, screen(stderr=True)) if sys.stderr.isatty() else Lines(cells, plan, note)
    try:
        with view:
            measurement.run(view)
    except KeyboardInterrupt:  # deliberate: what there is so far is shown, and the exit code says it
        note("asynctask: interrupted")
        return 130
    except BenchmarkError as error:
        note(f"asynctask: {error}")
        return 1
    return 0


def _tell(report: Report, before: Report | None, changes: list[Change]) -> None:
    """The report, for people."""
    out(tables.heading(report))
    out(tables.setting(report))
    for one in (tables.speed(report), tables.works(report), tables.costs(report)):
        if one is not None:
            out()
            table(one.columns, one.rows)
    for place, line in enumerate(tables.remarks(report)):
        out(f"- {line}" if place else f"\n- {line}")
    if before is None:
        return
    out()
    if changes:
        found = tables.changes(changes)
        table(found.columns, found.rows)
    else:
        out("nothing to compare: the reports have no line in common")
    for line in differences(before, report):
        out(line)


def _write(path: str, text: str) -> None:
    if path == "-":
        out(text)
        return
    Path(path).write_text(text, encoding="utf-8")
    note(f"written: {path}")


def _asked(compare: str | None, fail_over: str | None) -> tuple[float | None, Report | None]:
    """What may be worse, and the report to compare with."""
    allowed = None if fail_over is None else _share(fail_over)
    if allowed is not None and compare is None:
        raise UsageError("--fail-over needs something to compare with: add --compare before.json")
    try:
        return allowed, None if compare is None else read_report(compare)
    except BenchmarkError as error:  # nothing was measured yet: what was asked for is wrong
        raise UsageError(f"--compare: {error}") from error


def _check_folders(*paths: str | None) -> None:
    """Raise `UsageError` for a file that could not be written after minutes of measuring."""
    for path in paths:
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise UsageError(f"{path!r} cannot be written: there is no folder {str(Path(path).parent)!r}")
        if path is not None and Path(path).is_dir():
            raise UsageError(f"{path!r} cannot be written: it is a folder")


def _share(text: str) -> float:
    """`10%`, or `0.1`, as a share."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if match is None:
        raise UsageError(f"--fail-over must be a share such as 10%, not {text!r}")
    return float(match[1]) / (100 if match[2] else 1)


def _words(option: str, text: str) -> list[str]:
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise UsageError(f"{option} must be names with commas between them, not {text!r}")
    return found


def _numbers(option: str, text: str, kind: Callable[[str], T]) -> list[T]:
    if not text:
        return []
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError as error:
        wanted = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{option} must be {wanted} with commas between them, not {text!r}") from error
