"""What runtimes leave: runs whose loop is gone, memory, listings."""

import asyncio
import gc
import random
import threading
import weakref
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from asynctask import Runtime, State, TaskFuture, flow, task
from asynctask.errors import (
    CrashedRun,
)
from asynctask.scopes import close_default
from asynctask.stores.guard import FileLock
from asynctask.stores.sqlite import SQLiteStore
from testkit import fresh, until


@task
async def double(x: int) -> int:
    await anyio.sleep(0)
    return x * 2


@task
def sync_double(x: int) -> int:
    return x * 2


@task
async def forever() -> None:
    await anyio.sleep(60)


# -- loops that end under runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_whose_loop_ends_under_it_crashes(backend):
    futures: list[TaskFuture[None]] = []

    async def main() -> None:
        futures.append(forever.submit())
        await until(lambda: futures[0].state.is_running())
        futures.append(forever.submit())  # has not begun

    anyio.run(main, backend=backend)
    for future in futures:
        state = future.wait(20)
        assert state is not None
        assert state.is_crashed()
        with pytest.raises(CrashedRun, match="event loop"):
            future.result()


@pytest.mark.allow_leak("log", reason="asyncio says that the user's loop was closed with tasks pending")
def test_a_run_whose_loop_was_closed_without_ending_it_is_ended_by_its_runtime():
    futures: list[TaskFuture[None]] = []

    async def main() -> None:
        futures.append(forever.submit())
        await asyncio.sleep(0.01)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    close_default()
    assert futures[0].state.is_crashed()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_runtime_outlives_a_second_loop_that_used_it(backend):
    futures: list[TaskFuture[Any]] = []

    async def second() -> None:
        assert await double.submit(3) == 6
        futures.append(forever.submit())

    async def main() -> None:
        async with fresh():
            await anyio.to_thread.run_sync(lambda: anyio.run(second, backend=backend))
            assert futures[0].state.is_crashed()
            assert await double.submit(1) == 2

    anyio.run(main)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_runtime_whose_loop_ended_without_leaving_it_gets_no_runs_of_others(backend):
    async def enter() -> None:
        await fresh().__aenter__()

    thread = threading.Thread(target=anyio.run, args=(enter,), kwargs={"backend": backend})
    thread.start()
    thread.join()
    assert sync_double.submit(2).result(20) == 4
    assert double.submit(3).result(20) == 6


# -- what is alive, and what is left -------------------------------------------------------------------------------


async def test_the_runs_under_way_are_listed_the_oldest_first():
    async with fresh() as rt:
        futures = [forever.submit() for _ in range(3)]
        await until(lambda: all(future.state.is_running() for future in futures))

        @task
        def look() -> list[str]:
            return [run.task_name for run in rt.runs]

        assert look() == ["forever"] * 3 + ["look"]
        assert [run.id for run in rt.runs] == [future.task_run_id for future in futures]
        assert {run.state_name for run in rt.runs} == {"Running"}
        assert "3 runs" in repr(rt)
        for future in futures:
            future.cancel()
            await future.wait_async()
        assert rt.runs == []


class Big:
    pass


@task
async def keep_async(value: Big) -> Big:
    return value


@task
def keep_sync(value: Big) -> Big:
    return value


@task(retries=1)
async def fail_with(value: Big) -> None:
    raise ValueError(value)


@flow
async def keep_in_flow(value: Big) -> None:
    await keep_async.submit(value)
    keep_sync.submit(value)


@pytest.mark.parametrize("what", [keep_async, keep_sync, fail_with, keep_in_flow], ids=lambda what: what.name)
@pytest.mark.parametrize("how", ["called", "submitted"])
async def test_a_finished_run_leaves_memory_with_its_arguments_and_value_without_the_collector(what, how):
    if what is keep_in_flow:
        how = "called"

    async def use(value: Big) -> None:
        try:
            if how == "submitted":
                await what.submit(value)
            elif what is keep_sync:
                what(value)
            else:
                await what(value)
        except ValueError:
            pass

    async with fresh() as rt:
        big = Big()
        dead = weakref.ref(big)
        gc.collect()
        gc.disable()
        try:
            await use(big)
            del big
            await until(lambda: dead() is None)
        finally:
            gc.enable()
        assert rt.runs == []


async def test_a_future_keeps_its_outcome_and_nothing_else_keeps_the_future():
    async with fresh():
        future = keep_async.submit(Big())
        await future
        gone = weakref.ref(future)
        assert isinstance(future.result(), Big)
        del future
        assert gone() is None


@pytest.mark.asyncio
async def test_runs_that_nobody_holds_are_not_collected():
    ended: list[int] = []

    @task
    async def work(number: int) -> None:
        await asyncio.sleep(0.005)
        ended.append(number)

    async with fresh():
        for number in range(20):
            work.submit(number)
        for _ in range(5):
            gc.collect()
            await asyncio.sleep(0)
        await until(lambda: len(ended) == 20)


def test_the_same_seed_gives_the_same_ids_but_for_their_time():
    def some() -> list[int]:
        async def main() -> list[int]:
            async with fresh(source=random.Random(7)):
                return [double.submit(n).task_run_id.int & (1 << 80) - 1 for n in range(3)]

        return anyio.run(main)

    assert some() == some()


async def test_hooks_of_runs_cancelled_by_closing_are_waited_for():
    seen: list[str] = []

    async def note(task: Any, run: Any, state: State) -> None:
        await anyio.sleep(0.01)
        seen.append(state.name)

    async with fresh(shutdown_timeout=0.01):
        forever.with_options(on_cancellation=note).submit()
    assert seen == ["Cancelled"]


@pytest.mark.asyncio
async def test_a_runtime_whose_closing_is_cancelled_again_and_again_leaves_no_thread(tmp_path):
    """asyncio's own `cancel` passes shields; what comes after the store is closed all the same."""
    store = SQLiteStore(tmp_path / "runs.db")
    lock = FileLock(f"{store.path}-guard")

    async def use() -> None:
        async with Runtime(store=store) as runtime:
            assert await sync_double.submit(1) == 2
            await runtime.flush()
            await until(lock.try_take)  # as a process that hangs while it writes; the store may be learning of limits
            await sync_double.submit(2)

    using = asyncio.ensure_future(use())
    await until(lambda: lock.is_held)
    for _ in range(4):
        await asyncio.sleep(0.05)
        using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    lock.close()
    await until(lambda: not [one for one in threading.enumerate() if one.name.startswith("asynctask")])
