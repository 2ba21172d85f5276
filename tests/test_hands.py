"""The hands of a stream: runs that take turns in a few children, and yet have nothing in common but that."""

import asyncio
import contextlib
import gc
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asynctask import flow, get_client, tags, task, transaction
from asynctask.errors import CancelledRun, CrashedRun, RuntimeClosedError, TaskTimeoutError
from asynctask.loops import strand_here
from asynctask.runs import current_run
from asynctask.runtime import task_run
from testkit import fresh, no_collector, set_limit, until

LIMIT = 20


def this_task() -> asyncio.Task[Any]:
    this = asyncio.current_task()
    assert this is not None
    return this


setting: ContextVar[str] = ContextVar("setting", default="unset")


class Marker:
    """A value that can be watched."""


class Broken(Exception):
    """An error that can be watched."""


# -- a few children for many runs -------------------------------------------------------------------------------------


async def test_runs_that_never_suspend_share_one_child() -> None:
    @task
    async def where(x: int) -> object:
        return strand_here()

    assert len({child async for child in where.stream(range(100), concurrency=10)}) == 1


@pytest.mark.parametrize("ordered", [False, True], ids=["as-they-come", "ordered"])
async def test_runs_that_suspend_share_no_more_children_than_there_may_be_at_once(ordered: bool) -> None:
    inside = most = 0

    @task
    async def where(x: int) -> object:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for _ in range(x % 4):
            await anyio.lowlevel.checkpoint()
        inside -= 1
        return strand_here()

    children = [child async for child in where.stream(range(200), concurrency=10, ordered=ordered)]
    assert len(set(children)) <= 10
    assert 1 < most <= 10


async def test_all_that_wait_begin_together() -> None:
    """One by one the hands are called, but none waits for the end of another's run."""
    gate = anyio.Event()
    begun = 0

    @task
    async def wait(x: int) -> int:
        nonlocal begun
        begun += 1
        if begun == 50:
            gate.set()
        await gate.wait()
        return x

    with anyio.fail_after(LIMIT):
        assert sorted([x async for x in wait.stream(range(50), concurrency=50)]) == list(range(50))


# -- what runs do not share -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
async def test_each_run_has_a_context_of_its_own(steps: int) -> None:
    @task
    async def change(x: int) -> tuple[str, str]:
        before = setting.get()
        setting.set(str(x))
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
            assert setting.get() == str(x)
            setting.set(str(x))
        return before, setting.get()

    setting.set("of the reader")
    got = [pair async for pair in change.stream(range(20), concurrency=3, ordered=True)]
    assert got == [("of the reader", str(x)) for x in range(20)]
    assert setting.get() == "of the reader"


async def test_what_a_body_starts_has_its_context() -> None:
    seen: list[str] = []

    @task
    async def start(x: int) -> None:
        setting.set(str(x))
        await anyio.lowlevel.checkpoint()
        async with anyio.create_task_group() as group:
            group.start_soon(child, x)

    async def child(x: int) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(setting.get())

    async for _ in start.stream(range(6), concurrency=2):
        pass
    assert sorted(seen) == [str(x) for x in range(6)]


async def test_a_timeout_ends_one_run_and_not_the_next_in_the_same_child() -> None:
    @task(timeout_seconds=0.02)
    async def every_third_hangs(x: int) -> int:
        await anyio.lowlevel.checkpoint()
        if x % 3 == 0:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        return x

    stream = every_third_hangs.stream(range(9), concurrency=2, ordered=True, return_exceptions=True)
    with anyio.fail_after(LIMIT):
        got: list[Any] = [one async for one in stream]
    assert [type(one) for one in got] == [TaskTimeoutError, int, int] * 3


async def test_a_cancel_scope_of_a_body_cancels_nothing_else() -> None:
    @task
    async def gives_up(x: int) -> str:
        with anyio.move_on_after(0 if x % 2 else 60) as scope:
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        return "cancelled" if scope.cancelled_caught else "done"

    got = [one async for one in gives_up.stream(range(20), concurrency=4, ordered=True)]
    assert got == ["done", "cancelled"] * 10


