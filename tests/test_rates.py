"""`rate_limit`, and slots that come back by themselves: paced exactly, in the order of the line."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctask import Runtime, concurrency, flow, get_client, rate_limit, rates, task
from asynctask.errors import BlockingWaitError, ConcurrencyLimitAborted, OptionError
from asynctask.limits import Limits
from asynctask.lines import Guest, Slots
from asynctask.stores.memory import MemoryStore
from asynctask.testing import VirtualClock, virtual_time
from testkit import STORES, until

# -- in virtual time: to the second --------------------------------------------------------------------------------


@contextmanager
def virtual(**limits: tuple[int, float]) -> Iterator[tuple[VirtualClock, Runtime]]:
    """A clock, and a runtime on it with these limits: slots, and how many come back in a second."""
    clock = VirtualClock()
    store = MemoryStore(clock=clock)
    for name, (size, decay) in limits.items():
        store.limits.set(name, size, decay=decay)
    yield clock, Runtime(store=store, clock=clock)


async def taken_at(clock: VirtualClock, limiter: rate_limit, count: int) -> list[float]:
    times = []
    for _ in range(count):
        await limiter
        times.append(round(clock.elapsed, 6))
    return times


async def test_6_slots_at_5_a_second_take_1_second():
    with virtual(api=(1, 5.0)) as (clock, runtime):
        async with runtime:
            assert await taken_at(clock, rate_limit("api"), 6) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


async def test_a_burst_of_the_limits_size_goes_through_at_once():
    with virtual(api=(4, 5.0)) as (clock, runtime):
        async with runtime:
            assert await taken_at(clock, rate_limit("api"), 7) == [0.0] * 4 + [0.2, 0.4, 0.6]
            clock.advance(0.5)  # two and a half come back, and the half counts
            assert await taken_at(clock, rate_limit("api"), 4) == [1.1, 1.1, 1.2, 1.4]
            clock.advance(100)  # no more than four ever do
            assert await taken_at(clock, rate_limit("api"), 5) == [101.4] * 4 + [101.6]


async def test_several_slots_at_once_wait_for_all_of_them():
    with virtual(api=(4, 5.0)) as (clock, runtime):
        async with runtime:
            assert await taken_at(clock, rate_limit("api", occupy=2), 4) == [0.0, 0.0, 0.4, 0.8]
            assert await taken_at(clock, rate_limit("api", occupy=4), 1) == [1.6]


async def test_of_several_limits_the_slowest_paces():
    with virtual(fast=(1, 10.0), slow=(2, 1.0)) as (clock, runtime):
        async with runtime:
            assert await taken_at(clock, rate_limit(["fast", "slow"]), 4) == [0.0, 0.1, 1.0, 2.0]
            assert await taken_at(clock, rate_limit("fast"), 1) == [2.1]  # of the other one it took all the same


async def test_every_form_waits_alike():
    with virtual(api=(1, 5.0)) as (clock, runtime):
        async with runtime:
            await rate_limit("api")
            async with rate_limit("api"):
                assert clock.elapsed == pytest.approx(0.2)

            def in_a_thread() -> float:
                with rate_limit("api"):
                    return clock.elapsed

            assert await anyio.to_thread.run_sync(in_a_thread) == pytest.approx(0.4)


async def test_runs_are_paced_whichever_way_they_were_started():
    times: list[float] = []

    @task
    async def call() -> None:
        await rate_limit("api")
        times.append(round(clock.elapsed, 6))

    @task
    def sync_call() -> None:
        with rate_limit("api"):
            times.append(round(clock.elapsed, 6))

    @flow
    async def calls() -> None:
        for _ in range(2):
            await call()
            await call.submit()
            await sync_call.submit()

    with virtual(api=(1, 4.0)) as (clock, runtime):
        async with runtime:
            await calls()
    assert times == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


async def test_slots_of_a_block_come_back_by_themselves_as_well():
    """And what a block gives back early is there for the next one."""
    with virtual(api=(1, 5.0)) as (clock, runtime):
        async with runtime:
            async with concurrency("api"), concurrency("api"):  # it waits for the slot to come back, and has it again
                assert clock.elapsed == pytest.approx(0.2)
            async with concurrency("api"):
                assert clock.elapsed == pytest.approx(0.2)


async def test_virtual_time_paces_without_taking_any():
    began = time.monotonic()
    async with virtual_time() as clock, get_client() as client:
        await client.create_global_concurrency_limit("api", 1, slot_decay_per_second=0.01)
        for _ in range(4):
            await rate_limit("api")
        assert clock.elapsed == pytest.approx(300)
    assert time.monotonic() - began < 30


# -- in real time --------------------------------------------------------------------------------------------------


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    return STORES[request.param](tmp_path, 100)


async def test_11_slots_at_50_a_second_take_a_fifth_of_a_second(store):
    """Not less; and what a wake-up or a disk is late by does not add up."""
    async with Runtime(store=store), get_client() as client:
        await client.create_global_concurrency_limit("api", 1, slot_decay_per_second=50.0)
        began = time.monotonic()
        for _ in range(11):
            await rate_limit("api")
        taken = time.monotonic() - began
    assert 0.199 < taken < 5


async def test_tasks_and_threads_share_one_pace(store):
    times: list[float] = []

    async def in_a_task() -> None:
        await rate_limit("api")
        times.append(time.monotonic())

    def in_a_thread() -> None:
        with rate_limit("api"):
            times.append(time.monotonic())

    async with Runtime(store=store), get_client() as client:
        await client.create_global_concurrency_limit("api", 2, slot_decay_per_second=50.0)
        began = time.monotonic()
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(in_a_task)
                group.start_soon(anyio.to_thread.run_sync, in_a_thread)
    assert max(times) - began > 0.119  # two at once, then six, 20 ms each


async def test_first_come_first_served_also_if_it_wants_more(store):
    order: list[int] = []

    async def want(count: int) -> None:
        await rate_limit("api", occupy=count)
        order.append(count)

    async with Runtime(store=store) as rt, get_client() as client:
        await client.create_global_concurrency_limit("api", 3, slot_decay_per_second=30.0)
        await rate_limit("api", occupy=3)
        async with anyio.create_task_group() as group:
            for place, count in enumerate((3, 1, 2)):
                group.start_soon(want, count)
                await until(lambda: len(rt.limits.lines["api"].waiting) == place + 1)  # noqa: B023
    assert order == [3, 1, 2]


async def test_who_is_cancelled_as_it_waits_has_taken_nothing_of_the_pace(store):
    async with Runtime(store=store) as rt, get_client() as client:
        await client.create_global_concurrency_limit("api", 1, slot_decay_per_second=0.001)
        await rate_limit("api")
        full = rt.limits.lines["api"].full
        with anyio.move_on_after(0.02):
            await rate_limit("api")
        assert rt.limits.lines["api"].full == pytest.approx(full, abs=0.01)
        assert not rt.limits.lines["api"].waiting
        await client.update_global_concurrency_limit("api", active=False)
        with anyio.fail_after(20):
            await rate_limit("api")


async def test_a_limit_that_does_not_fit_is_refused_and_one_that_is_missing_is_told(store, caplog):
    async with Runtime(store=store), get_client() as client:
        await client.create_global_concurrency_limit("plain", 1)
        await client.create_global_concurrency_limit("api", 2, slot_decay_per_second=1.0)
        with pytest.raises(OptionError, match="slot_decay_per_second"):
            await rate_limit(["api", "plain"])
        with pytest.raises(ConcurrencyLimitAborted, match="wants 3 slots"):
            await rate_limit("api", occupy=3)
        await rate_limit("missing")
        await rate_limit("missing")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "rate_limit('missing') goes on without a limit"
    ] * 2


@pytest.mark.parametrize("options", [{"names": []}, {"names": ""}, {"names": "a", "occupy": 0}])
def test_what_makes_no_sense_is_refused_when_it_is_written(options):
    with pytest.raises(OptionError, match="rate_limit"):
        rate_limit(**options)


def test_a_bare_call_limits_nothing_and_a_warning_says_so():
    with pytest.warns(
        RuntimeWarning, match=r"rate_limit\('api'\) was never entered or awaited.*write `with rate_limit"
    ):
        rate_limit("api")


async def test_one_that_was_used_in_any_form_is_dropped_without_a_warning(recwarn: pytest.WarningsRecorder):
    with virtual(api=(9, 5.0)) as (_, runtime):
        async with runtime:
            await rate_limit("api")
            async with rate_limit("api"):
                pass
            await anyio.to_thread.run_sync(rate_limit("api").__enter__)
    with pytest.raises(OptionError):
        rate_limit([])
    assert not recwarn.list


async def test_a_with_block_on_an_event_loop_says_what_to_write_where_it_would_block_it():
    async with Runtime(store=MemoryStore()) as rt:
        rt.limits.set("api", 1, decay=0.001)
        with rate_limit("api"):
            pass
        with pytest.raises(BlockingWaitError, match="async with"), rate_limit("api"):
            pass
        assert not rt.limits.lines["api"].waiting


async def test_a_limit_that_loses_its_decay_is_not_held_by_who_only_passed():
    async with Runtime(store=MemoryStore()) as rt:
        rt.limits.set("api", 1, decay=0.001)
        await rate_limit("api")
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(rate_limit("api")._pass, rt.loop_port)
            await until(lambda: len(rt.limits.lines["api"].waiting) == 3)
            rt.limits.set("api", 1)
        assert rt.limits.lines["api"].used == 0


async def test_a_child_pays_for_itself_though_its_parent_is_in_a_block_of_the_limit():
    @task
    async def child() -> float:
        await rate_limit("api")
        return clock.elapsed

    @task
    async def parent() -> list[float]:
        async with concurrency("api"):
            return [await child(), await child.submit()]

    with virtual(api=(1, 5.0)) as (clock, runtime):
        async with runtime:
            assert await parent() == [pytest.approx(0.2), pytest.approx(0.4)]


# -- the line ------------------------------------------------------------------------------------------------------


class Waiter:
    """Code that stands in the lines of these limits, and counts how often it is woken."""

    def __init__(self, limits: Limits, *names: str, count: int = 1) -> None:
        slots, _ = limits.take_named(Guest("code"), names, count)
        assert slots is not None
        self.limits = limits
        self.slots: Slots = slots
        self.woken = 0
        limits.when_granted(slots, self._wake)

    def _wake(self) -> None:
        self.woken += 1


def paced(clock: VirtualClock, **limits: tuple[int, float]) -> Limits:
    made = Limits(threading.get_ident, clock=clock)
    for name, (size, decay) in limits.items():
        made.set(name, size, decay=decay)
    return made


def test_only_the_first_in_line_is_given_a_time_and_the_next_one_is_woken_when_it_is_first():
    clock = VirtualClock()
    limits = paced(clock, api=(1, 5.0))
    assert Waiter(limits, "api").slots.granted
    first, second = Waiter(limits, "api"), Waiter(limits, "api")
    assert limits.seconds_until_due(first.slots) == pytest.approx(0.2)
    assert limits.seconds_until_due(second.slots) is None
    clock.advance(0.2)
    limits.look_again(first.slots.lines)
    assert (first.slots.granted, second.slots.granted, second.woken) == (True, False, 1)
    assert limits.seconds_until_due(second.slots) == pytest.approx(0.2)


def test_who_leaves_the_line_loses_no_time_for_the_next_one():
    clock = VirtualClock()
    limits = paced(clock, api=(1, 5.0))
    Waiter(limits, "api")
    first, second = Waiter(limits, "api"), Waiter(limits, "api")
    clock.advance(0.15)
    limits.give(first.slots)
    assert limits.seconds_until_due(second.slots) == pytest.approx(0.05)


def test_who_is_cancelled_with_what_it_has_paid_for_gives_that_back():
    """In line, as with a store that pays before all that is wanted can be had; and just as it was granted."""
    clock = VirtualClock()
    limits = paced(clock, api=(1, 5.0), plain=(1, 0.0))
    holder = Waiter(limits, "plain")
    both = Waiter(limits, "api", "plain")
    full = limits.lines["api"].full
    assert limits.pay(both.slots, [limits.lines["api"]])
    limits.give(both.slots)
    assert limits.lines["api"].full == pytest.approx(full)
    limits.give(holder.slots)
    granted = Waiter(limits, "api")
    assert granted.slots.granted
    limits.give(granted.slots)
    assert Waiter(limits, "api").slots.granted


async def test_who_waits_for_more_than_time_does_not_ask_again_and_again():
    """Its time comes, but another of its limits was lowered meanwhile: it stands there, and is quiet."""
    looks = 0
    async with Runtime(store=MemoryStore()) as rt:
        limits = rt.limits
        limits.set("plain", 2)
        limits.set("api", 1, decay=20.0)
        look_again = limits.look_again

        def counted(lines: Any) -> None:
            nonlocal looks
            looks += 1
            look_again(lines)

        limits.look_again = counted  # type: ignore[method-assign]
        done = anyio.Event()

        async def both() -> None:
            async with concurrency(["plain", "api"]):
                done.set()

        async with anyio.create_task_group() as group:
            async with concurrency("plain"):
                async with concurrency("api"):
                    pass
                await rate_limit("api")
                group.start_soon(both)
                await until(lambda: limits.lines["plain"].waiting)
                limits.set("plain", 1)
                await anyio.sleep(0.2)
                assert not done.is_set()
                assert looks < 10
            with anyio.fail_after(20):
                await done.wait()


# -- the arithmetic ------------------------------------------------------------------------------------------------


@given(
    limit=st.integers(1, 20),
    decay=st.floats(0.1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 20), st.floats(0, 0.3)), max_size=40),
)
def test_no_stretch_of_time_sees_more_than_the_limit_and_what_came_back_in_it(limit, decay, steps):
    """For any arrivals, counts and delays of those that are served; a delay up to LATE counts as none."""
    now = full = 0.0
    taken: list[tuple[float, int]] = []
    for pause, count, late in steps:
        count = min(count, limit)
        came = now + pause
        when = max(came, rates.due(full, count, limit, decay))
        now = when + late  # served one after the other
        full = rates.full_after(full, count, limit, decay, came=came, now=now)
        taken.append((now, count))
        assert 0 <= rates.in_use(full, limit, decay, now) <= limit
    for start, (began, _) in enumerate(taken):
        total = 0
        for ended, count in taken[start:]:
            total += count
            assert total <= limit + decay * (ended - began + rates.LATE) + 1e-6


@given(
    limit=st.integers(1, 20), decay=st.floats(0.1, 1000), counts=st.lists(st.integers(1, 20), min_size=1, max_size=40)
)
def test_who_always_waits_is_served_exactly_at_the_rate(limit, decay, counts):
    """However late each one is within LATE: it does not add up."""
    counts = [min(count, limit) for count in counts]
    full = now = 0.0
    for place, count in enumerate(counts):
        when = max(0.0, rates.due(full, count, limit, decay))
        assert when == pytest.approx(max(0.0, (sum(counts[: place + 1]) - limit) / decay))
        now = max(now, when) + min(rates.LATE, 1 / decay) / 2
        full = rates.full_after(full, count, limit, decay, came=0.0, now=max(when, min(now, when + rates.LATE)))


def test_slots_in_use_come_back_one_after_the_other():
    full = rates.full_after(0.0, 3, 5, 2.0, came=0.0, now=0.0)
    assert [rates.in_use(full, 5, 2.0, at) for at in (0.0, 0.4, 0.5, 0.9, 1.0, 1.5, 9.0)] == [3, 3, 2, 2, 1, 0, 0]
