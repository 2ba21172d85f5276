"""Waits that can never end: a `DeadlockError` when the ring closes, drawn; and none where somebody goes on."""

import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing
from typing import Any

import anyio
import pytest

from asynctask import (
    Runtime,
    TaskFuture,
    TaskFutureList,
    as_completed,
    concurrency,
    flow,
    get_client,
    quote,
    rate_limit,
    task,
    wait,
)
from asynctask.errors import DeadlockError
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from testkit import fresh, limit_of, set_limit, until

COLOURS = ("async", "sync")


def opened(limits: Mapping[str, int] | None = None, **options: Any) -> Runtime:
    """A runtime with these limits, by their whole names."""
    store = MemoryStore()
    for name, size in (limits or {}).items():
        store.limits.set(name, size)
    return Runtime(store=store, **options)


def assert_nothing_left(runtime: Runtime) -> None:
    """No slot is held or waited for, nobody is noted as above anybody, and no run is under way."""
    for line in runtime.limits.lines.values():
        assert (line.used, len(line.holders), len(line.waiting), len(line.near)) == (0, 0, 0, 0), line.name
    assert not runtime.journal.live


async def ended(*futures: TaskFuture[Any]) -> list[str]:
    """How these runs ended: by the name of the error that they ended with, or "Completed"."""
    with anyio.fail_after(20):
        for future in futures:
            await future.wait_async()
    return [
        type(future.run.error).__name__ if future.run.error is not None else future.state.name for future in futures
    ]


def named(name: str, **options: Any) -> Any:
    """`@task`, whose runs are called `name`."""
    return task(task_run_name=name, **options)


class Futures(dict[str, TaskFuture[Any]]):
    """Futures by name, for bodies that wait for each other: whoever asks for one waits until it is there."""

    async def __call__(self, name: str) -> TaskFuture[Any]:
        await until(lambda: name in self)
        return self[name]

    def now(self, name: str) -> TaskFuture[Any]:
        """The same for sync bodies."""
        for _ in range(5000):
            if name in self:
                return self[name]
            threading.Event().wait(0.001)
        raise AssertionError(f"{name} was not submitted")


def waiter(colour: str, futures: Futures, name: str, target: str, **options: Any) -> Any:
    """A task, called `name`, whose body waits for the run `target`."""

    async def async_body() -> Any:
        return await (await futures(target))

    def sync_body() -> Any:
        return futures.now(target).result()

    return named(name, **options)(async_body if colour == "async" else sync_body)


async def is_waiting(future: TaskFuture[Any]) -> None:
    """Return once the body of this run waits for something."""
    await until(lambda: future.run.awaits)


async def is_running(future: TaskFuture[Any]) -> None:
    await until(lambda: future.state.is_running())


async def is_scheduled(future: TaskFuture[Any]) -> None:
    """Return once this run stands in line."""
    await until(lambda: future.state.is_scheduled())


# -- rings of futures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", COLOURS)
@pytest.mark.parametrize("second", COLOURS)
async def test_two_runs_that_wait_for_each_other(first, second):
    """The one that closes the ring gets the error; the other one gets it as what it waits for."""
    futures = Futures()
    async with opened() as rt:
        futures["a"] = waiter(first, futures, "a", "b").submit()
        await anyio.wait_all_tasks_blocked()
        futures["b"] = waiter(second, futures, "b", "a").submit()
        assert await ended(*futures.values()) == ["DeadlockError", "DeadlockError"]
        assert futures["a"].run.error is futures["b"].run.error
        assert_nothing_left(rt)


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_run_that_waits_for_itself(colour):
    futures = Futures()
    async with opened() as rt:
        futures["me"] = waiter(colour, futures, "me", "me").submit()
        await until(lambda: futures["me"].state.is_final())  # nobody else waits for it: that must not be needed
        assert await ended(futures["me"]) == ["DeadlockError"]
        assert_nothing_left(rt)


async def test_the_ring_is_drawn_with_what_each_run_holds_and_waits_for():
    futures = Futures()
    async with opened({"tag:db": 1, "api": 2}) as rt:
        futures["a"] = waiter("async", futures, "a", "b", tags=["db"]).submit()

        @named("b")
        async def b() -> None:
            async with concurrency("api"):
                await (await futures("c"))

        futures["b"] = b.submit()
        await is_waiting(futures["a"])
        futures["c"] = waiter("async", futures, "c", "a").submit()
        await ended(*futures.values())
        error = next(one.run.error for one in futures.values() if one.run.error is not None)
        lines = str(error).splitlines()
        closing = lines[0].split("'")[1]  # whichever was the last to wait
        names = "abc" * 2
        start = names.index(closing)
        target = {"a": "b", "b": "c", "c": "a"}
        holds = {"a": 'holds tag "db"', "b": 'holds limit "api"', "c": "holds nothing"}
        ring = [f"{one}, which {holds[one]}, waits for the result of {target[one]}" for one in names[start : start + 3]]
        assert lines[0] == f"run {closing!r} would wait for ever for the result of {target[closing]}:"
        drawn = [line.strip().removeprefix("└─► ") for line in lines[1:]]
        assert sorted(drawn[:3]) == sorted(ring)
        assert drawn[3] == drawn[0].partition(",")[0]
        assert [len(line) - len(line.lstrip()) for line in lines[1:]] == [2, 2, 6, 10]
        assert_nothing_left(rt)


