"""What a run costs, as ratios to what the event loop itself offers for the same work.

Usage: python benchmarks/core.py [--quick] [--row NAME]... [--json FILE]

A row of ROWS is a pair of small functions that do one thing `count` times, one with the loop's own means and one with
ours. They are measured by turns in this process: theirs, ours, theirs, ours. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

os.environ["ASYNCTASK_STORE_URL"] = "memory://"  # what a store costs is measured by store.py

import asynctask
from asynctask import get_client, settings, task

Measure = Callable[[int], float]
#: A row is noisy when the middle half of its rounds spreads over more than this part of their median.
NOISY = 0.25


class Row(NamedTuple):
    """One line of the budget: `ours` may cost at most `bar` times what `theirs` does."""

    name: str
    work: str
    against: str
    bar: float
    unit: str
    theirs: Measure
    ours: Measure
    times: int
    rounds: int = 15


class Result(NamedTuple):
    """A measured row: the medians, and the quartiles of the ratios of neighbouring rounds."""

    row: Row
    theirs: float
    ours: float
    low: float
    high: float
    rounds: int

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    @property
    def is_noisy(self) -> bool:
        return self.high - self.low > NOISY * self.ratio

    @property
    def verdict(self) -> str:
        if self.ratio <= self.row.bar:
            return "within"
        return "over, but noisy" if self.is_noisy else "over"


# -- clocks: a measure gives the cost of one of `count` equal things -------------------------------------------------


async def microseconds(work: Callable[[int], Awaitable[object]], count: int) -> float:
    start = time.perf_counter()
    await work(count)
    return (time.perf_counter() - start) / count * 1e6


def on_asyncio(work: Callable[[int], Awaitable[object]]) -> Measure:
    return lambda count: asyncio.run(microseconds(work, count))


def on_trio(work: Callable[[int], Awaitable[object]]) -> Measure:
    def measure(count: int) -> float:
        import trio  # here: programs on asyncio have not imported it, and asking whether it runs takes us 0.2 us a run

        return trio.run(microseconds, work, count)

    return measure


def in_this_thread(work: Callable[[int], object]) -> Measure:
    def measure(count: int) -> float:
        start = time.perf_counter()
        work(count)
        return (time.perf_counter() - start) / count * 1e6

    return measure


BYTECODE = tempfile.TemporaryDirectory(prefix="asynctask-benchmark-")


def in_a_child(code: str) -> Measure:
    """The number that `code` prints, in an interpreter of its own; `count` is its argument."""

    def measure(count: int) -> float:
        # Bytecode is kept, whatever this environment says: a package being worked on must not pay for compiling.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": BYTECODE.name, "PYTHONDONTWRITEBYTECODE": ""}
        command = [sys.executable, "-c", code, str(count)]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        return float(ended.stdout)

    return measure


# -- the bodies: as little as there can be, so that what is around them is what is measured --------------------------


async def nothing() -> None:
    pass


def plain_nothing() -> None:
    pass


async def a_millisecond() -> None:
    await asyncio.sleep(0.001)


nothing_task = task(nothing)
plain_nothing_task = task(plain_nothing)
limited_task = task(a_millisecond).with_options(tags=["benchmark"])


# -- one thing after another -----------------------------------------------------------------------------------------


async def create_and_await(count: int) -> None:
    for _ in range(count):
        await asyncio.create_task(nothing())


async def call(count: int) -> None:
    for _ in range(count):
        await nothing_task()


def call_plain(count: int) -> None:
    for _ in range(count):
        plain_nothing_task()


# -- many at once ----------------------------------------------------------------------------------------------------


async def task_group(count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(nothing())


async def nursery(count: int) -> None:
    import trio

    async with trio.open_nursery() as children:
        for _ in range(count):
            children.start_soon(nothing)


async def scopes_in_a_nursery(count: int) -> None:
    """Children that can be cancelled one by one, as futures can, which for trio takes a cancel scope each."""
    import trio

    async def child(scope: trio.CancelScope) -> None:
        with scope:
            await nothing()

    async with trio.open_nursery() as children:
        scopes = [trio.CancelScope() for _ in range(count)]
        for scope in scopes:
            children.start_soon(child, scope)


async def submit_all(count: int) -> None:
    futures = [nothing_task.submit() for _ in range(count)]
    for future in futures:
        await future


# -- on threads ------------------------------------------------------------------------------------------------------

THREADS = ThreadPoolExecutor(settings.thread_pool_max_workers)


async def executor_at_once(count: int) -> None:
    loop = asyncio.get_running_loop()
    futures = [loop.run_in_executor(THREADS, plain_nothing) for _ in range(count)]
    for future in futures:
        await future


async def threads_at_once(count: int) -> None:
    futures = [plain_nothing_task.submit() for _ in range(count)]
    for future in futures:
        await future


async def executor_in_turn(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.run_in_executor(THREADS, plain_nothing)


async def threads_in_turn(count: int) -> None:
    for _ in range(count):
        await plain_nothing_task.submit()


# -- ten at a time ---------------------------------------------------------------------------------------------------


async def under_semaphore(count: int) -> None:
    semaphore = asyncio.Semaphore(10)

    async def one() -> None:
        async with semaphore:
            await a_millisecond()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())


async def under_limit(count: int) -> None:
    async with get_client() as client:
        await client.create_concurrency_limit("benchmark", 10)
    futures = [limited_task.submit() for _ in range(count)]
    for future in futures:
        await future


# -- in interpreters of their own ------------------------------------------------------------------------------------

ASLEEP = """
import asyncio, gc, os, resource, sys
from pathlib import Path
PREPARE

