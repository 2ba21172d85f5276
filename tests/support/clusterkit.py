"""Real clusters, and what holds of runners of both: a class of tests, for a `runner` fixture."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy
import pytest

from asynctask import Runtime, ThreadPoolTaskRunner, clusters, dask_runner, flow, ray_runner, task
from asynctask.errors import WorkerLostError
from asynctask.stores.memory import MemoryStore
from asynctask.witnesses import Witness, attend
from testkit import fail, running


def on(runner: Any, **options: Any) -> Runtime:
    return Runtime(store=MemoryStore(), task_runner=runner, **options)


#: A cluster of somebody else's, in a process of its own: the leak check counts what is in this one.
CLUSTER = """
import sys
import dask
from distributed import LocalCluster

if __name__ == "__main__":
    # A worker that tests kill twice in 15 s would not come back.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"})
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
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            import distributed  # 1 s, also in workers that import this file

            address = process.stdout.readline().strip()
            with distributed.Client(address, set_as_default=False, timeout=60) as client:
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
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", resources={"tool": 1},
        # Ray ends none because it is idle: a worker that is gone was killed by a test.
        _system_config={"idle_worker_killing_time_threshold_ms": 600_000},
    )  # fmt: skip
    yield
    ray.shutdown()


@task
def pid(*_: object) -> int:
    return os.getpid()


@task
def give(value: Any) -> Any:
    return value


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
def die(counter: str, survive: int = 99) -> str:
    """Killed as the system would, until it has tried so often."""
    with open(counter, "a") as file:
        file.write("x")
    if len(Path(counter).read_text()) <= survive:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def heavy(path: Path, size: int = 10_000_000) -> Any:
    """A task that drags a closure of so many bytes along; who reads that, leaves a line with its process."""
    ballast = os.urandom(size)

    def read(path: str, ballast: bytes) -> bytes:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        return ballast

    class Noted:
        def __reduce__(self) -> Any:
            return read, (str(path), ballast)

    held = Noted()
    return task(lambda number: (len(held), number, os.getpid()), name="heavy")  # type: ignore[arg-type]


async def until_all_are_new(called: Any, before: set[int]) -> None:
    """Call it until none of the processes that did it before does it any more: a lost worker may take its time."""
    with anyio.fail_after(20):
        while {pid for _, _, pid in await called.map(range(8))} & before:
            await anyio.sleep(0.01)


class OnCluster:
    """What holds beside the contract of task runners."""

    async def test_bodies_run_side_by_side(self, runner):
        with Witness() as witness:
            async with on(runner):
                futures = [attend.submit(witness.port, 30) for _ in range(2)]
                await witness.until(2)
                witness.let_go()
                assert [await future for future in futures] == ["let go"] * 2

    async def test_a_large_closure_is_sent_once_and_read_once_by_each_worker(self, runner, tmp_path, monkeypatch):
        sent, kept = [], []

        def flat(parcel: Any) -> Any:
            made = clusters.flat(parcel)
            sent.append(len(pickle.dumps(made)))
            return made

        def keeping(keep: Any) -> Any:
            return lambda self, number, function: kept.append(function.size) or keep(self, number, function)

        for module, client in (dask_runner, dask_runner.DaskClient), (ray_runner, ray_runner.RayClient):
            monkeypatch.setattr(module, "flat", flat)
            monkeypatch.setattr(client, "keep", keeping(client.keep))
        async with on(runner):
            called = heavy(tmp_path / "readers")
            found = [await one for one in called.map(range(10))] + [await called.submit(number) for number in range(10)]
        assert [(size, number) for size, number, _ in found] == [(10_000_000, number % 10) for number in range(20)]
        readers = Counter(map(int, (tmp_path / "readers").read_text().split()))
        assert readers == dict.fromkeys({pid for _, _, pid in found}, 1)
        assert len(kept) == 1
        assert len(sent) == 20
        assert sum(sent) < 100_000

    async def test_a_worker_in_place_of_a_lost_one_finds_large_closures_as_well(self, runner, tmp_path):
        async with on(runner):
            called = heavy(tmp_path / "readers", 100_000)
            before = {pid for _, _, pid in await called.map(range(8))}
            for _ in range(2):
                with pytest.raises(WorkerLostError):
                    await die.submit(str(tmp_path / "count"))
            await until_all_are_new(called, before)

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

    async def test_an_exception_comes_home_with_its_cause_its_notes_and_where_it_was_raised(self, runner):
        async with on(runner):
            with pytest.raises(ValueError, match="outer") as caught:
                await fail.submit()
        assert "KeyError: 'inner'" in str(caught.value.__cause__)
        assert caught.value.__notes__[0] == "a note"
        assert "in fail" in caught.value.__notes__[-1]

    async def test_a_lost_attempt_is_retried_by_us_alone(self, runner, tmp_path):
        async with on(runner):
            future = die.with_options(retries=2).submit(str(tmp_path / "count"), survive=1)
            assert await future == "survived"
            assert future.run.run_count == 2
            names = [state.name for state in future.run.states]
        assert names == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]
        assert (tmp_path / "count").read_text() == "xx"

    async def test_runners_can_be_mixed_in_one_flow(self, runner):
        on_threads = pid.with_options(task_runner=ThreadPoolTaskRunner(1))

        @flow(task_runner=runner)
        async def mixed() -> list[int]:
            return [await pid.submit(), await on_threads.submit()]

        async with Runtime(store=MemoryStore()):
            there, here = await mixed()
        assert here == os.getpid() != there
