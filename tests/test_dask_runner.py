"""Bodies on a real Dask cluster of two worker processes; and on clusters that runners start themselves."""

import asyncio
import gc
import importlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from clusterkit import OnCluster, dask_cluster, die, give, heavy, on, pid, stuck
from distributed import Client

from asynctask import DaskTaskRunner, Runtime, task
from asynctask.dask_runner import DaskClient
from asynctask.errors import OptionError, WorkerLostError
from asynctask.stores.memory import MemoryStore
from asynctask.testing import TaskRunnerContract
from testkit import until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dask_cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def runner(address: str) -> DaskTaskRunner:
    return DaskTaskRunner(address)


class TestDask(OnCluster):
    pass


class TestDaskKeepsTheContract(TaskRunnerContract):
    shares_memory = False

    @pytest.fixture(autouse=True)
    def cluster(self, address: str) -> None:
        self.address = address

    def runner(self) -> DaskTaskRunner:
        return DaskTaskRunner(self.address)


async def test_a_run_waits_until_there_is_what_it_needs(address):
    runner = DaskTaskRunner(address, resources={"GPU": 1})
    async with on(runner):
        assert await pid.submit() != os.getpid()
        never = pid.with_options(task_runner=runner.with_options(resources={"TPU": 1})).submit()
        assert await give.map(range(4)) == list(range(4))
        assert never.state.is_pending()
        never.cancel()
        assert (await never.wait_async()).is_cancelled()


@task
def one_after_another(folder: str) -> Iterator[int]:
    for number in range(3):
        while number and not os.path.exists(f"{folder}/{number - 1}"):
            time.sleep(0.001)
        yield number


async def test_the_values_of_a_generator_are_there_while_it_runs(runner, tmp_path):
    async with on(runner):
        future = one_after_another.submit(str(tmp_path))
        taken = []
        async for value in future:
            taken.append(value)
            (tmp_path / str(value)).touch()
        assert taken == await future == [0, 1, 2]


async def test_no_body_goes_on_in_somebody_elses_cluster_when_the_runtime_is_left(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(DaskClient, "_hear", lambda *_: None)  # as if it were left before that comes
    async with on(runner):
        future = stuck.submit(str(tmp_path / "pid"))
        await until((tmp_path / "pid").exists)
        future.cancel()  # nobody has heard that it has begun
    await until((tmp_path / "pid-left").exists)


async def test_a_body_is_ended_though_the_runtime_is_left_before_its_worker_was_told(runner, tmp_path, monkeypatch):
    interrupt = DaskClient._interrupt

    async def slowly(self: DaskClient, client: object, key: str, worker: str) -> None:
        await asyncio.sleep(0.1)
        await interrupt(self, client, key, worker)

    monkeypatch.setattr(DaskClient, "_interrupt", slowly)
    async with on(runner):
        future = stuck.submit(str(tmp_path / "pid"))
        await until(lambda: future.state.is_running() and (tmp_path / "pid").exists())
        future.cancel()
        await future.wait_async()
    await until((tmp_path / "pid-left").exists)


async def test_a_cluster_that_tries_lost_calls_again_is_not_let(tmp_path):
    """Dask's default is to try three more times by itself, with whoever is killed next."""
    counter = tmp_path / "count"
    with dask_cluster(tmp_path, allowed_failures=3) as address:
        async with on(DaskTaskRunner(address)):
            # On a busy machine it takes some tenths of a second until the cluster has been told.
            slowly = task(lambda path: time.sleep(1) or die.fn(path), name="slowly")
            future = slowly.submit(str(counter))
            with pytest.raises(WorkerLostError, match="was lost"):
                await future
            assert await give.map(range(4)) == list(range(4))
    assert counter.read_text() == "x"


async def test_large_closures_leave_the_cluster_with_their_task_and_with_the_runtime(address, runner, tmp_path):
    with Client(address, set_as_default=False) as client:

        def kept(dask_scheduler: Any) -> bool:
            return len(pickle.dumps(dask_scheduler.task_metadata)) > 100_000

        def are_kept() -> bool:
            return client.run_on_scheduler(kept)

        async with Runtime(store=MemoryStore(0), task_runner=runner):  # a history keeps tasks alive
            called = heavy(tmp_path / "readers", 100_000)
            assert len(await called.map(range(4))) == 4
            assert are_kept()
            del called
            gc.collect()
            await until(lambda: not are_kept())
            called = heavy(tmp_path / "readers", 100_000)
            await called.submit(1)
            assert are_kept()
        assert not are_kept()


async def test_a_worker_that_has_forgotten_a_large_closure_reads_it_again(address, runner, tmp_path):
    with Client(address, set_as_default=False) as client:

        def remember(most: int) -> None:
            client.run(lambda: setattr(importlib.import_module("asynctask.cluster_worker"), "MOST_BYTES", most))

        remember(150_000)
        async with on(runner):
            first, second = (heavy(tmp_path / name, 100_000) for name in ("first", "second"))
            for called in (first, second) * 3:
                assert {size for size, _, _ in await called.map(range(8))} == {100_000}
        remember(1 << 28)
    assert len((tmp_path / "first").read_text().split()) >= 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": 3}, "address must be that of a scheduler, as text, not 3"),
        ({"address": "tcp://a:1", "adapt_kwargs": {"maximum": 2}}, "are for a cluster of its own"),
    ],
)
def test_wrong_options_are_refused_at_once(options, said):
    with pytest.raises(OptionError, match=said):
        DaskTaskRunner(**options)


