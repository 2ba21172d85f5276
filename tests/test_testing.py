"""Virtual time for users' own tests."""

import random
import threading
import time

import anyio
import pytest

from asynctask import Runtime, flow, get_client, task
from asynctask.errors import OptionError
from asynctask.runtime import task_run
from asynctask.scopes import runtime_here
from asynctask.stores.memory import MemoryStore
from asynctask.testing import VirtualClock, virtual_time

A_YEAR = 365 * 24 * 3600.0


@task(retries=12, retry_delay_seconds=A_YEAR / 12)
def fails_all_year() -> None:
    raise RuntimeError("again")


@task(retries=3, retry_delay_seconds=[1, 10, 100])
async def fails_often() -> int:
    if task_run.run_count < 4:
        raise ConnectionError("again")
    return task_run.run_count


def test_a_virtual_clock_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock(start=50.0)
    assert (clock.now(), clock.now(), clock.monotonic(), clock.elapsed) == (50.0, 50.0, 0.0, 0.0)
    clock.advance(2.5)
    clock.advance(0)
    assert (clock.now(), clock.monotonic(), clock.elapsed) == (52.5, 2.5, 2.5)
    assert clock.is_virtual


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan")])
def test_a_virtual_clock_does_not_go_back(seconds: float) -> None:
    clock = VirtualClock()
    with pytest.raises(OptionError, match="0 seconds or more"):
        clock.advance(seconds)
    assert clock.elapsed == 0


def test_threads_that_move_a_clock_at_once_all_move_it() -> None:
    clock = VirtualClock()
    threads = [threading.Thread(target=lambda: [clock.advance(1) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert clock.elapsed == 8000


def test_a_year_of_retries_takes_no_time() -> None:
    began = time.monotonic()
    with virtual_time() as clock:
        state = fails_all_year(return_state=True)
    assert state.is_failed()  # type: ignore[attr-defined]
    assert clock.elapsed == pytest.approx(A_YEAR)
    assert time.monotonic() - began < 5


async def test_an_async_block_works_on_either_loop() -> None:
    async with virtual_time() as clock:
        assert await fails_often() == 4
        assert await fails_often.submit() == 4
    assert clock.elapsed == 222


async def test_a_plain_block_works_on_a_loop_when_nothing_is_left_under_way() -> None:
    with virtual_time() as clock:
        assert await fails_often() == 4
    assert clock.elapsed == 111


def test_histories_show_the_virtual_time() -> None:
    with virtual_time(start=1000.0):
        fails_all_year(return_state=True)
        with get_client(sync_client=True) as client:
            [run] = client.read_task_runs()
    waits = [state for state in run.states if state.name == "AwaitingRetry"]
    assert len(waits) == 12
    assert run.states[0].time == pytest.approx(1000, abs=1)
    assert run.states[-1].time == pytest.approx(1000 + A_YEAR, abs=1)


def test_jitter_repeats_by_its_seed() -> None:
    jittery = fails_all_year.with_options(retry_jitter_factor=1)

    def elapsed(seed: int) -> float:
        with virtual_time(seed=seed) as clock:
            jittery(return_state=True)
        return clock.elapsed

    assert elapsed(1) == elapsed(1)
    assert elapsed(1) != elapsed(2)


def test_a_block_shares_neither_history_nor_limits() -> None:
    tagged = task(lambda: 1, name="tagged", tags=["tested"])
    with virtual_time(), get_client(sync_client=True) as client:
        client.create_concurrency_limit("tested", 0)
        assert tagged(return_state=True).is_cancelled()  # type: ignore[attr-defined]
        assert len(client.read_task_runs()) == 1
    with virtual_time(), get_client(sync_client=True) as client:
        assert client.read_task_runs() == []
        assert tagged() == 1


def test_threads_started_inside_and_tasks_submitted_inside_are_in_the_block() -> None:
    found: list[str] = []
    with virtual_time():
        thread = threading.Thread(target=lambda: found.append(runtime_here().name))
        thread.start()
        thread.join(timeout=20)
        submitted = task(lambda: runtime_here().name, name="submitted")
        found.append(submitted.submit().result(timeout=20))
    assert found == ["virtual", "virtual"]


def test_after_a_block_the_runtime_is_the_one_from_before() -> None:
    before = runtime_here()
    inside = []

    def use() -> None:
        with virtual_time():
            inside.append(runtime_here())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert runtime_here() is before
    assert inside[0] is not before
    assert inside[0].is_closed


def test_a_block_inside_a_block_is_another_world() -> None:
    with virtual_time() as outer:
        with virtual_time() as inner:
            fails_all_year(return_state=True)
        assert (outer.elapsed, inner.elapsed) == (0, pytest.approx(A_YEAR))
        fails_all_year(return_state=True)
        assert outer.elapsed == pytest.approx(A_YEAR)


def test_leaving_a_block_waits_for_what_was_submitted_in_it() -> None:
    release = threading.Event()

    @task
    def slow() -> str:
        release.wait(timeout=20)
        return "ended"

    with virtual_time():
        future = slow.submit()
        threading.Timer(0.05, release.set).start()
    assert future.done()
    assert future.result() == "ended"


async def test_an_async_block_waits_for_what_was_submitted_in_it() -> None:
    @task
    async def slow() -> str:
        await anyio.sleep(0.05)
        return "ended"

    async with virtual_time():
        future = slow.submit()
    assert future.done()
    assert future.result() == "ended"


async def test_timeouts_are_real() -> None:
    @task(timeout_seconds=0.02)
    async def hangs() -> None:
        await anyio.sleep(30)

    async with virtual_time() as clock:
        state = await hangs(return_state=True)
    assert state.name == "TimedOut"
    assert clock.elapsed == 0


def test_flows_wait_virtually_as_well() -> None:
    @flow(retries=2, retry_delay_seconds=A_YEAR)
    def fails() -> None:
        raise RuntimeError("again")

    with virtual_time() as clock:
        assert fails(return_state=True).is_failed()  # type: ignore[attr-defined]
    assert clock.elapsed == 2 * A_YEAR


async def test_clock_and_dice_can_be_given_to_a_runtime_of_ones_own() -> None:
    clock = VirtualClock()
    async with Runtime(store=MemoryStore(), clock=clock, source=random.Random(1)):
        assert await fails_often() == 4
    assert clock.elapsed == 111
