"""The rules around the cache: expiry, refreshing, failures and retries, states, futures, nesting, cancellation."""

import inspect
import logging
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from asynctask import Runtime, flow, get_client, states, tags, task, temporary_settings
from asynctask.cache_policies import INPUTS
from asynctask.errors import FailedRun
from asynctask.stores.base import Store
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from asynctask.testing import VirtualClock

STORES: dict[str, Callable[[Path, Any], Store]] = {
    "memory": lambda folder, clock: MemoryStore(clock=clock),
    "sqlite": lambda folder, clock: SQLiteStore(folder / "runs.db", clock=clock),
}


@pytest.fixture(params=STORES, ids=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path, None)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(params=STORES, ids=list(STORES))
def virtual(request: pytest.FixtureRequest, tmp_path: Path, clock: VirtualClock) -> Runtime:
    return Runtime(store=STORES[request.param](tmp_path, clock), clock=clock)


@pytest.fixture
def bodies() -> Counter[Any]:
    return Counter()


def counting(bodies: Counter[Any], colour: str = "async", **options: Any) -> Any:
    """A cached task whose value tells how often its body has run with this argument."""

    def work(x: Any) -> int:
        bodies[x] += 1
        return bodies[x]

    async def async_work(x: Any) -> int:
        return work(x)

    return task(**({"cache_policy": INPUTS} | options))(work if colour == "sync" else async_work)


async def state_names() -> list[str]:
    async with get_client() as client:
        return [state.name for state in (await client.read_task_runs(limit=1))[0].states]


# -- expiry and refreshing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expiration", [timedelta(minutes=1), 60, 60.0], ids=repr)
async def test_an_entry_serves_until_it_expires_and_is_then_made_anew(virtual, clock, bodies, expiration):
    t = counting(bodies, cache_expiration=expiration)
    async with virtual:
        assert await t(1) == 1
        clock.advance(59.9)
        assert await t(1) == 1
        clock.advance(0.2)
        assert await t(1) == 2
        clock.advance(59)
        assert await t(1) == 2


async def test_without_expiration_an_entry_is_for_ever(virtual, clock, bodies):
    t = counting(bodies)
    async with virtual:
        await t(1)
        clock.advance(10 * 365 * 86400.0)
        assert await t(1) == 1


async def test_expiration_is_kept_with_the_entry_and_holds_for_every_task_with_the_key(virtual, clock, bodies):
    short = counting(bodies, cache_policy=None, cache_key_fn=lambda c, p: "k", cache_expiration=10)
    never = counting(bodies, cache_policy=None, cache_key_fn=lambda c, p: "k", name="other")
    async with virtual:
        await short(1)
        clock.advance(11)
        assert await never(1) == 2
        clock.advance(1000)
        assert await short(1) == 2


async def test_an_expiration_beyond_all_dates_and_one_of_no_time_at_all(virtual, clock, bodies):
    for_ever = counting(bodies, cache_expiration=timedelta.max)
    never = counting(bodies, cache_expiration=0, name="never")
    async with virtual:
        assert [await for_ever(1), await for_ever(1)] == [1, 1]
        async with get_client() as client:
            assert len(await client.read_cache()) == 1
        assert [await never(2), await never(2)] == [1, 2]


async def test_a_clock_set_back_by_an_hour_serves_nothing_whose_age_nobody_can_tell(tmp_path, bodies):
    clocks = [VirtualClock(1_800_000_000.0), VirtualClock(1_800_000_000.0 - 3600)]
    t = counting(bodies, cache_expiration=60)
    timeless = counting(bodies, name="timeless")
    for clock in clocks:
        async with Runtime(store=SQLiteStore(tmp_path / "runs.db", clock=clock), clock=clock):
            await t(1)
            await timeless(2)
    assert bodies == {1: 2, 2: 1}


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_refresh_cache_always_runs_and_writes_what_others_then_find(store, bodies, colour):
    t = counting(bodies, colour)
    refreshing = t.with_options(refresh_cache=True)
    async with Runtime(store=store):
        seen = []
        for one in (t, refreshing, refreshing, t):
            value = one(1)
            seen.append(await value if inspect.isawaitable(value) else value)
        assert seen == [1, 2, 3, 3]


async def test_the_setting_refreshes_all_tasks_but_those_that_opt_out(store, bodies):
    t = counting(bodies)
    steady = counting(bodies, name="steady", refresh_cache=False)
    async with Runtime(store=store):
        await t(1)
        await steady(2)
        with temporary_settings(tasks_refresh_cache=True):
            assert await t(1) == 2
            assert await steady(2) == 1
        assert await t(1) == 2


# -- what a run ends with -------------------------------------------------------------------------------------------


