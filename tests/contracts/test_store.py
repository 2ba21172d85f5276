"""What every store must do. A new store is one more line in STORES."""

import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from asynctask import Runtime, State, StateType, TaskRun, flow, task
from asynctask.errors import ObjectNotFound
from asynctask.stores.base import RunFilter, Store
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from testkit import until

#: Each makes an empty store, in a folder of its own, that keeps at least the given number of ended runs.
STORES: dict[str, Callable[[Path, int], Store]] = {
    "memory": lambda folder, size: MemoryStore(size),
    "sqlite": lambda folder, size: SQLiteStore(folder / "runs.db"),
}


@pytest.fixture(params=STORES, ids=list(STORES))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Store]:
    return lambda size: STORES[request.param](tmp_path, size)


@pytest.fixture
def store(make: Callable[[int], Store]) -> Store:
    return make(1000)


@task(tags=["even"])
async def double(x: int) -> int:
    return x * 2


@task
def triple(x: int) -> int:
    return x * 3


@task(retries=1)
async def fails() -> None:
    raise ValueError("no")


EVERYTHING = RunFilter()


async def test_a_run_is_there_while_it_is_under_way_and_after_it(store):
    go = anyio.Event()

    @task
    async def work() -> None:
        await go.wait()

    async with Runtime(store=store):
        future = work.submit()
        await until(lambda: future.state.is_running())
        assert (await store.read_run(future.task_run_id)).state_type is StateType.RUNNING
        assert [run.id for run in await store.read_runs(EVERYTHING, 10)] == [future.task_run_id]
        go.set()
        await future
        await store.flush()
        assert (await store.read_run(future.task_run_id)).state_type is StateType.COMPLETED
        assert [run.id for run in await store.read_runs(EVERYTHING, 10)] == [future.task_run_id]


async def test_the_record_of_an_ended_run_is_whole(store):
    async with Runtime(store=store):

        @flow(name="parent")
        async def parent() -> None:
            first = double.submit(1)
            await triple.with_options(task_run_name="second").submit(first)
            await fails(return_state=True)

        await parent()
    runs = {run.task_name: run for run in await store.read_runs(EVERYTHING, 10)}
    first, second, failed, whole = (runs[name] for name in ("double", "triple", "fails", "parent"))
    assert all(isinstance(run, TaskRun) for run in runs.values())
    assert (whole.is_flow, whole.flow_run_id, whole.parent_task_run_id) == (True, None, None)
    assert {run.flow_run_id for run in (first, second, failed)} == {whole.id}
    assert (first.tags, first.name.startswith("double-")) == (["even"], True)
    assert (second.name, second.upstream_task_run_ids) == ("second", [first.id])
    assert [state.name for state in failed.states] == ["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"]
    assert (failed.run_count, failed.state.message) == (2, "ValueError: no")
    for run in runs.values():
        assert run.states == list(await store.read_run_states(run.id))
        assert run.state == run.states[-1]
        assert all(a.timestamp < b.timestamp for a, b in zip(run.states, run.states[1:], strict=False))
        assert (run.state_type, run.state_name) == (run.state.type, run.state.name)
        assert run.start_time is not None
        assert run.end_time == run.state.timestamp
        assert run.total_run_time >= 0


async def test_history_is_plain_data_without_values_and_exceptions(store):
    async with Runtime(store=store):
        await double(1)
        await fails(return_state=True)
    for run in await store.read_runs(EVERYTHING, 10):
        assert [(type(state), state.data) for state in run.states] == [(State, None)] * len(run.states)


async def test_runs_come_the_newest_first_and_no_more_than_asked_for(store):
    async with Runtime(store=store):
        for number in range(7):
            await double(number)
    ids = [run.id for run in await store.read_runs(EVERYTHING, 5)]
    assert len(ids) == 5
    assert ids == sorted(ids, reverse=True)
    assert ids == [run.id for run in await store.read_runs(EVERYTHING, 100)][:5]
    assert await store.read_runs(EVERYTHING, 0) == []


