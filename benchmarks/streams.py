"""What a stream costs for each item, and in memory: python benchmarks/streams.py [--quick] [--row NAME] [--json FILE]

Rows are measured as in core.py, by turns with a window of asyncio's or trio's own, which tracks nothing. Figures are
what an item costs over a loop that awaits the bare body, measured by turns with that; and how much a process grows from
item 100,000 to item 1,000,000. README.md says how to read the result.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

os.environ["ASYNCTASK_STORE_URL"] = "memory://"  # whatever a figure does not say otherwise

from core import Measure, Row, measured, microseconds, on_asyncio, on_trio
from store import Figure, as_figure, in_a_child, judge, new_store, recorded

from asynctask import task

Work = Callable[[int], Awaitable[object]]


# -- the bodies: one that never suspends, so that what is round it is what is measured, and one that does --------------


async def nothing(number: int) -> None:
    pass


async def a_turn(number: int) -> None:
    """Lets the loop have a turn."""
    await asyncio.sleep(0)


async def a_turn_of_trio(number: int) -> None:
    import trio  # in functions: asking whether it runs, where it is imported, takes each of the other rows 0.2 us a run

    await trio.lowlevel.checkpoint()


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


# -- theirs -----------------------------------------------------------------------------------------------------------


async def one_by_one(count: int) -> None:
    for number in range(count):
        await nothing(number)


async def one_by_one_from_async(count: int) -> None:
    async for number in numbers(count):
        await nothing(number)


def waiting(body: Callable[[int], Any], size: int) -> Work:
    """A window of `asyncio.wait`: results as they come, input pulled when there is room."""

    async def work(count: int) -> None:
        left = iter(range(count))
        pending: set[asyncio.Task[None]] = set()
        while True:
            for number in left:
                pending.add(asyncio.create_task(body(number)))
                if len(pending) == size:
                    break
            if not pending:
                return
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()

    return work


def in_a_nursery(body: Callable[[int], Any], size: int) -> Work:
    """A child each, as many at once as a limiter has tokens, under trio."""

    async def work(count: int) -> None:
        import trio

        limiter = trio.CapacityLimiter(size)

        async def one(number: int) -> None:
            try:
                await body(number)
            finally:
                limiter.release_on_behalf_of(number)

        async with trio.open_nursery() as nursery:
            for number in range(count):
                await limiter.acquire_on_behalf_of(number)
                nursery.start_soon(one, number)

    return work


# -- ours -------------------------------------------------------------------------------------------------------------


def streamed(body: Callable[[int], Any], size: int, *, ordered: bool = False, is_async: bool = False) -> Work:
    each = task(body)

    async def work(count: int) -> None:
        source: Any = numbers(count) if is_async else range(count)
        async for _ in each.stream(source, concurrency=size, ordered=ordered):
            pass

    return work


ROWS = [
    Row(
        "window", "stream of a body that never suspends, 10 at a time", "asyncio.wait with 10 tasks", 1.5, "us",
        on_asyncio(waiting(nothing, 10)), on_asyncio(streamed(nothing, 10)), 10_000,
    ),
    Row(
        "wide window", "the same, 100 at a time", "asyncio.wait with 100 tasks", 1.5, "us",
        on_asyncio(waiting(nothing, 100)), on_asyncio(streamed(nothing, 100)), 10_000,
    ),
    Row(
        "suspending", "stream of a body that suspends once, 10 at a time", "asyncio.wait with 10 tasks", 1.75, "us",
        on_asyncio(waiting(a_turn, 10)), on_asyncio(streamed(a_turn, 10)), 10_000,
    ),
]  # fmt: skip
ON_TRIO = Row(
    "trio", "stream of a body that suspends once, 10 at a time", "a nursery with a limiter of 10", 1.5, "us",
    on_trio(in_a_nursery(a_turn_of_trio, 10)), on_trio(streamed(a_turn_of_trio, 10)), 5_000,
)  # fmt: skip


# -- over the bare body -----------------------------------------------------------------------------------------------


def on_uvloop(work: Work) -> Measure:
    def measure(count: int) -> float:
        import uvloop

        return uvloop.run(microseconds(work, count))

    return measure


#: What the budget says of the first four.
BAR = 4.0
BARE, BARE_FROM_ASYNC = on_asyncio(one_by_one), on_asyncio(one_by_one_from_async)
#: What is said of an item, the stream, the loop over the bare body, and the bar.
OVER: dict[str, tuple[str, Measure, Measure, float | None]] = {
    "item": ("100 at a time", on_asyncio(streamed(nothing, 100)), BARE, BAR),
    "ordered": ("in the order of the input", on_asyncio(streamed(nothing, 100, ordered=True)), BARE, BAR),
    "async input": ("from an async generator", on_asyncio(streamed(nothing, 100, is_async=True)), BARE_FROM_ASYNC, BAR),
    "uvloop": ("100 at a time, on uvloop", on_uvloop(streamed(nothing, 100)), on_uvloop(one_by_one), BAR),
    "ten": ("10 at a time", on_asyncio(streamed(nothing, 10)), BARE, None),
    "one": ("1 at a time", on_asyncio(streamed(nothing, 1)), BARE, None),
    "SQLite": ("recorded, to the last row on disk", recorded(streamed(nothing, 100)), BARE, None),
}


def item_figure(name: str, quick: bool) -> list[Figure]:
    what, ours, theirs, bar = OVER[name]
    count, rounds = (5_000, 5) if quick else (20_000, 15)
    over: list[float] = []
    for turn in range(rounds + 1):  # the first does not count
        gc.collect()
        difference = ours(count) - theirs(count)
        if turn:
            over.append(difference)
    text = f"an item of a stream, over awaiting its body: {what}"
    return [Figure(name, text, statistics.median(over), "us", bar)]


# -- memory, in a process of its own ----------------------------------------------------------------------------------

MEMORY = """
import asyncio, gc, resource, sys
from asynctask import Runtime, task

@task
async def each(number):
    return [number]

def memory():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6

async def main(url, count):
    async with Runtime(store=url) as runtime:
        taken = 0
        async for _ in each.stream(range(count), concurrency=100):
            taken += 1
            if taken == 100_000:  # the history, or the queue, has been as full as it gets
                await runtime.flush()
                before = memory()
        await runtime.flush()
        print(memory() - before)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def memory_figures(quick: bool) -> list[Figure]:
    count = 200_000 if quick else 1_000_000
    what = f"growth from item 100,000 to item {count:,}, 100 at a time"
    (grown,) = in_a_child(MEMORY, "memory://", count)
    (grown_on_disk,) = in_a_child(MEMORY, new_store(), count)
    return [
        Figure("memory", what, grown, "MB", 5.0),
        Figure("memory, SQLite", f"{what}, all recorded", grown_on_disk, "MB", 10.0),
    ]


FIGURES: dict[str, Callable[[bool], list[Figure]]] = {
    **{name: partial(item_figure, name) for name in OVER},
    "memory": memory_figures,
    # The last one in this process: it imports trio.
    "trio": lambda quick: [as_figure(measured(ON_TRIO, quick))._replace(bar=ON_TRIO.bar)],
}


if __name__ == "__main__":
    sys.exit(judge("What a stream costs for each item, and in memory.", "streams", ROWS, FIGURES))