async def test_a_failed_run_is_never_cached_and_its_error_never_served_as_a_value(store, bodies):
    @task(cache_policy=INPUTS, persist_result=True)
    async def work(x: int) -> str:
        bodies[x] += 1
        if bodies[x] < 3:
            raise ValueError(f"failure {bodies[x]}")
        return "fine"

    async with Runtime(store=store):
        for number in (1, 2):
            with pytest.raises(ValueError, match=f"failure {number}"):
                await work(1)
        assert [await work(1), await work(1)] == ["fine", "fine"]
    assert bodies == {1: 3}


async def test_a_failed_run_with_a_key_function_leaves_nothing_under_its_key(store, bodies):
    fail = True

    @task(cache_key_fn=lambda context, parameters: "shared", persist_result=True)
    async def work() -> str:
        if fail:
            raise ValueError("no")
        return "fine"

    async with Runtime(store=store):
        with pytest.raises(ValueError, match="no"):
            await work()
        fail = False
        assert await work() == "fine"


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_retries_go_on_until_there_is_something_to_cache(store, bodies, colour):
    def body(x: int) -> int:
        bodies[x] += 1
        if bodies[x] < 3:
            raise ValueError("not yet")
        return bodies[x]

    async def async_body(x: int) -> int:
        return body(x)

    t = task(body if colour == "sync" else async_body, cache_policy=INPUTS, retries=2)
    async with Runtime(store=store):
        assert await t.submit(1) == 3
        assert await state_names() == ["Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry",
                                       "Retrying", "Completed"]  # fmt: skip
        assert await t.submit(1) == 3
        assert await state_names() == ["Pending", "Cached"]
    assert bodies == {1: 3}


async def test_a_returned_state_is_cached_by_its_data_and_only_if_it_is_completed(store, bodies):
    @task(cache_policy=INPUTS)
    async def work(kind: str) -> Any:
        bodies[kind] += 1
        made = {
            "completed": lambda: states.Completed(data={"a": [1]}),
            "failed": lambda: states.Failed(message="told"),
            "cancelled": lambda: states.Cancelled(message="told"),
        }
        return made[kind]()

    async with Runtime(store=store):
        assert [await work("completed"), await work("completed")] == [{"a": [1]}] * 2
        for kind, error in (("failed", FailedRun), ("cancelled", BaseException)):
            for _ in range(2):
                state = await work(kind, return_state=True)
                assert not state.is_completed()
                with pytest.raises(error):
                    state.result()
    assert bodies == {"completed": 1, "failed": 2, "cancelled": 2}


async def test_several_returned_states_are_judged_each_time(store, bodies):
    @task(cache_policy=INPUTS)
    async def work(ok: bool) -> Any:
        bodies[ok] += 1
        return [states.Completed(data=1), states.Completed(data=2) if ok else states.Failed(message="told")]

    async with Runtime(store=store):
        for ok in (True, False) * 2:
            assert (await work(ok, return_state=True)).is_completed() is ok
    assert bodies[False] == 2


@pytest.mark.parametrize("value", [None, 0, "", [], False, {}, 0.0, b""], ids=repr)
async def test_values_that_are_false_are_values(store, value):
    calls = []

    @task(cache_policy=INPUTS)
    async def work(x: int) -> Any:
        calls.append(x)
        return value

    async with Runtime(store=store):
        for _ in range(2):
            found = await work(1)
            assert (found, type(found)) == (value, type(value))
    assert calls == [1]


async def test_a_sync_task_that_returns_a_generator_is_cached_by_its_list(store, bodies):
    @task(cache_policy=INPUTS)
    def work(x: int) -> Any:
        bodies[x] += 1
        return (one for one in range(x))

    async with Runtime(store=store):
        assert [list(work(3)), list(work(3)), list(await work.submit(3))] == [[0, 1, 2]] * 3
    assert bodies == {3: 1}


async def test_a_sync_task_that_returns_a_coroutine_says_what_is_wrong_with_it(store):
    async def inner() -> None: ...

    @task(cache_policy=INPUTS)
    def work() -> Any:
        return inner()

    async with Runtime(store=store):
        with pytest.raises(TypeError, match="returned a coroutine that nobody awaited"):
            work()


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_futures_and_states_among_the_arguments_count_by_their_values(store, bodies, colour):
    number = task(lambda x: x, name="number")
    t = counting(bodies, colour)

    @task(cache_policy=INPUTS)
    async def of_list(xs: list[Any]) -> int:
        bodies["list"] += 1
        return len(xs)

    async with Runtime(store=store):
        assert await t.submit(number.submit(5)) == 1
        assert await t.submit(5) == 1
        assert await t.submit(number(5, return_state=True)) == 1
        assert [await of_list([number.submit(1), 2]), await of_list([1, number.submit(2)])] == [2, 2]
        assert bodies == {5: 1, "list": 1}


