"""`asynctask.runtime`: what code inside a run can ask about it, in every kind of body, and nothing outside."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import anyio

from asynctask import Runtime, flow, tags, task
from asynctask.runtime import flow_run, task_run
from asynctask.stores.memory import MemoryStore


def me() -> tuple[str | None, str | None]:
    """The task and the flow that the code calling this believes to be in."""
    return task_run.task_name, flow_run.flow_name


NOWHERE = (None, None)


def test_outside_a_run_everything_is_empty_by_its_type():
    nothing = {"id": None, "name": None, "tags": [], "parameters": {}, "run_count": 0, "start_time": None}
    for name, empty in {**nothing, "task_name": None, "flow_run_id": None}.items():
        assert getattr(task_run, name) == empty
    for name, empty in {**nothing, "flow_name": None, "parent_flow_run_id": None}.items():
        assert getattr(flow_run, name) == empty


async def test_inside_a_run_it_is_that_runs():
    seen: dict[str, Any] = {}

    @task(tags=["b"], task_run_name="on-{day}", retries=1)
    async def work(day: int, note: str = "default") -> None:
        seen.update(
            id=task_run.id, name=task_run.name, tags=task_run.tags, parameters=task_run.parameters,
            run_count=task_run.run_count, start_time=task_run.start_time, flow_run_id=task_run.flow_run_id,
        )  # fmt: skip
        if task_run.run_count == 1:
            raise ValueError("again")

    @flow(flow_run_name="nightly-{day}")
    async def parent(day: int) -> None:
        seen["flow"] = [flow_run.id, flow_run.name, flow_run.parameters]
        assert (flow_run.run_count, flow_run.parent_flow_run_id) == (1, None)
        assert isinstance(flow_run.start_time, datetime)
        future = work.submit(day)
        await future
        seen["wanted id"] = future.task_run_id

    with tags("a"):
        await parent("7")  # type: ignore[arg-type]
    assert seen["id"] == seen["wanted id"]
    assert (seen["name"], seen["tags"], seen["run_count"]) == ("on-7", ["a", "b"], 2)
    assert seen["parameters"] == {"day": 7, "note": "default"}
    assert seen["flow"][1:] == ["nightly-7", {"day": 7}]
    assert seen["flow_run_id"] == seen["flow"][0]
    assert abs((datetime.now(UTC) - seen["start_time"]).total_seconds()) < 60
    assert me() == NOWHERE


async def test_nested_tasks_and_flows_each_see_their_own_and_the_outer_one_again_afterwards():
    seen: list[Any] = []

    @task
    async def inner() -> None:
        seen.append(me())

    @task
    def sync_inner() -> None:
        seen.append(me())

    @flow
    async def subflow() -> None:
        seen.append((me(), flow_run.parent_flow_run_id == outer_id))
        await inner()

    @task
    async def middle() -> None:
        seen.append(me())
        await inner.submit()
        sync_inner()
        await subflow()
        seen.append(me())

    @flow
    async def outer() -> None:
        nonlocal outer_id
        outer_id = flow_run.id
        await middle()
        seen.append(me())

    outer_id: Any = None
    await outer()
    assert seen == [
        ("middle", "outer"), ("inner", "outer"), ("sync_inner", "outer"),
        ((None, "subflow"), True), ("inner", "subflow"), ("middle", "outer"), (None, "outer"),
    ]  # fmt: skip
    assert me() == NOWHERE


async def test_runs_at_once_do_not_mix():
    @task
    async def work(number: int) -> list[Any]:
        seen = []
        for _ in range(5):
            await anyio.sleep(0)
            seen.append(task_run.parameters["number"])
        return seen

    @task
    def in_thread(number: int) -> list[Any]:
        both.wait(20)
        return [task_run.parameters["number"], task_run.task_name]

    async with Runtime(store=MemoryStore()):
        assert await work.map(range(20)) == [[number] * 5 for number in range(20)]
        both = threading.Barrier(4)
        assert await in_thread.map(range(4)) == [[number, "in_thread"] for number in range(4)]


async def test_what_a_body_starts_by_itself_inherits_the_run():
    @task
    async def work() -> list[Any]:
        seen = [await anyio.to_thread.run_sync(me)]

        async def child() -> None:
            seen.append(me())

        async with anyio.create_task_group() as group:
            group.start_soon(child)
        return seen

    assert await work() == [("work", None)] * 2


async def test_between_the_steps_of_a_generator_its_consumer_is_itself_again():
    @task
    def values() -> Iterator[Any]:
        for _ in range(3):
            yield me()

    @task
    async def async_values() -> AsyncIterator[Any]:
        for _ in range(3):
            await anyio.sleep(0)
            yield me()

    @task
    async def consumer() -> list[Any]:
        seen: list[Any] = []
        for value in values():
            seen.append((value, me()))
        async for value in async_values():
            seen.append((value, me()))
        for value, other in zip(values(), values(), strict=True):  # two at once
            assert value == other
            seen.append((value, me()))
        return seen

    seen = await consumer()
    inside = [("values", None)] * 3 + [("async_values", None)] * 3 + [("values", None)] * 3
    assert seen == [(value, ("consumer", None)) for value in inside]
    left_early = values()
    next(left_early)
    assert me() == NOWHERE
    left_early.close()
    assert me() == NOWHERE


def test_a_generator_stepped_in_another_thread_is_still_itself():
    @task
    def values() -> Iterator[Any]:
        yield me()
        yield me()

    stepped = values()
    got = [next(stepped)]
    thread = threading.Thread(target=lambda: got.extend([next(stepped), me()]))
    thread.start()
    thread.join(5)
    assert got == [("values", None), ("values", None), NOWHERE]
    assert list(stepped) == []


async def test_hooks_and_retry_conditions_run_inside_the_run():
    seen: list[Any] = []

    def hook(task: Any, run: Any, state: Any) -> None:
        seen.append((me(), task_run.id == run.id, task_run.run_count))

    async def async_hook(task: Any, run: Any, state: Any) -> None:
        await anyio.sleep(0)
        hook(task, run, state)

    def condition(task: Any, run: Any, state: Any) -> bool:
        hook(task, run, state)
        return True

    @task(retries=1, retry_condition_fn=condition, on_running=[hook], on_failure=[async_hook])
    async def work() -> None:
        raise ValueError("no")

    assert (await work(return_state=True)).is_failed()
    here = ("work", None)
    assert seen == [(here, True, 1), (here, True, 1), (here, True, 2), (here, True, 2)]


def test_views_cannot_be_written_to():
    for view in (task_run, flow_run):
        try:
            view.id = 1  # type: ignore[misc, assignment]
        except AttributeError:
            continue
        raise AssertionError("written to")


def test_a_run_ended_by_an_exception_leaves_the_context_as_it_was():
    @task
    def fails() -> None:
        raise ValueError("no")

    @task
    def outer() -> Any:
        try:
            fails()
        except ValueError:
            return me()

    assert outer() == ("outer", None)
    assert me() == NOWHERE

    async def main() -> None:
        with anyio.move_on_after(0.001):
            await sleeper()
        assert me() == NOWHERE

    @task
    async def sleeper() -> None:
        await anyio.sleep(60)

    asyncio.run(main())