@pytest.mark.parametrize(
    "way",
    ["result", "wait", "wait()", "list", "list.wait", "for as_completed", "argument", "map over it"],
)
async def test_a_ring_closes_however_a_sync_body_waits(way):
    futures = Futures()

    @task
    def identity(value: Any) -> Any:
        return value

    @named("a")
    def body() -> Any:
        other = futures.now("b")
        if way == "result":
            return other.result()
        if way == "wait":
            other.wait()
        if way == "wait()":
            wait([other])
        if way == "list":
            return TaskFutureList([other]).result()
        if way == "list.wait":
            TaskFutureList([other]).wait()
        if way == "for as_completed":
            return [each.result() for each in as_completed([other])]
        if way == "argument":
            return identity(other)
        return identity.map(other)

    async with opened() as rt:
        futures["a"] = body.submit()
        await anyio.wait_all_tasks_blocked()
        futures["b"] = waiter("async", futures, "b", "a").submit()
        assert "DeadlockError" in await ended(*futures.values())
        assert_nothing_left(rt)


@pytest.mark.parametrize("way", ["list", "list.wait", "async list", "async list.wait"])
async def test_a_ring_closes_when_the_last_one_of_several_ends_that_is_not_in_it(way):
    futures = Futures()
    gate = anyio.Event()

    @task
    async def outsider() -> None:
        await gate.wait()

    @named("a")
    def sync_body() -> Any:
        both = TaskFutureList([futures.now("outsider"), futures.now("b")])
        return both.result() if way == "list" else both.wait()

    @named("a")
    async def async_body() -> Any:
        both = TaskFutureList([await futures("outsider"), await futures("b")])
        return await (both.result_async() if way == "async list" else both.wait_async())

    async with opened() as rt:
        futures["outsider"] = outsider.submit()
        futures["a"] = (async_body if "async" in way else sync_body).submit()
        futures["b"] = waiter("async", futures, "b", "a").submit()
        await until(lambda: futures["a"].run.is_awaited and futures["b"].run.is_awaited)
        assert futures["a"].state.is_running()
        gate.set()
        assert "DeadlockError" in await ended(*futures.values())
        assert_nothing_left(rt)


@pytest.mark.parametrize(
    "way", ["await", "wait_async", "list", "list.wait_async", "async for as_completed", "stream", "argument", "called"]
)
async def test_a_ring_closes_however_an_async_body_waits(way):
    futures = Futures()

    @task
    async def identity(value: Any) -> Any:
        return value

    @task
    async def wait_for(name: str) -> Any:
        return await futures[name]

    @named("a")
    async def body() -> Any:
        other = await futures("b")
        if way == "await":
            return await other
        if way == "wait_async":
            await other.wait_async()
        if way == "list":
            return await TaskFutureList([other])
        if way == "list.wait_async":
            await TaskFutureList([other]).wait_async()
        if way == "async for as_completed":
            return [await each async for each in as_completed([other])]
        if way == "stream":
            return [one async for one in wait_for.stream(["b"], concurrency=1)]
        if way == "argument":
            return await identity(other)
        return await wait_for("b")

    async with opened() as rt:
        futures["a"] = body.submit()
        await anyio.wait_all_tasks_blocked()
        futures["b"] = waiter("async", futures, "b", "a").submit()
        assert "DeadlockError" in await ended(*futures.values())
        assert_nothing_left(rt)


async def test_a_ring_closes_through_values_of_a_submitted_generator():
    futures = Futures()

    @task
    async def values():
        yield 1
        yield await (await futures("a"))

    @named("a")
    async def body() -> list[Any]:
        return [value async for value in futures["values"]]

    async with opened() as rt:
        futures["values"] = values.submit()
        futures["a"] = body.submit()
        assert "DeadlockError" in await ended(*futures.values())
        assert_nothing_left(rt)


async def test_runs_that_are_each_others_arguments():
    """Through lists that change after the call; a run that finds its own future in one waits for itself."""

    @task
    async def identity(value: Any) -> Any:
        return value

    async with opened() as rt:
        own: list[Any] = []
        own.append(identity.submit(own))
        assert await ended(own[0]) == ["DeadlockError"]
        left: list[Any] = []
        right: list[Any] = []
        left.append(identity.submit(right))
        right.append(identity.submit(left))
        assert await ended(left[0], right[0]) in (
            ["DeadlockError", "UpstreamTaskError"],
            ["UpstreamTaskError", "DeadlockError"],
        )
        assert_nothing_left(rt)


