"""`concurrency`: limits with a name round any block of code."""

import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asynctask import Runtime, concurrency, flow, get_client, task
from asynctask.errors import (
    AcquireConcurrencySlotTimeoutError,
    BlockingWaitError,
    ConcurrencyLimitAborted,
    ConcurrencySlotAcquisitionError,
    OptionError,
)
from asynctask.stores.memory import MemoryStore
from testkit import STORES, Inside, set_limit, until


@pytest.fixture(params=STORES)
def make(request, tmp_path):
    """Opens a runtime on a store of each kind, with these limits."""

    @asynccontextmanager
    async def opened(**limits: int) -> AsyncIterator[Runtime]:
        async with Runtime(store=STORES[request.param](tmp_path, 100)) as rt, get_client() as client:
            for name, size in limits.items():
                await client.create_global_concurrency_limit(name, size)
            yield rt
            for line in rt.limits.lines.values():
                assert (line.used, len(line.holders), len(line.waiting)) == (0, 0, 0), line.name

    return opened


async def in_line(rt: Runtime, name: str, count: int) -> None:
    """Return once so many wait for a slot of this limit in this process."""
    await until(lambda: len(rt.limits.lines[name].waiting) == count)


async def in_threads(count: int, call: Any, *args: Any) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(partial(anyio.to_thread.run_sync, call, *args))


class Held:
    """Slots held by somebody else until they are told to leave."""

    def __init__(self, group: Any, names: str | list[str], occupy: int = 1) -> None:
        self._is_in, self._may_leave, self._is_out = anyio.Event(), anyio.Event(), anyio.Event()
        group.start_soon(self._hold, names, occupy)

    async def _hold(self, names: str | list[str], occupy: int) -> None:
        async with concurrency(names, occupy=occupy):
            self._is_in.set()
            await self._may_leave.wait()
        self._is_out.set()

    async def begun(self) -> "Held":
        await self._is_in.wait()
        return self

    async def end(self) -> None:
        self._may_leave.set()
        await self._is_out.wait()


# -- how many ------------------------------------------------------------------------------------------------------


async def test_never_more_async_blocks_than_the_limit_and_as_many_as_it(make):
    inside = Inside()

    async def block() -> None:
        async with concurrency("db"):
            inside.enter("db")
            await anyio.sleep(0.001)
            inside.leave("db")

    async with make(db=3):
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(block)
    assert inside.most == {"db": 3}


async def test_never_more_blocks_in_threads_than_the_limit_and_as_many_as_it(make):
    inside = Inside()
    together = threading.Barrier(3)

    def block() -> None:
        with concurrency("db"):
            inside.enter("db")
            together.wait(20)  # breaks if fewer than three get in
            inside.leave("db")

    async with make(db=3):
        with anyio.fail_after(20):
            await in_threads(12, block)
    assert inside.most == {"db": 3}


async def test_slots_of_several_limits_are_taken_at_once_or_not_at_all(make):
    async with make(a=1, b=1) as rt, anyio.create_task_group() as group:
        holder = await Held(group, "a").begun()
        both = Held(group, ["a", "b"])
        await in_line(rt, "a", 1)
        assert rt.limits.lines["b"].used == 0  # it does not sit on b while it waits for a
        await holder.end()
        await both.begun()
        assert [rt.limits.lines[name].used for name in "ab"] == [1, 1]
        await both.end()


async def test_a_name_given_twice_counts_once(make):
    async with make(a=1):
        with anyio.fail_after(20):
            async with concurrency(["a", "a"]):
                pass


async def test_a_block_may_take_several_slots(make):
    async with make(a=3) as rt, anyio.create_task_group() as group:
        two = await Held(group, "a", occupy=2).begun()
        more = Held(group, "a", occupy=2)
        await in_line(rt, "a", 1)
        single = Held(group, "a")
        await in_line(rt, "a", 2)  # there is room for one, but it came later
        await two.end()
        await more.begun()
        await single.begun()
        assert rt.limits.lines["a"].used == 3
        await more.end()
        await single.end()


async def test_first_come_first_served(make):
    order: list[int] = []

    async def block(number: int) -> None:
        async with concurrency("a"):
            order.append(number)

    async with make(a=1) as rt, anyio.create_task_group() as group:
        holder = await Held(group, "a").begun()
        for number in range(10):
            group.start_soon(block, number)
            await in_line(rt, "a", number + 1)
        await holder.end()
    assert order == list(range(10))


async def test_blocks_and_runs_share_the_limit_of_a_tag():
    inside = Inside()

    @task(tags=["db"])
    async def run() -> None:
        inside.enter("db")
        await anyio.sleep(0.001)
        inside.leave("db")

    async def block() -> None:
        async with concurrency("tag:db"):
            inside.enter("db")
            await anyio.sleep(0.001)
            inside.leave("db")

    async with Runtime(store=MemoryStore()):
        await set_limit("db", 2)
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(block)
                group.start_soon(run.submit().wait_async)
    assert inside.most == {"db": 2}


