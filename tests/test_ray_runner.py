"""Bodies on a real Ray of two processors; and on one that a runner starts itself."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import ray
from clusterkit import OnCluster, give, on, pid, ray_cluster, stuck

from asynctask import RayTaskRunner, ray_runner, task
from asynctask.errors import OptionError
from asynctask.testing import TaskRunnerContract
from testkit import until

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.allow_leak("files", reason="Ray keeps its connections to workers"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_cluster():
        yield


@pytest.fixture
def runner() -> RayTaskRunner:
    return RayTaskRunner()


class TestRay(OnCluster):
    pass


@task
def stubborn(path: str | None) -> None:
    """Short as a rule; then it cannot be interrupted."""
    if path is None:
        return
    Path(path).write_text(f"{os.getpid()}\n")
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


@pytest.mark.parametrize("timeout", [None, 1])
async def test_a_body_that_is_short_as_a_rule_but_does_not_let_itself_be_interrupted_is_killed(
    runner, tmp_path, timeout
):
    path = tmp_path / "pid"
    async with on(runner):
        called = stubborn.with_options(timeout_seconds=timeout)
        for _ in range(20):
            await called.submit(None)
        future = called.submit(str(path))
        await until(lambda: path.exists() and path.read_text())
        if timeout is None:
            future.cancel()
        assert (await future.wait_async()).name == ("TimedOut" if timeout else "Cancelled")
        await until(lambda: not Path(f"/proc/{int(path.read_text())}").exists())
        assert await give.map(range(8)) == list(range(8))


@task
def lastly(value: Any) -> Iterator[Any]:
    yield 1
    yield threading.Lock() if value is None else value


async def test_the_values_of_a_generator_come_with_its_result_and_one_that_cannot_is_refused_by_its_name(runner):
    async with on(runner):
        assert [value async for value in lastly.submit(2)] == [1, 2]
        with pytest.raises(TypeError, match="the result, of type list, cannot be sent home"):
            await lastly.submit(None)


async def test_calls_that_are_given_up_as_they_end_leave_their_workers_to_the_others(runner, monkeypatch):
    monkeypatch.setattr(ray_runner, "SHORT_SECONDS", 60)  # also on a machine that has much else to do
    monkeypatch.setattr(ray_runner, "END_SECONDS", 60)
    async with on(runner):
        pids = set(await pid.map(range(8)))
        for _ in range(10):
            async for value in give.stream(range(100), concurrency=6):
                if value == 2:
                    break
        assert await give.map(range(8)) == list(range(8))
    living = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    assert pids <= living


class TestRayKeepsTheContract(TaskRunnerContract):
    shares_memory = False
    kills = True

    def runner(self) -> RayTaskRunner:
        return RayTaskRunner()


async def test_a_run_waits_until_there_is_what_it_needs(runner):
    async with on(RayTaskRunner(remote_options={"num_cpus": 1, "resources": {"tool": 1}})):
        assert await pid.submit() != os.getpid()
        of_another = runner.with_options(remote_options={"resources": {"none": 1}})
        never = pid.with_options(task_runner=of_another, timeout_seconds=60).submit()
        assert await give.map(range(4)) == list(range(4))
        assert never.state.is_pending()
        never.cancel()
        assert (await never.wait_async()).is_cancelled()
    assert ray.is_initialized(), "it was there before"


@pytest.mark.parametrize("timeout", [None, 60])
async def test_calls_are_taken_back_in_the_thread_in_which_ray_hears_answers(runner, tmp_path, monkeypatch, timeout):
    """In any other, that races with an answer, and Ray 2.60 ends the program: once in 1,500 on a busy machine."""
    threads = []

    def cancel(*args: Any, **options: Any) -> None:
        threads.append(threading.get_native_id())
        ray_cancel(*args, **options)

    ray_cancel = ray.cancel
    monkeypatch.setattr(ray, "cancel", cancel)
    heard: Future[int] = Future()
    asked = ray.put(None)
    asked._on_completed(lambda _: heard.set_result(threading.get_native_id()))
    async with on(runner):
        future = stuck.with_options(timeout_seconds=timeout).submit(str(tmp_path / "pid"))
        await until((tmp_path / "pid").exists)
        future.cancel()
        await future.wait_async()
        await until(lambda: threads)
    assert set(threads) == {heard.result()}
    del asked


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": 3}, "address must be that of a cluster, as text, not 3"),
        ({"remote_options": {"max_retries": 2}}, "'max_retries' is not Ray's to decide"),
    ],
)
def test_wrong_options_are_refused_at_once(options, said):
    with pytest.raises(OptionError, match=said):
        RayTaskRunner(**options)


SCRIPT = """
import os
from dataclasses import dataclass
from asynctask import RayTaskRunner, task

@dataclass
class Point:
    x: int

runner = RayTaskRunner(init_kwargs={"num_cpus": 1, "include_dashboard": False, "logging_level": "error"})

@task(task_runner=runner)
def move(point: Point) -> Point:
    return Point(point.x + 1)

@task(task_runner=runner)
def twice(point: Point) -> Point:
    return move.fn(move(point))

print(twice.submit(move.submit(Point(1))).result() == Point(4))
print([one.x for one in move.map([Point(x) for x in range(3)]).result()])
"""


def test_a_script_has_a_ray_of_its_own_which_ends_with_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True\n[1, 2, 3]\n", 0), done.stderr