async def test_an_argument_waits_for_a_run_whose_body_waits_for_it():
    box: list[Any] = []

    @task
    async def a(quoted: list[Any]) -> Any:
        await until(lambda: quoted)
        return await quoted[0]

    @task
    async def b(value: Any) -> Any:
        return value

    async with opened() as rt:
        first = a.submit(quote(box))
        box.append(b.submit(first))
        assert set(await ended(first, box[0])) <= {"DeadlockError", "UpstreamTaskError"}
        assert_nothing_left(rt)


@pytest.mark.parametrize("colour", COLOURS)
async def test_who_calls_a_waiting_run_waits_as_well(colour):
    futures = Futures()
    child = waiter(colour, futures, "child", "other")

    async def async_parent() -> Any:
        return await child()

    def sync_parent() -> Any:
        return child()

    async with opened() as rt:
        futures["parent"] = named("parent")(async_parent if colour == "async" else sync_parent).submit()
        await is_running(futures["parent"])
        await anyio.wait_all_tasks_blocked()
        futures["other"] = waiter("async", futures, "other", "parent").submit()
        assert await ended(*futures.values()) == ["DeadlockError"] * 2
        assert "its call of child" in str(futures["parent"].run.error)
        assert_nothing_left(rt)


# -- rings through slots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_run_that_waits_for_one_that_waits_for_its_slot(colour, is_first):
    """Whichever of the two begins to wait last. The other one has the slot afterwards, and completes."""
    futures = Futures()
    may_wait = threading.Event()

    async def async_body() -> Any:
        while not may_wait.is_set():
            await anyio.sleep(0.001)
        return await futures["b"]

    def sync_body() -> Any:
        may_wait.wait(20)
        return futures["b"].result()

    @named("b", tags=["db"])
    async def b() -> str:
        return "b"

    async with opened({"tag:db": 1}) as rt:
        futures["a"] = named("a", tags=["db"])(async_body if colour == "async" else sync_body).submit()
        await is_running(futures["a"])
        if is_first:
            futures["b"] = b.submit()
            await is_scheduled(futures["b"])
            may_wait.set()
        else:
            gate = anyio.Event()

            @task
            async def upstream() -> None:
                await gate.wait()

            futures["b"] = b.submit(wait_for=[upstream.submit()])
            may_wait.set()
            await is_waiting(futures["a"])
            gate.set()
        names = await ended(*futures.values())
        assert names == (["DeadlockError", "Completed"] if is_first else ["DeadlockError", "DeadlockError"])
        assert 'tag "db"' in str(futures["a"].run.error)
        assert_nothing_left(rt)


async def test_a_parent_that_holds_a_with_a_child_that_needs_b_and_the_other_way_round():
    async with opened({"tag:a": 1, "tag:b": 1}) as rt:
        both = anyio.Event()
        begun: list[str] = []

        def pair(own: str, other: str) -> Any:
            @task(tags=[other])
            async def child() -> str:
                return other

            @task(tags=[own])
            async def parent() -> str:
                begun.append(own)
                if len(begun) == 2:
                    both.set()
                await both.wait()
                return await child.submit()

            return parent

        first, second = pair("a", "b").submit(), pair("b", "a").submit()
        assert sorted(await ended(first, second)) == ["Completed", "DeadlockError"]
        assert_nothing_left(rt)


@pytest.mark.parametrize("is_one_free", [False, True])
async def test_with_several_slots_all_holders_must_be_stuck(is_one_free):
    go = anyio.Event()
    futures = Futures()

    @task(tags=["db"])
    async def stuck() -> Any:
        return await (await futures("late"))

    @task(tags=["db"])
    async def free() -> None:
        await go.wait()

    @named("late", tags=["db"])
    async def late() -> str:
        return "late"

    async with opened({"tag:db": 3}) as rt:
        holders = [stuck.submit(), stuck.submit(), (free if is_one_free else stuck).submit()]
        for holder in holders:
            await is_running(holder)
        futures["late"] = late.submit()
        if is_one_free:
            await is_scheduled(futures["late"])
            go.set()
        names = await ended(*holders, futures["late"])
        assert ("DeadlockError" in names) is not is_one_free
        assert_nothing_left(rt)


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_block_inside_a_block_of_the_same_limit(colour):
    async def async_body() -> None:
        async with concurrency("a"), concurrency("a"):
            pass

    def sync_body() -> None:
        with concurrency("a"), concurrency("a"):
            pass

    async with opened({"a": 1}) as rt:
        future = named("both")(async_body if colour == "async" else sync_body).submit()
        assert await ended(future) == ["DeadlockError"]
        assert 'both, which holds limit "a", waits for a slot of limit "a"' in str(future.run.error)
        rt.limits.set("a", 2)
        assert await ended(named("both")(async_body if colour == "async" else sync_body).submit()) == ["Completed"]
        assert_nothing_left(rt)


