"""Blocking code: the engine never suspends in it, never hangs its loop, and says so when it blocks that loop."""

import logging
import threading
import time
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asynctask import Runtime, TaskFutureList, as_completed, flow, task, temporary_settings, wait
from asynctask.blocking import drive
from asynctask.errors import AsyncTaskError, BlockingWaitError
from asynctask.stores.memory import MemoryStore
from testkit import limit_of


@task
async def one() -> int:
    return 1


@task
def add_one(value: int) -> int:
    return value + 1


# -- drive --------------------------------------------------------------------------------------------------------


def test_drive_gives_the_value_of_a_coroutine_that_does_not_suspend() -> None:
    async def value() -> int:
        return 3

    assert drive(value()) == 3


def test_drive_raises_what_the_coroutine_raises() -> None:
    async def broken() -> None:
        raise KeyError("k")

    with pytest.raises(KeyError):
        drive(broken())


def test_drive_closes_a_coroutine_that_suspends_and_calls_it_a_defect() -> None:
    closed: list[bool] = []

    async def suspending() -> None:
        try:
            await anyio.Event().wait()
        finally:
            closed.append(True)

    class Suspend:
        def __await__(self) -> Any:
            yield

    async def plain() -> None:
        try:
            await Suspend()
        finally:
            closed.append(True)

    with pytest.raises(AsyncTaskError, match="defect"):
        drive(plain())
    assert closed == [True]


# -- waits that could only hang -----------------------------------------------------------------------------------

WAITS = {
    "result": lambda future: future.result(),
    "wait": lambda future: future.wait(),
    "timed": lambda future: future.result(timeout=20),
    "list": lambda future: TaskFutureList([future]).result(),
    "all": lambda future: wait([future]),
    "as_completed": lambda future: list(as_completed([future])),
    "map": lambda future: add_one.map(future),
}


@pytest.mark.parametrize("way", WAITS)
async def test_a_blocking_wait_on_the_loop_that_must_run_the_task_is_refused_with_the_fix(way: str) -> None:
    future = one.submit()
    with pytest.raises(BlockingWaitError, match=r"(?s)would block the event loop.*(await|async for)"):
        WAITS[way](future)
    assert await future == 1, "the refusal does the run no harm"
    if way != "map":
        WAITS[way](future)  # it is over, so nothing would block


async def test_iterating_over_a_generators_future_on_its_loop_is_refused_with_the_fix() -> None:
    @task
    async def count() -> Any:
        yield 1

    future = count.submit()
    with pytest.raises(BlockingWaitError, match="async for value in future"):
        list(future)
    assert await future == [1]
    assert list(future) == [1]


async def test_an_inline_call_that_needs_an_unfinished_upstream_is_refused_and_fails() -> None:
    future = one.submit()
    with pytest.raises(BlockingWaitError, match=r"await task\.submit"):
        add_one(future)
    with pytest.raises(BlockingWaitError, match="would block"):
        add_one(1, wait_for=[future])
    assert await add_one.submit(future) == 2
    assert add_one(future) == 2, "it is over by now"


async def test_an_inline_call_that_needs_a_taken_slot_is_refused_and_names_the_holder() -> None:
    store = MemoryStore()
    store.limits.set("tag:db", 1)
    async with Runtime(store=store):
        holding, release = anyio.Event(), anyio.Event()

        @task(name="holder", tags=["db"])
        async def holder() -> None:
            holding.set()
            await release.wait()

        limited = add_one.with_options(tags=["db"])
        future = holder.submit()
        await holding.wait()
        with pytest.raises(BlockingWaitError, match=r"""(?s)"db".*holder.*submit"""):
            limited(1)
        assert limit_of(store, "db").waiting == 0, "it does not stay in line"
        release.set()
        await future
        assert limited(1) == 2


async def test_a_wait_in_another_thread_is_no_problem() -> None:
    future = one.submit()
    assert await anyio.to_thread.run_sync(future.result) == 1
    second = one.submit()
    assert await anyio.to_thread.run_sync(add_one, second) == 2


def test_a_wait_in_plain_code_blocks_and_returns() -> None:
    future = one.submit()
    assert add_one(future) == 2
    assert add_one.map([future, one.submit()]).result() == [2, 2]


# -- code that blocks its loop ------------------------------------------------------------------------------------


async def test_a_sync_call_that_blocks_the_loop_is_named_and_told_to_submit(caplog: pytest.LogCaptureFixture) -> None:
    slow = task(name="parse")(lambda: time.sleep(0.06))
    with temporary_settings(blocking_warning_seconds=0.05):
        slow()
    (record,) = [record for record in caplog.records if "blocked the event loop" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert "'parse'" in record.getMessage()
    assert "await parse.submit(...)" in record.getMessage()


async def test_nothing_is_said_of_a_call_that_is_quick_or_runs_in_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    slow = task(lambda: time.sleep(0.06))
    with temporary_settings(blocking_warning_seconds=0.05):
        add_one(1)
        await slow.submit()
        await anyio.to_thread.run_sync(slow)
    slow()  # within the default of 0.1 s
    assert "blocked" not in caplog.text


async def test_a_retry_delay_that_blocks_the_loop_is_told_as_well(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    @task(name="fetch", retries=1, retry_delay_seconds=0.06)
    def flaky() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("again")

    with temporary_settings(blocking_warning_seconds=0.05):
        flaky()
    assert "'fetch' blocked the event loop" in caplog.text


def test_nothing_is_said_in_plain_code(caplog: pytest.LogCaptureFixture) -> None:
    with temporary_settings(blocking_warning_seconds=0.01):
        task(lambda: time.sleep(0.02))()
    assert "blocked" not in caplog.text


# -- async hooks and tasks of sync code ---------------------------------------------------------------------------


async def test_the_code_of_a_thread_is_not_told_that_the_loop_of_its_caller_runs_there() -> None:
    """anyio keeps the running library's name in the context, which a body in a thread inherits."""

    async def inner() -> str:
        await anyio.sleep(0)
        return threading.current_thread().name

    @task
    def own_loop() -> str:
        return anyio.run(inner)

    assert "worker" in await own_loop.submit()


async def test_async_hooks_of_an_inline_call_run_on_a_loop_of_the_same_kind() -> None:
    seen: list[Any] = []

    async def hook(task: Any, run: Any, state: Any) -> None:
        await anyio.sleep(0)
        seen.append((run.name, state.name))

    @task(on_running=hook, on_completion=hook)
    def inline() -> None:
        assert len(seen) % 2 == 1

    inline()
    assert [name for _, name in seen] == ["Running", "Completed"]


def test_a_sync_flow_may_wait_for_async_tasks_in_plain_code() -> None:
    @flow
    def pipeline() -> list[int]:
        return add_one.map(add_one.map([one.submit(), one.submit()])).result()

    assert pipeline() == [3, 3]


async def test_a_sync_flow_inline_on_a_loop_may_wait_for_its_runs() -> None:
    @flow
    def pipeline() -> int:
        return add_one.submit(one.submit()).result()

    with temporary_settings(blocking_warning_seconds=30):
        assert pipeline() == 2
