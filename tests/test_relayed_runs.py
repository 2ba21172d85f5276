"""Runs that bodies start in workers which do not share the store of their home, in processes, on Dask and on Ray."""

import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from clusterkit import dask_cluster, ray_cluster

from asynctask import (
    DaskTaskRunner,
    ProcessPoolTaskRunner,
    RayTaskRunner,
    Runtime,
    flow,
    get_client,
    get_run_logger,
    process_pool,
    tags,
    task,
    transaction,
)
from asynctask.cache_policies import INPUTS
from asynctask.errors import CancelledRun, ObjectNotFound, TaskTimeoutError, WorkerLostError
from asynctask.parcels import loads
from asynctask.records import TaskRun
from asynctask.scopes import current_runtime
from asynctask.stores import relay
from asynctask.stores.base import RunFilter
from asynctask.stores.memory import MemoryStore
from asynctask.stores.relay import RelayStore
from asynctask.stores.sqlite import SQLiteStore
from testkit import set_limit, until

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module", autouse=True)
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dask_cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def on_ray() -> Iterator[None]:
    with ray_cluster():
        yield


#: Ray keeps its connections to workers.
ON_RAY = pytest.param("ray", marks=pytest.mark.allow_leak("files", reason="Ray keeps its connections to workers"))


def runner_of(kind: str, request: pytest.FixtureRequest) -> Any:
    if kind == "processes":
        return ProcessPoolTaskRunner(1)
    if kind == "dask":
        return DaskTaskRunner(request.getfixturevalue("address"))
    return RayTaskRunner()


@pytest.fixture(params=["processes", "dask", ON_RAY])
def runner(request: pytest.FixtureRequest) -> Any:
    return runner_of(request.param, request)