@pytest.mark.parametrize("first", COLOURS)
@pytest.mark.parametrize("second", COLOURS)
async def test_blocks_of_two_runs_in_opposite_order(first, second):
    """One gets the error and leaves its block; the other one goes on."""
    inside = threading.Barrier(2)

    def crossing(colour: str, one: str, other: str) -> TaskFuture[Any]:
        async def async_body() -> str:
            async with concurrency(one):
                await anyio.to_thread.run_sync(inside.wait, 5)
                async with concurrency(other):
                    return "both"

        def sync_body() -> str:
            with concurrency(one):
                inside.wait(20)
                with concurrency(other):
                    return "both"

        future: TaskFuture[Any] = task(async_body if colour == "async" else sync_body).submit()
        return future

    async with opened({"a": 1, "b": 1}) as rt:
        names = await ended(crossing(first, "a", "b"), crossing(second, "b", "a"))
        assert sorted(names) == ["Completed", "DeadlockError"]
        assert_nothing_left(rt)


async def test_a_body_that_catches_the_error_goes_on_and_so_do_the_others():
    futures = Futures()
    seen: list[str] = []

    @named("a", tags=["db"])
    async def a() -> str:
        try:
            other = await futures("b")
            await is_scheduled(other)
            await other
        except DeadlockError as error:
            seen.append(str(error))
        return "a"

    @named("b", tags=["db"])
    async def b() -> str:
        return "b"

    async with opened({"tag:db": 1}) as rt:
        futures["a"] = a.submit()
        await is_running(futures["a"])
        futures["b"] = b.submit()
        assert await ended(*futures.values()) == ["Completed", "Completed"]
        assert len(seen) == 1
        assert_nothing_left(rt)


async def test_a_child_that_has_borrowed_is_woken_though_its_parents_wait_is_refused():
    """The wait that closes a ring lends the slot to a child that stands in line, and raises."""
    futures = Futures()

    @task(tags=["db"])
    async def child() -> str:
        return "child"

    @named("parent", tags=["db"])
    async def parent() -> str:
        own = child.submit()
        await is_scheduled(own)
        with pytest.raises(DeadlockError):
            await futures["other"]
        result: str = await own
        return result

    async with opened({"tag:db": 1}) as rt:
        futures["parent"] = parent.submit()
        futures["other"] = waiter("async", futures, "other", "parent").submit()
        assert await ended(*futures.values()) == ["Completed", "Completed"]
        assert_nothing_left(rt)


async def test_an_attempt_that_ends_in_the_error_is_retried():
    futures = Futures()

    @named("a", tags=["db"], retries=1)
    async def a() -> Any:
        other = await futures("b")
        await until(lambda: other.state.is_scheduled() or other.done())
        return await other

    @named("b", tags=["db"])
    async def b() -> str:
        return "b"

    async with opened({"tag:db": 1}) as rt:
        futures["a"] = a.submit()
        await is_running(futures["a"])
        futures["b"] = b.submit()
        assert await ended(*futures.values()) == ["Completed", "Completed"]
        assert futures["a"].run.run_count == 2
        assert_nothing_left(rt)


# -- rings that others close, by their end -------------------------------------------------------------------------


async def test_a_block_that_needs_more_than_the_holder_that_ends_gives_back():
    """It wants both slots. One holder ends, the other one waits for it: nobody begins to wait when the ring closes."""
    go, futures = anyio.Event(), Futures()

    @task
    async def ends() -> None:
        async with concurrency("a"):
            await go.wait()

    @named("stuck")
    async def stuck() -> Any:
        async with concurrency("a"):
            return await (await futures("both"))

    @named("both")
    async def both() -> None:
        async with concurrency("a", occupy=2):
            pass

    async with opened({"a": 2}) as rt:
        first, futures["stuck"] = ends.submit(), stuck.submit()
        await until(lambda: rt.limits.lines["a"].used == 2)
        futures["both"] = both.submit()
        await is_waiting(futures["stuck"])
        await is_waiting(futures["both"])
        go.set()
        assert await ended(first, *futures.values()) == ["Completed", "DeadlockError", "DeadlockError"]
        assert_nothing_left(rt)


async def test_a_run_behind_one_that_wants_what_it_holds():
    """It came into the line when others were before that one, and depends on it only once they are through."""
    go = anyio.Event()

    @task
    async def holds(name: str) -> None:
        async with concurrency(name):
            await go.wait()

    @task
    async def takes_both() -> None:
        async with concurrency(["a", "c"]):
            pass

    may_go_on = anyio.Event()

    @task
    async def holds_c_and_takes_a() -> None:
        async with concurrency("c"):
            await may_go_on.wait()
            async with concurrency("a"):
                pass

    async with opened({"a": 1, "c": 1}) as rt:
        line = rt.limits.lines["a"]
        last = holds_c_and_takes_a.submit()
        await until(lambda: rt.limits.lines["c"].used)
        first = holds.submit("a")
        await until(lambda: line.used)
        second = holds.submit("a")
        await until(lambda: len(line.waiting) == 1)
        third = takes_both.submit()
        await until(lambda: len(line.waiting) == 2)
        may_go_on.set()
        await until(lambda: len(line.waiting) == 3)
        go.set()
        names = await ended(first, second, third, last)
        assert names == ["Completed", "Completed", "DeadlockError", "Completed"]
        assert_nothing_left(rt)