def memory():  # bytes in RAM; where there is no /proc, the peak, in a unit of the system's own
    gc.collect()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

async def sleeper():
    global left
    left -= 1
    if not left:
        all_asleep.set()
    await asyncio.sleep(3600)

async def main():
    global left, all_asleep
    all_asleep = asyncio.Event()
    left = 100  # imports that happen at first use, and the first pages of every arena, are nobody's runs
    first = [START for _ in range(100)]
    await all_asleep.wait()
    all_asleep.clear()
    left = count = int(sys.argv[1])
    before = memory()
    several = [START for _ in range(count)]
    await all_asleep.wait()
    print((memory() - before) / count, flush=True)
    os._exit(0)  # ending 100,000 sleepers politely is not what is measured

asyncio.run(main())
"""
ASLEEP_THEIRS = ASLEEP.replace("PREPARE", "").replace("START", "asyncio.create_task(sleeper())")
ASLEEP_OURS = ASLEEP.replace("PREPARE", "from asynctask import task").replace("START", "sleeping.submit()")
ASLEEP_OURS = ASLEEP_OURS.replace("async def main", "sleeping = task(sleeper)\n\nasync def main")

IMPORT = "import time; start = time.perf_counter(); import {}; print((time.perf_counter() - start) * 1e3)"


ROWS = [
    Row(
        "call", "await t()", "await create_task(coro())", 0.7, "us",
        on_asyncio(create_and_await), on_asyncio(call), 5_000,
    ),
    Row(
        "sync call", "t() in a plain thread", "await create_task(coro())", 0.7, "us",
        on_asyncio(create_and_await), in_this_thread(call_plain), 5_000,
    ),
    Row(
        "submit", "t.submit() N, await all", "asyncio.TaskGroup", 2.0, "us",
        on_asyncio(task_group), on_asyncio(submit_all), 5_000,
    ),
    Row(
        "threads", "sync t.submit() N, await all", "run_in_executor N, await all", 1.3, "us",
        on_asyncio(executor_at_once), on_asyncio(threads_at_once), 2_000,
    ),
    Row(
        "threads in turn", "await sync t.submit()", "await run_in_executor", 1.3, "us",
        on_asyncio(executor_in_turn), on_asyncio(threads_in_turn), 1_000,
    ),
    Row(
        "limit", "runs of 1 ms under a limit of 10", "the same under Semaphore(10)", 1.1, "us",
        on_asyncio(under_semaphore), on_asyncio(under_limit), 1_000,
    ),
    Row(
        "asleep", "memory of a run asleep", "of an asyncio task asleep", 2.0, "bytes",
        in_a_child(ASLEEP_THEIRS), in_a_child(ASLEEP_OURS), 100_000, 3,
    ),
    Row(
        "import", "import asynctask", "import anyio, msgspec", 1.5, "ms",
        in_a_child(IMPORT.format("anyio, msgspec")), in_a_child(IMPORT.format("asynctask")), 1, 21,
    ),
    # The last ones in this process: they import trio.
    Row(
        "submit on trio", "t.submit() N, await all", "a trio nursery", 2.0, "us",
        on_trio(nursery), on_trio(submit_all), 5_000,
    ),
    Row(
        "cancellable on trio", "t.submit() N, await all", "a nursery, a CancelScope each", 2.0, "us",
        on_trio(scopes_in_a_nursery), on_trio(submit_all), 5_000,
    ),
]  # fmt: skip


# -- measuring and telling -------------------------------------------------------------------------------------------


def measured(row: Row, quick: bool) -> Result:
    """Take a row's two sides by turns, after one round that does not count."""
    count, rounds = (max(1, row.times // 5), min(row.rounds, 5)) if quick else (row.times, row.rounds)
    theirs: list[float] = []
    ours: list[float] = []
    for turn in range(rounds + 1):
        for side, values in ((row.theirs, theirs), (row.ours, ours)):
            gc.collect()  # nobody pays for the other's garbage; within a round the collector runs as it does for users
            value = side(count)
            if turn:
                values.append(value)
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Result(row, statistics.median(theirs), statistics.median(ours), low, high, rounds)


def load() -> float:
    """How many programs want to run, over the last minute, as a share of the processors."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def table(results: list[Result], title: str) -> Table:
    shown = Table(title=title)
    for heading in ("row", "ours", "against"):
        shown.add_column(heading)
    for heading in ("theirs", "ours", "ratio", "middle half", "bar"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for result in results:
        row = result.row
        noisy = " [dim]noisy[/]" if result.verdict == "within" and result.is_noisy else ""
        style = "green" if result.verdict == "within" else "red" if result.verdict == "over" else "yellow"
        shown.add_row(
            row.name, row.work, row.against, f"{result.theirs:,.1f} {row.unit}", f"{result.ours:,.1f} {row.unit}",
            f"[{style}]{result.ratio:.2f}[/]", f"{result.low:.2f}-{result.high:.2f}", f"{row.bar:.1f}",
            f"[{style}]{result.verdict}[/]{noisy}",
        )  # fmt: skip
    return shown


def as_data(results: list[Result], quick: bool, load_before: float) -> dict[str, Any]:
    return {
        "asynctask": asynctask.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "load": {"before": round(load_before, 2), "after": round(load(), 2)},
        "quick": quick,
        "rows": [
            {
                **{name: getattr(result.row, name) for name in ("name", "work", "against", "bar", "unit")},
                **{name: round(getattr(result, name), 3) for name in ("theirs", "ours", "ratio", "low", "high")},
                "rounds": result.rounds,
                "noisy": result.is_noisy,
                "verdict": result.verdict,
            }
            for result in results
        ],
    }


def main() -> int:
    """0 when every row is within its bar (or with --quick, always), 1 when one is over it, 2 for wrong use."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description="What a run costs, against what the event loop itself offers.")
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds; exits 0 also over a bar")
    parser.add_argument("--row", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well; - is stdout")
    given = parser.parse_args()
    console = Console(stderr=given.json == Path("-"), width=None if sys.stdout.isatty() else 150)
    load_before = load()
    results: list[Result] = []
    for row in ROWS:
        if given.row is None or row.name in given.row:
            with console.status(f"{row.name} ..."):
                results.append(measured(row, given.quick))
    console.print(table(results, f"asynctask {asynctask.__version__}, Python {platform.python_version()}"))
    if load_before > 0.5 or any(result.is_noisy for result in results):
        console.print(
            f"This machine was busy or uneven (load {load_before:.0%} of its processors at the start): "
            f"take rows marked noisy as a hint, and measure again when nothing else runs."
        )
    if given.json:
        text = json.dumps(as_data(results, given.quick, load_before), indent=2)
        print(text) if given.json == Path("-") else given.json.write_text(text + "\n")
    THREADS.shutdown()
    return 0 if given.quick or all(result.verdict != "over" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
