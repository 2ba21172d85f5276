"""trio: a nursery, a `CapacityLimiter`, and `trio.to_thread`.

A floor: nothing can be asked for its state, and children have no results but what they leave somewhere.
"""

import trio
from harness import THREADS, main, nothing, workload

TITLE = "trio"
VARIANTS = {"": "floor"}
PACKAGES = ["trio"]
IMPORT = "import trio"
ABSENT = {
    "processes": "see concurrent.futures",
    "megabyte": "see concurrent.futures",
    "chain": "its children have no results",
    "tree": "its children have no results",
    "retry": "see asyncio: a loop is a loop",
    "others": "it keeps nothing",
}


@workload("awaited")
async def awaited(count: int) -> None:
    for _ in range(count):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nothing)


@workload("submitted")
async def submitted(count: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(nothing)


@workload("mapped")
async def mapped(count: int) -> None:
    results = [0] * count

    async def add_one(number: int) -> None:
        results[number] = number + 1

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(add_one, number)


def plain_nothing() -> None:
    pass


@workload("threads")
async def threads(count: int) -> None:
    limiter = trio.CapacityLimiter(THREADS)

    async def one() -> None:
        await trio.to_thread.run_sync(plain_nothing, limiter=limiter)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)


@workload("asleep")
@workload("asleep, 100,000")
async def asleep(count: int, seconds: float) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(trio.sleep, seconds)


@workload("limited")
async def limited(count: int) -> None:
    limiter = trio.CapacityLimiter(10)

    async def in_turn() -> None:
        async with limiter:
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(in_turn)


if __name__ == "__main__":
    main(loop="trio")
