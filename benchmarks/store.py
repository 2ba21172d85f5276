"""What recording and caching cost: python benchmarks/store.py [--quick] [--row NAME] [--json FILE]

Rows are measured as in core.py, by turns with what they are held against. Three figures are no ratios: the longest
pause of an event loop while runs are recorded, over the same load unrecorded; the memory of a process that makes a
million runs; and what a cached result costs that only the disk has. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

os.environ["ASYNCTASK_STORE_URL"] = "memory://"  # whatever a row does not say otherwise

from core import Result, Row, as_data, create_and_await, measured, nothing_task, on_asyncio, table
from rich.console import Console
from rich.table import Table

from asynctask import Runtime, flow, task
from asynctask.cache_policies import INPUTS

FOLDER = tempfile.TemporaryDirectory(prefix="asynctask-benchmark-store-")
COUNT = iter(range(1_000_000))


def new_store() -> str:
    """The URL of a database that is not there yet."""
    return f"sqlite:///{FOLDER.name}/{next(COUNT)}.db"


def recorded(work: Callable[[int], Awaitable[object]]) -> Callable[[int], float]:
    """Microseconds of each of `count` runs, from the first call until the last row is on disk."""

    async def measure(count: int) -> float:
        async with Runtime(store=new_store()) as runtime:
            await nothing_task()
            await runtime.flush()  # the file is open
            start = time.perf_counter()
            await work(count)
            await runtime.flush()
            return (time.perf_counter() - start) / count * 1e6

    return lambda count: asyncio.run(measure(count))


async def call(count: int) -> None:
    for _ in range(count):
        await nothing_task()


@task
async def of_arguments(number: int, text: str) -> None:
    pass


@flow
async def call_with_arguments(count: int) -> None:
    for number in range(count):
        await of_arguments(number, "some text")


async def submit_all(count: int) -> None:
    for future in [nothing_task.submit() for _ in range(count)]:
        await future


async def task_group(count: int) -> None:
    async def nothing() -> None:
        pass

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(nothing())


@task(cache_policy=INPUTS)
async def cached(number: int, text: str) -> int:
    return number


async def hits(count: int) -> None:
    await cached(1, "one")
    for _ in range(count):
        await cached(1, "one")


ROWS = [
    Row(
        "recorded", "await t(), to the last row on disk", "await create_task(coro())", 2.0, "us",
        on_asyncio(create_and_await), recorded(call), 20_000, 11,
    ),
    Row(
        "recorded in a flow", "await t(number, text) inside a flow, the same", "await create_task(coro())", 3.0, "us",
        on_asyncio(create_and_await), recorded(call_with_arguments), 20_000, 11,
    ),
    Row(
        "recorded submit", "t.submit() N, await all, the same", "asyncio.TaskGroup", 6.0, "us",
        on_asyncio(task_group), recorded(submit_all), 20_000, 11,
    ),
    Row(
        "hit", "await of a result in the memory cache", "await create_task(coro())", 1.0, "us",
        on_asyncio(create_and_await), on_asyncio(hits), 5_000,
    ),
]  # fmt: skip


class Figure(NamedTuple):
    """One figure that is no ratio; `bar` in its unit, or None where it is only told."""

    name: str
    what: str
    value: float
    unit: str
    bar: float | None


# -- the longest pause ------------------------------------------------------------------------------------------------


async def longest_pause(store: str, count: int) -> float:
    """Milliseconds between two turns of the loop, at most, while `count` runs are made, a hundred in each turn.

    Seen by a child that does nothing else: what makes the runs may also have to wait for room in the queue, which
    is no pause of the loop.
    """
    longest = 0.0
    is_over = False

    async def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not is_over:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now

    async with Runtime(store=store) as runtime:
        await nothing_task()
        await runtime.flush()
        watcher = asyncio.create_task(watch())
        for _ in range(count // 100):
            for _ in range(100):
                await nothing_task()
            await asyncio.sleep(0)
        is_over = True
        await watcher
    return longest * 1e3


def pause_figure(quick: bool) -> Figure:
    count, rounds = (20_000, 3) if quick else (100_000, 7)
    over = []
    for _ in range(rounds):
        unrecorded = asyncio.run(longest_pause("memory://", count))
        over.append(asyncio.run(longest_pause(new_store(), count)) - unrecorded)
    what = f"longest pause of the loop while {count:,} runs are recorded, over the same unrecorded"
    return Figure("pause", what, statistics.median(over), "ms", 20.0)


# -- in processes of their own ----------------------------------------------------------------------------------------

MEMORY = """
import asyncio, gc, os, resource, sys
from asynctask import Runtime, task

@task
async def nothing(number): pass