async def test_a_lowered_limit_leaves_only_a_holder_that_is_stuck():
    go, futures = anyio.Event(), Futures()

    @task(tags=["db"])
    async def ends() -> None:
        await go.wait()

    async with opened({"tag:db": 2}) as rt:
        first = ends.submit()
        futures["stuck"] = waiter("async", futures, "stuck", "late", tags=["db"]).submit()
        await until(lambda: rt.limits.lines["tag:db"].used == 2)
        futures["late"] = named("late", tags=["db"])(anyio.sleep).submit(0)
        await is_waiting(futures["stuck"])
        await is_scheduled(futures["late"])
        async with get_client() as client:
            await client.create_concurrency_limit("db", 1)
        go.set()
        assert await ended(first, *futures.values()) == ["Completed", "DeadlockError", "DeadlockError"]
        assert_nothing_left(rt)


async def test_a_ring_through_the_line_of_a_limit_whose_slots_come_back_by_themselves():
    """What decays is had in time; but who is first in its line waits for another limit as well."""

    async with opened({"plain": 1}) as rt:
        rt.limits.set("pace", 1, decay=1000.0)

        @task
        async def takes_both() -> None:
            async with concurrency(["pace", "plain"]):
                pass

        may_go_on = anyio.Event()

        @task
        async def holds_one_and_takes_the_other() -> None:
            async with concurrency("plain"):
                await may_go_on.wait()
                async with concurrency("pace"):
                    pass

        last = holds_one_and_takes_the_other.submit()
        await until(lambda: rt.limits.lines["plain"].used)
        first = takes_both.submit()
        await until(lambda: rt.limits.lines["pace"].waiting)
        may_go_on.set()
        assert sorted(await ended(first, last)) == ["Completed", "DeadlockError"]
        assert_nothing_left(rt)


@pytest.mark.parametrize("ring", ["in one run", "crosswise", "more than is left"])
async def test_rings_in_one_process_are_found_where_processes_share_the_limits(tmp_path, ring):
    go, futures = anyio.Event(), Futures()

    async def block(first: str, second: str, occupy: int = 1) -> None:
        async with concurrency(first):
            await go.wait()
            async with concurrency(second, occupy=occupy):
                pass

    async def passes() -> None:
        async with concurrency("c"):
            await go.wait()

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")) as rt, get_client() as client:
        for name, size in {"a": 1, "b": 1, "c": 3}.items():
            await client.create_global_concurrency_limit(name, size)
        if ring == "in one run":
            futures["one"] = task(block).submit("a", "a")
        elif ring == "crosswise":
            futures["one"], futures["two"] = task(block).submit("a", "b"), task(block).submit("b", "a")
        else:  # it holds one of three, and wants three; the other one that holds one ends
            futures["one"], futures["two"] = task(block).submit("c", "c", 3), task(passes).submit()
        held = {"in one run": 1, "crosswise": 2, "more than is left": 2}[ring]
        await until(lambda: sum(line.used for line in rt.limits.lines.values()) == held)
        go.set()
        names = await ended(*futures.values())
        assert sorted(names) == sorted(["DeadlockError", *["Completed"] * (len(futures) - 1)])
        assert_nothing_left(rt)


async def test_what_comes_back_by_itself_is_not_lent_and_a_ring_through_its_line_is_found():
    """The child stands behind a stranger who waits for what its parent holds."""
    async with opened({"plain": 1}) as rt:
        rt.limits.set("pace", 1, decay=1000.0)

        @task
        async def takes_both() -> None:
            async with concurrency(["pace", "plain"]):
                pass

        @task
        async def child() -> None:
            await rate_limit("pace")

        @task
        async def parent() -> None:
            async with concurrency(["pace", "plain"]):
                await until(lambda: rt.limits.lines["pace"].waiting)
                await child()

        first = parent.submit()
        await until(lambda: rt.limits.lines["plain"].used)
        stranger = takes_both.submit()
        assert await ended(first, stranger) == ["DeadlockError", "Completed"]
        assert_nothing_left(rt)


# -- flows and cache keys ------------------------------------------------------------------------------------------


async def test_a_flow_that_waits_at_its_end_for_a_child_that_waits_for_it():
    futures = Futures()

    @flow(flow_run_name="inner")
    async def inner() -> None:
        futures["child"] = waiter("async", futures, "child", "outer").submit()

    @named("outer")
    async def outer() -> None:
        await inner()

    async with opened() as rt:
        futures["outer"] = outer.submit()
        assert await ended(futures["outer"]) == ["Completed"]
        assert await ended(futures["child"]) == ["DeadlockError"]
        assert "its call of inner, and that for its children" in str(futures["child"].run.error)
        assert_nothing_left(rt)


async def test_a_flow_that_returns_a_run_that_waits_for_it():
    futures = Futures()

    @flow
    async def inner() -> Any:
        return await futures("stranger")

    @named("outer")
    async def outer() -> Any:
        return await inner()

    async with opened() as rt:
        futures["outer"] = outer.submit()
        await anyio.wait_all_tasks_blocked()
        futures["stranger"] = waiter("async", futures, "stranger", "outer").submit()
        assert "DeadlockError" in await ended(*futures.values())
        assert_nothing_left(rt)