@pytest.fixture(params=["dask", ON_RAY])
def far_runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its workers take themselves to be on another machine than this one."""
    monkeypatch.setattr(socket, "gethostname", lambda: "another machine")
    return runner_of(request.param, request)


def at_home(runner: Any) -> Runtime:
    return Runtime(store=MemoryStore(), task_runner=runner)


async def runs_here(**filters: Any) -> list[TaskRun]:
    """The oldest first."""
    async with get_client() as client:
        return (await client.read_task_runs(**filters))[::-1]


async def seen(**filters: Any) -> Counter[str]:
    return Counter(f"{run.task_name} {run.state_name}" for run in await runs_here(**filters))


async def until_seen(**expected: int) -> None:
    """Return once there are so many `task_state`."""
    with anyio.fail_after(20):
        while not expected.items() <= {name.replace(" ", "_"): count for name, count in (await seen()).items()}.items():
            await anyio.sleep(0.005)


@task
def add(x: int, y: int = 1) -> int:
    get_run_logger().info("adding %s", y)
    return x + y


@task
async def add_async(x: int) -> int:
    await anyio.sleep(0)
    return x + 1


@task
def fail(x: int) -> None:
    raise ValueError(f"not {x}")


@task
def nested(x: int) -> int:
    with tags("inside"):
        first = add.submit(x)
        second = add.submit(first, 2)
    return add(second.result()) + sum(add_async.map([x, x]).result())


async def test_they_are_runs_here_like_any_other(runner):
    @flow
    async def around() -> Any:
        future = nested.submit(1)
        await future
        return future

    async with at_home(runner):
        result = nested.submit(1)
        assert await result == 9
        future = await around(return_state=True)
        assert future.is_completed()
        outer, in_flow = await runs_here(task_name="nested")
        async with get_client() as client:
            flows = await client.read_flow_runs()
            runs = [run for run in await runs_here() if run.parent_task_run_id == outer.id]
            assert [(run.task_name, run.parameters, run.tags) for run in runs] == [
                ("add", {"x": "1", "y": "1"}, ["inside"]),
                ("add", {"x": "2", "y": "2"}, ["inside"]),
                ("add", {"x": "4", "y": "1"}, []),
                ("add_async", {"x": "1"}, []),
                ("add_async", {"x": "1"}, []),
            ]
            assert [[state.name for state in run.states] for run in runs] == [["Pending", "Running", "Completed"]] * 5
            assert [run.upstream_task_run_ids for run in runs[:3]] == [[], [runs[0].id], []]
            assert [[line.message for line in await client.read_logs(run.id)] for run in runs[:3]] == [
                ["adding 1"], ["adding 2"], ["adding 1"],
            ]  # fmt: skip
            assert all(run.start_time <= run.end_time <= outer.end_time for run in runs)
            assert [run.name for run in runs] == [f"{run.task_name}-{run.id.hex[-6:]}" for run in runs]
        runs = [run for run in await runs_here() if run.parent_task_run_id == in_flow.id]
        assert [run.flow_run_id for run in runs] == [flows[0].id] * 5


@pytest.mark.parametrize("size", [3, 1_000_000])
async def test_results_that_they_keep_can_be_read_here(runner, size):
    text = task(lambda size: "x" * size, name="text", persist_result=True)

    @task
    def outer() -> None:
        text.submit(size).result()

    async with at_home(runner), get_client() as client:
        await outer.submit()
        [run] = await runs_here(task_name="text")
        assert await client.read_result(run.id) == "x" * size


async def test_on_another_machine_they_are_recorded_in_the_file_of_home(far_runner, tmp_path):
    @task
    def outer(x: int) -> tuple[int, str]:
        add.with_options(persist_result=True)(x)
        fail.submit(x).wait()
        with get_client(sync_client=True) as client:
            return nested.fn(x), client.store_info().url

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db"), task_runner=far_runner), get_client() as client:
        future = outer.submit(1)
        value, url = await future
        assert value == 9
        assert url.startswith("memory:"), "it has not opened the file, which is there in truth"
        runs = await runs_here()
        assert {run.parent_task_run_id for run in runs[1:]} == {future.task_run_id}
        assert await seen() == {
            "outer Completed": 1, "add Completed": 4, "add_async Completed": 2, "fail Failed": 1,
        }  # fmt: skip
        assert await client.read_result(runs[1].id) == 2
        [failed] = await runs_here(task_name="fail")
        assert "ValueError: not 1" in failed.error
        assert "in fail" in failed.error
        assert [line.message for line in await client.read_logs(runs[1].id)] == ["adding 1"]


async def test_those_of_a_body_that_fails_are_kept(runner):
    @task
    def outer() -> None:
        add(1)
        fail(2)

    async with at_home(runner):
        with pytest.raises(ValueError, match="not 2"):
            await outer.submit()
        assert await seen() == {"outer Failed": 1, "add Completed": 1, "fail Failed": 1}


@task
def stuck(path: str) -> None:
    Path(path).touch()
    try:
        while True:
            time.sleep(0.01)
    finally:
        Path(f"{path}-left").touch()


def told_enough() -> bool:
    """In a worker of Ray: whether that both of `stuck` are under way is where it outlives the worker."""
    from ray.experimental import internal_kv

    names = internal_kv._internal_kv_list("", namespace="asynctask")
    pieces = [internal_kv._internal_kv_get(name, namespace="asynctask") for name in names]
    told = [values for piece in pieces if piece for values in loads(piece)]
    rows = [row for values in told if values[0] is None for row in values[1]]  # the others are of logs
    return len({row[0] for row in rows if row[2] == "stuck" and row[4][-1][1] == "Running"}) == 2


@task
def end_badly(folder: str, how: str, is_ray: bool) -> None:
    """With one run that is over, and two that are under way."""
    add(1)
    stuck.submit(f"{folder}/a")
    stuck.submit(f"{folder}/b")
    while is_ray and not told_enough():
        time.sleep(0.01)
    Path(folder, "told").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(0.01)


async def until_told(runner: Any, folder: Path) -> None:
    """Return when home has been told of all, or could be."""
    if not isinstance(runner, RayTaskRunner):
        await until_seen(add_Completed=1, stuck_Running=2)  # while they are under way
    with anyio.fail_after(20):
        while not (folder / "told").exists():
            await anyio.sleep(0.01)
    (folder / "go").touch()


@pytest.mark.parametrize(
    ("how", "end"), [("kill", "Crashed"), ("timeout", "Crashed"), ("cancel", "Cancelled")], ids=lambda value: value
)
async def test_what_was_told_of_those_of_a_lost_body_is_kept_and_none_stays_running(runner, tmp_path, how, end):
    async with at_home(runner) as runtime:
        body = end_badly.with_options(timeout_seconds=3) if how == "timeout" else end_badly
        future = body.submit(str(tmp_path), how, isinstance(runner, RayTaskRunner))
        await until_told(runner, tmp_path)
        if how == "cancel":
            future.cancel()
        with pytest.raises((WorkerLostError, TaskTimeoutError, CancelledRun)):
            await future
        await until_seen(**{f"stuck_{end}": 2})
        assert await seen() == {f"stuck {end}": 2, "add Completed": 1, f"end_badly {future.state.name}": 1}
        await until(lambda: not runtime.runs)
        lost = (await runs_here(task_name="stuck"))[0]
        assert [state.name for state in lost.states] == ["Pending", "Running", end]
        assert lost.end_time is not None
        if how != "cancel":
            assert lost.state.message == f"lost, or given up, with the body of run {future.name!r}"


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_body_is_over_when_the_runs_are_that_it_has_submitted(runner, tmp_path, store):
    @task
    def late(x: int) -> int:
        time.sleep(0.3)
        return x

    @task
    def outer() -> str:
        late.submit(1)
        return "done"

    @task
    async def outer_async() -> str:
        late.submit(2)
        await anyio.sleep(0)
        return "done"

    kept = MemoryStore() if store == "memory" else SQLiteStore(tmp_path / "runs.db")
    async with Runtime(store=kept, task_runner=runner):
        assert await outer.submit() == await outer_async.submit() == "done"
        with anyio.fail_after(20):  # a file is written behind the runs
            while (await seen(task_name="late"))["late Completed"] < 2:
                await anyio.sleep(0.01)
        ends = {run.id: run.end_time for run in await runs_here()}
        assert all(run.end_time <= ends[run.parent_task_run_id] for run in await runs_here(task_name="late"))


async def test_what_a_body_leaves_under_way_borrows_the_slot_that_its_run_holds_here(tmp_path):
    @task(tags=["db"])
    def outer() -> None:
        add.with_options(tags=["db"]).submit(1)

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db"), task_runner=ProcessPoolTaskRunner(1)):
        await set_limit("db", 1)
        with anyio.fail_after(20):
            await outer.submit()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_body_that_is_stopped_but_not_killed_takes_the_runs_along_that_it_has_submitted(
    address, tmp_path, is_async
):
    @task
    def outer() -> None:
        stuck.submit(str(tmp_path / "child")).wait()

    @task
    async def outer_async() -> None:
        stuck.submit(str(tmp_path / "child"))
        await anyio.sleep_forever()

    async with at_home(DaskTaskRunner(address)):
        future = (outer_async if is_async else outer).submit()
        await until((tmp_path / "child").exists)
        future.cancel()
        await future.wait_async()
        await until((tmp_path / "child-left").exists)


async def test_a_task_that_is_tried_again_in_another_worker_keeps_the_runs_of_both_attempts(tmp_path):
    @task(retries=1)
    def outer() -> str:
        add(1)
        if (tmp_path / "killed").exists():
            return "done"
        stuck.submit(str(tmp_path / "child"))
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        (tmp_path / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"

    async with at_home(ProcessPoolTaskRunner(1)):
        future = outer.submit()
        await until_seen(add_Completed=1, stuck_Running=1)
        (tmp_path / "go").touch()
        assert await future == "done"
        assert await seen() == {"outer Completed": 1, "add Completed": 2, "stuck Crashed": 1}


async def test_of_bodies_that_are_sent_together_each_has_its_own_runs_and_large_results_find_their_way():
    text = task(lambda size: "x" * size, name="text", persist_result=True)

    @task
    def outer(size: int) -> int:
        time.sleep(0.04)  # longer than home goes on looking by itself
        return len(text.submit(size).result())

    sizes = [4_000_000, 10, 5_000_000, 20]
    async with at_home(ProcessPoolTaskRunner(1)), get_client() as client:
        futures = outer.map(sizes, batch_size=4)
        with anyio.fail_after(20):
            assert await futures == sizes
        texts = {run.parent_task_run_id: run for run in await runs_here(task_name="text")}
        assert [len(await client.read_result(texts[one.task_run_id].id)) for one in futures] == sizes


async def test_runtimes_that_share_their_workers_each_have_their_own_runs():
    runner = ProcessPoolTaskRunner(1)
    first, second = at_home(runner), at_home(runner)
    async with first:
        await nested.submit(1)
        async with second:
            await task(lambda: add(5), name="alone").submit()
            assert await seen() == {"alone Completed": 1, "add Completed": 1}
        assert (await seen())["add Completed"] == 3
        assert await nested.submit(1) == 9
        assert (await seen())["add Completed"] == 6


async def test_runs_in_workers_of_workers_come_all_the_way():
    @task
    def middle(x: int) -> int:
        return nested.with_options(task_runner=ProcessPoolTaskRunner(1)).submit(x).result()

    async with at_home(ProcessPoolTaskRunner(1)):
        future = middle.submit(1)
        assert await future == 9
        [within] = await runs_here(task_name="nested")
        assert within.parent_task_run_id == future.task_run_id
        runs = [run for run in await runs_here() if run.parent_task_run_id == within.id]
        assert [run.state_name for run in runs] == ["Completed"] * 5


async def test_runs_of_threads_that_a_body_has_started_by_itself_come_home():
    @task
    def outer() -> None:
        thread = threading.Thread(target=add, args=(1,))
        thread.start()
        thread.join()

    async with at_home(ProcessPoolTaskRunner(1)):
        await outer.submit()
        [run] = await runs_here(task_name="add")
        assert (run.state_name, run.parent_task_run_id) == ("Completed", None)


async def test_a_run_that_is_rolled_back_there_is_so_here():
    put = task(lambda: 1, name="put", on_rollback=[lambda _: None])

    @task
    def outer() -> None:
        with transaction():
            put()
            raise ValueError("no")

    async with at_home(ProcessPoolTaskRunner(1)):
        with pytest.raises(ValueError, match="no"):
            await outer.submit()
        [run] = await runs_here(task_name="put")
        assert [state.name for state in run.states] == ["Pending", "Running", "Completed", "RolledBack"]


async def test_thousands_of_them_come_home_in_few_messages(monkeypatch):
    told: list[int] = []
    deliver = process_pool.deliver

    def count(call: Any, values: list[Any]) -> None:
        if values[0] is None:
            told.append(len(values[1]))
        deliver(call, values)

    monkeypatch.setattr(process_pool, "deliver", count)

    @task
    def outer(count: int) -> int:
        return sum(add_async.map(range(count)).result())

    async with Runtime(store=MemoryStore(20_000), task_runner=ProcessPoolTaskRunner(1)), get_client() as client:
        assert await outer.submit(12_000) == 12_000 * 12_001 // 2
        assert await client.count_task_runs(task_name="add_async", state_name="Completed") == 12_000
    assert len(told) < 3_000


async def test_limits_and_cached_results_of_a_memory_store_are_those_of_each_process():
    limited = add.with_options(tags=["none"], cache_policy=INPUTS)

    @task
    def outer() -> list[int]:
        return [limited(1), limited(1)]

    async with at_home(ProcessPoolTaskRunner(1)):
        await set_limit("none", 0)
        assert await outer.submit() == [2, 2]
        assert await seen() == {"outer Completed": 1, "add Completed": 1, "add Cached": 1}
        assert await outer.submit() == [2, 2]
        assert (await seen())["add Cached"] == 3, "the worker remembers"
        assert limited(1) == 2
        assert (await seen())["add Cached"] == 4, "and what it has kept is here as well"


async def test_a_store_that_workers_cannot_open_gets_their_runs_all_the_same():
    class Own(MemoryStore):
        url = "own://store"

    async with Runtime(store=Own(), task_runner=ProcessPoolTaskRunner(1)):
        await nested.submit(1)
        assert (await seen())["add Completed"] == 3


async def test_what_a_body_looks_up_is_what_its_worker_has_recorded():
    @task
    def outer(stranger: str) -> tuple[str, bool]:
        future = add.submit(1)
        future.wait()
        with get_client(sync_client=True) as client:
            own = client.read_task_run(future.task_run_id).state_name
            try:
                client.read_task_run(stranger)
            except ObjectNotFound:
                return own, False
            return own, True

    async with at_home(ProcessPoolTaskRunner(1)):
        here = add.submit(1)
        await here
        assert await outer.submit(str(here.task_run_id)) == ("Completed", False)


def in_relay(tell: Any, count: int) -> tuple[Runtime, threading.Thread]:
    """A runtime whose store tells by `tell`, and a body in a thread that calls so many runs."""
    store = RelayStore("memory://relay-test", keeps_errors=False)
    runtime = Runtime(store=store)

    def body() -> None:
        current_runtime.set(runtime)
        outbox = store.begin(tell)
        for number in range(count):
            add(number)
        store.end(outbox)
        runtime.close()

    runtime.open()
    thread = threading.Thread(target=body)
    thread.start()
    return runtime, thread


async def test_who_makes_runs_waits_when_home_is_slow_to_hear(monkeypatch):
    monkeypatch.setattr(relay, "MOST_WAITING", 50)
    gate = threading.Event()
    told: list[int] = []

    def tell(values: list[Any]) -> None:
        gate.wait(20)
        told.extend(row[0] for row in values[1])

    runtime, thread = in_relay(tell, 1_000)
    await until(lambda: runtime.journal.is_crowded)
    assert not told
    gate.set()
    await anyio.to_thread.run_sync(thread.join)
    assert told == sorted(set(told))
    assert len(told) == 1_000


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("not told")])
async def test_the_work_goes_on_when_home_does_not_hear(error, caplog):
    def tell(values: list[Any]) -> None:
        raise error

    runtime, thread = in_relay(tell, 200)
    await anyio.to_thread.run_sync(thread.join)
    assert await runtime.store.count_runs(RunFilter(state_name="Completed")) == 200
    lines = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert lines == ["Runs cannot be told home, and are not recorded there: not told"] * isinstance(error, ValueError)