# -- how a block ends ----------------------------------------------------------------------------------------------


async def test_a_block_that_raises_gives_its_slots_back(make):
    async with make(a=1) as rt:
        with pytest.raises(ZeroDivisionError):
            async with concurrency("a"):
                1 / 0
        with pytest.raises(ZeroDivisionError), concurrency("a"):
            1 / 0
        assert rt.limits.lines["a"].used == 0


async def test_a_block_that_is_cancelled_while_it_waits_has_taken_nothing_and_the_next_one_is_served(make):
    async with make(a=1) as rt, anyio.create_task_group() as group:
        holder = await Held(group, "a").begun()
        async with anyio.create_task_group() as doomed:
            Held(doomed, "a")
            await in_line(rt, "a", 1)
            next_one = Held(group, "a")
            await in_line(rt, "a", 2)
            doomed.cancel_scope.cancel()
        await in_line(rt, "a", 1)
        await holder.end()
        with anyio.fail_after(20):
            await next_one.begun()
        await next_one.end()


async def test_a_block_that_is_cancelled_just_as_its_slot_is_handed_to_it_gives_it_back(make):
    async with make(a=1) as rt, anyio.create_task_group() as group:
        holder = await Held(group, "a").begun()
        async with anyio.create_task_group() as doomed:
            Held(doomed, "a")
            await in_line(rt, "a", 1)
            holder._may_leave.set()
            while rt.limits.lines["a"].waiting:
                await anyio.sleep(0)
            doomed.cancel_scope.cancel()
        with anyio.fail_after(20):
            async with concurrency("a"):
                pass


@pytest.mark.parametrize("seconds", [0, 0.02])
async def test_a_block_whose_time_is_up_has_taken_nothing(make, seconds):
    async with make(a=1, b=1) as rt, anyio.create_task_group() as group:
        holder = await Held(group, "a").begun()
        with pytest.raises(AcquireConcurrencySlotTimeoutError, match=r'limit "a", first in line') as caught:
            async with concurrency(["a", "b"], timeout_seconds=seconds):
                pass
        assert isinstance(caught.value, TimeoutError)

        def in_a_thread() -> None:
            with pytest.raises(AcquireConcurrencySlotTimeoutError), concurrency("a", timeout_seconds=seconds):
                pass

        await anyio.to_thread.run_sync(in_a_thread)
        assert [len(rt.limits.lines[name].waiting) for name in "ab"] == [0, 0]
        await holder.end()


async def test_a_timeout_of_0_seconds_is_enough_for_a_slot_that_is_free(make):
    async with make(a=1):
        async with concurrency("a", timeout_seconds=0):
            pass
        with concurrency("a", timeout_seconds=0):
            pass

        def in_a_thread() -> str:
            with concurrency("a", timeout_seconds=0):
                return "in"

        assert await anyio.to_thread.run_sync(in_a_thread) == "in"


# -- limits that do not fit, or are not there ------------------------------------------------------------------------


async def test_a_limit_that_does_not_exist_is_told_at_each_use_and_limits_nothing(make, caplog):
    async with make(a=1) as rt:
        with caplog.at_level(logging.WARNING, "asynctask"):
            for _ in range(2):
                async with concurrency(["a", "missing"]), concurrency("missing"):
                    assert rt.limits.lines["a"].used == 1  # the one that exists holds
    assert [record.getMessage().count("'missing'") for record in caplog.records].count(0) == 0
    assert len(caplog.records) == 4
    assert "asynctask global-concurrency-limit create missing" in caplog.records[0].getMessage()


async def test_a_strict_block_refuses_a_limit_that_does_not_exist(make):
    async with make(a=1) as rt:
        with pytest.raises(ConcurrencySlotAcquisitionError, match="missing"):
            async with concurrency(["a", "missing"], strict=True):
                pass
        with pytest.raises(ConcurrencySlotAcquisitionError, match="missing"), concurrency("missing", strict=True):
            pass
        assert rt.limits.lines["a"].used == 0


async def test_a_block_that_wants_more_than_there_is_is_refused(make):
    async with make(a=2):
        with pytest.raises(ConcurrencyLimitAborted, match="wants 3 slots"):
            async with concurrency("a", occupy=3):
                pass
        with pytest.raises(ConcurrencyLimitAborted, match="wants 3 slots"), concurrency("a", occupy=3):
            pass


