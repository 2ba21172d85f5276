"""Times what a peer's file declares. It runs in that peer's environment, so the standard library is all it has.

1. A peer's file declares works with `@workload`, and ends in `main()`. README.md in this folder says how to write one.
2. Only the work is timed: `session`, what stands before a work's `yield`, and one small round of it come first.
3. The floor, `await asyncio.create_task(nothing())`, is timed in the same process right before and right after.
4. How many things a work does adapts to its speed, and is told with the figure.
5. Each figure is one line of JSON in the file that the command gave; what the peer prints is of no interest here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import inspect
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Work = Callable[..., Any]
Timed = Callable[..., Awaitable[float]]

#: Which variant of the peer this process measures: a key of VARIANTS in the peer's file.
VARIANT = os.environ.get("ASYNCTASK_FIELD_VARIANT", "")
#: A folder of this process's own, for databases and the like; the command removes it.
FOLDER = Path(os.environ.get("ASYNCTASK_FIELD_FOLDER", "."))
#: A megabyte that does not compress, for the work of that name.
MEGABYTE = os.urandom(1_000_000)
#: How many workers a peer gets wherever it has workers.
WORKERS = 2
#: And so many threads.
THREADS = 40
#: A thing done so often is done often enough.
MOST_REPEATS = 50
#: Nobody waits longer than this for sleepers to be started and woken.
LONGEST_ASLEEP = 15.0


class Kind(NamedTuple):
    """How a work is timed: how many things it may do at once, smallest first; for sleepers, how long they sleep."""

    sizes: tuple[int, ...]
    seconds_asleep: float = 0.0


EACH = Kind((10, 100, 1_000, 5_000))
#: Every work that a peer may have. README.md in this folder says what each is to do.
KINDS = {
    "awaited": EACH,
    "submitted": EACH,
    "mapped": EACH,
    "threads": Kind((10, 100, 1_000)),
    "processes": Kind((10, 100, 1_000)),
    "megabyte": Kind((4, 40)),
    "hit": EACH,
    "recorded": EACH,
    "asleep": Kind((100, 1_000, 10_000), 1.0),
    "asleep, 100,000": Kind((100_000,), 3.0),
    "limited": Kind((20, 200, 2_000)),
    "chain": Kind((10, 100, 1_000)),
    "tree": Kind((8, 128, 1_024)),
    "retry": EACH,
    "import": Kind((1,)),
}

_works: dict[str, Work] = {}
_sessions: list[Callable[[], contextlib.AbstractContextManager[object]]] = []


def workload(name: str, *, variants: tuple[str, ...] | None = None) -> Callable[[Work], Work]:
    """Declare a work; `variants` are those that have it, by default all. A work may be declared for two names."""
    if name not in KINDS:
        raise ValueError(f"{name!r} is no work; there are {', '.join(KINDS)}")

    def declare(work: Work) -> Work:
        if variants is None or VARIANT in variants:
            _works[name] = work
        return work

    return declare


def session(generator: Callable[[], Iterator[object]]) -> Callable[[], Iterator[object]]:
    """Declare what is around all works of this process: a server, a cluster. It starts once, off the clock."""
    _sessions.append(contextlib.contextmanager(generator))
    return generator


# -- one work ---------------------------------------------------------------------------------------------------------


async def nothing() -> None:
    pass


def floor(budget: float) -> float:
    """Microseconds of `await asyncio.create_task(nothing())`, the least of three rounds: others only make it slower."""
    count = 2_000 if budget >= 0.1 else 200

    async def rounds() -> float:
        taken: list[float] = []
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(count):
                await asyncio.create_task(nothing())
            taken.append((time.perf_counter() - start) / count * 1e6)
        return min(taken)

    return asyncio.run(rounds())


@contextlib.asynccontextmanager
async def prepared(work: Work) -> AsyncIterator[Work]:
    """What is timed: the work itself, or what it yields when what it needs is there."""
    if inspect.isasyncgenfunction(work):
        async with contextlib.asynccontextmanager(work)() as run:
            yield run
    elif inspect.isgeneratorfunction(work):
        with contextlib.contextmanager(work)() as run:
            yield run
    else:
        yield work


async def measured(work: Work, kind: Kind, budget: float) -> dict[str, Any]:
    """The figures of a work: how many things at once, and microseconds of each of them, for every repeat."""
    async with prepared(work) as run:

        async def timed(*given: float) -> float:
            gc.collect()  # nobody pays for what was before; in the work itself the collector runs as it does for users
            start = time.perf_counter()
            result = run(*given)
            if inspect.isawaitable(result):
                result = await result
            seconds = time.perf_counter() - start
            return result if isinstance(result, float) else seconds  # a work that knows better which part counts

        return await (asleep if kind.seconds_asleep else repeated)(timed, kind, budget)


async def repeated(timed: Timed, kind: Kind, budget: float) -> dict[str, Any]:
    """As many things as are done within about twice the budget, again and again until the budget is used up."""
    count = kind.sizes[0]
    await timed(count)
    seconds = await timed(count)
    if seconds < budget:  # something may have been started just then: a second worker, say
        seconds = min(seconds, await timed(count))
    for larger in kind.sizes[1:]:
        if seconds / count * larger > 2 * budget:
            break
        count, seconds = larger, await timed(larger)
    taken = [seconds]
    while len(taken) < MOST_REPEATS and sum(taken) < (budget if len(taken) >= 3 else 3 * budget):
        taken.append(await timed(count))
    return {"count": count, "us": [round(seconds / count * 1e6, 3) for seconds in taken]}


async def asleep(timed: Timed, kind: Kind, budget: float) -> dict[str, Any]:
    """What one of many sleepers takes beyond its sleep, of time and of memory; as many as a peer can take."""
    first = 100  # few enough for the slowest, and for what the others take of memory to be nothing of theirs
    seconds = await timed(first, 0.05)
    for _ in range(3 if seconds < 1.0 else 0):  # the first one is cold, and any may be disturbed
        seconds = min(seconds, await timed(first, 0.05))
    each = max(0.0, seconds - 0.05) / first
    fitting = [size for size in kind.sizes if each * size <= LONGEST_ASLEEP]
    if not fitting:
        raise TooSlow(f"{kind.sizes[0]:,} would take about {each * kind.sizes[0]:.0f} s; 100 took {each * first:.2f} s")
    count = fitting[-1]
    with Memory() as memory:
        seconds = await timed(count, kind.seconds_asleep)
    us = max(0.0, seconds - kind.seconds_asleep) / count * 1e6
    return {"count": count, "us": [round(us, 3)], "bytes": round(memory.growth / count)}


IMPORTING = """
import sys, time
from pathlib import Path