@pytest.mark.asyncio
async def test_a_body_that_cancels_its_asyncio_task_as_it_ends_harms_no_other_run() -> None:
    @task
    async def each(x: int) -> int:
        if x % 4 == 1:
            this_task().cancel()
        elif x % 4 == 2:
            await asyncio.sleep(0)
        return x

    with anyio.fail_after(LIMIT):
        assert sorted([x async for x in each.stream(range(12), concurrency=4)]) == list(range(12))


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [1, 4])
async def test_a_body_that_cancels_its_asyncio_task_ends_that_run_alone(size: int) -> None:
    @task
    async def each(x: int) -> int:
        if x % 4 == 1:
            this_task().cancel()
        await asyncio.sleep(0)
        return x

    stream = each.stream(range(8), concurrency=size, ordered=True, return_exceptions=True)
    with anyio.fail_after(LIMIT):
        assert [type(one) for one in [one async for one in stream]] == [int, CrashedRun, int, int] * 2


@pytest.mark.asyncio
async def test_a_cancellation_that_came_too_late_for_one_run_does_not_hit_the_next() -> None:
    """As of a timeout that is up just as its block ends: its sender takes it back, but until Python 3.13 it comes."""
    gates = [asyncio.Event() for _ in range(5)]

    @task
    async def each(x: int) -> int:
        await gates[x].wait()
        if x == 1:
            this_task().cancel()
            this_task().uncancel()
        return x

    stream = each.stream(range(5), concurrency=3)
    gates[0].set()
    assert await anext(stream) == 0
    gates[2].set()
    await asyncio.sleep(0.01)
    gates[1].set()  # its child is the first to go on, before the one that is called for the next value
    assert await anext(stream) == 2
    await asyncio.sleep(0.01)
    gates[3].set()
    gates[4].set()
    with anyio.fail_after(LIMIT):
        assert sorted([x async for x in stream]) == [1, 3, 4]


@pytest.mark.asyncio
async def test_a_child_that_is_cancelled_between_two_runs_is_replaced() -> None:
    @task
    async def each(x: int) -> int:
        return x

    stream = each.stream(range(3), concurrency=1)
    assert await anext(stream) == 0

    async def read() -> int:
        return await anext(stream)

    async def cancel(others: set[asyncio.Task[Any]]) -> None:
        for other in others:
            other.cancel()

    others = asyncio.all_tasks() - {this_task()}
    assert len(others) == 1
    reader = asyncio.create_task(read())  # calls the child, which goes on when these two have had their turn
    killer = asyncio.create_task(cancel(others))
    with anyio.fail_after(LIMIT):
        assert await reader == 1
        assert await anext(stream) == 2
        await killer


async def test_a_run_that_leaves_its_own_stream_is_cancelled_where_it_suspends() -> None:
    ended: list[int] = []

    @task
    async def each(x: int) -> None:
        stream.close()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(x)

    stream: Any = each.stream(range(3), concurrency=1)
    with anyio.fail_after(LIMIT):
        assert [one async for one in stream] == []
        await until(lambda: ended == [0])


async def test_a_value_that_waits_when_the_stream_is_left_never_gets_a_run() -> None:
    @task
    async def each(x: int) -> int:
        return x

    async with fresh(), get_client() as client:
        stream = each.stream(range(10), concurrency=2, ordered=True)
        assert await anext(stream) == 0
        assert await anext(stream) == 1  # which was there; the next value is pulled, and waits for its child
        stream.close()
        await anyio.wait_all_tasks_blocked()
        assert len(await client.read_task_runs()) == 2


async def test_what_a_run_raises_has_no_context_of_our_making() -> None:
    """A body that has dealt with a cancellation, or a failure, is done with it."""

    @task
    async def fails(x: int) -> None:
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        with contextlib.suppress(TimeoutError):
            with anyio.fail_after(0):
                await anyio.sleep_forever()
        raise LookupError(x)

    async for error in fails.stream(range(4), concurrency=2, return_exceptions=True):
        assert isinstance(error, LookupError)
        assert error.__context__ is None