def memory():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6

async def main(url, count):
    async with Runtime(store=url) as runtime:
        for turn in range(count):
            await nothing(turn)
            if turn % 1000 == 0:
                await asyncio.sleep(0)
            if turn == 100_000:  # the queue has been as full as it gets
                await runtime.flush()
                before = memory()
        await runtime.flush()
        print(memory() - before)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""

DISK = """
import asyncio, sys, time
from asynctask import Runtime, task
from asynctask.cache_policies import INPUTS

@task(cache_policy=INPUTS)
async def cached(number):
    assert FIRST, "this was to be a hit"
    return {"number": number, "text": "x" * 100}

async def main(url, count):
    async with Runtime(store=url):
        start = time.perf_counter()
        await cached(0)
        first = time.perf_counter() - start
        start = time.perf_counter()
        for number in range(1, count):
            await cached(number)
        each = (time.perf_counter() - start) / (count - 1)
        start = time.perf_counter()
        for number in range(count, count + count, 50):
            await asyncio.gather(*(cached(n) for n in range(number, number + 50)))
        together = (time.perf_counter() - start) / count
        print(first * 1e3, each * 1e6, together * 1e6)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def in_a_child(code: str, *given: object) -> list[float]:
    # Bytecode is kept, whatever this environment says: a package being worked on must not pay for compiling.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{FOLDER.name}/bytecode", "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code, *map(str, given)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return [float(one) for one in ended.stdout.split()]


def memory_figure(quick: bool) -> Figure:
    count = 200_000 if quick else 1_000_000
    (grown,) = in_a_child(MEMORY, new_store(), count)
    return Figure("memory", f"growth from run 100,000 to run {count:,}, all recorded", grown, "MB", 10.0)


def disk_figures(quick: bool) -> list[Figure]:
    url, count = new_store(), 500 if quick else 2_000
    in_a_child(DISK.replace("FIRST", "True"), url, count)
    first, each, together = in_a_child(DISK.replace("FIRST", "False"), url, count)
    return [
        Figure("first disk hit", "first cached call of a new process, opening the store", first, "ms", None),
        Figure("disk hit", "a cached call that the disk answers, one after another", each, "us", None),
        Figure("disk hits together", "the same, fifty at once", together, "us", None),
    ]


FIGURES: dict[str, Callable[[bool], list[Figure]]] = {
    "pause": lambda quick: [pause_figure(quick)],
    "memory": lambda quick: [memory_figure(quick)],
    "disk": disk_figures,
}


def told(figures: list[Figure]) -> Table:
    shown = Table(title="figures")
    for heading in ("figure", "what", "value", "bar", ""):
        shown.add_column(heading)
    for one in figures:
        within = one.bar is None or one.value <= one.bar
        style = "green" if within else "red"
        bar = "" if one.bar is None else f"{one.bar:g} {one.unit}"
        verdict = "" if one.bar is None else "within" if within else "over"
        shown.add_row(one.name, one.what, f"{one.value:,.2f} {one.unit}", bar, f"[{style}]{verdict}[/]")
    return shown


def as_figure(result: Result) -> Figure:
    """A row without a bar, which is only told."""
    row = result.row
    return Figure(row.name, f"{row.work}, as a multiple of {row.against}", result.ratio, "x", None)


def judge(description: str, title: str, rows: list[Row], measures: dict[str, Callable[[bool], list[Figure]]]) -> int:
    """Measure and tell what the command line asks for: 0 when all of it is within its bar (or with --quick, always),
    1 when something is over it. A row whose bar is infinite is told as a figure."""
    names = [*(row.name for row in rows), *measures]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds; exits 0 also over a bar")
    parser.add_argument("--row", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    wanted = given.row or names
    all_rows = [measured(row, given.quick) for row in rows if row.name in wanted]
    results = [one for one in all_rows if one.row.bar < math.inf]
    figures = [as_figure(one) for one in all_rows if one.row.bar == math.inf]
    figures += [one for name, measure in measures.items() if name in wanted for one in measure(given.quick)]
    if results:
        console.print(table(results, title))
    if figures:
        console.print(told(figures))
    if given.json:
        told_rows = as_data(results, given.quick, 0.0)["rows"]
        text = json.dumps({"rows": told_rows, "figures": [one._asdict() for one in figures]}, indent=2)
        given.json.write_text(text + "\n")
    over = any(one.verdict == "over" for one in results) or any(
        one.bar is not None and one.value > one.bar for one in figures
    )
    return 0 if given.quick or not over else 1


if __name__ == "__main__":
    sys.exit(judge("What recording and caching cost.", "recording and caching", ROWS, FIGURES))
