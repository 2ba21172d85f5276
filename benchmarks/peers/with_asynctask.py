"""asynctask: `@task`, in a runtime of its own.

Every run has an id, a history of states, can be cancelled, and its ended ones can be listed: the last 10,000 in memory,
all of them with SQLite. With SQLite, whatever the work does not say otherwise is what the caller waits for; recording
goes on behind, in another thread, and slows what follows when it cannot keep up. `recorded` waits for the last row.
"""

import os
from collections.abc import AsyncIterator

from harness import FOLDER, MEGABYTE, THREADS, VARIANT, WORKERS, main, workload

os.environ["ASYNCTASK_STORE_URL"] = f"sqlite:///{FOLDER}/runs.db" if VARIANT == "SQLite" else "memory://"
os.environ["ASYNCTASK_THREAD_POOL_MAX_WORKERS"] = str(THREADS)

import anyio

from asynctask import ProcessPoolTaskRunner, Runtime, get_client, task
from asynctask.cache_policies import INPUTS

TITLE = "asynctask"
VARIANTS = {"": "runs", "SQLite": "disk", "uvloop": "runs", "trio": "runs"}
PACKAGES = ["asynctask", "anyio", "msgspec", "trio", "uvloop"]
IMPORT = "import asynctask"
ABSENT = {
    "recorded": "its store is in memory",
    "processes": "as on asyncio",
    "megabyte": "as on asyncio",
}
STORE = os.environ["ASYNCTASK_STORE_URL"]


@task
async def nothing() -> None:
    pass


@task
async def one() -> int:
    return 1


@task
async def add_one(number: int) -> int:
    return number + 1


@task
async def add(left: int, right: int) -> int:
    return left + right


@task
def plain_nothing() -> None:
    pass


@task
def give(value: bytes) -> bytes:
    return value


@task
async def sleep(seconds: float) -> None:
    await anyio.sleep(seconds)


@task(tags=["ten"])
async def a_millisecond() -> None:
    await anyio.sleep(0.001)


@task(cache_policy=INPUTS)
async def cached(number: int, text: str) -> int:
    return number


@task(retries=3)
async def succeeds() -> None:
    pass


@workload("awaited")
async def awaited(count: int) -> None:
    for _ in range(count):
        await nothing()


@workload("submitted")
async def submitted(count: int) -> None:
    for future in [nothing.submit() for _ in range(count)]:
        await future


@workload("mapped")
async def mapped(count: int) -> None:
    await add_one.map(range(count))


@workload("threads")
async def threads(count: int) -> None:
    for future in [plain_nothing.submit() for _ in range(count)]:
        await future


@workload("processes", variants=("", "SQLite"))
async def processes() -> AsyncIterator[object]:
    async with Runtime(store=STORE, task_runner=ProcessPoolTaskRunner(WORKERS)):
        yield threads


@workload("megabyte", variants=("", "SQLite"))
async def megabyte() -> AsyncIterator[object]:
    async def run(count: int) -> None:
        for _ in range(count):
            assert len(await give.submit(MEGABYTE)) == len(MEGABYTE)

    async with Runtime(store=STORE, task_runner=ProcessPoolTaskRunner(WORKERS)):
        yield run


@workload("hit")
async def hit(count: int) -> None:
    for _ in range(count):
        await cached(1, "one")


@workload("recorded", variants=("SQLite",))
async def recorded() -> AsyncIterator[object]:
    async with Runtime(store=STORE) as runtime:

        async def run(count: int) -> None:
            for _ in range(count):
                await nothing()
            await runtime.flush()

        yield run


@workload("asleep")
@workload("asleep, 100,000")
async def asleep(count: int, seconds: float) -> None:
    for future in [sleep.submit(seconds) for _ in range(count)]:
        await future


@workload("limited")
async def limited() -> AsyncIterator[object]:
    async def run(count: int) -> None:
        for future in [a_millisecond.submit() for _ in range(count)]:
            await future

    async with get_client() as client:
        await client.create_concurrency_limit("ten", 10)
    yield run


@workload("chain")
async def chain(count: int) -> None:
    last = add_one.submit(0)
    for _ in range(count - 1):
        last = add_one.submit(last)
    assert await last == count


@workload("tree")
async def tree(count: int) -> None:
    level = [one.submit() for _ in range(count)]
    while len(level) > 1:
        level = [add.submit(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    assert await level[0] == count


@workload("retry")
async def retried(count: int) -> None:
    for _ in range(count):
        await succeeds()


if __name__ == "__main__":
    main()