async def test_no_traceback_leads_through_a_child_that_other_runs_have_too() -> None:
    @task
    async def fails(x: int) -> None:
        with anyio.fail_after(0):
            await anyio.sleep_forever()

    async for error in fails.stream(range(4), concurrency=2, return_exceptions=True):
        chain: BaseException | None = error
        while chain is not None:
            files = [frame.filename for frame in traceback.extract_tb(chain.__traceback__)]
            assert not [file for file in files if file.endswith("asynctask/hands.py")], files
            chain = chain.__context__


async def test_an_error_that_is_awaited_keeps_its_traceback() -> None:
    async def innermost() -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError("deep")

    @task
    async def fails(x: int) -> None:
        await innermost()

    with pytest.raises(LookupError) as caught:
        async for _ in fails.stream(range(1), concurrency=2):
            pass
    assert [entry.name for entry in caught.traceback][-2:] == ["fails", "innermost"]


# -- whose they are ---------------------------------------------------------------------------------------------------


async def test_runs_are_children_of_who_reads_on_when_the_first_reader_is_over() -> None:
    @task
    async def parent_of(x: int) -> object:
        run = current_run.get()
        assert run is not None
        return None if run.parent is None else run.parent.task_name

    @task
    async def peek() -> tuple[object, Any]:
        stream = parent_of.stream(range(6), concurrency=2, ordered=True)
        return await anext(stream), stream

    @task
    async def whole() -> list[object]:
        first, stream = await peek()
        return [first, *[one async for one in stream]]

    assert await whole() == ["peek", "peek", "whole", "whole", "whole", "whole"]


async def test_runs_have_the_tags_and_the_transaction_of_who_reads() -> None:
    @task
    async def tagged(x: int) -> list[str]:
        return sorted(task_run.tags)

    undone: list[int] = []

    @task(tags=["own"], on_rollback=[lambda txn: undone.append(1)])
    async def staged(x: int) -> int:
        return x

    with tags("outer"):
        assert [one async for one in tagged.stream(range(3), concurrency=2)] == [["outer"]] * 3
    with contextlib.suppress(OSError):
        async with transaction():
            assert [x async for x in staged.stream(range(3), concurrency=2, ordered=True)] == [0, 1, 2]
            raise OSError
    assert undone == [1, 1, 1]


async def test_a_transaction_waits_for_the_runs_of_a_stream_that_was_read_in_it() -> None:
    gate = anyio.Event()
    ended: list[int] = []

    @task
    async def before(x: int) -> int:
        await gate.wait()
        return x

    @task
    async def each(x: int) -> int:
        ended.append(x)
        return x

    async def open_gate() -> None:
        await anyio.wait_all_tasks_blocked()
        gate.set()

    stream = each.stream([0, before.submit(1)], concurrency=2)
    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as group:
            async with transaction():
                assert await anext(stream) == 0
                group.start_soon(open_gate)
            assert ended == [0, 1]
    assert [x async for x in stream] == [1]


async def test_methods_are_streamed_with_their_instance() -> None:
    class Adder:
        def __init__(self, by: int) -> None:
            self.by = by

        @task
        async def add(self, x: int) -> int:
            return self.by + x

    assert [x async for x in Adder(10).add.stream(range(3), concurrency=2, ordered=True)] == [10, 11, 12]


async def test_a_limit_on_a_tag_holds_for_the_runs_of_a_stream() -> None:
    inside = most = 0

    @task(tags=["streamed"])
    async def limited(x: int) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await anyio.lowlevel.checkpoint()
        inside -= 1
        return x

    async with fresh():
        await set_limit("streamed", 2)
        with anyio.fail_after(LIMIT):
            assert sorted([x async for x in limited.stream(range(30), concurrency=10)]) == list(range(30))
    assert most == 2