@pytest.mark.parametrize("change", ["raise", "deactivate", "delete"])
async def test_a_limit_that_changes_lets_those_that_wait_in_at_once(make, change):
    async with make(a=1, b=1) as rt, anyio.create_task_group() as group, get_client() as client:
        holder = await Held(group, "a").begun()
        waiting = Held(group, ["a", "b"])
        await in_line(rt, "a", 1)
        if change == "raise":
            await client.update_global_concurrency_limit("a", limit=2)
        elif change == "deactivate":
            await client.update_global_concurrency_limit("a", active=False)
        else:
            await client.delete_global_concurrency_limit_by_name("a")
        with anyio.fail_after(20):
            await waiting.begun()
        await waiting.end()
        await holder.end()


async def test_a_limit_that_is_lowered_refuses_those_that_want_more_and_lets_the_others_by(make):
    refused: list[str] = []

    async def wants_two() -> None:
        try:
            async with concurrency("a", occupy=2):
                pass
        except ConcurrencyLimitAborted as error:
            refused.append(str(error))

    async with make(a=2) as rt, anyio.create_task_group() as group, get_client() as client:
        holder = await Held(group, "a").begun()
        group.start_soon(wants_two)
        await in_line(rt, "a", 1)
        other = Held(group, "a")
        await in_line(rt, "a", 2)
        await client.update_global_concurrency_limit("a", limit=1)
        await until(lambda: refused)
        await holder.end()
        await other.begun()
        await other.end()
    assert "wants 2 slots" in refused[0]


async def test_an_inactive_limit_limits_nothing(make):
    async with make(a=1), get_client() as client:
        await client.update_global_concurrency_limit("a", active=False)
        with anyio.fail_after(20):
            async with concurrency("a", strict=True), concurrency("a", occupy=7):
                pass


async def test_deleting_a_limit_leaves_that_of_the_tag_of_the_same_name():
    inside = Inside()

    @task(tags=["db"])
    async def run() -> None:
        inside.enter("db")
        await anyio.sleep(0.001)
        inside.leave("db")

    async with Runtime(store=MemoryStore()), get_client() as client:
        await client.create_concurrency_limit("db", 1)
        await client.create_global_concurrency_limit("db", 5)
        await client.delete_global_concurrency_limit_by_name("db")
        for future in [run.submit() for _ in range(5)]:
            await future
    assert inside.most == {"db": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"names": ""}, {"names": []}, {"names": ["a", ""]}, {"names": [1]}, {"names": "a", "occupy": 0},
        {"names": "a", "occupy": True}, {"names": "a", "occupy": 1.5}, {"names": "a", "timeout_seconds": -1},
        {"names": "a", "timeout_seconds": float("nan")}, {"names": "a", "timeout_seconds": "1"},
        {"names": None}, {"names": 3},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_when_it_is_written(options):
    with pytest.raises(OptionError, match="concurrency"):
        concurrency(**options)


# -- where ---------------------------------------------------------------------------------------------------------


