"""Calls that go to a worker together: `map(batch_size=)`, and what a runner makes of short bodies by itself."""

import itertools
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from asynctask import ProcessPoolTaskRunner, Runtime, get_client, get_run_logger, tags, task, unmapped
from asynctask.errors import CancelledRun, OptionError, TaskTimeoutError, WorkerLostError
from asynctask.stores.memory import MemoryStore

pytestmark = pytest.mark.timeout(60)


def on_processes(workers: int = 1, **options: Any) -> Runtime:
    return Runtime(store=MemoryStore(), task_runner=ProcessPoolTaskRunner(workers, **options))


@task
def pid(_: int) -> int:
    return os.getpid()


@task
def doubled(number: int) -> int:
    return 2 * number


async def test_as_many_as_the_batch_size_says_are_sent_to_a_worker_together(tmp_path):
    """Of two workers each gets a batch at once, though the bodies are known to be long."""

    @task
    def meets(name: str, other: str) -> None:
        (tmp_path / name).touch()
        while not (tmp_path / other).exists():
            time.sleep(0.01)

    @task
    def long(_: int) -> int:
        time.sleep(0.03)
        return os.getpid()

    async with on_processes(2):
        await meets.map(["one", "other"], ["other", "one"])  # now there are two
        several = await long.map(range(16), batch_size=4)
        assert [len(set(several[start : start + 4])) for start in (0, 4, 8, 12)] == [1, 1, 1, 1]
        assert len(set(several)) == 2


async def test_each_of_a_batch_is_a_run_with_its_own_name_state_history_and_result():
    @task(task_run_name="half-{number}")
    def half(number: int) -> float:
        if number % 3 == 2:
            raise ValueError(f"{number} is odd enough")
        return number / 2

    async with on_processes():
        futures = half.map(range(9), batch_size=5)
        for number, future in enumerate(futures):
            state = await future.wait_async()
            run = future.run
            assert run.name == f"half-{number}"
            assert [one.name for one in run.states] == ["Pending", "Running", state.name]
            assert [one.time for one in run.states] == sorted({one.time for one in run.states})
            if number % 3 == 2:
                with pytest.raises(ValueError, match=f"{number} is odd enough"):
                    await future
            else:
                assert await future == number / 2
        async with get_client() as client:
            assert await client.count(state_name="Completed") == 6
            assert await client.count(state_name="Failed") == 3


async def test_what_fails_in_a_batch_is_retried_by_itself(tmp_path):
    @task(retries=2)
    def fails_once(number: int, folder: str) -> int:
        marker = Path(folder, str(number))
        if number % 2 and not marker.exists():
            marker.touch()
            raise ValueError
        return number

    async with on_processes():
        futures = fails_once.map(range(20), str(tmp_path), batch_size=10)
        assert await futures == list(range(20))
        assert [one.run.run_count for one in futures] == [1, 2] * 10


async def test_bodies_of_a_batch_find_their_own_run_and_what_they_log_is_theirs():
    @task(log_prints=True, tags=["deep"])
    def tells(number: int) -> str:
        print("number", number)
        get_run_logger().info("again %d", number)
        return str(number)

    async with on_processes() as runtime:
        with tags("wide"):
            futures = tells.map(range(30), batch_size=30)
        await futures
        assert {frozenset(one.run.tags) for one in futures} == {frozenset(("deep", "wide"))}
        await runtime.flush()
        async with get_client() as client:
            for number, future in enumerate(futures):
                logs = await client.read_logs(future.task_run_id)
                assert [one.message for one in logs] == [f"number {number}", f"again {number}"]


async def test_arguments_of_every_kind_go_in_batches():
    @task
    def given(*values: object, **more: object) -> tuple[object, ...]:
        return (*values, *more.values())

    large = os.urandom(100_000)
    several = [1, -(1 << 90), 2.5, None, True, "text", "\udc80", b"bytes", "x" * 10_000, large, [1, {2}], {"a": (3,)}]
    async with on_processes():
        assert await given.map(several, named=unmapped("n"), batch_size=100) == [(one, "n") for one in several]


async def test_an_argument_that_changes_after_the_call_is_sent_as_it_was():
    async with on_processes():
        await doubled.submit(1)
        values = [[number] for number in range(20)]
        futures = task(lambda value: value, name="same").map(values, batch_size=20)
        await anyio.sleep(0)
        for value in values:
            value.append(0)
        for number, future in enumerate(futures):  # on trio, some had not been made yet
            assert await future in ([number], [number, 0])


async def test_short_bodies_are_sent_together_unasked():
    """Neighbours are with one worker; sent by themselves, every other one would be with the other."""
    async with on_processes(2):
        await pid.map(range(2_000))  # how long they take is known
        found = await pid.map(range(5_000))
        assert len(set(found)) == 2
        assert sum(one != other for one, other in itertools.pairwise(found)) < 1_000


