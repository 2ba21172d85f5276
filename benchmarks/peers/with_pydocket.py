"""docket (pydocket): its own store in this process, `memory://`, and a worker on the same loop: its fastest way.

A result is waited for by `Execution.get_result`, which subscribes and so does not poll. Many are added by `add_many`,
in one trip. The worker looks every 5 ms instead of every 250 ms, and runs as many at once as are added; under a limit
its own `concurrency` is the limit, as its `ConcurrencyLimit` adds what has to wait anew, 100 ms later. Executions and
results stay in memory for 15 minutes; nothing is on disk.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

from docket import Docket, Retry, Worker
from harness import main, workload

TITLE = "docket"
REQUIREMENTS = ["pydocket==0.27.0"]
VARIANTS = {"": "runs"}
IMPORT = "import docket"
ABSENT = {
    "threads": "it runs coroutines only",
    "processes": "its workers in other processes need Redis, and run coroutines only",
    "megabyte": "its workers in other processes need Redis",
    "hit": "it keeps no results for later calls",
    "recorded": "its store in memory keeps nothing on disk",
    "asleep, 100,000": "it does not start so many within the time",
}
#: How many the worker runs at once where nothing is to be limited.
AT_ONCE = 20_000


async def nothing() -> None:
    pass


async def succeeds(retry: Retry = Retry(attempts=4)) -> None:  # noqa: B008 - its way of saying it
    pass


async def one() -> int:
    return 1


async def add_one(number: int) -> int:
    return number + 1


async def add(left: int, right: int) -> int:
    return left + right


async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@contextlib.asynccontextmanager
async def docket(at_once: int = AT_ONCE) -> AsyncIterator[Docket]:
    often = timedelta(milliseconds=5)
    async with (
        Docket("field", url="memory://") as found,
        Worker(found, concurrency=at_once, minimum_check_interval=often, scheduling_resolution=often) as worker,
    ):
        for function in (nothing, succeeds, one, add_one, add, sleep):
            found.register(function)
        working = asyncio.create_task(worker.run_forever())
        yield found
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def results(
    found: Docket, function: Callable[..., Awaitable[object]], inputs: list[tuple[Any, ...]]
) -> list[Any]:
    executions = await found.add_many([found.call(function)(*given) for given in inputs])
    return [await execution.get_result() for execution in executions]  # so many subscriptions at once are much slower


def in_turn(found: Docket, function: Callable[..., Awaitable[object]]) -> Callable[[int], Awaitable[None]]:
    async def run(count: int) -> None:
        for _ in range(count):
            execution = await found.add(function)()
            await execution.get_result()

    return run


@workload("awaited")
async def awaited() -> AsyncIterator[object]:
    async with docket() as found:
        yield in_turn(found, nothing)


@workload("submitted")
async def submitted() -> AsyncIterator[object]:
    async with docket() as found:
        yield lambda count: results(found, nothing, [()] * count)


@workload("mapped")
async def mapped() -> AsyncIterator[object]:
    async with docket() as found:

        async def run(count: int) -> None:
            assert (await results(found, add_one, [(number,) for number in range(count)]))[-1] == count

        yield run


@workload("asleep")
async def asleep() -> AsyncIterator[object]:
    async with docket() as found:
        yield lambda count, seconds: results(found, sleep, [(seconds,)] * count)


@workload("limited")
async def limited() -> AsyncIterator[object]:
    async with docket(10) as found:
        yield lambda count: results(found, sleep, [(0.001,)] * count)


@workload("chain")
async def chain() -> AsyncIterator[object]:
    async with docket() as found:

        async def run(count: int) -> None:
            last = 0
            for _ in range(count):
                execution = await found.add(add_one)(last)
                last = await execution.get_result()
            assert last == count

        yield run


@workload("tree")
async def tree() -> AsyncIterator[object]:
    async with docket() as found:

        async def run(count: int) -> None:
            level = await results(found, one, [()] * count)
            while len(level) > 1:
                level = await results(found, add, list(zip(level[::2], level[1::2], strict=True)))
            assert level[0] == count

        yield run


@workload("retry")
async def retried() -> AsyncIterator[object]:
    async with docket() as found:
        yield in_turn(found, succeeds)


if __name__ == "__main__":
    main()