async def test_a_run_whose_upstream_failed_is_not_served_from_the_cache(store, bodies):
    @task
    async def fails() -> int:
        raise ValueError("no")

    t = counting(bodies)
    async with Runtime(store=store):
        await t(1)
        state = await t.submit(1, wait_for=[fails.submit()]).wait_async()
        assert state is not None
        assert state.name == "NotReady"


async def test_with_options_keeps_the_cache_or_clears_it(store, bodies):
    t = counting(bodies)
    async with Runtime(store=store):
        await t(1)
        assert await t.with_options(retries=2)(1) == 1
        assert await t.with_options(cache_policy=None)(1) == 2
        assert await counting(bodies, cache_policy=None).with_options(cache_policy=INPUTS)(1) == 1


async def test_tags_are_no_part_of_the_key(store, bodies):
    t = counting(bodies)
    async with Runtime(store=store):
        await t(1)
        with tags("other"):
            assert await t(1) == 1


async def test_a_mapped_task_runs_its_body_once_for_each_different_element(store, bodies):
    t = counting(bodies)
    async with Runtime(store=store):
        assert await t.map([1, 2, 1, 3, 2, 1]) == [1] * 6
    assert bodies == {1: 1, 2: 1, 3: 1}


# -- nesting and cancelling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer_colour", ["sync", "async"])
async def test_cached_tasks_inside_cached_tasks(store, bodies, outer_colour):
    inner = counting(bodies, "sync")

    def outer(x: int) -> list[int]:
        bodies["outer"] += 1
        return [inner(x), inner(x + 1)]

    async def async_outer(x: int) -> list[int]:
        return outer(x)

    t = task(outer if outer_colour == "sync" else async_outer, cache_policy=INPUTS)
    async with Runtime(store=store):
        assert await t.submit(1) == [1, 1]
        assert await t.submit(1) == [1, 1]
        assert await t.submit(2) == [1, 1]
    assert bodies == {"outer": 2, 1: 1, 2: 1, 3: 1}


async def test_a_cancelled_run_leaves_nothing_and_the_next_one_runs(store, bodies):
    begun = anyio.Event()

    @task(cache_policy=INPUTS)
    async def work(x: int) -> str:
        bodies[x] += 1
        if bodies[x] == 1:
            begun.set()
            await anyio.sleep_forever()
        return "fine"

    async with Runtime(store=store):
        future = work.submit(1)
        await begun.wait()
        future.cancel()
        state = await future.wait_async()
        assert state is not None
        assert state.name == "Cancelled"
        assert await work(1) == "fine"
        assert await work(1) == "fine"
    assert bodies == {1: 2}


async def test_a_body_that_timed_out_is_not_cached_and_a_hit_never_times_out(store, bodies):
    @task(cache_policy=INPUTS, timeout_seconds=0.05)
    async def work(x: int) -> str:
        bodies[x] += 1
        if bodies[x] == 1:
            await anyio.sleep_forever()
        return "fine"

    async with Runtime(store=store):
        with pytest.raises(TimeoutError):
            await work(1)
        assert [await work(1), await work(1)] == ["fine", "fine"]
    assert bodies == {1: 2}


async def test_a_cached_task_inside_a_flow_that_fails_stays_cached(store, bodies):
    t = counting(bodies)

    @flow
    async def whole() -> None:
        await t(1)
        raise ValueError("later")

    async with Runtime(store=store):
        for _ in range(2):
            with pytest.raises(ValueError, match="later"):
                await whole()
    assert bodies == {1: 1}


def test_the_option_order_key_function_before_policy_is_told_once(caplog):
    with caplog.at_level(logging.WARNING):
        task(cache_policy=INPUTS, cache_key_fn=lambda context, parameters: "k")(lambda: 1)
    assert [one.getMessage() for one in caplog.records] == [
        "task '<lambda>': its cache_key_fn is used, and its cache_policy is not"
    ]


async def test_clearing_the_cache_makes_the_body_run_again(store, bodies):
    t, other = counting(bodies), counting(bodies, name="other")
    async with Runtime(store=store), get_client() as client:
        await t(1)
        await t(2)
        await other(3)
        assert await client.clear_cache(task_name="other") == 1
        assert [await t(1), await t(2), await other(3)] == [1, 1, 2]
        (entry, *_) = [one for one in await client.read_cache() if one.task_name == t.name]
        assert await client.clear_cache(key=entry.key) == 1
        assert await t(1) + await t(2) == 3
        assert await client.clear_cache() == 3
        assert await client.read_cache() == []
        assert await other(3) == 3


async def test_clearing_what_has_expired_leaves_the_rest(virtual, clock, bodies):
    short, long = counting(bodies, cache_expiration=10), counting(bodies, name="long", cache_expiration=100)
    async with virtual, get_client() as client:
        await short(1)
        await long(2)
        clock.advance(50)
        assert await client.clear_cache(expired=True) == 1
        assert [entry.task_name for entry in await client.read_cache()] == ["long"]
