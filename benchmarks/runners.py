"""What it costs to run a body elsewhere: python benchmarks/runners.py [--quick] [--row NAME] [--json FILE]

On a thread, in another process, on Dask, on Ray. Each row is held against the bare engine, in the same run and by
turns: `run_in_executor`; a `ProcessPoolExecutor` with as many workers, started the same way; the clients of Dask and of
Ray, on the same cluster as ours. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["ASYNCTASK_STORE_URL"] = "memory://"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is to be sent anywhere

import numpy
from core import ROWS, THREADS, Row, as_data, load, measured, table
from rich.console import Console

from asynctask import DaskTaskRunner, ProcessPoolTaskRunner, RayTaskRunner, Runtime, task

WORKERS = 2


def add_one(number: int) -> int:
    return number + 1


def give(value: Any) -> Any:
    return value


added = task(add_one)
given = task(give)

loop = asyncio.new_event_loop()


def timed(work: Callable[[int], Awaitable[None]]) -> Callable[[int], float]:
    """Microseconds of each of `count`."""

    def measure(count: int) -> float:
        start = time.perf_counter()
        loop.run_until_complete(work(count))
        return (time.perf_counter() - start) / count * 1e6

    return measure


@contextlib.contextmanager
def with_runner(runner: Any) -> Iterator[None]:
    """Bodies go to it, and it is warm: what starting costs is no part of the rows."""
    runtime = Runtime(store="memory://", task_runner=runner)
    loop.run_until_complete(runtime.__aenter__())
    try:
        loop.run_until_complete(ours_together(50))
        yield
    finally:
        loop.run_until_complete(runtime.__aexit__(None, None, None))


async def ours_in_turn(count: int) -> None:
    for number in range(count):
        await added.submit(number)


async def ours_together(count: int) -> None:
    for future in [added.submit(number) for number in range(count)]:
        await future


async def ours_mapped(count: int) -> None:
    for future in added.map(range(count)):
        await future


# -- the engines: each starts what its rows need, and ends it ---------------------------------------------------------


@contextlib.contextmanager
def threads() -> Iterator[list[Row]]:
    """They are part of the core's budget, and told here as well."""
    yield [row for row in ROWS if row.name in ENGINES["threads"]]
    THREADS.shutdown()


@contextlib.contextmanager
def processes() -> Iterator[list[Row]]:
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as theirs:

        async def in_turn(count: int) -> None:
            for number in range(count):
                await asyncio.wrap_future(theirs.submit(add_one, number))

        async def together(count: int) -> None:
            for future in [theirs.submit(add_one, number) for number in range(count)]:
                await asyncio.wrap_future(future)

        def sent(value: Any) -> tuple[Callable[[int], float], Callable[[int], float]]:
            async def send(count: int) -> None:
                for _ in range(count):
                    await asyncio.wrap_future(theirs.submit(give, value))

            async def our_send(count: int) -> None:
                for _ in range(count):
                    await given.submit(value)

            return timed(send), timed(our_send)

        loop.run_until_complete(in_turn(2 * WORKERS))
        engine = "ProcessPoolExecutor.submit"
        with with_runner(ProcessPoolTaskRunner(WORKERS)):
            yield [
                Row(
                    "in turn", "await t.submit(), one by one", engine, 1.0, "us", timed(in_turn), timed(ours_in_turn),
                    500,
                ),
                Row(
                    "mapped", "t.map() over N, await all", engine, 0.2, "us", timed(together), timed(ours_mapped),
                    5_000,
                ),
                Row("megabyte", "1 MB of bytes there and back", engine, 0.5, "us", *sent(os.urandom(1_000_000)), 30),
                Row(
                    "array", "an array of 100 MB there and back", engine, 0.5, "us", *sent(numpy.arange(12_500_000)),
                    2, 5,
                ),
            ]  # fmt: skip


#: In a process of its own, as a cluster's scheduler is: neither side has it in its interpreter.
DASK = f"""
import sys
from distributed import LocalCluster
options = dict(n_workers={WORKERS}, threads_per_worker=1, processes=True, dashboard_address=":0")
with LocalCluster(**options) as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def dask() -> Iterator[list[Row]]:
    import distributed

    async def connected(address: str) -> Any:
        return await distributed.Client(address, asynchronous=True, set_as_default=False)

    with subprocess.Popen([sys.executable, "-c", DASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        address = cluster.stdout.readline().decode().strip()
        client = loop.run_until_complete(connected(address))

        async def in_turn(count: int) -> None:
            for number in range(count):
                await client.submit(add_one, number, pure=False)

        async def together(count: int) -> None:
            await client.gather([client.submit(add_one, number, pure=False) for number in range(count)])

        try:
            with with_runner(DaskTaskRunner(address)):
                yield cluster_rows("dask", "client.submit", timed(in_turn), timed(together), 50)
        finally:
            loop.run_until_complete(client.close())
            cluster.stdin.close()


@contextlib.contextmanager
def ray() -> Iterator[list[Row]]:
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="error")
    theirs = ray.remote(add_one)

    async def in_turn(count: int) -> None:
        for number in range(count):
            await theirs.remote(number)

    async def together(count: int) -> None:
        for reference in [theirs.remote(number) for number in range(count)]:
            await reference

    try:
        with with_runner(RayTaskRunner()):
            yield cluster_rows("ray", "await f.remote()", timed(in_turn), timed(together), 200)
    finally:
        ray.shutdown()


def cluster_rows(
    name: str, engine: str, in_turn: Callable[[int], float], together: Callable[[int], float], times: int
) -> list[Row]:
    return [
        Row(f"{name} in turn", "await t.submit(), one by one", engine, 1.3, "us", in_turn, timed(ours_in_turn), times),
        Row(name, "t.submit() N, await all", engine, 1.3, "us", together, timed(ours_together), 400),
    ]


#: The rows of each engine; and what an engine needs that may not be there.
ENGINES = {
    "threads": ["threads", "threads in turn"],
    "processes": ["in turn", "mapped", "megabyte", "array"],
    "dask": ["dask in turn", "dask"],
    "ray": ["ray in turn", "ray"],
}
EXTRAS = {"dask": "distributed", "ray": "ray"}


def main() -> int:
    names = [name for several in ENGINES.values() for name in several]
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds; exits 0 also over a bar")
    parser.add_argument("--row", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    given_options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    load_before = load()
    results = []
    for engine, wanted in ENGINES.items():
        wanted = [name for name in wanted if given_options.row is None or name in given_options.row]
        if not wanted:
            continue
        if engine in EXTRAS and importlib.util.find_spec(EXTRAS[engine]) is None:
            console.print(f"{' and '.join(wanted)}: not measured, for want of pip install 'asynctask[{engine}]'")
            continue
        with globals()[engine]() as rows:
            results += [measured(row, given_options.quick) for row in rows if row.name in wanted]
    console.print(table(results, "runners"))
    if given_options.json:
        given_options.json.write_text(json.dumps(as_data(results, given_options.quick, load_before), indent=2) + "\n")
    return 0 if given_options.quick or all(result.verdict != "over" for result in results) else 1


if __name__ == "__main__":
    asyncio.set_event_loop(loop)
    sys.exit(main())
