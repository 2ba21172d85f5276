"""What every store must do with runs and limits. A new store is one more line in `STORES` of `testkit`."""

import sqlite3
import threading
import uuid
from typing import Any

import anyio
import pytest

from asynctask import Runtime, State, StateType, TaskRun, flow, get_run_logger, tags, task
from asynctask.errors import CancelledRun, ObjectNotFound
from asynctask.limit_records import LimitRecord
from asynctask.runs import Run
from asynctask.states import Completed, Failed
from asynctask.stores.base import RunFilter
from asynctask.stores.memory import MemoryStore
from asynctask.stores.schema import VERSION
from asynctask.stores.sqlite import SQLiteStore
from testkit import until


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
    ids=["every", "type", "name", "tag", "tags", "task", "text", "flows", "two", "flow_run"],
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
    await store.write_limit("a", 1, decay=0.5, is_active=False)
    await store.write_limit("b", 3)
    assert await store.read_limits() == [
        LimitRecord(name="a", limit=1, slot_decay_per_second=0.5, active=False),
        LimitRecord(name="b", limit=3),
    ]
    assert await store.read_limit("b") == LimitRecord(name="b", limit=3)
    await store.reset_limit("b")
    await store.delete_limit("b")
    assert [limit.name for limit in await store.read_limits()] == ["a"]


async def test_limits_hold_for_every_runtime_on_the_store(store):
    go = anyio.Event()

    @task(tags=["db"])
    async def work() -> None:
        await go.wait()

    await store.write_limit("tag:db", 1)
    async with Runtime(store=store, name="one"):
        first = work.submit()
        await until(lambda: first.state.is_running())
        async with Runtime(store=store, name="two"):
            second = work.submit()
            await until(lambda: second.state.name == "AwaitingConcurrencySlot")
            limit = await store.read_limit("tag:db")
            assert [one.run_id for one in limit.holders] == [first.task_run_id]
            assert [one.run_id for one in limit.line] == [second.task_run_id]
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


async def test_every_field_of_a_record_survives_the_trip(make):
    """What the store gives back of runs that it has taken, and what the runs themselves said at their end."""
    store = make()
    said: dict[uuid.UUID, TaskRun] = {}

    def note(task: Any, run: Run, state: State) -> None:
        said[run.id] = run.record()

    noted: Any = {"on_completion": note, "on_failure": note}

    @task(tags=["a", "b"], task_run_name="the {number}th", **noted)
    async def first(number: int, password: str, long: str, data: dict[str, Any]) -> int:
        return number

    @task(retries=1, persist_result=True, **noted)
    async def second(x: int, y: float = 0.5) -> None:
        raise ValueError("no: ünïcode 🎉")

    @flow(name="whole", **noted)
    async def whole(count: int) -> str:
        with tags("extra"):
            one = first.submit(count, "hunter2", "x" * 5000, {"token": "t", "k": [1, 2]})
        await one
        await second(one, return_state=True)
        return "done"

    async with Runtime(store=store):
        await whole(3)
        await store.flush()
        runs = {run.id: run for run in await store.read_runs(EVERYTHING, 10)}
    assert runs.keys() == said.keys()
    for run in runs.values():
        expected = said[run.id]
        for field in TaskRun.__struct_fields__:
            if field not in ("error", "result"):
                assert getattr(run, field) == getattr(expected, field), field
    by_task = {run.task_name: run for run in runs.values()}
    one, two, three = (by_task[name] for name in ("first", "second", "whole"))
    assert (one.name, one.tags, one.parameters["password"]) == ("the 3th", ["a", "b", "extra"], "'**********'")
    assert "'**********'" in one.parameters["data"]
    assert len(one.parameters["long"]) <= 200
    assert (two.upstream_task_run_ids, two.run_count, two.parameters) == ([one.id], 2, {"x": "3", "y": "0.5"})
    assert two.flow_run_id == two.parent_task_run_id == three.id
    assert (two.result, one.result, three.parameters) == (f"run:{two.id}", None, {"count": "3"})
    if isinstance(store, SQLiteStore):
        assert two.error is not None
        assert two.error.startswith("Traceback (most recent call last):\n")
        assert 'raise ValueError("no: ünïcode 🎉")' in two.error
        assert (one.error, three.error) == (None, None)


