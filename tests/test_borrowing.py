"""Borrowing: runs nested under one tag limit lend each other their slots."""

import threading
import time
from collections.abc import Callable, Iterator

import anyio
import pytest

from asynctask import Runtime, ThreadPoolTaskRunner, as_completed, flow, get_client, task
from asynctask.scopes import current_runtime
from asynctask.stores.memory import MemoryStore
from testkit import Inside, fresh, limit_of, set_limit


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


# -- borrowing -----------------------------------------------------------------------------------------------------

DEPTH = 10


async def test_async_tasks_of_one_tag_nest_to_depth_10_under_a_limit_of_1():
    @task(tags=["db"])
    async def called(depth: int) -> int:
        return depth if depth == DEPTH else await called(depth + 1)

    @task(tags=["db"])
    async def submitted(depth: int) -> int:
        return depth if depth == DEPTH else await submitted.submit(depth + 1)

    @task(tags=["db"])
    async def mapped(depth: int) -> int:
        return depth if depth == DEPTH else max(await mapped.map([depth + 1]))

    async with fresh() as rt:
        await set_limit("db", 1)
        for nested in (called, submitted, mapped):
            with anyio.fail_after(20):
                assert await nested(0) == DEPTH
                assert await nested.submit(0) == DEPTH
        assert limit_of(rt, "db").active_slots == []


async def test_sync_tasks_of_one_tag_nest_to_depth_10_under_a_limit_of_1():
    @task(tags=["db"])
    def called(depth: int) -> int:
        return depth if depth == DEPTH else called(depth + 1)

    @task(tags=["db"])
    def submitted(depth: int) -> int:
        return depth if depth == DEPTH else submitted.submit(depth + 1).result(timeout=20)

    @task(tags=["db"])
    def mapped(depth: int) -> int:
        return depth if depth == DEPTH else max(mapped.map([depth + 1]).result(timeout=20))

    @task(tags=["db"])
    def passed_on(depth: int) -> int:
        """The future goes into a direct call, which waits for it."""
        return depth if depth == DEPTH else identity(passed_on.submit(depth + 1))

    @task
    def identity(value: int) -> int:
        return value

    async with fresh() as rt:
        await set_limit("db", 1)
        for nested in (called, submitted, mapped, passed_on):
            with anyio.fail_after(20):
                assert await nested.submit(0) == DEPTH
        assert limit_of(rt, "db").active_slots == []


def test_nesting_works_from_plain_code_too(plain_limit):
    plain_limit("nested-plain", 1)

    @task(tags=["nested-plain"])
    def outer() -> list[int]:
        return [inner(1), inner.submit(2).result(timeout=20), *inner.map([3, 4]).result(timeout=20)]

    @task(tags=["nested-plain"])
    def inner(value: int) -> int:
        return value

    assert outer() == [1, 2, 3, 4]


async def test_a_parent_lends_its_slot_however_it_waits_for_its_children():
    @task(tags=["db"])
    async def child(value: int) -> int:
        await anyio.sleep(0)
        return value

    @task(tags=["db"])
    async def values():
        yield 1
        yield 2

    @task(tags=["db"])
    async def parent(how: str) -> list[int]:
        if how == "as_completed":
            return sorted([await future async for future in as_completed(child.map([1, 2]))])
        if how == "stream":
            return sorted([value async for value in child.stream([1, 2], concurrency=2)])
        if how == "generator future":
            return [value async for value in values.submit()]
        if how == "wait_async":
            states = await child.map([1, 2]).wait_async()
            return [state.result() for state in states or []]
        if how == "a future of the parent's, awaited in a called child":
            return await gather([child.submit(1), child.submit(2)])
        return [await child(value) for value in (1, 2)]

    @task
    async def gather(values: list[int]) -> list[int]:
        return values

    async with fresh() as rt:
        await set_limit("db", 1)
        ways = ("as_completed", "stream", "generator future", "wait_async", "call",
                "a future of the parent's, awaited in a called child")  # fmt: skip
        for how in ways:
            with anyio.fail_after(20):
                assert await parent(how) == [1, 2], how
        assert limit_of(rt, "db").active_slots == []


async def test_a_flow_waiting_for_its_children_at_its_end_holds_nothing_up():
    done: list[int] = []

    @task(tags=["db"])
    async def child(value: int) -> None:
        done.append(value)

    @flow
    async def inner() -> None:
        child.map(range(5))

    @task(tags=["db"])
    async def outer() -> None:
        await inner()

    async with fresh():
        await set_limit("db", 1)
        with anyio.fail_after(20):
            await outer()
    assert sorted(done) == list(range(5))


async def test_children_that_borrow_one_slot_run_one_at_a_time():
    inside = Inside()

    @task(tags=["db"])
    async def child(_: int) -> None:
        inside.enter("t")
        await anyio.sleep(0.001)
        inside.leave("t")

    @task(tags=["db"])
    async def parent() -> None:
        await child.map(range(6))

    async with fresh():
        await set_limit("db", 1)
        with anyio.fail_after(20):
            await parent.submit()
    assert inside.most == {"t": 1}


async def test_a_parent_that_does_not_wait_does_not_lend():
    """The child starts when the parent waits for it, and not before."""
    log: list[str] = []

    @task(tags=["db"])
    async def child() -> None:
        log.append("child")

    @task(tags=["db"])
    async def parent() -> None:
        future = child.submit()
        for _ in range(20):
            await anyio.sleep(0)
        log.append("parent waits")
        await future

    async with fresh():
        await set_limit("db", 1)
        with anyio.fail_after(20):
            await parent()
    assert log == ["parent waits", "child"]


async def test_nested_sync_tasks_of_one_tag_fit_into_one_worker_thread():
    @task(tags=["db"])
    def nested(depth: int) -> int:
        return depth if depth == 5 else nested.submit(depth + 1).result(timeout=20)

    async with Runtime(store=MemoryStore(), task_runner=ThreadPoolTaskRunner(max_workers=1)):
        await set_limit("db", 1)
        with anyio.fail_after(20):
            assert await nested.submit(0) == 5


def test_what_a_timed_out_body_calls_on_its_way_out_borrows_the_slot_that_it_still_holds() -> None:
    store = MemoryStore()
    store.limits.set("tag:one", 1)
    runtime = Runtime(store=store)
    token = current_runtime.set(runtime)
    cleaned = threading.Event()
    try:
        clean = task(tags=["one"])(cleaned.set)

        @task(tags=["one"], timeout_seconds=0.02)
        def slow() -> None:
            try:
                time.sleep(0.2)  # stuck in C: the run is over long before its body is
            finally:
                clean()

        assert slow.submit().wait(20).name == "TimedOut"  # type: ignore[union-attr]
        assert cleaned.wait(20)
        assert task(tags=["one"])(lambda: "free").submit().result(20) == "free"
    finally:
        current_runtime.reset(token)
        runtime.close()
