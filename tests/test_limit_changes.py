"""Limits that are raised, lowered, deleted or set to 0 while runs hold their slots and wait for them."""

import anyio
import pytest

from asynctask import get_client, task
from asynctask.errors import ConcurrencyLimitAborted, ObjectNotFound
from testkit import Inside, fresh, limit_of, set_limit, until

# -- limits that change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["raise", "delete", "reset"])
async def test_a_raised_deleted_or_reset_limit_lets_the_waiting_start_at_once(change):
    go = anyio.Event()
    running = 0

    @task(tags=["db"])
    async def work() -> None:
        nonlocal running
        running += 1
        await go.wait()

    async with fresh(), get_client() as client:
        await client.create_concurrency_limit("db", 1)
        futures = [work.submit() for _ in range(2)]
        await until(lambda: any(future.state.name == "AwaitingConcurrencySlot" for future in futures))
        await until(lambda: running == 1)
        if change == "raise":
            await client.create_concurrency_limit("db", 2)
        elif change == "delete":
            await client.delete_concurrency_limit_by_tag("db")
        else:
            await client.reset_concurrency_limit_by_tag("db")
        await until(lambda: running == 2)
        go.set()
        for future in futures:
            await future
        if change != "delete":
            assert (await client.read_concurrency_limit_by_tag("db")).active_slots == []


async def test_a_lowered_limit_holds_for_the_next_ones():
    inside = Inside()
    go = anyio.Event()

    @task(tags=["db"])
    async def work(*, first: bool) -> None:
        if first:
            await go.wait()
            return
        inside.enter("t")
        await anyio.sleep(0.001)
        inside.leave("t")

    async with fresh() as rt:
        await set_limit("db", 4)
        early = [work.submit(first=True) for _ in range(4)]
        await until(lambda: len(limit_of(rt, "db").active_slots) == 4)
        await set_limit("db", 1)
        late = [work.submit(first=False) for _ in range(5)]
        go.set()
        for future in early + late:
            await future
    assert inside.most == {"t": 1}


async def test_a_limit_of_0_ends_the_run_before_it_starts():
    ran: list[str] = []

    @task(tags=["closed"])
    def sync_task() -> None:
        ran.append("sync")

    @task(tags=["closed"])
    async def async_task() -> None:
        ran.append("async")

    async with fresh():
        await set_limit("closed", 0)
        with pytest.raises(ConcurrencyLimitAborted, match="closed"):
            sync_task()
        with pytest.raises(ConcurrencyLimitAborted, match="closed"):
            await async_task()
        for future in (sync_task.submit(), async_task.submit()):
            with pytest.raises(ConcurrencyLimitAborted, match="limit of 0"):
                await future
            assert future.state.is_cancelled()
        assert (await async_task(return_state=True)).is_cancelled()
    assert ran == []


async def test_a_limit_set_to_0_ends_those_that_wait_for_it():
    go = anyio.Event()

    @task(tags=["db"])
    async def work() -> str:
        await go.wait()
        return "done"

    async with fresh() as rt:
        await set_limit("db", 1)
        holder = work.submit()
        await until(lambda: holder.state.is_running())
        waiter = work.submit()
        await until(lambda: waiter.state.is_scheduled())
        await set_limit("db", 0)
        with anyio.fail_after(20), pytest.raises(ConcurrencyLimitAborted, match="limit of 0"):
            await waiter
        assert waiter.state.is_cancelled()
        assert limit_of(rt, "db").waiting == 0
        go.set()
        assert await holder == "done"  # who runs already is left alone


async def test_a_deleted_limit_is_not_found():
    async with fresh(), get_client() as client:
        await client.create_concurrency_limit("db", 1)
        await client.delete_concurrency_limit_by_tag("db")
        with pytest.raises(ObjectNotFound, match="'db'"):
            await client.read_concurrency_limit_by_tag("db")
        assert await client.read_concurrency_limits() == []
