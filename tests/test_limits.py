"""Tag limits: how many runs with a tag are Running at once, and who is next."""

import contextvars
import gc
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from asynctask import Runtime, State, StateType, get_client, tags, task
from asynctask.errors import BlockingWaitError, CancelledRun
from asynctask.records import retry_in, retry_message
from asynctask.scopes import current_runtime
from asynctask.stores.memory import MemoryStore
from asynctask.testing import VirtualClock
from testkit import Inside, fresh, limit_of, set_limit, until


@pytest.fixture
def plain_limit() -> Iterator[Callable[[str, int], None]]:
    """Limits on the default runtime's store, which lives as long as the process: taken away again."""
    made: list[str] = []

    def create(tag: str, limit: int) -> None:
        with get_client(sync_client=True) as client:
            client.create_concurrency_limit(tag, limit)
        made.append(tag)

    yield create
    with get_client(sync_client=True) as client:
        for tag in made:
            client.delete_concurrency_limit_by_tag(tag)


# -- how many ------------------------------------------------------------------------------------------------------


async def test_never_more_async_runs_than_the_limit_and_as_many_as_it():
    inside = Inside()

    @task(tags=["db"])
    async def work() -> None:
        inside.enter("db")
        await anyio.sleep(0.001)
        inside.leave("db")

    async with fresh():
        await set_limit("db", 3)
        futures = [work.submit() for _ in range(20)]
        for future in futures:
            await future
    assert inside.most == {"db": 3}


async def test_never_more_runs_on_threads_than_the_limit_and_as_many_as_it():
    inside = Inside()
    together = threading.Barrier(3)

    @task(tags=["db"])
    def work() -> None:
        inside.enter("db")
        together.wait(20)  # breaks if fewer than three get in
        inside.leave("db")

    async with fresh():
        await set_limit("db", 3)
        for future in [work.submit() for _ in range(12)]:
            await future
    assert inside.most == {"db": 3}