async def test_a_cluster_that_cannot_be_reached_fails_the_attempt_and_says_which():
    runner = DaskTaskRunner("tcp://127.0.0.1:9")
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}):
        async with on(runner):
            with pytest.raises(WorkerLostError, match=r"the Dask cluster .*cannot be reached: .*127\.0\.0\.1:9"):
                await pid.submit()


SCRIPT = """
import os
from dataclasses import dataclass
from asynctask import DaskTaskRunner, flow, task

@dataclass
class Point:
    x: int

runner = DaskTaskRunner(OPTIONS)

@task
def move(point: Point) -> Point:
    assert os.getpid() != HOME or not OWN
    return Point(point.x + 1)

@task
def twice(point: Point) -> Point:
    return move.fn(move(point))

@flow(task_runner=runner)
def main() -> None:
    print(twice.submit(move.submit(Point(1))).result() == Point(4))
    print([one.x for one in move.map([Point(x) for x in range(3)]).result()])

if __name__ == "__main__":
    HOME = os.getpid()
    main()
"""


@pytest.mark.parametrize(
    "options",
    [
        "cluster_kwargs={'n_workers': 1}",
        "adapt_kwargs={'minimum': 1, 'maximum': 2}",
        "cluster_kwargs={'processes': False}",
    ],
)
def test_a_script_has_a_cluster_of_its_own_which_ends_with_it(tmp_path, options):
    own = "processes" not in options
    source = SCRIPT.replace("OPTIONS", options).replace("OWN", str(own))
    (tmp_path / "script.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True\n[1, 2, 3]\n", 0), done.stderr
    assert done.stderr == ""


LOSING = """
import os
import dask
from asynctask import DaskTaskRunner, task

@task
def die() -> None:
    os.kill(os.getpid(), 9)

@task
def pid() -> int:
    return os.getpid()

if __name__ == "__main__":
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"})
    runner = DaskTaskRunner(cluster_kwargs={"n_workers": 1, "silence_logs": 50})
    called = pid.with_options(task_runner=runner)
    before = called.submit().result()
    print(die.with_options(task_runner=runner).submit().wait().name)
    print(called.submit().result() != before)
"""


def test_in_a_cluster_of_ours_a_lost_worker_is_replaced_however_long_that_takes(tmp_path):
    """Dask's own gives it up after 15 s, here after a millisecond."""
    (tmp_path / "script.py").write_text(LOSING)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("Crashed\nTrue\n", 0), done.stderr
