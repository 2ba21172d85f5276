"""Runtimes: entering, closing, draining, what belongs to which, and what is left in memory."""

import asyncio
import signal
import threading
import time
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from asynctask import Runtime, TaskFuture, ThreadPoolTaskRunner, get_client, task, temporary_settings
from asynctask.errors import (
    BlockingWaitError,
    CancelledRun,
    CrashedRun,
    OptionError,
    RuntimeClosedError,
    RuntimeInUseError,
)
from asynctask.runs import Journal
from asynctask.scopes import close_default
from asynctask.stores.base import RunFilter
from asynctask.stores.memory import MemoryStore
from testkit import fresh, until


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


@task
async def short() -> str:
    await anyio.sleep(0.02)
    return "done"


def ids_in(runtime: Runtime) -> set[Any]:
    return {run.id for run in runtime.runs}


# -- which runtime -------------------------------------------------------------------------------------------------


async def test_runs_belong_to_the_runtime_entered_last_in_this_context():
    async with fresh(name="outer") as outer:
        first = forever.submit()
        async with fresh(name="inner") as inner:
            second = forever.submit()
            assert (ids_in(outer), ids_in(inner)) == ({first.task_run_id}, {second.task_run_id})
            second.cancel()
            await second.wait_async()
        third = forever.submit()
        assert ids_in(outer) == {first.task_run_id, third.task_run_id}
        for future in (first, third):
            future.cancel()


async def test_a_runtime_entered_inside_a_run_is_used_in_that_block_only():
    @task
    async def own_runtime() -> list[int]:
        async with fresh() as rt:
            inside = double.submit(1)
            counts = [len(rt.runs)]
            await inside
        counts.append(await double.submit(2))
        return counts

    async with fresh():
        assert await own_runtime.submit() == [1, 4]


async def test_a_thread_without_the_context_uses_the_runtime_entered_last_in_the_process():
    got: list[Any] = []

    def in_thread() -> None:  # threading.Thread copies no context
        future = double.submit(4)
        got.extend([future.run.journal is rt.journal, future.result(timeout=20)])

    async with fresh() as rt:
        thread = threading.Thread(target=in_thread)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert got == [True, 8]


def test_without_a_runtime_a_default_one_opens_and_can_be_closed():
    before = threading.active_count()
    future = double.submit(1)
    assert future.result() == 2
    assert threading.active_count() > before
    close_default()
    assert threading.active_count() == before
    assert double.submit(1).result() == 2  # the next use opens another