async def test_what_a_stream_has_run_is_recorded_like_any_other() -> None:
    @task(name="recorded")
    async def recorded(x: int, y: str = "y") -> int:
        await anyio.lowlevel.checkpoint() if x % 2 else None
        return x

    async with fresh():
        async for _ in recorded.stream(range(4), concurrency=2):
            pass
        async with get_client() as client:
            runs = await client.read_task_runs()
    assert sorted(run.parameters["x"] for run in runs) == ["0", "1", "2", "3"]
    for run in runs:
        assert [state.name for state in run.states] == ["Pending", "Running", "Completed"]
        assert run.parameters["y"] == "'y'"


def test_in_a_sync_flow_that_has_a_loop_of_its_own_the_runs_are_where_those_of_the_flow_are() -> None:
    """The flow's runs live on one loop, whoever streams them: an `async for` under `anyio.run` in its body, say."""
    seen: set[int] = set()

    @task
    async def where(x: int) -> tuple[int, str]:
        await anyio.sleep(0)
        seen.add(threading.get_ident())
        return x, setting.get()

    async def inner() -> list[tuple[int, str]]:
        setting.set("inner")
        return [one async for one in where.stream(range(10), concurrency=3, ordered=True)]

    async def broken() -> None:
        async for _ in where.stream(range(10), concurrency=3):
            raise OSError("left")

    @flow
    def whole() -> list[tuple[int, str]]:
        where.submit(0).result()
        with pytest.raises(OSError, match="left"):
            anyio.run(broken)
        return anyio.run(inner)

    assert whole() == [(x, "inner") for x in range(10)]
    assert len(seen) == 1
    assert threading.get_ident() not in seen


# -- stopping ---------------------------------------------------------------------------------------------------------