def test_plain_code_without_a_runtime():
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit("plain", 1)
        try:
            inside = Inside()

            def block() -> None:
                for _ in range(5):
                    with concurrency("plain"):
                        inside.enter("x")
                        time.sleep(0.001)
                        inside.leave("x")

            threads = [threading.Thread(target=block) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            assert inside.most == {"x": 1}
        finally:
            client.delete_global_concurrency_limit_by_name("plain")


async def test_one_object_is_used_by_many_threads_and_tasks_at_once(make):
    """Each gives back what it took itself, in whatever order they leave."""
    guard = concurrency("a")
    inside = Inside()

    def in_threads_() -> None:
        for _ in range(50):
            with guard:
                inside.enter("a")
                inside.leave("a")

    async def in_tasks() -> None:
        for _ in range(10):
            async with guard:
                inside.enter("a")
                await anyio.sleep(0)
                inside.leave("a")

    async with make(a=3) as rt:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(in_tasks)
                group.start_soon(in_threads, 4, in_threads_)
        assert not guard._held
        assert inside.most["a"] <= 3
        async with guard, guard:
            assert rt.limits.lines["a"].used == 2


async def test_in_tasks_flows_and_hooks(make):
    seen: list[str] = []

    def hook(*_: Any) -> None:
        with concurrency("a"):
            seen.append("hook")

    async def async_hook(*_: Any) -> None:
        async with concurrency("a"):
            seen.append("async hook")

    @task(on_completion=[hook, async_hook])
    async def work() -> None:
        async with concurrency("a"):
            seen.append("task")

    @task
    def sync_work() -> None:
        with concurrency("a"):
            seen.append("sync task")

    @flow
    async def all_of_it() -> None:
        async with concurrency("a"):
            seen.append("flow")
        await work()
        await sync_work.submit()
        sync_work()  # in line: the slot is free, so nothing blocks

    async with make(a=1):
        with anyio.fail_after(20):
            await all_of_it()
    assert seen == ["flow", "task", "hook", "async hook", "sync task", "sync task"]


async def test_in_the_body_of_a_generator_for_as_long_as_it_is_in_the_block(make):
    @task
    def values() -> Iterator[int]:
        with concurrency("a"):
            yield 1
            yield 2
        yield 3

    @task
    async def async_values() -> AsyncIterator[int]:
        async with concurrency("a"):
            yield 1
            yield 2
        yield 3

    async with make(a=1) as rt:
        line = rt.limits.lines["a"]
        assert [(value, line.used) for value in values()] == [(1, 1), (2, 1), (3, 0)]
        assert [(value, line.used) async for value in async_values()] == [(1, 1), (2, 1), (3, 0)]
        left = values()
        next(left)
        left.close()
        assert line.used == 0
        assert await values.submit() == [1, 2, 3]


async def test_a_generator_that_is_closed_in_another_task_gives_back_what_it_took(make):
    async def values() -> AsyncIterator[int]:
        async with concurrency("a"):
            yield 1

    async with make(a=1) as rt:
        generator = values()
        await anext(generator)
        async with anyio.create_task_group() as group:
            group.start_soon(generator.aclose)
        assert rt.limits.lines["a"].used == 0


async def test_a_with_block_on_an_event_loop_says_what_to_write_where_it_would_block_it(make):
    async with make(a=1) as rt, anyio.create_task_group() as group:
        holder = await Held(group, "a").begun()
        with pytest.raises(BlockingWaitError, match="async with"), concurrency("a"):
            pass
        with pytest.raises(AcquireConcurrencySlotTimeoutError), concurrency("a", timeout_seconds=0):
            pass  # who does not wait blocks nothing
        assert not rt.limits.lines["a"].waiting
        await holder.end()
        with concurrency("a"):
            assert rt.limits.lines["a"].used == 1


# -- lending -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync"])
@pytest.mark.parametrize("way", ["call", "submit", "map"])
async def test_a_block_that_waits_for_children_lends_them_its_slot(make, colour, way):
    inside = Inside()

    @task
    async def async_child(value: int) -> int:
        async with concurrency("a"):
            inside.enter("a")
            await anyio.sleep(0)
            inside.leave("a")
            return value

    @task
    def sync_child(value: int) -> int:
        with concurrency("a"):
            return value

    @task
    async def async_parent() -> Any:
        async with concurrency("a"):
            if way == "call":
                return [await async_child(1), await async_child(2)]
            return (
                await async_child.map([1, 2]) if way == "map" else [await async_child.submit(value) for value in (1, 2)]
            )

    @task
    def sync_parent() -> Any:
        with concurrency("a"):
            if way == "call":
                return [sync_child(1), sync_child(2)]
            return sync_child.map([1, 2]).result() if way == "map" else [sync_child.submit(n).result() for n in (1, 2)]

    async with make(a=1):
        with anyio.fail_after(20):
            assert await (async_parent if colour == "async" else sync_parent).submit() == [1, 2]
    assert inside.most["a"] <= 1


async def test_code_beside_a_block_does_not_lend_what_the_block_took(make):
    """The task in the block is at work; only the other one waits."""
    log: list[str] = []

    @task
    async def child() -> None:
        async with concurrency("a"):
            log.append("child")

    async with make(a=1) as rt:

        @task
        async def parent() -> None:
            is_in = anyio.Event()

            async def works() -> None:
                async with concurrency("a"):
                    is_in.set()
                    await in_line(rt, "a", 1)
                    for _ in range(20):
                        await anyio.sleep(0)
                    log.append("worked")

            async with anyio.create_task_group() as group:
                group.start_soon(works)
                await is_in.wait()
                await child.submit()

        with anyio.fail_after(20):
            await parent.submit()
    assert log == ["worked", "child"]


async def test_slots_lent_by_a_block_that_is_left_early_pass_to_the_child(make):
    """Its wait has timed out; the child goes on, and nobody else has the slot meanwhile."""
    inside = Inside()
    may_end = anyio.Event()

    async with make(a=1) as rt:

        @task
        async def child() -> None:
            async with concurrency("a"):
                inside.enter("a")
                await may_end.wait()
                inside.leave("a")

        @task
        async def parent() -> Any:
            async with concurrency("a"):
                future = child.submit()
                await until(lambda: rt.limits.lines["a"].waiting)
                await future.wait_async(0.02)
            return future

        @task
        async def stranger() -> None:
            async with concurrency("a"):
                inside.enter("a")
                inside.leave("a")

        with anyio.fail_after(20):
            lent = parent.submit()
            await until(lambda: inside.now["a"])
            other = stranger.submit()
            await in_line(rt, "a", 1)
            await until(lambda: lent.run.guards is None)
            assert not other.done()
            may_end.set()
            await other
            await lent
    assert inside.most == {"a": 1}
