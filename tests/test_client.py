"""The client: looking runs up, and setting limits, from async and from plain code."""

import inspect
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest

from asynctask import Runtime, StateType, TaskRun, flow, get_client, tags, task
from asynctask.client import Client, SyncClient
from asynctask.errors import ObjectNotFound, OptionError
from asynctask.stores.sqlite import SQLiteStore
from testkit import fresh, until


@task(tags=["t"])
async def double(x: int) -> int:
    return x * 2


@task
async def fails() -> None:
    raise ValueError("no")


@pytest.mark.parametrize("age", [3, "7d", timedelta(seconds=-1)])
async def test_an_age_that_is_none_is_refused(age):
    async with fresh(), get_client() as client:
        with pytest.raises(OptionError, match=r"prune\(older_than=\.\.\.\) must be a timedelta"):
            await client.prune(older_than=age)


async def test_a_limit_is_made_read_listed_changed_reset_and_deleted():
    async with fresh(), get_client() as client:
        made = await client.create_concurrency_limit("b", 2)
        assert (made.tag, made.concurrency_limit, made.active_slots) == ("b", 2, [])
        await client.create_concurrency_limit("a", 0)
        assert [limit.tag for limit in await client.read_concurrency_limits()] == ["a", "b"]
        assert (await client.create_concurrency_limit("b", 5)).concurrency_limit == 5
        assert (await client.read_concurrency_limit_by_tag("b")).concurrency_limit == 5
        await client.reset_concurrency_limit_by_tag("b")
        await client.delete_concurrency_limit_by_tag("b")
        assert [limit.tag for limit in await client.read_concurrency_limits()] == ["a"]


@pytest.mark.parametrize("call", ["read", "reset", "delete"])
async def test_a_limit_that_does_not_exist_is_not_found(call):
    async with fresh(), get_client() as client:
        with pytest.raises(ObjectNotFound, match="'nosuch'"):
            await getattr(client, f"{call}_concurrency_limit_by_tag")("nosuch")


@pytest.mark.parametrize(
    ("tag", "limit"),
    [("", 1), (3, 1), (None, 1), ("a", -1), ("a", 1.5), ("a", True), ("a", "1"), ("a", None), ("a", 2**31)],
    ids=repr,
)
async def test_a_wrong_limit_is_refused_and_nothing_is_changed(tag, limit):
    async with fresh(), get_client() as client:
        with pytest.raises(OptionError, match="limit"):
            await client.create_concurrency_limit(tag, limit)
        assert await client.read_concurrency_limits() == []


async def test_lists_may_be_asked_for_without_end(tmp_path):
    async with Runtime(store=f"sqlite:///{tmp_path}/runs.db"), get_client() as client:
        assert await client.read_task_runs(limit=10**30) == []
        assert await client.read_cache(limit=10**30) == []
        assert await client.prune(keep=10**30) == 0


async def test_the_holders_of_slots_are_named():
    go = anyio.Event()

    @task(tags=["db"])
    async def work() -> None:
        await go.wait()

    async with fresh(), get_client() as client:
        await client.create_concurrency_limit("db", 2)
        futures = [work.submit() for _ in range(3)]
        await until(lambda: sum(future.state.is_running() for future in futures) == 2)
        limit = await client.read_concurrency_limit_by_tag("db")
        assert set(limit.active_slots) == {str(one.task_run_id) for one in futures if one.state.is_running()}
        go.set()
        for future in futures:
            await future


async def test_a_run_is_found_by_its_id_before_and_after_its_end():
    go = anyio.Event()

    @task
    async def work(x: int, name: str = "n") -> int:
        await go.wait()
        return x

    async with fresh(), get_client() as client:
        future = work.submit(3)
        await until(lambda: future.state.is_running())
        live = await client.read_task_run(future.task_run_id)
        assert isinstance(live, TaskRun)
        assert (live.state_name, live.end_time, live.parameters) == ("Running", None, {"x": "3", "name": "'n'"})
        go.set()
        await future
        ended = await client.read_task_run(str(future.task_run_id))
        assert (ended.id, ended.name, ended.task_name) == (future.task_run_id, future.name, "work")
        assert (ended.state_type, ended.run_count, ended.waiting_on) == (StateType.COMPLETED, 1, None)
        assert ended.start_time < ended.end_time  # type: ignore[operator]
        assert ended.total_run_time > 0
        states = await client.read_task_run_states(future.task_run_id)
        assert [state.name for state in states] == ["Pending", "Running", "Completed"] == [s.name for s in ended.states]