async def test_what_is_behind_a_long_body_is_taken_back_and_goes_to_another_worker():
    """All were short so far, so that they are sent together; then one takes seconds."""
    nap = task(lambda seconds: time.sleep(seconds) or seconds, name="nap")
    async with on_processes(2):
        for _ in range(40):
            await nap.submit(0)
        with anyio.fail_after(20):
            futures = [*nap.map([0] * 5), nap.submit(30), *nap.map([0] * 500)]
            assert [await one for one in futures[:5]] == [0] * 5
            assert [await one for one in futures[6:]] == [0] * 500
            assert futures[5].state.is_running()
            futures[5].cancel()
            with pytest.raises(CancelledRun):
                await futures[5]


async def test_what_is_taken_back_is_called_once_and_every_result_is_that_of_its_own_run(tmp_path):
    """The next calls were sent while the worker still skipped those taken back, and it called them after all."""
    notes = tmp_path / "notes"

    @task
    def noted(number: int) -> int:
        with open(notes, "a") as file:
            file.write(f"{number}\n")
        if number % 60 == 7:
            time.sleep(0.08)
        return number

    async with on_processes(2):
        await noted.map(range(-100, 0))
        assert await noted.map(range(600)) == list(range(600))
    assert Counter(map(int, notes.read_text().split())) == dict.fromkeys(range(-100, 600), 1)


async def test_the_one_that_kills_its_worker_in_a_batch_fails_alone_and_no_body_is_called_twice(tmp_path):
    notes = tmp_path / "notes"

    @task
    def noted(number: int) -> int:
        with open(notes, "a") as file:
            file.write(f"{number}\n")
        if number in (7, 40):
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    async with on_processes(2):
        states = [await one.wait_async() for one in noted.map(range(100), batch_size=25)]
        assert [number for number, state in enumerate(states) if not state.is_completed()] == [7, 40]
        assert states[7].is_crashed()
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            states[40].result()
    assert Counter(map(int, notes.read_text().split())) == dict.fromkeys(range(100), 1)


@pytest.mark.parametrize("seed", range(3))
async def test_runs_cancelled_at_any_moment_end_cancelled_or_completed_and_the_others_completed(tmp_path, seed):
    """Bodies count themselves in and out: none that its run does not call cancelled was left in the middle."""
    notes = tmp_path / "notes"

    @task
    def noted(number: int) -> int:
        with open(notes, "a") as file:
            file.write(f"in {number}\n")
        time.sleep(0.0005 * (number % 3))
        with open(notes, "a") as file:
            file.write(f"out {number}\n")
        return number

    async with on_processes(2):
        await noted.map(range(-40, 0))
        futures = noted.map(range(300), batch_size=30 if seed else None)
        for number in range(seed, 300, 37):
            await futures[number - number % 30].wait_async(timeout=0.02)
            futures[number].cancel()
        states = [await one.wait_async() for one in futures]
    cancelled = {number for number, state in enumerate(states) if state.is_cancelled()}
    assert cancelled <= set(range(seed, 300, 37))
    assert {number for number, state in enumerate(states) if state.is_completed()} == set(range(300)) - cancelled
    counted = Counter(notes.read_text().splitlines())
    for number in set(range(300)) - cancelled:
        assert (counted[f"in {number}"], counted[f"out {number}"]) == (1, 1)


async def test_a_timeout_in_a_batch_counts_from_the_start_of_its_own_body_and_ends_it_alone():
    nap = task(lambda seconds: time.sleep(seconds) or seconds, name="nap", timeout_seconds=1.5)
    async with on_processes():
        await nap.submit(0)
        futures = nap.map([0.6, 0.6, 0.6, 0.6, 30, 0.01], batch_size=6)
        states = [await one.wait_async() for one in futures]
        assert [one.name for one in states] == ["Completed"] * 4 + ["TimedOut", "Completed"]
        with pytest.raises(TaskTimeoutError):
            await futures[4]


async def test_a_worker_is_replaced_in_time_though_calls_go_together():
    async with on_processes(1, max_tasks_per_child=7):
        several = await pid.map(range(40), batch_size=5)
        assert max(Counter(several).values()) <= 7
        assert len(set(several)) >= 6


async def test_leaving_the_runtime_with_a_batch_under_way_ends_every_run_of_it():
    nap = task(lambda seconds: time.sleep(seconds) or seconds, name="nap")
    with anyio.fail_after(30):
        async with on_processes() as runtime:
            futures = nap.map([0.01] * 50, batch_size=50)
            await futures[3]
        assert {one.state.name for one in futures} == {"Completed"}
        assert not runtime.journal.live


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "10"])
def test_a_batch_size_that_is_none_is_refused(size):
    with pytest.raises(OptionError, match=r"'doubled': map\(batch_size=\.\.\.\) must be a number from 1"):
        doubled.map([1], batch_size=size)


async def test_a_task_with_a_parameter_of_that_name_gets_it_as_an_argument():
    @task
    def train(model: str, batch_size: int = 1) -> tuple[str, int]:
        return model, batch_size

    async with on_processes():
        assert await train.map(["a", "b"], batch_size=[8, 16]) == [("a", 8), ("b", 16)]


async def test_a_batch_size_changes_nothing_on_threads_and_loops():
    async with Runtime(store=MemoryStore()):
        assert await doubled.map(range(10), batch_size=3) == [2 * number for number in range(10)]
        assert len(set(await task(lambda _: threading.get_ident(), name="thread").map(range(4), batch_size=4))) >= 1
