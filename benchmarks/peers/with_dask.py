"""Dask distributed: client, scheduler and worker on one asyncio loop, in one process, which is its fastest way.

Functions are `async` and run on the worker's loop. No dashboard, no profile of the workers, no stealing of work, and
no limit of memory. What goes one after another waits for timers: the client sends every 10 ms, and that is no
setting. Keys and results live in the scheduler and the workers as long as someone holds a future; nothing is kept
after that or on disk.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import dask
from distributed import Client, LocalCluster
from harness import MEGABYTE, THREADS, WORKERS, main, workload

TITLE = "Dask distributed"
REQUIREMENTS = ["distributed==2026.8.0"]
VARIANTS = {"": "runs"}
IMPORT = "import distributed"
ABSENT = {
    "recorded": "it keeps nothing on disk",
    "asleep, 100,000": "its scheduler does not start so many within the time",
}
#: Coroutines take no thread, but they take a place in the worker all the same.
PLACES = 20_000
SETTINGS = {
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.worker-saturation": "inf",  # all goes to the workers at once: no queue in the scheduler
    "distributed.worker.profile.enabled": False,
    "distributed.diagnostics.computations.max-history": 0,
}


@contextlib.asynccontextmanager
async def cluster(places: int = PLACES, processes: int = 0, **more: object) -> AsyncIterator[Client]:
    """One worker here, or single-threaded ones in processes of their own."""
    shape = (processes, 1) if processes else (1, places)
    with dask.config.set(SETTINGS):
        async with (
            LocalCluster(
                n_workers=shape[0],
                threads_per_worker=shape[1],
                processes=bool(processes),
                dashboard_address=None,
                silence_logs=50,
                memory_limit=0,
                asynchronous=True,
                **more,
            ) as local,
            Client(local, asynchronous=True) as client,
        ):
            yield client


async def nothing() -> None:
    pass


def plain_nothing() -> None:
    pass


async def one() -> int:
    return 1


async def add_one(number: int) -> int:
    return number + 1


async def add(left: int, right: int) -> int:
    return left + right


def give(value: bytes) -> bytes:
    return value


async def a_millisecond() -> None:
    await asyncio.sleep(0.001)


@workload("awaited")
async def awaited() -> AsyncIterator[object]:
    async with cluster() as client:

        async def run(count: int) -> None:
            for _ in range(count):
                await client.submit(nothing, pure=False)

        yield run


def all_at_once(
    client: Client, function: Callable[..., object], **more: object
) -> Callable[[int], Awaitable[list[object]]]:
    async def run(count: int) -> list[object]:
        return await client.gather([client.submit(function, pure=False, **more) for _ in range(count)])

    return run


@workload("submitted")
async def submitted() -> AsyncIterator[object]:
    async with cluster() as client:
        yield all_at_once(client, nothing)


@workload("mapped")
async def mapped() -> AsyncIterator[object]:
    async with cluster() as client:

        async def run(count: int) -> None:
            assert (await client.gather(client.map(add_one, range(count), pure=False)))[-1] == count

        yield run


@workload("threads")
async def threads() -> AsyncIterator[object]:
    async with cluster(THREADS) as client:
        yield all_at_once(client, plain_nothing)


@workload("processes")
async def processes() -> AsyncIterator[object]:
    async with cluster(processes=WORKERS) as client:
        yield all_at_once(client, plain_nothing)


@workload("megabyte")
async def megabyte() -> AsyncIterator[object]:
    async with cluster(processes=WORKERS) as client:

        async def run(count: int) -> None:
            for _ in range(count):
                assert len(await client.submit(give, MEGABYTE, pure=False)) == len(MEGABYTE)

        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
            yield run


@workload("hit")
async def hit() -> AsyncIterator[object]:
    """`pure=True`: the same function of the same arguments is the same key, whose result the worker has."""
    async with cluster() as client:
        first = client.submit(add_one, 1, pure=True)  # held, else the result is forgotten
        await first

        async def run(count: int) -> None:
            for _ in range(count):
                await client.submit(add_one, 1, pure=True)

        yield run


@workload("asleep")
async def asleep() -> AsyncIterator[object]:
    async with cluster() as client:

        async def run(count: int, seconds: float) -> None:
            await client.gather([client.submit(asyncio.sleep, seconds, pure=False) for _ in range(count)])

        yield run


@workload("limited")
async def limited() -> AsyncIterator[object]:
    """By a resource of the worker, of which there are ten; its `Semaphore` takes some times as long."""
    async with cluster(resources={"ten": 10}) as client:
        yield all_at_once(client, a_millisecond, resources={"ten": 1})


@workload("chain")
async def chain() -> AsyncIterator[object]:
    async with cluster() as client:

        async def run(count: int) -> None:
            last = client.submit(add_one, 0, pure=False)
            for _ in range(count - 1):
                last = client.submit(add_one, last, pure=False)
            assert await last == count

        yield run


@workload("tree")
async def tree() -> AsyncIterator[object]:
    async with cluster() as client:

        async def run(count: int) -> None:
            level = [client.submit(one, pure=False) for _ in range(count)]
            while len(level) > 1:
                pairs = zip(level[::2], level[1::2], strict=True)
                level = [client.submit(add, *pair, pure=False) for pair in pairs]
            assert await level[0] == count

        yield run


@workload("retry")
async def retried() -> AsyncIterator[object]:
    async with cluster() as client:

        async def run(count: int) -> None:
            for _ in range(count):
                await client.submit(nothing, retries=3, pure=False)

        yield run


if __name__ == "__main__":
    main()