async def test_what_is_not_there_is_not_found_and_what_is_no_id_is_refused():
    async with fresh(), get_client() as client:
        for read in (client.read_task_run, client.read_task_run_states, client.read_flow_run):
            with pytest.raises(ObjectNotFound, match="no run"):
                await read(uuid.uuid4())
            for value in ("x", b"x", None, 3):
                with pytest.raises(OptionError, match=f"{value!r} is not a run id"):
                    await read(value)


async def test_the_run_of_a_task_is_no_flow_run():
    async with fresh(), get_client() as client:
        future = double.submit(1)
        await future
        with pytest.raises(ObjectNotFound, match="is the run of a task, 'double': use read_task_run"):
            await client.read_flow_run(future.task_run_id)


async def test_runs_are_listed_the_newest_first_by_filters_that_must_all_hold():
    async with fresh(), get_client() as client:

        @flow(name="nightly")
        async def parent() -> None:
            with tags("extra"):
                await double.with_options(task_run_name="the-{x}")(1)
            await double(2)

        await parent()
        await double(3)
        with pytest.raises(ValueError, match="no"):
            await fails()
        runs = await client.read_task_runs()
        assert [run.task_name for run in runs] == ["fails", "double", "double", "double"]
        assert [run.id for run in runs] == sorted((run.id for run in runs), reverse=True)
        nightly = (await client.read_flow_runs(name="nightly"))[0]
        assert (nightly.is_flow, (await client.read_flow_run(nightly.id)).id) == (True, nightly.id)

        async def count(**filters: Any) -> int:
            return len(await client.read_task_runs(**filters))

        assert await count(state_type="FAILED") == await count(state_type=StateType.FAILED) == 1
        assert await count(state_name="Completed") == 3
        assert await count(tags=["t"]) == 3
        assert await count(tags=["t", "extra"]) == 1
        assert await count(task_name="double", flow_run_id=nightly.id) == 2
        assert await count(task_name="double", flow_run_id=str(nightly.id), name="the-1") == 1
        assert await count(name="nothing like it") == 0
        assert [run.task_name for run in await client.read_task_runs(limit=2)] == ["fails", "double"]
        with pytest.raises(ValueError, match="'NOSUCH' is not a state type; there are: SCHEDULED, "):
            await client.read_task_runs(state_type="NOSUCH")
        with pytest.raises(OptionError, match=r"read_task_runs\(tags=...\) must be .* \(write \['t'\]\)"):
            await client.read_task_runs(tags="t")
        for read in (client.read_task_runs, client.read_flow_runs):
            with pytest.raises(OptionError, match=r"\(limit=...\) must be .* not -1"):
                await read(limit=-1)


def test_the_sync_client_does_the_same_from_plain_code():
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit("sync-client", 1)
        try:
            future = double.submit(2)
            future.result()
            assert client.read_concurrency_limit_by_tag("sync-client").concurrency_limit == 1
            assert "sync-client" in [limit.tag for limit in client.read_concurrency_limits()]
            client.reset_concurrency_limit_by_tag("sync-client")
        finally:
            client.delete_concurrency_limit_by_tag("sync-client")
        assert client.read_task_run(future.task_run_id).state_name == "Completed"
        assert [state.name for state in client.read_task_run_states(future.task_run_id)][-1] == "Completed"
        assert future.task_run_id in [run.id for run in client.read_task_runs(task_name="double", limit=5)]
        with pytest.raises(ObjectNotFound):
            client.read_flow_run(uuid.uuid4())
        assert client.read_flow_runs(name="no flow of this name") == []


async def test_the_sync_client_works_on_an_event_loop_too():
    async with fresh():
        await double(1)
        with get_client(sync_client=True) as client:
            assert len(client.read_task_runs()) == 1


async def test_each_client_looks_into_the_store_of_its_own_runtime():
    async with fresh():
        await double(1)
        async with fresh(), get_client() as inner:
            assert await inner.read_task_runs() == []
        async with get_client() as outer:
            assert len(await outer.read_task_runs()) == 1


