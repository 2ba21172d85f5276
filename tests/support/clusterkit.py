"""Real clusters, and what holds of every runner of one: a class of tests, for a `runner` fixture."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy
import pytest

from asynctask import Runtime, ThreadPoolTaskRunner, flow, get_client, get_run_logger, tags, task
from asynctask.errors import CancelledRun, SerializationError, TaskTimeoutError, WorkerLostError
from asynctask.runtime import flow_run, task_run
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from testkit import until


def on(runner: Any, **options: Any) -> Runtime:
    return Runtime(store=MemoryStore(), task_runner=runner, **options)


#: A cluster of somebody else's, in a process of its own: the leak check counts what is in this one.
CLUSTER = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", resources={"GPU": 1},
        scheduler_kwargs={"allowed_failures": int(sys.argv[1])},
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@contextlib.contextmanager
def dask_cluster(folder: Path, allowed_failures: int = 0) -> Iterator[str]:
    (folder / "cluster.py").write_text(CLUSTER)
    command = [sys.executable, str(folder / "cluster.py"), str(allowed_failures)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            import distributed  # 1 s, also in workers that import this file

            address = process.stdout.readline().strip()
            with distributed.Client(address, set_as_default=False) as client:
                client.submit(os.getpid).result()  # Dask's own threads, which it keeps for the process
            yield address
        finally:
            process.stdin.close()
            process.wait(20)


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """Somebody else's: it takes 4 s to start."""
    import ray  # 1 s

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", resources={"tool": 1})
    yield
    ray.shutdown()


@task
def pid(*_: object) -> int:
    return os.getpid()


@task
async def async_pid() -> int:
    await anyio.sleep(0)
    return os.getpid()


@task
def squares(count: int) -> Iterator[int]:
    for number in range(count):
        yield number**2


@task
def give(value: Any) -> Any:
    return value


@task
def look_around() -> list[Any]:
    return [
        task_run.id, task_run.name, task_run.tags, task_run.run_count, task_run.task_name, task_run.flow_run_id,
        flow_run.id, flow_run.name, flow_run.flow_name,
    ]  # fmt: skip


@task(log_prints=True)
def talk(count: int) -> None:
    for number in range(count):
        print("printed", number)
        get_run_logger().warning("logged %s", number)


@task
def fail() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        outer = ValueError("outer")
        outer.add_note("a note")
        raise outer from error


@task
def stuck(path: str) -> None:
    """Can be interrupted, or killed."""
    Path(path).write_text(f"{os.getpid()}\n")
    try:
        while True:
            time.sleep(0.005)
    finally:
        Path(f"{path}-left").touch()


@task
async def async_stuck(path: str) -> None:
    await anyio.Path(path).write_text(f"{os.getpid()}\n")
    try:
        await anyio.sleep_forever()
    finally:
        os.mkdir(f"{path}-left")


@task
def die(counter: str, survive: int = 99) -> str:
    """Killed as the system would, until it has tried so often."""
    with open(counter, "a") as file:
        file.write("x")
    if len(Path(counter).read_text()) <= survive:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@task
def nested(x: int) -> int:
    return inner(x) + inner.submit(x).result()


