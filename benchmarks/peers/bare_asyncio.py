"""asyncio: `create_task`, `TaskGroup`, `Semaphore`, `run_in_executor`, and loops that say `try` and `except`.

A floor, not a peer: no run can be asked for its state, nothing is kept, limited by name, tried again or told. As the
other floors it runs in the environment of whoever started the command.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from harness import THREADS, main, nothing, workload

TITLE = "asyncio"
VARIANTS = {"": "floor", "uvloop": "floor"}
PACKAGES = ["uvloop"]
IMPORT = "import asyncio"
ABSENT = {
    "processes": "see concurrent.futures",
    "megabyte": "see concurrent.futures",
    "hit": "it keeps no results",
    "recorded": "it keeps nothing",
}


@workload("awaited")
async def awaited(count: int) -> None:
    for _ in range(count):
        await asyncio.create_task(nothing())


@workload("submitted")
async def submitted(count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(nothing())


async def add_one(number: int) -> int:
    return number + 1


@workload("mapped")
async def mapped(count: int) -> None:
    await asyncio.gather(*(add_one(number) for number in range(count)))


def plain_nothing() -> None:
    pass


@workload("threads")
async def threads() -> AsyncIterator[object]:
    loop = asyncio.get_running_loop()

    async def run(count: int) -> None:
        await asyncio.gather(*(loop.run_in_executor(pool, plain_nothing) for _ in range(count)))

    with ThreadPoolExecutor(THREADS) as pool:
        yield run


@workload("asleep")
@workload("asleep, 100,000")
async def asleep(count: int, seconds: float) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(asyncio.sleep(seconds))


@workload("limited")
async def limited(count: int) -> None:
    semaphore = asyncio.Semaphore(10)

    async def in_turn() -> None:
        async with semaphore:
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(in_turn())


async def next_of(before: "asyncio.Task[int] | None") -> int:
    return 0 if before is None else await before + 1


@workload("chain")
async def chain(count: int) -> None:
    last: asyncio.Task[int] | None = None
    for _ in range(count):
        last = asyncio.create_task(next_of(last))
    assert last is not None
    assert await last == count - 1


async def one() -> int:
    return 1


async def sum_of(left: "asyncio.Task[int]", right: "asyncio.Task[int]") -> int:
    return await left + await right


@workload("tree")
async def tree(count: int) -> None:
    level = [asyncio.create_task(one()) for _ in range(count)]
    while len(level) > 1:
        level = [asyncio.create_task(sum_of(*pair)) for pair in zip(level[::2], level[1::2], strict=True)]
    assert await level[0] == count


@workload("retry")
async def retried(count: int) -> None:
    for _ in range(count):
        for attempt in range(4):
            try:
                await nothing()
                break
            except Exception:
                if attempt == 3:
                    raise


if __name__ == "__main__":
    main()
