"""arq: a Redis of its own in memory, and a worker in another process, which is faster than one on the caller's loop.

Both look every millisecond instead of every half second, which costs processor time when idle, but is its fastest
way. The worker runs as many at once as there are; under a limit it is another one, with `max_jobs=10`. Results stay
in Redis for an hour; nothing is on disk.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.worker import func
from harness import MEGABYTE, main, session, workload
from redis_server import SOCKET, redis

TITLE = "arq"
REQUIREMENTS = ["arq==0.28.0"]
VARIANTS = {"": "runs"}
IMPORT = "import arq"
ABSENT = {
    "threads": "it runs coroutines only",
    "processes": "it runs coroutines only",
    "hit": "it keeps no results for later calls",
    "recorded": "Redis keeps all in memory here",
    "asleep, 100,000": "it does not start so many within the time",
}
OFTEN = 0.001
REDIS = RedisSettings(unix_socket_path=str(SOCKET))


async def nothing(_: Any) -> None:
    pass


async def one(_: Any) -> int:
    return 1


async def add_one(_: Any, number: int) -> int:
    return number + 1


async def add(_: Any, left: int, right: int) -> int:
    return left + right


async def give(_: Any, value: bytes) -> bytes:
    return value


async def sleep(_: Any, seconds: float) -> None:
    await asyncio.sleep(seconds)


#: Workers' settings, as its command wants them.
USUAL = {
    "functions": [nothing, one, add_one, add, give, sleep, func(nothing, name="succeeds", max_tries=4)],
    "redis_settings": REDIS,
    "poll_delay": OFTEN,
    "max_jobs": 20_000,
    "log_results": False,
}
TEN = {**USUAL, "queue_name": "ten", "max_jobs": 10}


@contextlib.contextmanager
def worker(settings: str) -> Iterator[object]:
    here = Path(__file__)
    process = subprocess.Popen(
        [sys.executable, "-m", "arq", f"{here.stem}.{settings}"],
        env={**os.environ, "PYTHONPATH": str(here.parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@session
def server() -> Iterator[object]:
    with redis(), worker("USUAL"):
        yield


@contextlib.asynccontextmanager
async def pool() -> AsyncIterator[ArqRedis]:
    found = await create_pool(REDIS)
    yield found
    await found.aclose()


async def result(found: ArqRedis, name: str, *given: object, **options: object) -> Any:
    job = await found.enqueue_job(name, *given, **options)
    assert job is not None
    return await job.result(poll_delay=OFTEN)


async def results(found: ArqRedis, name: str, inputs: list[tuple[Any, ...]], queue: str | None = None) -> list[Any]:
    jobs = [await found.enqueue_job(name, *given, _queue_name=queue) for given in inputs]
    return [await job.result(poll_delay=OFTEN) for job in jobs if job is not None]


@workload("awaited")
async def awaited() -> AsyncIterator[object]:
    async with pool() as found:

        async def run(count: int) -> None:
            for _ in range(count):
                await result(found, "nothing")

        yield run


@workload("submitted")
async def submitted() -> AsyncIterator[object]:
    async with pool() as found:
        yield lambda count: results(found, "nothing", [()] * count)


@workload("mapped")
async def mapped() -> AsyncIterator[object]:
    async with pool() as found:

        async def run(count: int) -> None:
            assert (await results(found, "add_one", [(number,) for number in range(count)]))[-1] == count

        yield run


@workload("megabyte")
async def megabyte() -> AsyncIterator[object]:
    async with pool() as found:

        async def run(count: int) -> None:
            for _ in range(count):
                assert len(await result(found, "give", MEGABYTE)) == len(MEGABYTE)

        yield run


@workload("asleep")
async def asleep() -> AsyncIterator[object]:
    async with pool() as found:
        yield lambda count, seconds: results(found, "sleep", [(seconds,)] * count)


@workload("limited")
async def limited() -> AsyncIterator[object]:
    with worker("TEN"):
        async with pool() as found:
            yield lambda count: results(found, "sleep", [(0.001,)] * count, "ten")


@workload("chain")
async def chain() -> AsyncIterator[object]:
    async with pool() as found:

        async def run(count: int) -> None:
            last = 0
            for _ in range(count):
                last = await result(found, "add_one", last)
            assert last == count

        yield run


@workload("tree")
async def tree() -> AsyncIterator[object]:
    async with pool() as found:

        async def run(count: int) -> None:
            level = await results(found, "one", [()] * count)
            while len(level) > 1:
                level = await results(found, "add", list(zip(level[::2], level[1::2], strict=True)))
            assert level[0] == count

        yield run


@workload("retry")
async def retried() -> AsyncIterator[object]:
    async with pool() as found:

        async def run(count: int) -> None:
            for _ in range(count):
                await result(found, "succeeds")

        yield run


if __name__ == "__main__":
    main()
