"""Nothing outlives its flow, whatever its colour and wherever it runs."""

import asyncio
import contextvars
import threading
import time
from typing import Any

import anyio
import pytest

from asynctask import Runtime, TaskFuture, flow, get_client, tags, task, temporary_settings
from asynctask.errors import (
    CancelledRun,
)
from asynctask.stores.memory import MemoryStore
from testkit import until


@task
async def double(x: int) -> int:
    await anyio.sleep(0)
    return x * 2


@task
def triple(x: int) -> int:
    return x * 3


@task
async def forever() -> None:
    await anyio.sleep(60)


# -- ownership -----------------------------------------------------------------------------------------------------


async def test_a_flow_waits_at_its_end_for_runs_in_flight():
    done: list[int] = []

    @task
    async def work(x: int) -> None:
        await anyio.sleep(0.005)
        done.append(x)
        if x < 2:
            work.submit(x + 1)  # grandchildren count as well

    @flow
    async def parent() -> None:
        work.submit(0)

    await parent()
    assert done == [0, 1, 2]


@pytest.mark.parametrize("kind", ["async", "sync in a thread", "grandchild"])
async def test_a_flow_that_raises_cancels_what_is_in_flight(kind):
    futures: list[TaskFuture[Any]] = []

    @task
    def blocked() -> None:
        while True:
            time.sleep(0.001)

    @task
    async def submits() -> None:
        futures.append(forever.submit())
        await anyio.sleep(60)

    @flow
    async def raising() -> None:
        child = {"async": forever, "sync in a thread": blocked, "grandchild": submits}[kind]
        futures.append(child.submit())
        await until(lambda: futures[-1].state.is_running() and (kind != "grandchild" or len(futures) == 2))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await raising()
    assert all(future.done() and future.state.is_cancelled() for future in futures)
    with pytest.raises(CancelledRun, match="raising"):
        await futures[0]


async def test_a_flow_cancelled_from_outside_ends_its_children_first():
    order: list[str] = []
    started = anyio.Event()

    @task
    async def child() -> None:
        try:
            started.set()
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            order.append("child")

    @flow
    async def sub() -> None:
        child.submit()
        await anyio.sleep(60)

    @flow
    async def parent() -> None:
        try:
            await sub()
        finally:
            order.append("flow's body")

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(parent)
            await started.wait()
            group.cancel_scope.cancel()
    assert order == ["child", "flow's body"]
    async with get_client() as client:
        runs = [*await client.read_flow_runs(limit=2), *await client.read_task_runs(limit=1)]
    assert [run.state_name for run in runs] == ["Cancelled"] * 3


@pytest.mark.asyncio
async def test_a_flow_cancelled_twice_by_asyncio_still_ends_its_children_first():
    """asyncio's `Task.cancel` passes anyio's shields."""
    ended = []

    @task
    async def child() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            ended.append("child")

    @flow
    async def parent() -> None:
        await child.submit()

    outer = asyncio.create_task(parent())
    await asyncio.sleep(0.01)
    outer.cancel()
    await asyncio.sleep(0.005)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert ended == ["child"]


async def test_a_flow_called_in_a_submitted_task_ends_with_it():
    futures: list[TaskFuture[None]] = []

    @flow
    def sync_flow() -> None:
        futures.append(forever.submit())
        futures[0].result()

    @task
    def outer() -> None:
        sync_flow()

    async with Runtime(store=MemoryStore()):
        running = outer.submit()
        await until(lambda: futures and futures[0].state.is_running())
        running.cancel()
        with anyio.fail_after(20):
            assert (await running.wait_async()).is_cancelled()
            assert (await futures[0].wait_async()).is_cancelled()


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_run_that_starts_just_as_the_last_one_ends_is_waited_for_too(colour):
    done: list[str] = []

    @task
    async def work(name: str) -> None:
        await anyio.sleep(0.005)
        done.append(name)

    def start() -> None:
        inside_the_flow = contextvars.copy_context()
        work.submit("first").add_done_callback(lambda _: inside_the_flow.run(work.submit, "late"))

    async def start_async() -> None:
        start()

    if colour == "async":
        anyio.run(flow(start_async))
    else:
        flow(start)()
    assert done == ["first", "late"]


# -- colours and places --------------------------------------------------------------------------------------------


