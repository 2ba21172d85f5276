"""Bodies on a real Ray of two processors; and on one that a runner starts itself."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray
from clusterkit import OnCluster, give, on, pid, ray_cluster

from asynctask import RayTaskRunner
from asynctask.errors import OptionError
from asynctask.testing import TaskRunnerContract

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