def test_fifty_threads_at_once_open_one_default_runtime_and_get_their_own_results():
    together = threading.Barrier(50)
    got: list[list[int]] = []

    def work(number: int) -> None:
        together.wait(10)
        futures = [(double if n % 2 else triple).submit(n) for n in range(number, number + 10)]
        got.append([future.result(timeout=20) - n * (2 if n % 2 else 3) for n, future in enumerate(futures, number)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [[0] * 10] * 50
    assert sum("-loop-" in thread.name for thread in threading.enumerate()) == 1


async def test_ten_thousand_submits_at_once():
    async with fresh() as rt:
        futures = double.map(range(10_000))
        assert await futures == [n * 2 for n in range(10_000)]
        assert rt.runs == []


# -- entering and leaving ------------------------------------------------------------------------------------------


async def test_leaving_waits_for_what_runs():
    async with fresh():
        futures = [short.submit(), triple.submit(1)]
    assert [future.result() for future in futures] == ["done", 3]


async def test_what_does_not_end_within_the_shutdown_timeout_is_cancelled():
    async with fresh(shutdown_timeout=0.05):
        good, slow = short.submit(), forever.submit()
    assert good.result() == "done"
    with pytest.raises(CancelledRun, match=r"did not end within 0\.05 s"):
        slow.result()


async def test_the_shutdown_timeout_comes_from_the_settings():
    with temporary_settings(shutdown_timeout=0.01):
        async with fresh():
            slow = forever.submit()
    assert slow.state.is_cancelled()


async def test_a_block_left_by_an_exception_cancels_what_runs():
    start = time.monotonic()
    futures: list[TaskFuture[Any]] = []

    async def main() -> None:
        async with fresh():
            futures.extend([forever.submit(), short.submit()])
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        await main()
    assert all(future.state.is_cancelled() for future in futures)
    assert time.monotonic() - start < 5


async def test_runs_that_drain_may_still_start_runs():
    @task
    async def parent() -> int:
        await anyio.sleep(0.01)
        return await double.submit(2) + sum(await double.map([1, 1]))

    async with fresh():
        future = parent.submit()
    assert future.result() == 8


async def test_nothing_new_is_taken_while_it_drains():
    rt = fresh()
    future = None
    async with anyio.create_task_group() as group:

        async def closing() -> None:
            nonlocal future
            async with rt:
                future = short.submit()

        group.start_soon(closing)
        await until(lambda: rt.is_closing)
        async with fresh():  # so that it is `rt` that refuses, and not that there is none
            pass
        with pytest.raises(RuntimeClosedError, match="closed"):
            rt.root.submit(future.run)  # type: ignore[union-attr]
    assert rt.is_closed


async def test_cancelled_while_it_drains_it_cancels_what_runs_and_closes():
    rt = fresh(shutdown_timeout=60)
    futures: list[TaskFuture[None]] = []
    start = time.monotonic()
    async with anyio.create_task_group() as group:

        async def main() -> None:
            async with rt:
                futures.append(forever.submit())

        group.start_soon(main)
        await until(lambda: rt.is_closing)
        group.cancel_scope.cancel()
    assert rt.is_closed
    assert futures[0].state.is_cancelled()
    assert time.monotonic() - start < 5


@pytest.mark.asyncio
async def test_cancelled_again_and_again_by_asyncio_it_still_closes():
    rt = fresh(shutdown_timeout=60)
    release = asyncio.Event()

    @task
    async def slow_to_stop() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await release.wait()

    async def main() -> None:
        async with rt:
            slow_to_stop.submit()

    outer = asyncio.create_task(main())
    await until(lambda: rt.is_closing)
    for _ in range(3):
        outer.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert rt.is_closed
    assert rt.runs == []
    release.set()


async def test_closing_twice_is_closing_once():
    rt = fresh()
    async with rt:
        future = short.submit()
        await rt.aclose()
        assert future.done()
        await rt.aclose()
    await rt.aclose()
    rt.close()
    assert rt.is_closed


async def test_a_closed_runtime_refuses_work_and_says_what_to_do():
    async with fresh(name="mine") as rt:
        await rt.aclose()
        calls = [lambda: double.submit(1), lambda: triple(1), lambda: double(1), lambda: triple.map([1])]
        for use in (*calls, get_client):
            with pytest.raises(RuntimeClosedError, match=r"'mine' is closed.*async with Runtime"):
                use()


async def test_a_runtime_can_be_entered_again_after_it_was_left():
    rt = fresh()
    for _ in range(3):
        async with rt:
            assert await double.submit(1) == 2
            assert await triple.submit(1) == 3
        assert rt.is_closed


async def test_a_runtime_cannot_be_entered_twice_nor_on_two_loops():
    async def enter() -> None:
        async with rt:
            pass

    async with fresh(name="mine") as rt:
        with pytest.raises(RuntimeInUseError, match="'mine'"):
            await enter()
        with pytest.raises(RuntimeInUseError, match="'mine'"):
            await anyio.to_thread.run_sync(anyio.run, enter)
        assert await double.submit(1) == 2  # and it still works


async def test_the_blocking_close_refuses_to_wait_on_the_loop_of_its_runs():
    async with fresh() as rt:
        future = short.submit()
        with pytest.raises(BlockingWaitError, match="aclose"):
            rt.close()
        assert await future == "done"


def test_what_a_runtime_cannot_be_made_of_is_refused():
    for wrong in (-1, "5", float("nan")):
        with pytest.raises(OptionError, match=r"'rt': shutdown_timeout must be .* not negative, not"):
            Runtime(name="rt", shutdown_timeout=wrong)
    for store in ("redis://x", 5, MemoryStore):
        with pytest.raises(OptionError, match="memory://"):
            Runtime(store=store)
    for runner in ("threads", ThreadPoolTaskRunner):
        with pytest.raises(OptionError, match=r"'rt': task_runner must be a task runner with executor"):
            Runtime(name="rt", task_runner=runner)


async def test_closing_joins_the_threads():
    before = set(threading.enumerate())
    async with fresh():
        await triple.map(range(5))
        started = [thread for thread in threading.enumerate() if thread.name.startswith("asynctask-worker")]
        assert started
    assert not any(thread.is_alive() for thread in started)
    assert not {thread for thread in threading.enumerate() if thread.name.startswith("asynctask")} - before


async def test_a_body_stuck_in_its_thread_does_not_keep_the_runtime_from_closing():
    gate, started = threading.Event(), threading.Event()

    @task
    def stuck() -> None:
        started.set()
        for _ in range(2):
            time.sleep(0)
        blocked_in_c(gate)

    async with fresh(shutdown_timeout=0.01) as rt:
        future = stuck.submit()
        await until(started.is_set)
        start = time.monotonic()
    assert time.monotonic() - start < 3
    assert future.state.is_cancelled()
    assert len(rt.abandoned_threads) == 1
    gate.set()
    await until(lambda: not rt.abandoned_threads)


def blocked_in_c(gate: threading.Event) -> None:
    lock = threading.Lock()
    with lock:
        threading.Thread(target=lambda: (gate.wait(10), lock.release())).start()
        lock.acquire()


@pytest.mark.asyncio
async def test_a_run_that_will_not_stop_is_given_up_as_crashed(monkeypatch, caplog):
    monkeypatch.setattr("asynctask.scopes.LAST_SECONDS", 0.02)
    stop = False

    @task
    async def stubborn() -> None:
        while not stop:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                pass

    async with fresh(shutdown_timeout=0.01):
        future = stubborn.submit()
    with pytest.raises(CrashedRun, match="would not stop"):
        future.result()
    assert "given up" in caplog.text
    stop = True


async def test_no_signal_handler_is_installed():
    before = [signal.getsignal(number) for number in signal.valid_signals()]

    @task
    def work() -> list[Any]:
        return [signal.getsignal(number) for number in signal.valid_signals()]

    async with Runtime(store=MemoryStore()):
        assert await work.submit() == before
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before


async def test_leaving_flushes_the_store_after_the_last_run_and_before_the_threads_end():
    seen: list[Any] = []

    class Watched(MemoryStore):
        async def detach(self, journal: Journal) -> None:
            seen.append([run.state_name for run in await self.read_runs(RunFilter(), 10)])
            seen.append(any(thread.name.startswith("asynctask-worker") for thread in threading.enumerate()))

    @task
    def work() -> None: ...

    async with Runtime(store=Watched()):
        work.submit(), work.submit()
    assert seen == [["Completed", "Completed"], True]