async def test_runs_under_way_say_what_they_wait_for(store):
    go, failed = anyio.Event(), anyio.Event()

    @task
    async def upstream() -> int:
        await go.wait()
        return 1

    @task(tags=["narrow"])
    async def narrow(x: int) -> None:
        await go.wait()

    @task(retries=1, retry_delay_seconds=3600)
    async def again() -> None:
        failed.set()
        raise ValueError("no")

    async with Runtime(store=store, shutdown_timeout=0):
        await store.write_limit("tag:narrow", 1)
        running = upstream.submit()
        pending = triple.submit(running)
        held = narrow.submit(1)
        await until(lambda: held.state.is_running())  # trio starts those of one moment in any order
        slot = narrow.submit(2)
        retry = again.submit()
        await until(lambda: retry.state.name == "AwaitingRetry" and slot.state.name == "AwaitingConcurrencySlot")
        runs = {run.id: run for run in await store.read_runs(EVERYTHING, 10)}
        expected = {running: "Running", pending: "Pending", held: "Running", slot: "AwaitingConcurrencySlot"}
        for future, name in {**expected, retry: "AwaitingRetry"}.items():
            run = runs[future.task_run_id]
            assert (run.state_name, run.end_time, run.states[-1].name) == (name, None, name)
            assert await store.read_run(run.id) == run
            found = await store.read_runs(RunFilter(state_name=name), 10)
            assert run in found
        assert runs[pending.task_run_id].waiting_on == f"upstream {running.name} (Running)"
        assert "narrow" in (runs[slot.task_run_id].waiting_on or "")
        assert (runs[retry.task_run_id].waiting_on or "").startswith("retry in 3")
        assert (runs[running.task_run_id].waiting_on, runs[running.task_run_id].parameters) == (None, {})
        go.set()
        await slot
        retry.cancel()
        with pytest.raises(CancelledRun):
            await retry
    assert {run.state_name for run in await store.read_runs(EVERYTHING, 10)} == {"Completed", "Cancelled"}
    assert {run.waiting_on for run in await store.read_runs(EVERYTHING, 10)} == {None}


@pytest.mark.parametrize(
    ("state", "which"),
    [
        (Completed(name="Great"), RunFilter(state_name="Great", state_type=StateType.COMPLETED)),
        (Completed(name="it's; DROP TABLE kinds; --"), RunFilter(state_name="it's; DROP TABLE kinds; --")),
        (Completed(name="é🎉\u202e"), RunFilter(state_name="é🎉\u202e")),
        (Failed(name="Meh", message="so so"), RunFilter(state_type=StateType.FAILED, state_name="Meh")),
    ],
    ids=str,
)
async def test_a_state_that_a_body_made_is_kept_and_found_by_its_name(store, state, which):
    @task
    async def work() -> State:
        return state

    async with Runtime(store=store):
        await double(1)
        returned = await work(return_state=True)
    (run,) = await store.read_runs(which, 10)
    assert (run.state_name, run.state_type) == (state.name, state.type) == (returned.name, returned.type)
    assert run.state.message == state.message
    assert await store.count_runs(which) == 1
    assert await store.read_runs(RunFilter(state_name=state.name.upper()), 10) == []


async def test_flows_are_told_from_tasks_of_the_same_name(store):
    @flow(name="double")
    async def double_flow() -> None:
        await double(1)

    async with Runtime(store=store):
        await double_flow()
        await double(2)
    for is_flow, count in ((True, 1), (False, 2), (None, 3)):
        for which in (RunFilter(is_flow=is_flow), RunFilter(is_flow=is_flow, task_name="double")):
            assert await store.count_runs(which) == count == len(await store.read_runs(which, 10))


async def test_what_is_asked_for_right_after_it_happened_is_there(store):
    """Whoever reads, reads all that was kept before, and what has just begun."""
    async with Runtime(store=store):
        for number in range(30):
            future = double.submit(number)
            assert (await store.read_run(future.task_run_id)).parameters == {"x": str(number)}
            await future
            assert (await store.read_run(future.task_run_id)).state_name == "Completed"


async def test_the_store_says_what_is_in_it(store):
    empty = await store.info()
    assert (empty.runs, empty.results, empty.logs) == (0, 0, 0)

    @task(persist_result=True, log_prints=True)
    async def work() -> int:
        get_run_logger().info("one")
        return 1

    async with Runtime(store=store):
        for _ in range(3):
            await work()
        full = await store.info()
    assert (full.runs, full.results, full.logs, full.url) == (3, 3, 3, store.url)
    if isinstance(store, SQLiteStore):
        assert (full.path, full.schema_version) == (store.path, VERSION)
        assert full.size_bytes > 0
        assert full.library == f"SQLite {sqlite3.sqlite_version}"
        assert full.is_guarded == (sqlite3.sqlite_version_info < (3, 51, 3))