@pytest.mark.parametrize("is_leader_first", [True, False])
async def test_a_run_whose_result_others_wait_for_waits_for_one_of_them(is_leader_first):
    """Two runs have one cache key: the one that leads waits for the one that follows, which makes the result then."""
    futures = Futures()
    calls: list[int] = []
    gate = anyio.Event()

    @task(cache_key_fn=lambda context, parameters: "one key")
    async def keyed() -> int:
        calls.append(1)
        if len(calls) == 1:
            await gate.wait()
            await (await futures("follower"))
        return len(calls)

    @task
    async def nothing() -> None:
        pass

    async with opened() as rt:
        futures["leader"] = keyed.submit()
        await until(lambda: calls)
        if is_leader_first:
            gate.set()
            await anyio.wait_all_tasks_blocked()
            futures["follower"] = keyed.submit()
        else:
            futures["follower"] = keyed.submit()
            await until(lambda: futures["follower"].run.awaits)
            gate.set()
        names = await ended(*futures.values())
        assert "DeadlockError" in names
        with anyio.fail_after(20):  # the key is not lost with either of them
            assert await keyed.submit() in (2, 3)
        assert_nothing_left(rt)


# -- nobody waits for ever -----------------------------------------------------------------------------------------

SHORT = 0.02


@pytest.mark.parametrize("way", ["wait", "wait()", "list.wait", "result", "list.result", "as_completed"])
async def test_a_sync_wait_with_a_timeout_closes_no_ring(way):
    futures = Futures()

    def wait_shortly(other: TaskFuture[Any]) -> Any:
        if way == "wait":
            return other.wait(SHORT)
        if way == "wait()":
            return wait([other], SHORT)
        if way == "list.wait":
            return TaskFutureList([other]).wait(SHORT)
        if way == "result":
            return other.result(SHORT)
        return TaskFutureList([other]).result(SHORT) if way == "list.result" else list(as_completed([other], SHORT))

    @named("a")
    def a() -> str:
        try:
            wait_shortly(futures.now("b"))
        except TimeoutError:
            pass
        return "went on"

    async with opened() as rt:
        futures["a"] = a.submit()
        futures["b"] = waiter("async", futures, "b", "a").submit()
        assert await ended(*futures.values()) == ["Completed", "Completed"]
        assert_nothing_left(rt)


@pytest.mark.parametrize("way", ["wait_async", "result_async", "list", "list.wait_async", "as_completed", "block"])
async def test_an_async_wait_with_a_timeout_closes_no_ring(way):
    futures = Futures()

    async def wait_shortly(other: TaskFuture[Any]) -> Any:
        if way == "wait_async":
            return await other.wait_async(SHORT)
        if way == "list.wait_async":
            return await TaskFutureList([other]).wait_async(SHORT)
        if way == "result_async":
            return await other.result_async(SHORT)
        if way == "list":
            return await TaskFutureList([other]).result_async(SHORT)
        if way == "as_completed":
            return [one async for one in as_completed([other], SHORT)]
        async with concurrency("a", timeout_seconds=SHORT):
            return None

    @named("a")
    async def a() -> str:
        async with concurrency("a"):
            try:
                await wait_shortly(await futures("b"))
            except TimeoutError:
                pass
        return "went on"

    async with opened({"a": 1}) as rt:
        futures["a"] = a.submit()
        futures["b"] = waiter("async", futures, "b", "a").submit()
        assert await ended(*futures.values()) == ["Completed", "Completed"]
        assert_nothing_left(rt)


async def test_a_block_beside_the_code_that_waits_is_no_part_of_a_ring():
    """One task of the body is in the block and goes on by itself; another one waits for a run that needs the slot."""

    @task
    async def needs_it() -> str:
        async with concurrency("a"):
            return "had it"

    @task
    async def parent() -> str:
        is_in = anyio.Event()
        done: list[str] = []

        async def block() -> None:
            async with concurrency("a"):
                is_in.set()
                await is_scheduled_or_waiting(child)
                await anyio.sleep(SHORT)

        async def wait_for_it() -> None:
            done.append(await child)

        async with anyio.create_task_group() as group:
            child = await submitted_elsewhere()
            group.start_soon(block)
            await is_in.wait()
            may_start.set()
            group.start_soon(wait_for_it)
        return done[0]

    may_start = anyio.Event()

    @task
    async def gate() -> None:
        await may_start.wait()

    strangers: list[TaskFuture[Any]] = []

    async def submitted_elsewhere() -> TaskFuture[Any]:
        await until(lambda: strangers)
        return strangers[0]

    async def is_scheduled_or_waiting(future: TaskFuture[Any]) -> None:
        await until(lambda: future.run.awaits)

    async with opened({"a": 1}) as rt:
        future = parent.submit()
        strangers.append(needs_it.submit(wait_for=[gate.submit()]))
        assert await ended(future, *strangers) == ["Completed", "Completed"]
        assert_nothing_left(rt)


