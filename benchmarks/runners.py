"""What it costs to run a body in another process: python benchmarks/runners.py [--quick] [--row NAME] [--json FILE]

Each row is held against the bare engine, in the same run and by turns: `concurrent.futures.ProcessPoolExecutor` with as
many workers, started the same way. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["ASYNCTASK_STORE_URL"] = "memory://"

import numpy
from core import Row, as_data, load, measured, table
from rich.console import Console

from asynctask import ProcessPoolTaskRunner, Runtime, task

WORKERS = 2


def add_one(number: int) -> int:
    return number + 1


def give(value: Any) -> Any:
    return value


added = task(add_one)
given = task(give)

loop = asyncio.new_event_loop()


class Pools:
    """Both pools, started once: what starting costs is no part of the rows."""

    def __init__(self) -> None:
        self.theirs = ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn"))
        self.runtime = Runtime(store="memory://", task_runner=ProcessPoolTaskRunner(WORKERS))
        loop.run_until_complete(self.runtime.__aenter__())
        loop.run_until_complete(self.warm())

    async def warm(self) -> None:
        for number in range(2 * WORKERS):
            await asyncio.wrap_future(self.theirs.submit(add_one, number))
        for future in [added.submit(number) for number in range(50)]:
            await future

    def close(self) -> None:
        self.theirs.shutdown()
        loop.run_until_complete(self.runtime.__aexit__(None, None, None))


def timed(work: Callable[[int], Awaitable[None]]) -> Callable[[int], float]:
    """Microseconds of each of `count`."""

    def measure(count: int) -> float:
        start = time.perf_counter()
        loop.run_until_complete(work(count))
        return (time.perf_counter() - start) / count * 1e6

    return measure


def rows(pools: Pools) -> list[Row]:
    theirs = pools.theirs

    async def in_turn(count: int) -> None:
        for number in range(count):
            await asyncio.wrap_future(theirs.submit(add_one, number))

    async def ours_in_turn(count: int) -> None:
        for number in range(count):
            await added.submit(number)

    async def together(count: int) -> None:
        for future in [theirs.submit(add_one, number) for number in range(count)]:
            await asyncio.wrap_future(future)

    async def ours_together(count: int) -> None:
        for future in added.map(range(count)):
            await future

    def sent(value: Any) -> tuple[Callable[[int], float], Callable[[int], float]]:
        async def send(count: int) -> None:
            for _ in range(count):
                await asyncio.wrap_future(theirs.submit(give, value))

        async def our_send(count: int) -> None:
            for _ in range(count):
                await given.submit(value)

        return timed(send), timed(our_send)

    executor = "ProcessPoolExecutor.submit"
    return [
        Row("in turn", "await t.submit(), one by one", executor, 1.0, "us", timed(in_turn), timed(ours_in_turn), 500),
        Row("mapped", "t.map() over N, await all", executor, 0.2, "us", timed(together), timed(ours_together), 5_000),
        Row("megabyte", "1 MB of bytes there and back", executor, 0.5, "us", *sent(os.urandom(1_000_000)), 30),
        Row("array", "an array of 100 MB there and back", executor, 0.5, "us", *sent(numpy.arange(12_500_000)), 2, 5),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds; exits 0 also over a bar")
    parser.add_argument("--row", action="append", metavar="NAME", help="in turn, mapped, megabyte or array")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    given_options = parser.parse_args()
    load_before = load()
    pools = Pools()
    try:
        several = [row for row in rows(pools) if given_options.row is None or row.name in given_options.row]
        results = [measured(row, given_options.quick) for row in several]
    finally:
        pools.close()
    Console(width=None if sys.stdout.isatty() else 150).print(table(results, "runners"))
    if given_options.json:
        given_options.json.write_text(json.dumps(as_data(results, given_options.quick, load_before), indent=2) + "\n")
    return 0 if given_options.quick or all(result.verdict != "over" for result in results) else 1


if __name__ == "__main__":
    asyncio.set_event_loop(loop)
    sys.exit(main())