async def test_counts_are_those_of_the_lists_with_the_same_filters():
    @flow
    async def whole() -> None:
        await double.map(range(4))

    async with fresh(), get_client() as client:
        await whole()
        await double(9)
        with pytest.raises(ValueError, match="no"):
            await fails()
        some: list[Any] = [{}, {"state_type": "FAILED"}, {"state_name": "Completed"}, {"tags": ["t"]}, {"name": "dou"}]
        for filters in [*some, {"task_name": "whole"}, {"tags": ["t"], "state_type": StateType.FAILED}]:
            tasks, flows = await client.read_task_runs(**filters), await client.read_flow_runs(**filters)
            assert await client.count_task_runs(**filters) == len(tasks)
            assert await client.count_flow_runs(**filters) == len(flows)
            assert await client.count(**filters) == len(tasks) + len(flows)
        assert await client.count() == 7


async def test_pages_by_cursor_hold_every_run_once():
    async with fresh(), get_client() as client:
        for number in range(25):
            await double(number)
        pages: list[list[TaskRun]] = []
        cursor: Any = None
        while page := await client.read_task_runs(limit=10, cursor=cursor):
            pages.append(page)
            cursor = page[-1].id if len(pages) % 2 else str(page[-1].id)
        assert [len(page) for page in pages] == [10, 10, 5]
        assert [run.parameters["x"] for page in pages for run in page] == [str(number) for number in range(24, -1, -1)]
        assert await client.read_task_runs(limit=0) == []
        for read in (client.read_task_runs, client.read_flow_runs):
            with pytest.raises(OptionError, match="'x' is not a run id"):
                await read(cursor="x")


async def test_times_are_filters_and_must_be_aware():
    async with fresh(), get_client() as client:
        await double(1)
        (run,) = await client.read_task_runs()
        made = datetime.fromtimestamp((run.id.int >> 80) / 1000, UTC)
        tick = timedelta(milliseconds=1)
        for zone in (UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=12))):
            here = made.astimezone(zone)
            assert await client.count_task_runs(since=here) == 1
            assert await client.count_task_runs(since=here + tick) == 0
            assert await client.count_task_runs(before=here) == 0
            assert await client.count_task_runs(before=here + tick, since=here) == 1
        for name, time in (("since", made.replace(tzinfo=None)), ("before", "yesterday"), ("since", 12.5)):
            with pytest.raises(OptionError, match=rf"read_task_runs\({name}=...\) must be an aware datetime, not "):
                await client.read_task_runs(**{name: time})  # type: ignore[misc]


@pytest.mark.parametrize("method", ["read_task_runs", "read_flow_runs", "count_task_runs", "count_flow_runs", "count"])
async def test_a_filter_that_does_not_exist_is_refused(method):
    async with fresh(), get_client() as client:
        with pytest.raises(OptionError, match=rf"{method}\(\) has no filter 'flow'; there are: state_type, "):
            await getattr(client, method)(flow="x")
        with pytest.raises(OptionError, match=rf"{method}\(tags=...\)"):
            await getattr(client, method)(tags="t")
        with pytest.raises(OptionError, match="'x' is not a run id"):
            await getattr(client, method)(flow_run_id="x")


def test_both_clients_have_the_same_methods_with_the_same_parameters():
    def methods(client: type) -> dict[str, Any]:
        found = {name: getattr(client, name) for name in vars(client) if not name.startswith("_")}
        return {name: list(inspect.signature(method).parameters.values()) for name, method in found.items()}

    assert methods(SyncClient) == methods(Client)
    assert len(methods(Client)) > 15


def test_the_sync_client_looks_up_and_deletes_all_that_the_other_does(tmp_path):
    @task(log_prints=True, cache_key_fn=lambda context, parameters: f"key {parameters['x']}")
    async def work(x: int) -> int:
        print("at work")
        return x

    async def main() -> None:
        async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
            await work(1)
            await work(2)
            with get_client(sync_client=True) as client:
                newest = client.read_task_runs(limit=1)[0]
                assert [line.message for line in client.read_logs(newest.id)] == ["at work"]
                assert (client.count(), client.count_task_runs(), client.count_flow_runs()) == (2, 2, 0)
                assert [entry.key for entry in client.read_cache(task_name="work")] == ["key 2", "key 1"]
                assert client.clear_cache(key="key 1") == 1
                assert (client.clear_cache(expired=True), client.clear_cache()) == (0, 1)
                client.delete_task_run(newest.id)
                assert client.prune(older_than=timedelta(days=1)) == 0
                assert client.prune(keep=0) == 1
                info = client.store_info()
                assert (info.runs, info.results, info.logs, info.path) == (0, 0, 0, str(tmp_path / "runs.db"))

    anyio.run(main)
