"""What every store must do with kept results, and with what is deleted: runs, logs, results, by hand and by age."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from asynctask import Runtime, get_client, get_run_logger, task
from asynctask.errors import ObjectNotFound, OptionError, StoreError
from asynctask.stores.base import SKEW, RunFilter, StoredResult
from asynctask.testing import START, VirtualClock
from testkit import until

EVERYTHING = RunFilter()
HOSTILE = ("'; DROP TABLE results; --", 'a"b', "nul\0", "\ud800", "🎉", "\u202ertl", "%", "*", "x" * 100_000, "a\nb")


def result(key: str, payload: bytes = b"1", **fields: Any) -> StoredResult:
    fields = {"serializer": "json", "task_name": "work", "run_number": 1, "created": START, **fields}
    return StoredResult(key=key, payload=payload, **fields)


@task(persist_result=True)
async def kept(x: int) -> int:
    get_run_logger().info("x is %d", x)
    return x


@task
async def plain(x: int) -> int:
    return x


async def test_what_was_written_is_read_byte_for_byte(store):
    written = [
        result(f"k{size}", bytes(size % 256 for size in range(size))) for size in (0, 1, 300, 200_000, 3_000_000)
    ]
    await store.write_results(written)
    for one in written:
        assert await store.read_result(one.key) == one
    assert await store.read_result("nosuch") is None


@pytest.mark.parametrize("key", HOSTILE, ids=lambda key: ascii(key[:20]))
async def test_any_text_is_a_key_and_only_itself(store, key):
    await store.write_results([result(key, b"right"), result(f"{key}x", b"other")])
    found = await store.read_result(key)
    assert (found.key, found.payload) == (key, b"right")
    assert await store.read_result(f"{key}y") is None
    assert await store.read_result(key[:-1]) is None
    assert len(await store.read_cache(None, 10)) == 2
    assert await store.clear_cache(None, key, False) == 1
    assert await store.read_result(key) is None
    assert (await store.read_result(f"{key}x")).payload == b"other"


async def test_a_new_result_replaces_the_old_one_of_its_key(store):
    await store.write_results([result("k", b"old", expires=START + 1), result("other")])
    await store.write_results([result("k", b"new" * 100_000, serializer="pickle", task_name="again")])
    found = await store.read_result("k")
    assert (found.payload, found.serializer, found.task_name, found.expires) == (
        b"new" * 100_000,
        "pickle",
        "again",
        None,
    )
    assert (await store.info()).results == 2


async def test_kept_results_are_listed_the_newest_first(store):
    run_id = uuid.UUID(int=7 << 100)
    await store.write_results([result(f"k{place}", b"12345", created=START + place) for place in range(5)])
    await store.write_results(
        [result("far", task_name="it's", run_number=run_id.int, created=START + 9, expires=START + 60)]
    )
    entries = await store.read_cache(None, 100)
    assert [entry.key for entry in entries] == ["far", "k4", "k3", "k2", "k1", "k0"]
    assert [entry.key for entry in await store.read_cache(None, 2)] == ["far", "k4"]
    assert [entry.key for entry in await store.read_cache("it's", 10)] == ["far"]
    assert await store.read_cache("nosuch", 10) == [] == await store.read_cache(None, 0)
    first = entries[0]
    assert (first.task_name, first.run_id, first.serializer, first.size) == ("it's", run_id, "json", 1)
    assert first.created == datetime.fromtimestamp(START + 9, UTC)
    assert first.expires == datetime.fromtimestamp(START + 60, UTC)
    assert (entries[1].expires, entries[1].size) == (None, 5)


async def test_an_expiry_beyond_all_dates_is_the_last_date(store):
    await store.write_results([result("k", expires=1e300)])
    assert (await store.read_cache(None, 1))[0].expires == datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ((None, None, False), []),
        (("one", None, False), ["other", "other-old"]),
        ((None, "one", False), ["one-old", "other", "other-old"]),
        ((None, None, True), ["one", "other"]),
        (("one", None, True), ["one", "other", "other-old"]),
        (("one", "other", False), ["one", "one-old", "other", "other-old"]),
        (("one", "one-old", True), ["one", "other", "other-old"]),
        (("' OR 1=1 --", None, False), ["one", "one-old", "other", "other-old"]),
    ],
    ids=str,
)
async def test_only_results_that_fit_all_that_is_given_are_cleared(make, given, left):
    store = make(clock=VirtualClock())
    some = [
        result(f"{name}{end}", task_name=name, expires=expires)
        for name in ("one", "other")
        for end, expires in (("", START + 100), ("-old", START - 1))
    ]
    await store.write_results(some)
    assert await store.clear_cache(*given) == len(some) - len(left)
    assert sorted(entry.key for entry in await store.read_cache(None, 10)) == left
    for one in some:
        assert (await store.read_result(one.key) is not None) == (one.key in left)


async def test_a_result_from_the_future_is_not_fresh_and_one_without_expiry_always_is():
    now = START
    assert result("k", created=now + 3600).is_fresh(now)
    assert result("k", created=now, expires=now + 1).is_fresh(now)
    assert result("k", created=now + SKEW, expires=now + 9).is_fresh(now)
    assert not result("k", created=now + SKEW + 1, expires=now + 9).is_fresh(now)
    assert not result("k", created=now - 9, expires=now).is_fresh(now)


async def test_a_key_is_locked_for_one_at_a_time(store):
    async with Runtime(store=store):
        assert await store.try_take_key("k")
        assert not await store.try_take_key("k")
        assert await store.try_take_key("other")
        store.give_key("k")
        assert await store.try_take_key("k")
        for key in ("k", "other"):
            store.give_key(key)


# -- deleting -----------------------------------------------------------------------------------------------------


async def test_a_deleted_run_is_gone_with_all_that_belongs_to_it(store):
    async with Runtime(store=store), get_client() as client:
        for number in range(3):
            await kept.with_options(tags=["t"], task_run_name=f"given name {number}")(number)
        before = await client.read_task_runs()
        gone = before[1]
        await client.delete_task_run(str(gone.id))
        for read in (client.read_task_run, client.read_task_run_states, client.read_logs, client.delete_task_run):
            with pytest.raises(ObjectNotFound):
                await read(gone.id)
        left = [run.id for run in before if run.id != gone.id]
        for filters in (
            {},
            {"tags": ["t"]},
            {"name": "given name"},
            {"task_name": "kept"},
            {"state_name": "Completed"},
        ):
            assert [run.id for run in await client.read_task_runs(**filters)] == left
            assert await client.count_task_runs(**filters) == 2
        assert await store.read_result(f"run:{gone.id}") is None
        info = await store.info()
        assert (info.runs, info.results, info.logs) == (2, 2, 2)
        for run in left:
            assert (await store.read_result(f"run:{run}")) is not None
            assert len(await client.read_logs(run)) == 1


async def test_a_result_that_others_may_find_outlives_its_run(store):
    cached = task(cache_key_fn=lambda context, parameters: "shared")(lambda: 7)
    async with Runtime(store=store):
        future = cached.submit()
        await future
        await store.delete_run(future.task_run_id)
        assert await store.read_result("shared") is not None


async def test_a_run_under_way_is_not_deleted(store):
    go = anyio.Event()

    @task
    async def work() -> None:
        await go.wait()

    async with Runtime(store=store):
        future = work.submit()
        await until(lambda: future.state.is_running())
        with pytest.raises(StoreError, match="still under way"):
            await store.delete_run(future.task_run_id)
        assert await store.prune(timedelta(0), 0) == 0
        assert (await store.read_run(future.task_run_id)).state_name == "Running"
        go.set()
        await future
        await store.delete_run(future.task_run_id)


async def test_what_is_not_there_cannot_be_deleted(store):
    with pytest.raises(ObjectNotFound, match="no run"):
        await store.delete_run(uuid.uuid4())


async def test_runs_are_pruned_by_when_they_ended(make):
    clock = VirtualClock()
    store = make(clock=clock)
    async with Runtime(store=store, clock=clock):
        for number in range(10):
            await kept(number)
            clock.advance(3600)
        assert await store.prune(timedelta(hours=20), None) == 0
        assert await store.prune(timedelta(hours=4, minutes=30), None) == 6
        left = await store.read_runs(EVERYTHING, 100)
        assert [run.parameters["x"] for run in left] == ["9", "8", "7", "6"]
        assert (await store.info()).logs == 4
        assert (await store.info()).results == 4
        assert await store.prune(timedelta(0), None) == 4
    assert await store.read_runs(EVERYTHING, 100) == []


async def test_a_long_run_is_as_old_as_its_end(make):
    clock = VirtualClock()
    store = make(clock=clock)

    @task
    async def long() -> None:
        clock.advance(86400)

    async with Runtime(store=store, clock=clock):
        await long()
        await store.flush()
        assert await store.prune(timedelta(hours=1), None) == 0
        clock.advance(7200)
        assert await store.prune(timedelta(hours=1), None) == 1


@pytest.mark.parametrize(("keep", "left"), [(0, 0), (1, 1), (4, 4), (10, 10), (11, 10)])
async def test_all_but_the_newest_are_pruned(store, keep, left):
    async with Runtime(store=store):
        for number in range(10):
            await plain(number)
        newest = [run.id for run in await store.read_runs(EVERYTHING, left)]
        assert await store.prune(None, keep) == 10 - left
        assert [run.id for run in await store.read_runs(EVERYTHING, 100)] == newest
        assert await store.prune(None, keep) == 0


async def test_many_thousand_runs_are_pruned_at_once(make):
    """More than are deleted in one transaction."""
    store = make(10_000)
    async with Runtime(store=store):
        for number in range(2_500):
            await plain(number)
        assert await store.prune(None, 10) == 2_490
        assert await store.prune(None, None) == 0
        assert len(await store.read_runs(EVERYTHING, 10_000)) == 10


async def test_pruning_by_nothing_sensible_is_refused(store):
    async with Runtime(store=store), get_client() as client:
        with pytest.raises(OptionError, match="older_than"):
            await client.prune(older_than=timedelta(seconds=-1))
        for keep in (-1, 1.5, True, "1"):
            with pytest.raises(OptionError, match=r"prune\(keep=...\) must be a whole number"):
                await client.prune(keep=keep)
