"""What limits cost, and how fast a slot changes hands: python benchmarks/limits.py [--quick] [--row NAME] [--json FILE]

Rows are measured as in core.py, by turns with what they are held against. All else are figures: times from a release to
the next start, what a limit adds to a run, how a line of 100,000 behaves, the processor's time of who idles or waits.
README.md says how to read the result.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

os.environ["ASYNCTASK_STORE_URL"] = "memory://"  # whatever a row does not say otherwise

import anyio
from core import Row, a_millisecond, nothing, on_asyncio, plain_nothing, under_semaphore
from store import COUNT, FOLDER, Figure, in_a_child, judge, new_store

from asynctask import Runtime, get_client, rate_limit, task

MEMORY = "memory://"


async def set_limit(tag: str, limit: int) -> None:
    async with get_client() as client:
        await client.create_concurrency_limit(tag, limit)


# -- ten at a time ----------------------------------------------------------------------------------------------------

slept = task(a_millisecond).with_options(tags=["ten"])


async def under_limiter(count: int) -> None:
    limiter = anyio.CapacityLimiter(10)

    async def one() -> None:
        async with limiter:
            await a_millisecond()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())


def under_limit(sqlite: bool) -> Callable[[int], float]:
    """Microseconds of each of `count` runs, from the first submit until the last has ended."""

    async def measure(count: int) -> float:
        async with Runtime(store=new_store() if sqlite else MEMORY):
            await set_limit("ten", 10)
            await slept()  # the store is open
            start = time.perf_counter()
            for future in [slept.submit() for _ in range(count)]:
                await future
            return (time.perf_counter() - start) / count * 1e6

    return lambda count: asyncio.run(measure(count))


ROWS = [
    Row(
        "semaphore", "runs of 1 ms under a limit of 10", "the same under asyncio.Semaphore(10)", 1.1, "us",
        on_asyncio(under_semaphore), under_limit(sqlite=False), 1_000,
    ),
    Row(
        "semaphore, SQLite", "the same, the limit in a database", "the same under asyncio.Semaphore(10)", 1.1, "us",
        on_asyncio(under_semaphore), under_limit(sqlite=True), 1_000,
    ),
    Row(
        "limiter", "runs of 1 ms under a limit of 10", "the same under anyio.CapacityLimiter(10)", math.inf, "us",
        on_asyncio(under_limiter), under_limit(sqlite=False), 1_000,
    ),
    Row(
        "limiter, SQLite", "the same, the limit in a database", "the same under anyio.CapacityLimiter(10)", math.inf,
        "us", on_asyncio(under_limiter), under_limit(sqlite=True), 1_000,
    ),
]  # fmt: skip


# -- what stamps tell -------------------------------------------------------------------------------------------------


class Stamps:
    """When each body began and ended, in nanoseconds."""

    def __init__(self) -> None:
        self.entries: list[int] = []
        self.exits: list[int] = []

    def idle(self, size: int) -> float:
        """The share of the slots' time in which no body was inside, from the first entry until the last."""
        first, last = self.entries[0], self.entries[-1]
        used = sum(min(one, last) for one in self.exits) - sum(self.entries)
        return 1 - used / (size * (last - first))

    def pauses(self) -> list[float]:
        """Milliseconds from each exit to the next entry, under a limit of 1."""
        return [(start - end) / 1e6 for end, start in zip(self.exits, self.entries[1:], strict=False)]


