"""What is to be seen of the event loops: starting, cancelling at any moment, uvloop, guest mode."""

import asyncio
import threading
from typing import Any

import anyio
import pytest
import trio
import uvloop

from asynctask import TaskFuture, flow, task
from asynctask.loop_threads import LoopThread
from asynctask.loops import current_loop
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


@flow
def both(x: int) -> list[int]:
    return [double.submit(x).result(timeout=20), triple.submit(x).result(timeout=20)]


async def test_a_run_cancelled_before_its_first_step_ends_cancelled_and_tells_its_hooks():
    told: list[str] = []
    ran: list[int] = []

    @task(on_cancellation=lambda task, run, state: told.append(state.name))
    async def work(number: int) -> None:
        await anyio.sleep(60)
        ran.append(number)

    async with fresh() as rt:
        futures = work.map(range(5))
        for future in futures:
            assert future.cancel()
        for future in futures:
            with anyio.fail_after(20):
                assert (await future.wait_async()).is_cancelled()
        assert rt.runs == []
    assert (told, ran) == (["Cancelled"] * 5, [])


async def test_a_run_cancelled_from_a_thread_just_as_it_is_submitted_ends_cancelled():
    async with fresh():
        for _ in range(20):
            futures: list[TaskFuture[None]] = []
            await anyio.to_thread.run_sync(lambda: futures.append(forever.submit()))  # noqa: B023
            futures[0].cancel()
            with anyio.fail_after(20):
                assert (await futures[0].wait_async()).is_cancelled()


async def test_a_caller_cancelled_before_its_call_began_makes_no_run():
    async with fresh() as rt:
        with anyio.CancelScope() as scope:
            scope.cancel()
            call = double(1)
            await anyio.lowlevel.checkpoint()
        call.close()  # a coroutine of the user's that was never awaited
        assert rt.runs == []


async def test_cancelling_reaches_a_run_at_every_await_it_comes_to():
    stops: list[str] = []

    @task
    async def work() -> None:
        try:
            await anyio.sleep(60)
        finally:
            stops.append("first")
            try:
                await anyio.sleep(0)
            except BaseException:
                stops.append("second")
                raise

    async with fresh():
        future = work.submit()
        await until(lambda: future.state.is_running())
        await anyio.sleep(0.002)
        future.cancel()
        await future.wait_async()
    # anyio's cancellation stays; asyncio's own, which ends a child here, is delivered once
    assert stops in (["first"], ["first", "second"])
    assert future.state.is_cancelled()


def test_everything_works_on_uvloop():
    async def main() -> list[Any]:
        assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
        async with fresh() as rt:
            slow = forever.submit()
            got = [await double(1), await double.submit(2), await triple.submit(3), both(4), await double.map([5, 6])]
            slow.cancel()
            assert (await slow.wait_async()).is_cancelled()
            assert [await anyio.to_thread.run_sync(both, 7)] == [[14, 21]]
            assert rt.runs == []
        return got

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == [2, 4, 9, [8, 12], [10, 12]]


def test_loops_that_follow_each_other_in_one_thread_are_told_apart():
    async def main() -> int:
        return await double.submit(1) + await triple.submit(1)

    for backend in ("asyncio", "trio", "asyncio", "trio"):
        assert anyio.run(main, backend=backend) == 5


def test_trio_as_a_guest_of_asyncio_runs_tasks_on_the_loop_of_whoever_submits():
    """Both loops run in one thread; which one is meant is decided by the task under way."""
    seen: list[Any] = []

    @task
    async def which() -> str:
        await anyio.sleep(0)
        loop = current_loop()
        assert loop is not None
        return loop.backend

    async def guest() -> None:
        async with fresh():
            seen.extend([await which.submit(), await which(), await triple.submit(1)])

    async def host() -> None:
        ended = asyncio.get_running_loop().create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        seen.append(await which.submit())
        (await ended).unwrap()

    asyncio.run(host())
    assert sorted(map(str, seen)) == ["3", "asyncio", "trio", "trio"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_in_a_thread_ends_when_told_to(backend):
    thread = LoopThread("loop-test", backend)
    assert thread.loop.backend == backend
    called = threading.Event()
    assert thread.loop.call_soon(called.set)
    assert called.wait(20)
    thread.stop(5)
    assert thread.loop.is_closed()
    assert not thread.loop.call_soon(called.set)
    assert not any(one.name == "loop-test" for one in threading.enumerate())
