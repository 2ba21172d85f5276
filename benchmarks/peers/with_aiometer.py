"""aiometer: `run_all` and `run_on_each`, with no limit but where the work is one.

Runs have results, in the order of the input, and nothing else: no state, no record, no cancellation of one.
"""

import functools

import aiometer
import anyio
from harness import main, nothing, workload

TITLE = "aiometer"
REQUIREMENTS = ["aiometer==1.0.0"]
VARIANTS = {"": "nothing"}
IMPORT = "import aiometer"
ABSENT = {
    "awaited": "it starts many at once, not one",
    "retry": "it does not try again",
    "chain": "it has no futures",
    "hit": "it keeps no results",
    "recorded": "it keeps nothing",
    "others": "it runs coroutines only, all of one kind",
}


async def add_one(number: int) -> int:
    return number + 1


async def add(pair: tuple[int, int]) -> int:
    return pair[0] + pair[1]


async def one() -> int:
    return 1


@workload("submitted")
async def submitted(count: int) -> None:
    await aiometer.run_all([nothing] * count)


@workload("mapped")
async def mapped(count: int) -> None:
    async with aiometer.amap(add_one, range(count)) as results:
        async for _ in results:
            pass


@workload("asleep")
@workload("asleep, 100,000")
async def asleep(count: int, seconds: float) -> None:
    await aiometer.run_all([functools.partial(anyio.sleep, seconds)] * count)


@workload("limited")
async def limited(count: int) -> None:
    await aiometer.run_all([functools.partial(anyio.sleep, 0.001)] * count, max_at_once=10)


@workload("tree")
async def tree(count: int) -> None:
    level = await aiometer.run_all([one] * count)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = await aiometer.run_all([functools.partial(add, pair) for pair in pairs])
    assert level == [count]


if __name__ == "__main__":
    main()