def percentiles(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


async def idle_share(store: str | None, count: int) -> float:
    """Percent of the slots' time without a body, of runs of 1 ms under a limit of 10; with no store, a semaphore."""
    stamps = Stamps()

    async def body() -> None:
        stamps.entries.append(time.perf_counter_ns())
        await a_millisecond()
        stamps.exits.append(time.perf_counter_ns())

    if store is None:
        semaphore = asyncio.Semaphore(10)

        async def one() -> None:
            async with semaphore:
                await body()

        await asyncio.gather(*(one() for _ in range(count)))
    else:
        limited = task(body).with_options(tags=["ten"])
        async with Runtime(store=store):
            await set_limit("ten", 10)
            await slept()
            for future in [limited.submit() for _ in range(count)]:
                await future
    return stamps.idle(10) * 100


def idle_figures(quick: bool) -> list[Figure]:
    count, rounds = (500, 3) if quick else (2_000, 9)
    stores: dict[str, Callable[[], str | None]] = {
        "Semaphore": lambda: None,
        "memory": lambda: MEMORY,
        "SQLite": new_store,
    }
    found: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(rounds):
        for name, make in stores.items():
            found[name].append(asyncio.run(idle_share(make(), count)))
    whats = {
        "Semaphore": "slot time without a body while runs wait, ten slots, 1 ms: asyncio.Semaphore",
        "memory": "the same under a limit",
        "SQLite": "the same under a limit in a database",
    }
    return [Figure(f"empty: {name}", whats[name], statistics.median(found[name]), "%", None) for name in stores]


# -- an uncontended limit ---------------------------------------------------------------------------------------------

unlimited = task(nothing).with_options(tags=["unlimited"])
roomy = task(nothing).with_options(tags=["roomy"])


async def added(store: str, count: int, rounds: int) -> float:
    """Microseconds that a limit of 1,000 adds to `await t()`, over a tag without one; the median over the rounds."""

    async def each(one: Callable[[], Awaitable[object]]) -> float:
        await runtime.flush()
        gc.collect()
        start = time.perf_counter()
        for _ in range(count):
            await one()
        return (time.perf_counter() - start) / count * 1e6

    async with Runtime(store=store) as runtime:
        await set_limit("roomy", 1_000)
        differences = []
        for _ in range(rounds + 1):
            without = await each(unlimited)
            differences.append(await each(roomy) - without)
        return statistics.median(differences[1:])


def uncontended_figures(quick: bool) -> list[Figure]:
    count, rounds = (1_000, 5) if quick else (5_000, 31)
    memory = asyncio.run(added(MEMORY, count, rounds))
    sqlite = asyncio.run(added(new_store(), count, rounds))
    return [
        Figure("uncontended", "what a limit with room adds to await t()", memory, "us", 3.0),
        Figure("uncontended, SQLite", "the same, the limit in a database", sqlite, "us", 3.0),
    ]


# -- from a release to the next start ---------------------------------------------------------------------------------


async def pauses(store: str, is_sync: bool, count: int) -> list[float]:
    """Milliseconds from the end of a body to the first line of the next one, under a limit of 1."""
    stamps = Stamps()

    async def body() -> None:
        stamps.entries.append(time.perf_counter_ns())
        await asyncio.sleep(0)
        stamps.exits.append(time.perf_counter_ns())

    def plain_body() -> None:
        stamps.entries.append(time.perf_counter_ns())
        plain_nothing()
        stamps.exits.append(time.perf_counter_ns())

    limited: Any = task(plain_body if is_sync else body).with_options(tags=["single"])
    async with Runtime(store=store):
        await set_limit("single", 1)
        for future in [limited.submit() for _ in range(count)]:
            await future
    return stamps.pauses()


def release_figures(quick: bool) -> list[Figure]:
    count = 1_000 if quick else 5_000
    figures = []
    for name, runs, is_sync, store in (
        ("release", "async runs", False, MEMORY),
        ("release, SQLite", "async runs, the limit in a database", False, new_store()),
        ("release, threads", "runs on threads", True, MEMORY),
    ):
        p50, p99 = percentiles(asyncio.run(pauses(store, is_sync, count)))
        what = f"from a body's end to the next one's start in one process, of {count:,} {runs}"
        figures.append(Figure(f"{name}: p50", what, p50, "ms", None))
        figures.append(Figure(f"{name}: p99", "the same", p99, "ms", 1.0))
    return figures


# -- over two processes -----------------------------------------------------------------------------------------------

#: One of two that fight for a slot: prints when each of its runs was wanted, began and ended, on the shared clock.
FIGHTER = """
import asyncio, random, sys, time
from asynctask import Runtime, task

stamps = []

@task(tags=["single"])
async def limited(wanted):
    start = time.monotonic_ns()
    await asyncio.sleep(random.uniform(0, 0.008))  # of any length: a release may come at any moment of the other's wait
    stamps.append((wanted, start, time.monotonic_ns()))

async def main(url, count, waits):
    async with Runtime(store=url) as runtime:
        await runtime.flush()  # the store is open
        if not waits:
            await limited(0)
        print("ready", flush=True)
        if waits:
            await limited(time.monotonic_ns())
        else:
            await asyncio.to_thread(sys.stdin.readline)
        for _ in range(count):
            await asyncio.sleep(random.uniform(0, 0.004))
            await limited(time.monotonic_ns())
    print(*(number for stamp in stamps for number in stamp))

asyncio.run(main(sys.argv[1], int(sys.argv[2]), "waits" in sys.argv))
"""


@contextmanager
def child(code: str, *given: object) -> Iterator[subprocess.Popen[str]]:
    """An interpreter that runs `code` and is spoken to by lines; it has said that it is ready."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{FOLDER.name}/bytecode", "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code, *map(str, given)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.stdin.close()
            process.wait()


def numbers(process: subprocess.Popen[str]) -> list[float]:
    """What the child prints next."""
    assert process.stdout is not None
    return [float(one) for one in process.stdout.readline().split()]


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def store_with_limit(tag: str, limit: int) -> str:
    url = new_store()

    async def make() -> None:
        async with Runtime(store=url):
            await set_limit(tag, limit)

    asyncio.run(make())
    return url


def across_figures(quick: bool) -> list[Figure]:
    count = 60 if quick else 500
    url = store_with_limit("single", 1)
    with child(FIGHTER, url, count) as one, child(FIGHTER, url, count) as other:
        fighters = (one, other)
        for process in fighters:
            go(process)
        stamps = [
            (*found[place : place + 3], name)
            for name, found in enumerate([numbers(process) for process in fighters])
            for place in range(3, len(found), 3)
        ]
    stamps.sort(key=lambda stamp: stamp[1])
    handed = [
        (start - end) / 1e6
        for (_, _, end, before), (wanted, start, _, after) in pairwise(stamps)
        if before != after and wanted < end  # it stood in line when the slot was given back
    ]
    assert min(handed) > 0, "both processes were inside at once"
    p50, p99 = percentiles(handed)
    what = f"from a body's end to the start of one in another process, over SQLite; {len(handed):,} hand-overs"
    return [Figure("across: p50", what, p50, "ms", None), Figure("across: p99", "the same", p99, "ms", 50.0)]


def killed_figures(quick: bool) -> list[Figure]:
    """From the death of a process that holds the slot to the start of the run that waits in another one."""
    found = []
    for _ in range(1 if quick else 5):
        url = store_with_limit("single", 1)
        with child(IDLE, url, "holding", 60) as holding, child(FIGHTER, url, 0, "waits") as waiting:
            time.sleep(0.5)  # it stands in line
            killed = time.monotonic_ns()
            holding.kill()
            _, start, _ = numbers(waiting)
        found.append((start - killed) / 1e6)
    assert min(found) > 0, "two were inside at once"
    what = "from the kill of a process that holds a slot to the start of a run that waits in another one"
    return [Figure("killed", what, statistics.median(found), "ms", 2_000.0)]


# -- a long line ------------------------------------------------------------------------------------------------------

#: Prints the microseconds of each of the first 1,000 hand-overs in a line of some length, and of each of them all.
LINE = """
import asyncio, gc, os, sys, time
from asynctask import Runtime, get_client, task

HANDED = 1_000
began = 0

@task(tags=["line"])
async def limited():
    global began, first
    began += 1
    if began == HANDED:
        first = time.perf_counter()

@task(tags=["line"])
async def holder(go):
    await go.wait()

@task(tags=["line"])
async def parent(count, go):
    several = [limited.submit() for _ in range(count)]
    await go.wait()
    for one in several:
        await one

async def in_line(client, count):
    while (await client.read_concurrency_limit_by_tag("line")).waiting < count:
        await asyncio.sleep(0.05)

async def main(count, is_borrowed, is_whole):
    go = asyncio.Event()
    async with Runtime(store="memory://"), get_client() as client:
        await client.create_concurrency_limit("line", 1 if is_borrowed else 10)
        if is_borrowed:
            whole = [parent.submit(count, go)]
        else:
            holders = [holder.submit(go) for _ in range(10)]
            await asyncio.sleep(0.01)
            whole = [limited.submit() for _ in range(count)]
        await in_line(client, count)
        gc.collect()
        start = time.perf_counter()
        go.set()
        if is_whole:
            for one in whole:
                await one
            end = time.perf_counter()
        else:
            while began < HANDED:
                await asyncio.sleep(0)
            end = start
        print((first - start) / HANDED * 1e6, (end - start) / count * 1e6, flush=True)
        os._exit(0)  # ending those who still wait politely is not what is measured

asyncio.run(main(int(sys.argv[1]), sys.argv[2] == "borrowed", sys.argv[3] == "whole"))
"""

#: The same under a semaphore: how much dearer anything gets among 100,000 coroutines.
SEMAPHORE_LINE = """
import asyncio, gc, os, sys, time

HANDED = 1_000
began = 0

async def limited(semaphore):
    global began, first
    async with semaphore:
        began += 1
        if began == HANDED:
            first = time.perf_counter()

async def main(count):
    semaphore = asyncio.Semaphore(10)
    for _ in range(10):
        await semaphore.acquire()
    whole = [asyncio.create_task(limited(semaphore)) for _ in range(count)]
    await asyncio.sleep(0)
    gc.collect()
    start = time.perf_counter()
    for _ in range(10):
        semaphore.release()
    for one in whole:
        await one
    print((first - start) / HANDED * 1e6, (time.perf_counter() - start) / count * 1e6, flush=True)
    os._exit(0)

asyncio.run(main(int(sys.argv[1])))
"""


def line_figures(quick: bool) -> list[Figure]:
    long, rounds = (10_000, 1) if quick else (100_000, 3)
    sides = {
        "line": lambda count: in_a_child(LINE, count, "own", "whole"),
        "borrowed line": lambda count: in_a_child(LINE, count, "borrowed", "whole"),
        "Semaphore's line": lambda count: in_a_child(SEMAPHORE_LINE, count),
    }
    found: dict[tuple[str, int], list[list[float]]] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            for count in (1_000, long):
                found.setdefault((name, count), []).append(side(count))
    figures = []
    for name in sides:
        short_cost, long_cost = (statistics.median(one[0] for one in found[name, n]) for n in (1_000, long))
        what = f"each of 1,000 hand-overs with {long:,} in line ({long_cost:.1f} us), as a multiple of that with 1,000"
        figures.append(Figure(name, f"{what} ({short_cost:.1f} us)", long_cost / short_cost, "x", None))
        whole = statistics.median(one[1] for one in found[name, long])
        if whole:
            figures.append(Figure(f"{name}, whole", f"each of all {long:,} hand-overs", whole, "us", None))
    return figures


# -- doing nothing ----------------------------------------------------------------------------------------------------

#: Prints what share of a core it took, in percent, for some seconds: idle after its runs, holding a slot, or waiting.
IDLE = """
import asyncio, os, sys, time
from asynctask import Runtime, task

@task(tags=["single"])
async def limited():
    pass

@task(tags=["single"])
async def holder(holds):
    holds.set()
    await asyncio.sleep(3600)

async def main(url, kind, seconds):
    holds = asyncio.Event()
    async with Runtime(store=url) as runtime:
        if kind == "idle":
            for _ in range(100):
                await limited()
        else:
            holder.submit(holds)
            if kind == "holding":
                await holds.wait()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.sleep(1.5)  # what is given back after a second is given back
        before = time.process_time()
        await asyncio.sleep(seconds)
        print((time.process_time() - before) / seconds * 100, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        os._exit(0)

asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
"""


def cpu_figures(quick: bool) -> list[Figure]:
    seconds = 1.0 if quick else 5.0
    url = store_with_limit("single", 1)
    with child(IDLE, url, "idle", seconds) as process:
        go(process)
        (idle,) = numbers(process)
    with child(IDLE, url, "holding", seconds) as holding, child(IDLE, url, "waiting", seconds) as waiting:
        for process in (holding, waiting):
            go(process)
        (held,), (waited,) = numbers(holding), numbers(waiting)
    return [
        Figure("idle", "share of a core, of a process that has used a limit", idle, "%", 1.0),
        Figure("holding", "of one that holds a slot for which another process waits", held, "%", 1.0),
        Figure("waiting", "of one that waits for a slot which another process holds", waited, "%", 1.0),
    ]


# -- pacing -----------------------------------------------------------------------------------------------------------


async def paced(store: str) -> float:
    """Seconds from the first of six acquisitions to the sixth, at five a second."""
    async with Runtime(store=store):
        async with get_client() as client:
            name = f"paced-{next(COUNT)}"  # what an earlier round took of one in memory is not back yet
            await client.create_global_concurrency_limit(name, 1, slot_decay_per_second=5.0)
        start = time.perf_counter()
        for _ in range(6):
            await rate_limit(name)
        return time.perf_counter() - start


def rate_figures(quick: bool) -> list[Figure]:
    rounds = 1 if quick else 3
    what = "six acquisitions at five a second, 1.0 at best"
    memory = statistics.median(asyncio.run(paced(MEMORY)) for _ in range(rounds))
    sqlite = statistics.median(asyncio.run(paced(new_store())) for _ in range(rounds))
    return [
        Figure("rate", what, memory, "s", 1.05),
        Figure("rate, SQLite", f"{what}; the limit in a database", sqlite, "s", 1.05),
    ]


FIGURES: dict[str, Callable[[bool], list[Figure]]] = {
    "empty": idle_figures,
    "uncontended": uncontended_figures,
    "release": release_figures,
    "across": across_figures,
    "killed": killed_figures,
    "line": line_figures,
    "cpu": cpu_figures,
    "rate": rate_figures,
}


if __name__ == "__main__":
    sys.exit(judge("What limits cost, and how fast a slot changes hands.", "limits", ROWS, FIGURES))