def resident():
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * 4096 if file.exists() else 0

before, start = resident(), time.perf_counter()
exec(sys.argv[1])
print((time.perf_counter() - start) * 1e6, resident() - before)
"""


def imported(statement: str, budget: float) -> dict[str, Any]:
    """Microseconds and bytes of an import, in interpreters of their own; the first compiles, and does not count."""
    answers: list[tuple[float, int]] = []
    began = time.perf_counter()
    for repeat in range(8):
        command = [sys.executable, "-c", IMPORTING, statement]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        if repeat:
            answers.append((round(float(told[-2])), int(told[-1])))
        if len(answers) >= (3 if budget >= 0.1 else 1) and time.perf_counter() - began > 2 * budget:
            break
    return {"count": 1, "us": [us for us, _ in answers], "bytes": round(statistics.median(size for _, size in answers))}


class TooSlow(Exception):
    """A work of which the smallest size takes too long for a peer."""


class Memory:
    """By how much the memory of this process and of those that it started grew, at most, while this was open."""

    def __init__(self) -> None:
        self.growth = 0
        self._is_over = threading.Event()

    def __enter__(self) -> Memory:
        gc.collect()
        self._before = resident()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.1):
            self.growth = max(self.growth, resident() - self._before)


def resident() -> int:
    """Bytes in memory of this process and of all that descend from it; 0 where there is no /proc."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(folder.name)], pages[int(folder.name)] = int(fields[1]), int(fields[21])
    family = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(pages.get(member, 0) for member in family) * (os.sysconf("SC_PAGE_SIZE") if pages else 0)


# -- the process ------------------------------------------------------------------------------------------------------


def on_its_loop(work: Work, kind: Kind, budget: float, loop: str) -> dict[str, Any]:
    """Coroutines run on `uvloop`, on `trio`, or else on asyncio; a plain work has no loop around it."""
    measuring = measured(work, kind, budget)
    if not (inspect.iscoroutinefunction(work) or inspect.isasyncgenfunction(work)):
        try:
            measuring.send(None)
        except StopIteration as over:
            return over.value
        raise RuntimeError("a plain work gave something to await")
    if loop == "trio":
        import trio  # only the environments of those that have this variant have it

        measuring.close()
        return trio.run(measured, work, kind, budget)
    if loop == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(measuring)
    return asyncio.run(measuring)


def figures(name: str, kind: Kind, budget: float, loop: str) -> dict[str, Any]:
    """What is told of one work."""
    before = floor(budget)
    statement = getattr(sys.modules["__main__"], "IMPORT", "")
    found = imported(statement, budget) if name == "import" else on_its_loop(_works[name], kind, budget, loop)
    return {**found, "floor_us": [round(before, 3), round(floor(budget), 3)]}


def versions(names: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(*, loop: str = VARIANT) -> None:
    """Measure the works that the command line names, on that loop, and tell of each as it begins and as it ends."""
    parser = argparse.ArgumentParser(description="Started by benchmarks/field.py.")
    parser.add_argument("--told", type=Path, default=Path("/dev/stdout"), help="the file for the lines of JSON")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds for each work, about")
    parser.add_argument("--most", type=int, default=10**9, help="do no more things at once than this")
    parser.add_argument("--versions", nargs="*", default=[], help="of which packages to tell the version")
    parser.add_argument("work", nargs="*", help=f"by default all that there are, of {', '.join(KINDS)}")
    given = parser.parse_args()
    names = given.work or list(_works)

    with given.told.open("a") as file, contextlib.ExitStack() as around:

        def tell(event: str, **more: Any) -> None:
            file.write(json.dumps({"event": event, **more}) + "\n")
            file.flush()

        try:
            for each in _sessions:
                around.enter_context(each())
        except Exception as error:
            for name in names:
                tell("failed", work=name, why=f"failed: {error_text(error)}")
            raise
        tell("ready", versions=versions(given.versions))
        for name in names:
            kind = KINDS[name]
            sizes = tuple(size for size in kind.sizes if size <= given.most) or kind.sizes[:1]
            tell("begin", work=name)
            try:
                tell("measured", work=name, **figures(name, kind._replace(sizes=sizes), given.budget, loop))
            except BaseException as error:  # deliberate: what breaks one work, even a SystemExit, is told of that work
                why = f"too slow: {error}" if isinstance(error, TooSlow) else f"failed: {error_text(error)}"
                tell("failed", work=name, why=why)
        tell("done")