async def test_each_block_of_a_body_is_lent_by_the_code_that_waits_in_it():
    """Two tasks of the body are in a block each; the one that waits lends its slot, though the other one came first."""

    @task
    async def child() -> str:
        async with concurrency("a"):
            return "borrowed"

    @task
    async def parent() -> str:
        is_in, may_leave = anyio.Event(), anyio.Event()
        done: list[str] = []

        async def stays() -> None:
            async with concurrency("a"):
                is_in.set()
                await may_leave.wait()

        async def waits() -> None:
            await is_in.wait()
            async with concurrency("a"):
                done.append(await child.submit())
            may_leave.set()

        async with anyio.create_task_group() as group:
            group.start_soon(stays)
            group.start_soon(waits)
        return done[0]

    async with opened({"a": 2}) as rt:
        assert await ended(parent.submit()) == ["Completed"]
        assert_nothing_left(rt)


async def test_many_children_of_one_parent_borrow_its_only_slot_in_turn():
    @task(tags=["db"])
    async def grandchild() -> int:
        return 1

    @task(tags=["db"])
    async def child(_: int) -> int:
        result: int = await grandchild.submit()
        return result

    @task(tags=["db"])
    async def parent() -> int:
        return sum(await child.map(range(300)))

    async with opened({"tag:db": 1}) as rt:
        futures = [parent.submit() for _ in range(3)]
        assert await ended(*futures) == ["Completed"] * 3
        assert [future.run.value for future in futures] == [300] * 3
        assert_nothing_left(rt)


async def test_a_loan_that_comes_back_late_goes_to_the_next_child_though_a_stranger_is_before_it_in_line():
    """The first child is stuck in its thread and over; when it leaves, it has let go of its parent long ago."""
    go = threading.Event()

    @task(tags=["db"], timeout_seconds=0.01)
    def stuck() -> None:
        go.wait(20)

    @task(tags=["db"])
    async def second() -> str:
        return "second"

    @task(tags=["db"])
    async def parent() -> Any:
        await stuck.submit().wait_async()
        may_come.set()
        await until(lambda: strangers)
        await is_scheduled(strangers[0])
        own = second.submit()
        await is_scheduled(own)
        may_leave.set()
        return await own

    strangers: list[TaskFuture[Any]] = []
    may_come, may_leave = anyio.Event(), anyio.Event()

    async with opened({"tag:db": 1}) as rt:
        future = parent.submit()
        await may_come.wait()
        strangers.append(second.submit())
        await may_leave.wait()
        await is_waiting(future)
        go.set()
        assert await ended(future, *strangers) == ["Completed", "Completed"]
        await until(lambda: not rt.limits.lines["tag:db"].used)
        assert_nothing_left(rt)


async def test_a_chain_of_5000_runs_is_no_ring():
    """Each waits for the one before; quadratic work took 29 seconds here, and the test's timeout."""
    gate = anyio.Event()

    @task
    async def first() -> int:
        await gate.wait()
        return 0

    @task
    async def more(value: int) -> int:
        return value + 1

    @task
    async def chain() -> int:
        future = first.submit()
        links = []
        for _ in range(5000):
            future = more.submit(future)
            links.append(future)
        async with anyio.create_task_group() as group:

            async def open_gate() -> None:
                while future.run.blocker is None:
                    await anyio.sleep(0)
                gate.set()

            group.start_soon(open_gate)
            results = await TaskFutureList(links)
        return max(results)

    async with opened() as rt:
        future = chain.submit()
        with anyio.fail_after(50):
            assert await future == 5000
        assert_nothing_left(rt)


async def test_a_ring_is_found_at_the_end_of_a_chain_that_changed_meanwhile():
    """What was found out about a chain no longer holds once one of its runs is cancelled and the next goes on."""
    futures = Futures()
    gates = [anyio.Event(), anyio.Event()]

    @task
    async def sleeps() -> None:
        await gates[0].wait()

    @named("middle")
    async def middle() -> Any:
        return await futures["sleeps"]

    @named("turns")
    async def turns() -> Any:
        await futures["middle"].wait_async()
        await gates[1].wait()
        return await futures["last"]

    async with opened() as rt:
        futures["sleeps"] = sleeps.submit()
        futures["middle"] = middle.submit()
        futures["turns"] = turns.submit()
        for name in ("one", "two"):  # these walk along the chain, and note what they found
            before = {"one": "turns", "two": "one"}[name]
            futures[name] = waiter("async", futures, name, before).submit()
            await is_waiting(futures[name])
        futures["middle"].cancel()
        await futures["middle"].wait_async()
        futures["last"] = waiter("async", futures, "last", "two").submit()
        await is_waiting(futures["last"])
        gates[1].set()
        names = await ended(*(futures[name] for name in ("turns", "one", "two", "last")))
        assert names == ["DeadlockError"] * 4
        gates[0].set()
        await futures["sleeps"]
        assert_nothing_left(rt)