class Waits:
    """A task whose runs wait for ever, and note how they end."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []

        @task
        async def wait(x: int) -> None:
            self.begun.append(x)
            try:
                await anyio.sleep_forever()
            finally:
                self.ended.append(x)

        self.wait = wait


async def test_a_stream_can_be_left_from_another_thread() -> None:
    waits = Waits()
    stream = waits.wait.stream(range(100), concurrency=3)
    ended = anyio.Event()

    async def read() -> None:
        assert [one async for one in stream] == []
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await until(lambda: len(waits.begun) == 3)
        thread = threading.Thread(target=stream.close)
        thread.start()
        with anyio.fail_after(LIMIT):
            await ended.wait()
        thread.join()
    await until(lambda: sorted(waits.ended) == [0, 1, 2])
    assert len(waits.begun) == 3


async def test_a_flow_that_fails_cancels_what_its_streams_have_in_flight() -> None:
    waits = Waits()
    found: list[Any] = []

    async def read() -> None:
        found.extend([one async for one in waits.wait.stream(range(2), concurrency=2, return_exceptions=True)])

    @flow
    async def whole(start: Any) -> None:
        start()
        await until(lambda: len(waits.begun) == 2)
        raise OSError("stop")

    async with anyio.create_task_group() as group:
        with anyio.fail_after(LIMIT), pytest.raises(OSError, match="stop"):
            await whole(lambda: group.start_soon(read))
        assert sorted(waits.ended) == [0, 1]
    assert [type(one) for one in found] == [CancelledRun, CancelledRun]


async def test_a_runtime_that_closes_ends_what_is_in_flight_and_takes_no_more() -> None:
    waits = Waits()
    got: list[Any] = []

    async def read() -> None:
        async for one in waits.wait.stream(range(4), concurrency=2, return_exceptions=True):
            got.append(one)

    async def refused() -> None:
        with pytest.raises(RuntimeClosedError):
            await read()

    async with anyio.create_task_group() as group, fresh(shutdown_timeout=0):
        group.start_soon(refused)
        await until(lambda: len(waits.begun) == 2)
    assert got
    assert {type(one) for one in got} == {CancelledRun}
    assert waits.begun == [0, 1]


async def test_who_reads_is_told_of_a_body_that_would_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asynctask.scopes.LAST_SECONDS", 0.02)
    let_go = anyio.Event()
    begun = anyio.Event()
    got: list[Any] = []

    @task
    async def stubborn(x: int) -> None:
        begun.set()
        while not let_go.is_set():
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                with anyio.CancelScope(shield=True):
                    await let_go.wait()

    async def read() -> None:
        async for one in stubborn.stream([1], concurrency=1, return_exceptions=True):
            got.append(one)

    async with anyio.create_task_group() as group:
        async with fresh(shutdown_timeout=0):
            group.start_soon(read)
            await begun.wait()
        await until(lambda: got)
        assert isinstance(got[0], CrashedRun)
        let_go.set()


@pytest.mark.parametrize("steps", [0, 1])
async def test_two_readers_share_a_stream_and_each_result_comes_once(steps: int) -> None:
    got: list[int] = []

    @task
    async def step(x: int) -> int:
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        return x

    stream = step.stream(range(40), concurrency=4)

    async def read() -> None:
        async for one in stream:
            got.append(one)
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(read)
    assert sorted(got) == list(range(40))


async def test_closing_a_stream_ends_the_wait_of_who_reads_it() -> None:
    waits = Waits()
    stream: Any = waits.wait.stream(range(9), concurrency=2)

    async def read() -> None:
        assert [one async for one in stream] == []

    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await until(lambda: len(waits.begun) == 2)
            await stream.aclose()
    await until(lambda: sorted(waits.ended) == [0, 1])


# -- nothing is left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("ordered", [False, True], ids=["as-they-come", "ordered"])
async def test_what_was_taken_and_dropped_is_freed_without_the_collector(steps: int, ordered: bool) -> None:
    runs: list[weakref.ref[Any]] = []
    values: list[weakref.ref[Any]] = []

    @task
    async def make(x: Marker) -> Marker:
        runs.append(weakref.ref(current_run.get()))  # type: ignore[type-var]  # no local: its error leads to this frame
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        if len(runs) % 3 == 0:
            with anyio.move_on_after(0):
                await anyio.sleep_forever()
            raise Broken(x)
        return Marker()

    def markers() -> Iterator[Marker]:
        for _ in range(30):
            marker = Marker()
            values.append(weakref.ref(marker))
            yield marker
            del marker

    with no_collector():
        taken = 0
        async for one in make.stream(markers(), concurrency=3, ordered=ordered, return_exceptions=True):
            values.append(weakref.ref(one))
            taken += 1
            del one
            assert sum(run() is not None for run in runs) <= 3
            assert sum(value() is not None for value in values) <= 6  # of each run its argument, and what it gave
        await anyio.wait_all_tasks_blocked()  # a scope's last call to the loop has the context of its run
        assert not [value for value in values if value() is not None]
    assert taken == 30


async def test_a_stream_in_a_ring_of_references_is_left_when_the_ring_is_collected() -> None:
    """Its idle children, and its feeder, are part of no ring: asyncio would complain of tasks that were not over."""

    async def numbers() -> AsyncIterator[int]:
        for number in range(100):
            yield number

    @task
    async def give(x: int) -> int:
        return x

    class Holder:
        stream: Any = None

    for source in (iter(range(100)), numbers()):
        holder = Holder()
        holder.stream = give.stream(source, concurrency=3)
        holder.ring = holder  # type: ignore[attr-defined]
        await anext(holder.stream)
        await anyio.wait_all_tasks_blocked()
        gone = weakref.ref(holder.stream)
        del holder
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_ends_under_a_stream_ends_its_children_too(backend: str) -> None:
    waits = Waits()

    @task
    async def give(x: int) -> int:
        return x

    async def main() -> tuple[Any, Any]:
        idle = give.stream(range(10), concurrency=2)
        await anext(idle)
        busy = waits.wait.stream(range(10), concurrency=2)
        with anyio.move_on_after(0.01):
            # Its reader is cancelled: it is left. What follows is another one, which nobody cancels.
            await anext(busy)
        return idle, busy

    streams = anyio.run(main, backend=backend)
    assert sorted(waits.ended) == [0, 1]
    del streams