@task
def inner(x: int) -> int:
    return x + 1


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class OnCluster:
    #: Whether a body is ended by killing its worker, or by interrupting it there.
    kills = False

    async def test_sync_and_async_bodies_and_generators_run_in_other_processes(self, runner):
        async with on(runner) as runtime:
            assert os.getpid() not in (await pid.submit(), await async_pid.submit())
            assert await squares.submit(4) == [0, 1, 4, 9]
            assert pid() == os.getpid(), "a call runs here, as any does"
            assert not runtime.runs

    async def test_map_gives_the_results_in_order_from_several_workers(self, runner):
        async with on(runner):
            assert await give.map(range(40)) == list(range(40))
            pids = await task(lambda _: time.sleep(0.05) or os.getpid(), name="slow").map(range(8))
        assert len(set(pids)) == 2

    async def test_a_stream_has_no_more_in_flight_than_it_may(self, runner):
        pulled = []

        def numbers() -> Iterator[int]:
            for number in range(10_000_000):
                pulled.append(number)
                yield number

        async with on(runner):
            seen = []
            async for value in give.stream(numbers(), concurrency=4, ordered=True):
                seen.append(value)
                if value == 20:
                    break
        assert seen == list(range(21))
        assert len(pulled) <= 21 + 5

    async def test_lambdas_closures_and_local_classes_travel(self, runner):
        offset = 5

        class Pair:
            def __init__(self, a: int) -> None:
                self.a = a

        async with on(runner):
            assert await task(lambda x: x + offset, name="add").submit(1) == 6
            pair = await task(lambda x: Pair(x), name="make").submit(3)
            assert isinstance(pair, Pair)
            assert pair.a == 3

    async def test_large_bytes_and_arrays_come_back_equal_and_writable(self, runner):
        array = numpy.arange(300_000)
        data = os.urandom(1_000_000)

        def change(array: Any) -> Any:
            array[0] = 5
            return array

        async with on(runner):
            assert await give.submit(data) == data
            assert await give.submit(bytearray(data)) == bytearray(data)
            back = await task(change).submit(array)
            assert back[0] == 5
            assert array[0] == 0
            assert (back[1:] == array[1:]).all()
            back[0] = 7

    async def test_a_body_finds_the_run_that_it_is_of(self, runner):
        @flow
        async def around() -> Any:
            with tags("a", "b"):
                future = look_around.submit()
            return [future.run.id, future.run.name, flow_run.id, flow_run.name, await future]

        async with on(runner):
            run_id, name, flow_id, flow_name, seen = await around()
        assert seen == [run_id, name, ["a", "b"], 1, "look_around", flow_id, flow_id, flow_name, "around"]

    async def test_what_bodies_print_and_log_comes_home_in_order_before_their_results_do(self, runner, caplog):
        caplog.set_level(logging.INFO)
        async with on(runner):
            futures = talk.map([20] * 4)
            await futures
            async with get_client() as client:
                kept = [await client.read_logs(future.task_run_id) for future in futures]
        expected = [text for number in range(20) for text in (f"printed {number}", f"logged {number}")]
        for future, lines in zip(futures, kept, strict=True):
            assert [one.message for one in lines] == expected
            records = [one for one in caplog.records if getattr(one, "task_run_name", None) == future.name]
            assert [one.getMessage() for one in records if one.levelno >= logging.INFO] == expected

    async def test_an_exception_comes_home_with_its_cause_its_notes_and_where_it_was_raised(self, runner):
        async with on(runner):
            with pytest.raises(ValueError, match="outer") as caught:
                await fail.submit()
        assert "KeyError: 'inner'" in str(caught.value.__cause__)
        assert caught.value.__notes__[0] == "a note"
        assert "in fail" in caught.value.__notes__[-1]

    async def test_what_cannot_be_pickled_is_refused_with_the_name_of_the_argument(self, runner):
        async with on(runner):
            with pytest.raises(SerializationError, match=r"argument 'value' \(.*cannot be sent"):
                await give.submit(threading.Lock())
            with pytest.raises(TypeError, match=r"the result, of type .*cannot be sent home"):
                await task(lambda: threading.Lock(), name="lock").submit()

    @pytest.mark.parametrize("body", [stuck, async_stuck], ids=["sync", "async"])
    async def test_a_timeout_ends_the_body_and_its_worker_can_be_used_again(self, runner, tmp_path, body):
        path = tmp_path / "pid"
        async with on(runner):
            await pid.map(range(4))
            future = body.with_options(timeout_seconds=1.5).submit(str(path))
            with pytest.raises(TaskTimeoutError):
                await future
            assert future.state.name == "TimedOut"
            await self.ended(path)
            assert await give.map(range(8)) == list(range(8))

    @pytest.mark.parametrize("body", [stuck, async_stuck], ids=["sync", "async"])
    async def test_a_cancelled_body_ends_and_the_next_run_finds_a_worker(self, runner, tmp_path, body):
        path = tmp_path / "pid"
        async with on(runner):
            future = body.submit(str(path))
            await until(lambda: path.exists() and path.read_text())
            future.cancel()
            with pytest.raises(CancelledRun):
                await future
            await self.ended(path)
            assert await give.map(range(8)) == list(range(8))

    async def ended(self, path: Path) -> None:
        if self.kills:
            killed = int(await anyio.Path(path).read_text())
            await until(lambda: not is_running(killed))
        else:
            await until(Path(f"{path}-left").exists)

    async def test_what_was_cancelled_before_it_began_never_begins(self, runner, tmp_path):
        async with on(runner):
            before = [stuck.submit(str(tmp_path / str(number))) for number in range(2)]
            await until(lambda: all((tmp_path / str(number)).exists() for number in range(2)))
            waiting = stuck.submit(str(tmp_path / "never"))
            for future in (waiting, *before):
                future.cancel()
            for future in (waiting, *before):
                await future.wait_async()
            assert await give.submit(1) == 1
        assert not (tmp_path / "never").exists()

    async def test_a_lost_worker_ends_its_run_crashed_and_no_other(self, runner, tmp_path):
        async with on(runner):
            future = die.submit(str(tmp_path / "count"))
            with pytest.raises(WorkerLostError, match="was lost"):
                await future
            assert future.state.is_crashed()
            assert (tmp_path / "count").read_text() == "x"
            assert await give.map(range(8)) == list(range(8))

    async def test_a_lost_attempt_is_retried_by_us_alone(self, runner, tmp_path):
        async with on(runner):
            future = die.with_options(retries=2).submit(str(tmp_path / "count"), survive=1)
            assert await future == "survived"
            assert future.run.run_count == 2
            names = [state.name for state in future.run.states]
        assert names == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]
        assert (tmp_path / "count").read_text() == "xx"

    async def test_runs_that_a_body_starts_are_recorded_in_the_same_store(self, runner, tmp_path):
        async with Runtime(store=SQLiteStore(tmp_path / "runs.db"), task_runner=runner):
            future = nested.submit(1)
            assert await future == 4

            async def found() -> list[Any]:
                async with get_client() as client:
                    runs = await client.read_task_runs(task_name="inner")
                return [(run.parent_task_run_id, run.state_name) for run in runs]

            with anyio.fail_after(5):
                while await found() != [(future.task_run_id, "Completed")] * 2:
                    await anyio.sleep(0.01)

    async def test_runners_can_be_mixed_in_one_flow(self, runner):
        on_threads = pid.with_options(task_runner=ThreadPoolTaskRunner(1))

        @flow(task_runner=runner)
        async def mixed() -> list[int]:
            return [await pid.submit(), await on_threads.submit()]

        async with Runtime(store=MemoryStore()):
            there, here = await mixed()
        assert here == os.getpid() != there

    def test_sync_code_submits_to_it_too(self, runner):
        assert pid.with_options(task_runner=runner).submit().result(timeout=30) != os.getpid()