async def test_who_has_arrived_at_as_completed_is_waited_for_no_more():
    """Between the end of one of its runs and its own next step, the waiter does not depend on the other runs."""
    go, futures = anyio.Event(), Futures()

    @task
    async def x() -> None:
        await go.wait()

    @task
    async def first_of_two() -> str:
        async for _ in as_completed([futures["x"], futures["y"]]):
            break
        return "one is enough"

    @task
    async def q() -> Any:
        await futures["x"]
        return await futures["p"]

    async with opened() as rt:
        futures["x"] = x.submit()
        futures["q"] = q.submit()
        await is_waiting(futures["q"])  # so it is told of the end of x first
        futures["y"] = waiter("async", futures, "y", "q").submit()
        futures["p"] = first_of_two.submit()
        await is_waiting(futures["p"])
        await is_waiting(futures["y"])
        go.set()
        assert await ended(*futures.values()) == ["Completed"] * 4
        assert_nothing_left(rt)


async def test_who_is_called_to_lead_does_not_wait_for_itself():
    """Between the failure of a leader and the next step of the run that leads then, others may begin to wait for it."""
    go, futures = anyio.Event(), Futures()
    calls: list[int] = []

    @task(cache_key_fn=lambda context, parameters: "key")
    async def keyed() -> int:
        calls.append(1)
        if len(calls) == 1:
            await go.wait()
            raise ValueError("no")
        return 2

    @task
    async def q() -> Any:
        await futures["leader"].wait_async()
        return await futures["follower"]

    async with opened() as rt:
        futures["leader"] = keyed.submit()
        await until(lambda: calls)
        futures["follower"] = keyed.submit()
        await is_waiting(futures["follower"])
        futures["q"] = q.submit()
        await is_waiting(futures["q"])
        futures["z"] = waiter("async", futures, "z", "q").submit()
        await is_waiting(futures["z"])
        go.set()
        assert await ended(*futures.values()) == ["ValueError", "Completed", "Completed", "Completed"]
        assert_nothing_left(rt)


async def test_a_cancelled_run_is_no_part_of_a_ring():
    """It waits, but it has been told to stop: who waits for it goes on."""
    futures = Futures()
    may_end = anyio.Event()

    @named("a")
    async def a() -> None:
        try:
            await (await futures("b"))
        finally:
            with anyio.CancelScope(shield=True):
                await may_end.wait()

    async with opened() as rt:
        futures["a"] = a.submit()
        futures["b"] = waiter("async", futures, "b", "c").submit()
        gate = anyio.Event()

        @named("c")
        async def c() -> Any:
            await gate.wait()
            await futures["a"].wait_async()

        futures["c"] = c.submit()
        await is_waiting(futures["a"])
        await is_waiting(futures["b"])
        futures["a"].cancel()
        gate.set()
        await is_waiting(futures["c"])
        may_end.set()
        assert await ended(futures["b"], futures["c"]) == ["Completed", "Completed"]
        assert_nothing_left(rt)


# -- generators -------------------------------------------------------------------------------------------------------


@task(tags=["db"])
def rows() -> Iterator[int]:
    yield from range(3)


@task(tags=["db"])
async def async_rows() -> AsyncIterator[int]:
    for number in range(3):
        yield number


@task(tags=["db"])
def store_row(row: int) -> int:
    return row


@task(tags=["db"])
async def store_row_async(row: int) -> int:
    return row


async def test_who_wants_the_slot_of_the_generator_whose_values_it_takes_is_told_so():
    async with fresh() as runtime:
        await set_limit("db", 1)
        async with aclosing(async_rows()) as generator:
            assert await anext(generator) == 0
            with pytest.raises(DeadlockError, match=r'store_row_async-\w+.* slot of tag "db": async_rows-\w+ holds it'):
                await store_row_async(0)
            assert await anext(generator) == 1
        await until(lambda: limit_of(runtime, "db").in_use == 0)
        assert await store_row_async(7) == 7
        await set_limit("db", 2)
        assert [await store_row_async(row) async for row in async_rows()] == [0, 1, 2]
        assert limit_of(runtime, "db").in_use == 0


def test_who_wants_the_slot_of_the_generator_whose_values_it_takes_is_told_so_in_plain_code():
    async def set_limits(number: int) -> None:
        await set_limit("db", number)

    anyio.run(set_limits, 1)
    try:
        with closing(rows()) as generator:
            assert next(generator) == 0
            with pytest.raises(DeadlockError, match="take the values into a list first"):
                store_row(0)
        assert [store_row(row) for row in list(rows())] == [0, 1, 2]
    finally:
        with get_client(sync_client=True) as client:
            client.delete_concurrency_limit_by_tag("db")


async def test_a_paused_generator_holds_others_up_only_until_its_consumer_goes_on():
    async with fresh():
        await set_limit("db", 1)
        generator = async_rows()
        assert await anext(generator) == 0
        other = store_row_async.submit(5)  # of code beside: it waits
        await until(lambda: other.state.name == "AwaitingConcurrencySlot")
        assert [row async for row in generator] == [1, 2]
        assert await other == 5