def test_runs_submitted_from_plain_threads_share_the_limit(plain_limit):
    """Direct sync calls from eight threads: at most two at once."""
    plain_limit("from-threads", 2)
    inside = Inside()

    @task(tags=["from-threads"])
    def work() -> None:
        inside.enter("t")
        time.sleep(0.002)
        inside.leave("t")

    threads = [threading.Thread(target=lambda: [work() for _ in range(3)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert inside.most == {"t": 2}


async def test_tags_of_an_enclosing_block_count():
    inside = Inside()

    @task
    async def work() -> None:
        inside.enter("t")
        await anyio.sleep(0.001)
        inside.leave("t")

    async with fresh():
        await set_limit("block", 1)
        with tags("block"):
            futures = [work.submit() for _ in range(5)]
        for future in futures:
            await future
    assert inside.most == {"t": 1}


async def test_a_tag_without_a_limit_is_not_limited():
    everybody = threading.Barrier(10)

    @task(tags=["other"])
    def work() -> None:
        everybody.wait(20)

    async with fresh():
        await set_limit("db", 1)
        for future in [work.submit() for _ in range(10)]:
            await future


async def test_eight_short_runs_under_a_limit_of_one_take_little_more_than_their_sum():
    """A released slot wakes the next in line at once; Prefect takes 13 seconds for these 0.08."""

    @task(tags=["db"])
    async def work() -> None:
        await anyio.sleep(0.01)

    async with fresh():
        await set_limit("db", 1)
        start = time.monotonic()
        for future in [work.submit() for _ in range(8)]:
            await future
        taken = time.monotonic() - start
    assert 0.08 <= taken < 0.6


@pytest.mark.parametrize("ending", ["value", "error", "timeout", "cancel"])
async def test_a_slot_is_given_back_however_the_run_ends(ending):
    started = anyio.Event()

    @task(tags=["db"], timeout_seconds=0.02 if ending == "timeout" else None)
    async def work() -> None:
        started.set()
        if ending == "error":
            raise ValueError("no")
        if ending != "value":
            await anyio.sleep(30)

    @task(tags=["db"])
    async def after() -> str:
        return "ran"

    async with fresh() as rt:
        await set_limit("db", 1)
        first = work.submit()
        await started.wait()
        if ending == "cancel":
            first.cancel()
        with anyio.fail_after(20):
            assert await after.submit() == "ran"
            await first.wait_async()
        assert limit_of(rt, "db").active_slots == []


async def test_the_slot_of_a_body_stuck_in_its_thread_is_free_only_when_the_body_has_left():
    go, inside = threading.Event(), Inside()

    @task(tags=["db"])
    def stuck(started_now: Callable[[], Any]) -> None:
        inside.enter("t")
        started_now()
        try:
            go.wait(20)  # blocked in C: no exception lands here before it returns
        finally:
            inside.leave("t")

    @task(tags=["db"])
    async def after() -> None:
        inside.enter("t")
        inside.leave("t")

    async with fresh():
        await set_limit("db", 1)
        begun = threading.Event()
        first = stuck.submit(begun.set)
        await until(begun.is_set)
        first.cancel()
        with anyio.fail_after(10):
            assert (await first.wait_async()).is_cancelled()  # the run itself ends at once
        waiter = after.submit()
        await until(lambda: waiter.state.name == "AwaitingConcurrencySlot")
        go.set()
        with anyio.fail_after(20):
            await waiter
    assert inside.most == {"t": 1}


# -- who is next ---------------------------------------------------------------------------------------------------


async def test_first_come_first_served():
    go = anyio.Event()
    order: list[int] = []

    @task(tags=["db"])
    async def work(number: int) -> None:
        order.append(number)
        await go.wait()
        await anyio.sleep(0)

    async with fresh() as rt:
        await set_limit("db", 1)
        futures = [work.submit(0)]
        await until(lambda: order)
        for number in range(1, 15):  # one by one: trio starts tasks of one moment in any order
            futures.append(work.submit(number))
            await until(lambda: limit_of(rt, "db").waiting == number)  # noqa: B023
        go.set()
        for future in futures:
            await future
    assert order == list(range(15))


async def test_a_run_with_two_tags_takes_all_slots_or_none_and_is_not_overtaken():
    go = anyio.Event()
    order: list[str] = []

    @task
    async def work(name: str, *, hold: bool = False) -> None:
        order.append(name)
        if hold:
            await go.wait()

    async with fresh() as rt:
        await set_limit("a", 1)
        await set_limit("b", 1)
        first = work.with_options(tags=["a"]).submit("holds a", hold=True)
        await until(lambda: order)
        both = work.with_options(tags=["a", "b"]).submit("both")
        await until(lambda: both.state.name == "AwaitingConcurrencySlot")
        assert limit_of(rt, "b").active_slots == []  # it does not sit on b while it waits for a
        late = work.with_options(tags=["b"]).submit("b alone, later")
        await until(lambda: late.state.name == "AwaitingConcurrencySlot")
        go.set()
        for future in (first, both, late):
            await future
    assert order == ["holds a", "both", "b alone, later"]


async def test_a_cancelled_waiter_leaves_the_line():
    go = anyio.Event()
    ran: list[str] = []

    @task(tags=["db"])
    async def work(name: str) -> None:
        ran.append(name)
        if name == "holder":
            await go.wait()

    async with fresh() as rt:
        await set_limit("db", 1)
        holder = work.submit("holder")
        await until(lambda: ran)
        waiter, last = work.submit("waiter"), work.submit("last")
        await until(lambda: last.state.name == "AwaitingConcurrencySlot")
        assert limit_of(rt, "db").waiting == 2
        waiter.cancel()
        await waiter.wait_async()
        assert waiter.state.is_cancelled()
        assert limit_of(rt, "db").waiting == 1
        go.set()
        await last
        await holder
    assert ran == ["holder", "last"]


async def test_what_a_waiting_run_waits_for_can_be_read():
    go = anyio.Event()

    @task(tags=["db"])
    async def work() -> None:
        await go.wait()

    async with fresh() as rt:
        await set_limit("db", 1)
        holder = work.submit()
        await until(lambda: holder.state.is_running())
        waiter = work.submit()
        await until(lambda: waiter.state.is_scheduled())
        shown = next(run for run in rt.runs if run.id == waiter.task_run_id).waiting_on
        assert shown == f'tag "db", first in line, held by {holder.name} for 0 s'
        go.set()
        await waiter
        await holder


async def test_why_a_run_waits_is_told_as_it_is_now():
    """The upstream; the place in line, and who holds the slots for how long; the seconds left."""
    go, failed = anyio.Event(), anyio.Event()

    @task(tags=["db"], task_run_name="{name}")
    async def work(name: str) -> None:
        await go.wait()

    @task(retries=1, retry_delay_seconds=3600)
    async def flaky() -> None:
        failed.set()
        raise ValueError("no")

    @task
    async def after(value: None) -> None:
        pass

    clock = VirtualClock()
    async with Runtime(store=MemoryStore(clock=clock)) as rt:
        await set_limit("db", 1)
        futures = []
        for place, name in enumerate(("Y", "a", "b", "c")):
            futures.append(work.submit(name))
            await until(lambda: limit_of(rt, "db").in_use + limit_of(rt, "db").waiting > place)  # noqa: B023
        upstream = after.submit(futures[3])
        sleeping = flaky.submit()
        await until(lambda: sleeping.state.name == "AwaitingRetry" and upstream.run.awaits)
        clock.advance(12)

        def told(future: Any) -> str | None:
            return next(run.waiting_on for run in rt.runs if run.id == future.task_run_id)

        assert told(futures[3]) == 'tag "db", third in line, held by Y for 12 s'
        assert told(upstream) == "upstream c (AwaitingConcurrencySlot)"
        assert re.fullmatch(r"retry in 3(600|59\d) s", told(sleeping) or "")
        sleeping.cancel()
        go.set()
        for future in futures:
            await future
        await upstream
        assert futures[3].run.waiting_on is None


async def test_the_seconds_until_a_retry_are_those_that_are_left():
    state = State(type=StateType.SCHEDULED, name="AwaitingRetry", time=100.0, message=retry_message("no", "2 of 3", 4))
    assert [retry_in(state, now) for now in (100.0, 101.2, 103.7, 104.0, 200.0)] == [
        "retry in 4 s", "retry in 3 s", "retry in 0.3 s", "retry in 0 s", "retry in 0 s",
    ]  # fmt: skip
    assert (
        retry_in(State(type=StateType.SCHEDULED, name="AwaitingRetry", time=1.0, message="cut off"), 2.0) == "cut off"
    )
    assert retry_in(State(type=StateType.RUNNING, name="Running", time=1.0, message="starts in 4 s"), 2.0) is None


# -- when a slot is held -------------------------------------------------------------------------------------------


async def test_a_run_holds_no_slot_while_it_waits_for_an_upstream():
    go = anyio.Event()

    @task
    async def upstream() -> int:
        await go.wait()
        return 1

    @task(tags=["db"])
    async def work(value: int) -> int:
        return value

    async with fresh():
        await set_limit("db", 1)
        waiting = work.submit(upstream.submit())
        with anyio.fail_after(20):
            assert await work.submit(2) == 2  # submitted later, and not held up
        go.set()
        assert await waiting == 1


async def test_a_run_holds_no_slot_while_it_waits_for_its_retry():
    failed = anyio.Event()

    @task(tags=["db"], retries=1, retry_delay_seconds=60)
    async def flaky() -> None:
        failed.set()
        raise ValueError("no")

    @task(tags=["db"])
    async def other() -> str:
        return "ran"

    async with fresh():
        await set_limit("db", 1)
        sleeping = flaky.submit()
        await failed.wait()
        with anyio.fail_after(20):
            assert await other.submit() == "ran"
        assert sleeping.state.name == "AwaitingRetry"
        sleeping.cancel()
        with pytest.raises(CancelledRun):
            await sleeping


async def test_a_cache_hit_and_a_run_that_waits_for_its_key_take_no_slot():
    go = anyio.Event()
    began: list[int] = []

    @task(tags=["db"], cache_key_fn=lambda context, parameters: str(parameters["key"]))
    async def cached(key: int) -> int:
        began.append(key)
        if key == 2:
            await go.wait()
        return key

    async with fresh() as rt:
        await set_limit("db", 1)
        assert await cached(1) == 1
        leader = cached.submit(2)
        await until(lambda: began == [1, 2])
        follower = cached.submit(2)
        await until(lambda: follower.run.awaits)
        assert limit_of(rt, "db").waiting == 0
        with anyio.fail_after(20):
            hit = cached.submit(1)
            assert await hit == 1  # though the only slot is taken
        assert [state.name for state in hit.run.states] == ["Pending", "Cached"]
        go.set()
        assert (await leader, await follower) == (2, 2)
    assert began == [1, 2]


async def test_a_run_that_waits_for_a_child_keeps_no_slot_from_it():
    @task(tags=["db"])
    async def child() -> str:
        return "child"

    @task(tags=["db"])
    async def parent() -> str:
        result: str = await child.submit()
        return result

    async with fresh() as rt:
        await set_limit("db", 1)
        with anyio.fail_after(20):
            assert await parent.submit() == "child"
        assert limit_of(rt, "db").in_use == 0


async def test_a_sync_call_on_the_loop_that_would_wait_for_a_slot_says_what_to_write():
    go = anyio.Event()

    @task(tags=["db"])
    async def holder() -> None:
        await go.wait()

    @task(tags=["db"])
    def inline() -> str:
        return "ran"

    async with fresh() as rt:
        await set_limit("db", 1)
        held = holder.submit()
        await until(lambda: held.state.is_running())
        with pytest.raises(BlockingWaitError, match=r"await inline\.submit"):
            inline()
        assert limit_of(rt, "db").waiting == 0
        go.set()
        await held
        assert inline() == "ran"


def test_a_generator_that_the_garbage_collector_closes_while_somebody_takes_a_slot_gives_its_own_back():
    """Anything that is made may set the collector off, also while the limits are locked, by the same thread."""
    store = MemoryStore()
    store.limits.set("tag:db", 2)
    monotonic = store.limits.monotonic
    done: list[str] = []
    is_due = False

    def collecting() -> float:
        nonlocal is_due
        if is_due:
            is_due = False
            gc.collect()
        return monotonic()

    store.limits.monotonic = collecting

    @task(tags=["db"])
    def rows() -> Iterator[int]:
        yield 1
        yield 2

    @task(tags=["db"])
    def work() -> str:
        return "ran"

    def call() -> None:
        nonlocal is_due
        ring: list[Any] = [rows()]
        next(ring[0])
        ring.append(ring)
        del ring
        is_due = True
        done.append(work())

    runtime = Runtime(store=store)
    token = current_runtime.set(runtime)
    try:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(call,), daemon=True)
        thread.start()
        thread.join(5)
        assert done == ["ran"]
        for _ in range(1000):
            if not store.limits.lines["tag:db"].used:
                break
            time.sleep(0.005)
        assert store.limits.lines["tag:db"].used == 0
    finally:
        current_runtime.reset(token)
        runtime.close()


# -- at random -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_under_any_mix_of_runs_no_limit_is_exceeded_and_nothing_is_left_held(seed):
    """Random tags, sync and async bodies, failures, retries, cancellations: the most inside never passes a limit."""
    dice = random.Random(seed)
    limits = {"a": 1, "b": 2, "c": 3}
    inside = Inside()

    def names() -> list[str]:
        return dice.sample(sorted(limits), dice.randint(1, 3))

    async def async_work(own: list[str], fails: bool) -> None:
        inside.enter(*own)
        try:
            await anyio.sleep(0)
            if fails:
                raise ValueError("no")
        finally:
            inside.leave(*own)

    def sync_work(own: list[str], fails: bool) -> None:
        inside.enter(*own)
        try:
            time.sleep(0.0005)
            if fails:
                raise ValueError("no")
        finally:
            inside.leave(*own)

    async with fresh() as rt:
        for tag, limit in limits.items():
            await set_limit(tag, limit)
        futures = []
        for _ in range(80):
            own = names()
            made: Any = task(tags=own, retries=dice.randint(0, 1))(dice.choice([async_work, sync_work]))
            futures.append(made.submit(own, dice.random() < 0.3))
            if dice.random() < 0.2:
                dice.choice(futures).cancel()
            if dice.random() < 0.3:
                await anyio.sleep(0)
        with anyio.fail_after(20):
            for future in futures:
                assert (await future.wait_async()).is_final()
        for tag, limit in limits.items():
            assert inside.most[tag] <= limit
            now = limit_of(rt, tag)
            assert (now.active_slots, now.waiting) == ([], 0)
    assert not +inside.now