@pytest.mark.parametrize(
    ("which", "count"),
    [
        (RunFilter(), 4),
        (RunFilter(state_type=StateType.FAILED), 1),
        (RunFilter(state_name="Completed"), 3),
        (RunFilter(tags=frozenset({"even"})), 1),
        (RunFilter(tags=frozenset({"even", "odd"})), 0),
        (RunFilter(task_name="triple"), 1),
        (RunFilter(name="triple-"), 1),
        (RunFilter(is_flow=True), 1),
        (RunFilter(is_flow=False, state_name="Completed"), 2),
        (RunFilter(flow_run_id=uuid.UUID(int=1)), 0),
    ],
    ids=str,
)
async def test_every_filter_that_is_set_must_hold(store, which, count):
    async with Runtime(store=store):

        @flow
        async def parent() -> None:
            await double(1)

        await parent()
        await triple.submit(1)
        await fails(return_state=True)
    assert len(await store.read_runs(which, 10)) == count


async def test_what_is_not_there_is_not_found(store):
    with pytest.raises(ObjectNotFound):
        await store.read_run(uuid.uuid4())
    with pytest.raises(ObjectNotFound):
        await store.read_run_states(uuid.uuid4())
    for call in (store.read_limit, store.delete_limit, store.reset_limit):
        with pytest.raises(ObjectNotFound):
            await call("nosuch")


async def test_limits_are_written_read_changed_and_deleted(store):
    await store.write_limit("b", 2)
    await store.write_limit("a", 1)
    await store.write_limit("b", 3)
    assert [(limit.tag, limit.concurrency_limit) for limit in await store.read_limits()] == [("a", 1), ("b", 3)]
    assert (await store.read_limit("b")).active_slots == []
    await store.reset_limit("b")
    await store.delete_limit("b")
    assert [limit.tag for limit in await store.read_limits()] == ["a"]


async def test_limits_hold_for_every_runtime_on_the_store(store):
    go = anyio.Event()

    @task(tags=["db"])
    async def work() -> None:
        await go.wait()

    await store.write_limit("db", 1)
    async with Runtime(store=store, name="one"):
        first = work.submit()
        await until(lambda: first.state.is_running())
        async with Runtime(store=store, name="two"):
            second = work.submit()
            await until(lambda: second.state.name == "AwaitingConcurrencySlot")
            assert (await store.read_limit("db")).active_slots == [str(first.task_run_id)]
            assert {run.id for run in await store.read_runs(EVERYTHING, 10)} == {first.task_run_id, second.task_run_id}
            go.set()
            await second


async def test_no_run_is_missing_or_there_twice_while_many_end(store):
    """Read again and again while runs go from under way to ended."""
    seen: list[int] = []
    over = threading.Event()

    async def read() -> None:
        while not over.is_set():
            ids = [run.id for run in await store.read_runs(EVERYTHING, 10_000)]
            assert len(ids) == len(set(ids))
            seen.append(len(ids))
            if len(seen) > 1:
                assert seen[-1] >= seen[-2]  # a run that was there stays there

    async with Runtime(store=store):
        await triple.submit(0)  # the store knows of a first one
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, lambda: anyio.run(read))
            for _ in range(10):
                await triple.map(range(20))
            over.set()
    assert len(await store.read_runs(EVERYTHING, 10_000)) == 201


async def test_only_so_many_ended_runs_are_kept(make):
    """What a store keeps at least; the memory store keeps exactly that many."""
    store = make(3)
    async with Runtime(store=store):
        for number in range(5):
            await double(number)
    kept = await store.read_runs(EVERYTHING, 100)
    assert len(kept) >= 3
    if isinstance(store, MemoryStore):
        assert len(kept) == 3


async def test_flushing_can_be_repeated(store):
    async with Runtime(store=store):
        await double(1)
    for _ in range(2):
        await store.flush()
