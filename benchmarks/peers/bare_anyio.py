"""anyio: a task group, a `CapacityLimiter`, and workers in threads and processes, on asyncio and on trio.

A floor: nothing can be asked for its state, and children have no results but what they leave somewhere.
"""

import anyio
from anyio import to_process, to_thread
from harness import MEGABYTE, THREADS, WORKERS, main, nothing, workload

TITLE = "anyio"
VARIANTS = {"": "floor", "trio": "floor"}
PACKAGES = ["anyio", "trio"]
IMPORT = "import anyio"
ABSENT = {
    "processes": "as on asyncio",
    "megabyte": "as on asyncio",
    "chain": "its children have no results",
    "tree": "its children have no results",
    "retry": "see asyncio: a loop is a loop",
    "others": "it keeps nothing",
}


@workload("awaited")
async def awaited(count: int) -> None:
    for _ in range(count):
        async with anyio.create_task_group() as group:
            group.start_soon(nothing)


@workload("submitted")
async def submitted(count: int) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(nothing)


@workload("mapped")
async def mapped(count: int) -> None:
    results = [0] * count

    async def add_one(number: int) -> None:
        results[number] = number + 1

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(add_one, number)


def plain_nothing() -> None:
    pass


@workload("threads")
async def threads(count: int) -> None:
    limiter = anyio.CapacityLimiter(THREADS)

    async def one() -> None:
        await to_thread.run_sync(plain_nothing, limiter=limiter)

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)


@workload("processes", variants=("",))
async def processes(count: int) -> None:
    limiter = anyio.CapacityLimiter(WORKERS)

    async def one() -> None:
        await to_process.run_sync(plain_nothing, limiter=limiter)

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)


@workload("megabyte", variants=("",))
async def megabyte(count: int) -> None:
    for _ in range(count):
        assert len(await to_process.run_sync(bytes, MEGABYTE)) == len(MEGABYTE)


@workload("asleep")
@workload("asleep, 100,000")
async def asleep(count: int, seconds: float) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(anyio.sleep, seconds)


@workload("limited")
async def limited(count: int) -> None:
    limiter = anyio.CapacityLimiter(10)

    async def in_turn() -> None:
        async with limiter:
            await anyio.sleep(0.001)

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(in_turn)


if __name__ == "__main__":
    main()