@flow
def sync_flow_of_both(x: int) -> list[int]:
    a, b = double.submit(x), triple.submit(x)
    return [a.result(timeout=20), b.result(timeout=20), triple(x), *double.map([x, a]).result(timeout=20)]


WANTED = [4, 6, 6, 4, 8]


def test_a_sync_flow_submits_async_tasks_in_a_script():
    assert sync_flow_of_both(2) == WANTED


async def test_a_sync_flow_submits_async_tasks_in_a_thread_of_a_running_loop():
    async with Runtime(store=MemoryStore()):
        assert await anyio.to_thread.run_sync(sync_flow_of_both, 2) == WANTED


async def test_a_sync_flow_submits_async_tasks_on_the_very_thread_that_runs_a_loop():
    """As in a notebook: with and without a runtime that was entered."""
    assert sync_flow_of_both(2) == WANTED
    async with Runtime(store=MemoryStore()):
        assert sync_flow_of_both(2) == WANTED


def test_sync_flows_nest_in_async_tasks_in_sync_flows():
    @flow
    def innermost(x: int) -> int:
        return double.submit(x).result(timeout=20)

    @task
    async def between(x: int) -> int:
        return innermost(x) + await double.submit(x)

    @flow
    def outermost(x: int) -> int:
        return between.submit(x).result(timeout=20) + innermost(x)

    assert outermost(1) == 6


async def test_a_sync_flow_that_blocks_the_loop_is_told_of_with_what_to_do_instead(caplog):
    @flow
    def blocking() -> None:
        time.sleep(0.02)

    with temporary_settings(blocking_warning_seconds=0.01):
        blocking()
    assert [record.getMessage().partition(" s; ")[2] for record in caplog.records] == [
        "make it async, or call it in a thread"
    ]


async def test_sync_flows_nest_in_async_tasks_in_sync_flows_on_a_running_loop():
    @flow
    def nested(depth: int) -> int:
        return step.submit(depth).result(timeout=20)

    @task
    async def step(depth: int) -> int:
        return depth if depth == 0 else nested(depth - 1) + 1

    async with Runtime(store=MemoryStore()):
        assert nested(4) == 4


async def test_an_async_flow_submits_sync_tasks_and_awaits_them():
    @flow
    async def both(x: int) -> list[int]:
        assert threading.current_thread() is threading.main_thread()
        return [await triple.submit(x), *await triple.map([x, x + 1]), await double(x)]

    assert await both(1) == [3, 3, 6, 2]


async def test_subflows_are_runs_of_their_own_and_own_their_tasks():
    @flow
    async def inner() -> None:
        await double(1)

    @flow
    async def outer() -> None:
        await inner()
        await double.submit(2)

    async with Runtime(store=MemoryStore()), get_client() as client:
        with tags("nightly"):
            await outer()
        flows = {run.task_name: run for run in await client.read_flow_runs()}
        runs = await client.read_task_runs()
    assert flows["inner"].parent_task_run_id == flows["outer"].id
    assert {run.flow_run_id for run in runs} == {flows["inner"].id, flows["outer"].id}
    assert all(run.tags == ["nightly"] for run in [*runs, *flows.values()])


async def test_a_users_thread_that_submits_first_does_not_put_runs_on_the_loop_that_its_flow_blocks() -> None:
    @task
    async def answer() -> int:
        await anyio.sleep(0)
        return 42

    @flow
    def inline() -> int:
        context = contextvars.copy_context()
        box: list[TaskFuture[int]] = []
        thread = threading.Thread(target=context.run, args=(lambda: box.append(answer.submit()),))
        thread.start()
        thread.join()
        return box[0].result(timeout=20)

    async with Runtime(store=MemoryStore()):
        assert inline() == 42


async def test_a_run_that_a_cancelled_body_submits_on_its_way_out_is_cancelled_too() -> None:
    late: list[TaskFuture[None]] = []

    @task
    async def forever() -> None:
        await anyio.sleep_forever()

    @task
    async def leaving() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            late.append(forever.submit())

    @flow
    async def fails() -> None:
        leaving.submit()
        await anyio.sleep(0.01)
        raise OSError("no")

    with anyio.fail_after(20), pytest.raises(OSError, match="no"):
        await fails()
    assert [future.state.name for future in late] == ["Cancelled"]
