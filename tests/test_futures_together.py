"""Futures together: several at once, from several loops and threads, values of generators, memory."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import pytest

from asynctask import Runtime, TaskFutureList, as_completed, flow, task, wait
from asynctask.stores.memory import MemoryStore


@task
async def double(x: int) -> int:
    await anyio.sleep(0)
    return x * 2


@task
def triple(x: int) -> int:
    return x * 3


@task
async def fails(text: str = "no") -> int:
    raise ValueError(text)


@task
async def forever() -> int:
    await anyio.sleep(60)
    return 1


@task
def opened(gate: threading.Event, value: int = 1) -> int:
    """Ends when the gate is opened."""
    assert gate.wait(10)
    return value


# -- other threads, other loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["asyncio", "trio"])
async def test_a_future_is_awaited_on_a_second_loop_in_another_thread(second):
    gate = threading.Event()

    async def elsewhere(future: Any, failing: Any) -> list[Any]:
        with pytest.raises(ValueError, match="no"):
            await failing
        got = [await future, (await future.wait_async()).data]
        got += [await one for one in [double.submit(5), triple.submit(5)]]  # these belong to the second loop
        return [*got, *[await one async for one in as_completed([future])]]

    async with Runtime(store=MemoryStore()):
        future, failing = opened.submit(gate, 3), fails.submit()
        done = []

        async def run_elsewhere() -> None:
            in_thread = partial(anyio.run, elsewhere, future, failing, backend=second)
            done.append(await anyio.to_thread.run_sync(in_thread))

        async with anyio.create_task_group() as group:
            group.start_soon(run_elsewhere)
            await anyio.sleep(0.01)
            gate.set()
        assert done == [[3, 3, 10, 15, 3]]


async def test_a_thread_of_a_loop_waits_for_runs_on_that_loop():
    def in_thread() -> list[Any]:
        futures = double.map([1, 2, 3])
        first = next(iter(as_completed(futures)))
        return [first.done(), futures.result(timeout=20), fails.submit().result(raise_on_failure=False).args]

    async with Runtime(store=MemoryStore()):
        assert await anyio.to_thread.run_sync(in_thread) == [True, [2, 4, 6], ("no",)]


# -- several futures -----------------------------------------------------------------------------------------------


def test_as_completed_gives_each_future_once_in_the_order_in_which_they_end():
    gates = [threading.Event() for _ in range(3)]
    futures = [opened.submit(gate, number) for number, gate in enumerate(gates)]
    order = [2, 0, 1]
    got: list[int] = []
    gates[order[0]].set()
    for future in as_completed([*futures, futures[0]]):
        got.append(future.result())
        if len(got) < 3:
            gates[order[len(got)]].set()
    assert got == order


async def test_as_completed_works_with_async_for():
    gates = [threading.Event() for _ in range(3)]
    futures = [opened.submit(gate, number) for number, gate in enumerate(gates)]
    order = [1, 2, 0]
    got: list[int] = []
    gates[order[0]].set()
    async for future in as_completed([*futures, futures[2]]):
        got.append(await future)
        if len(got) < 3:
            gates[order[len(got)]].set()
    assert got == order


async def test_as_completed_gives_failed_and_cancelled_runs_too_and_nothing_of_nothing():
    cancelled = forever.submit()
    cancelled.cancel()
    names = sorted([future.state.name async for future in as_completed([fails.submit(), cancelled, double.submit(1)])])
    assert names == ["Cancelled", "Completed", "Failed"]
    assert [future async for future in as_completed([])] == []
    assert list(as_completed([])) == []


async def test_as_completed_raises_when_its_time_is_up():
    gate = threading.Event()
    late, quick = opened.submit(gate), double.submit(1)
    await quick
    got: list[Any] = []

    async def awaiting() -> None:
        async for future in as_completed([late, quick], timeout=0.02):
            got.append(future)

    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished after 0\.02 s"):
        await awaiting()
    assert got == [quick]

    def blocking() -> None:
        for _ in as_completed([late, quick], timeout=0.02):
            pass

    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        await anyio.to_thread.run_sync(blocking)
    gate.set()
    await late


async def test_leaving_as_completed_early_leaves_nothing_registered():
    gate = threading.Event()
    late, quick = opened.submit(gate), double.submit(1)
    async for future in as_completed([late, quick]):
        assert future is quick
        break

    def blocking() -> None:
        for future in as_completed([late, quick]):
            assert future is quick
            break

    await anyio.to_thread.run_sync(blocking)
    assert not late.run.waiters
    gate.set()
    await late


def test_wait_gives_what_is_done_and_what_is_not_and_never_raises():
    gate = threading.Event()
    good, bad, late = double.submit(1), fails.submit(), opened.submit(gate)
    wait([good, bad])
    done, not_done = wait([late, good, bad, good], timeout=0.01)
    assert (done, not_done) == ({good, bad}, {late})
    with pytest.raises(ValueError, match="negative"):
        wait([late], timeout=-1)
    gate.set()
    assert wait([good, bad, late]).not_done == set()
    assert wait([]) == (set(), set())


def test_a_list_of_futures_gives_results_in_the_order_of_its_input():
    gates = [threading.Event() for _ in range(3)]
    futures = TaskFutureList(opened.submit(gate, number) for number, gate in enumerate(gates))
    assert futures.wait(timeout=0.01) is None
    with pytest.raises(TimeoutError, match=r"3 \(of 3\)"):
        futures.result(timeout=0.01)
    for gate in reversed(gates):
        gate.set()
    assert futures.result(timeout=20) == [0, 1, 2]
    states = futures.wait()
    assert states is not None
    assert [state.data for state in states] == [0, 1, 2]
    assert TaskFutureList[int]([*futures, futures[0]]).result() == [0, 1, 2, 0]
    assert TaskFutureList[int]().result() == []


async def test_the_first_failure_in_a_list_is_raised_without_waiting_for_the_rest():
    gate = threading.Event()
    futures = TaskFutureList([opened.submit(gate), fails.submit("quick")])
    with anyio.fail_after(20):
        with pytest.raises(ValueError, match="quick"):
            await futures
        with pytest.raises(ValueError, match="quick"):
            await futures.result_async(timeout=20)
        with pytest.raises(ValueError, match="quick"):
            await anyio.to_thread.run_sync(futures.result)
    with pytest.raises(TimeoutError, match=r"1 \(of 2\)"):
        await futures.result_async(timeout=0.01, raise_on_failure=False)
    assert await futures.wait_async(timeout=0.01) is None
    gate.set()
    got = await futures.result_async(raise_on_failure=False)
    assert (got[0], str(got[1])) == (1, "quick")
    states = await futures.wait_async()
    assert states is not None
    assert [state.name for state in states] == ["Completed", "Failed"]


async def test_await_of_a_list_gives_the_values():
    assert await double.map([1, 2]) == [2, 4]
    assert await TaskFutureList[int]() == []


# -- generators ----------------------------------------------------------------------------------------------------


async def test_values_of_a_submitted_generator_come_while_it_runs():
    proceed = threading.Event()

    @task
    def values() -> Iterator[int]:
        yield 1
        assert proceed.wait(20)
        yield 2

    future = values.submit()
    got: list[int] = []
    async for value in future:
        got.append(value)
        assert not future.done() or value == 2
        proceed.set()
    assert got == [1, 2]
    assert await future == [1, 2]
    assert [value async for value in future] == [1, 2]  # again, from the start


def test_values_of_a_submitted_generator_are_iterated_over_in_plain_code():
    @task
    async def values() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep(0)
        yield 2
        raise ValueError("after two")

    got: list[int] = []
    with pytest.raises(ValueError, match="after two"):  # noqa: PT012
        for value in values.submit():
            got.append(value)
    assert got == [1, 2]


async def test_only_generators_can_be_iterated_over():
    future = double.submit(1)
    with pytest.raises(TypeError, match="not a generator"):
        iter(future).__next__()
    await future


def test_ten_thousand_futures_are_waited_for_without_looking_at_all_at_each_wake_up():

    @task
    async def nothing(x: int) -> int:
        return x

    assert sum(nothing.map(range(10_000)).result(timeout=20)) == sum(range(10_000))


async def test_an_exception_raised_again_and_again_does_not_grow():
    future = fails.submit()
    for _ in range(3):
        with pytest.raises(ValueError, match="no") as caught:
            await future
    places = [entry.name for entry in caught.traceback]
    assert places.count("fails") == 1
    assert places.count("__await__") == 1


# -- lifetime ------------------------------------------------------------------------------------------------------


def test_a_future_of_a_flow_outlives_it_with_its_outcome():
    kept: list[Any] = []

    @flow
    def parent() -> None:
        kept.append(double.submit(4))

    parent()
    assert kept[0].result() == 8
    start = time.monotonic()
    assert kept[0].wait(20).is_completed()
    assert time.monotonic() - start < 1


# -- among other things that are awaited, and what is no future ------------------------------------------------------


@pytest.mark.asyncio
async def test_asyncio_gathers_futures_and_waits_for_them_with_its_own_means():
    async with Runtime(store=MemoryStore()):
        release = asyncio.Event()

        @task
        async def waits() -> str:
            await release.wait()
            return "went on"

        assert await asyncio.gather(double.submit(1), *double.map([2, 3]), double.submit(4)) == [2, 4, 6, 8]
        future = waits.submit()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.gather(future, double.submit(1))
        assert not future.done()
        release.set()
        assert await future == "went on"


@pytest.mark.parametrize("wanting", [wait, lambda several: list(as_completed(several))], ids=["wait", "as_completed"])
def test_what_is_no_future_is_refused_before_any_waiting(wanting):
    with pytest.raises(TypeError, match=r"\(\) takes futures, as task\.submit\(\) and task\.map\(\) give them, not 5"):
        wanting([double.submit(1), 5])
