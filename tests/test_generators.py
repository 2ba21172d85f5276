"""Generator tasks: a run that is Running while it yields, sync and async, called and submitted."""

import gc
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asynctask import get_run_logger, task
from asynctask.runs import current_run
from asynctask.runtime import task_run
from testkit import Runs

SOON = 20.0


@pytest.fixture
def runs() -> Runs:
    return Runs()


# -- sync generators, called --------------------------------------------------------------------------------------


def test_a_run_is_running_while_it_yields_and_completed_at_the_end(runs: Runs) -> None:
    @task(**runs.options())
    def count(end: int) -> Iterator[int]:
        yield from range(end)

    seen = []
    for number in count(3):
        seen.append((number, runs.names))
    running = ["Pending", "Running"]
    assert seen == [(0, running), (1, running), (2, running)]
    assert runs.names == [*running, "Completed"]
    assert runs.ended == ["Completed"]


def test_nothing_runs_before_the_first_value_is_asked_for(runs: Runs) -> None:
    @task(**runs.options())
    def count() -> Iterator[int]:
        yield 1

    values = count()
    assert iter(values) is values
    assert not runs.all
    assert next(values) == 1
    assert runs.all


def test_arguments_that_do_not_fit_are_refused_at_the_call() -> None:
    @task
    def count(end: int) -> Iterator[int]:
        yield end

    with pytest.raises(TypeError, match="missing a required argument"):
        count()  # type: ignore[call-arg]


def test_what_is_sent_and_thrown_in_reaches_the_body(runs: Runs) -> None:
    @task(**runs.options())
    def echo() -> Generator[Any, Any, str]:
        got: Any = "ready"
        while got != "stop":
            try:
                got = yield got
            except KeyError as error:
                got = f"caught {error}"
        return "returned"

    values = echo()
    assert next(values) == "ready"
    assert values.send(1) == 1
    assert values.throw(KeyError("k")) == "caught 'k'"
    assert values.throw(KeyError) == "caught "
    with pytest.raises(StopIteration) as stop:
        values.send("stop")
    assert stop.value.value == "returned"
    assert runs.state.result() == "returned"
    with pytest.raises(StopIteration) as again:
        next(values)
    assert again.value.value is None


def test_yield_from_gives_what_the_body_returns() -> None:
    @task
    def inner() -> Generator[int, None, str]:
        yield 1
        return "inner"

    @task
    def outer() -> Generator[Any, None, str]:
        got = yield from inner()
        yield got
        return "outer"

    assert list(outer()) == [1, "inner"]


@pytest.mark.parametrize("way", ["close", "break"])
def test_closing_early_completes_the_run_and_cleans_up_its_body(way: str, runs: Runs) -> None:
    cleaned: list[Any] = []

    @task(**runs.options())
    def count() -> Iterator[int]:
        try:
            yield 1
            yield 2
        except GeneratorExit:
            cleaned.append("exit")
            raise
        finally:
            cleaned.append(task_run.name)

    values = count()
    for _ in values:
        break
    if way == "close":
        values.close()  # type: ignore[attr-defined]
    del values
    assert runs.names == ["Pending", "Running", "Completed"]
    assert runs.state.message == "closed before its end"
    assert runs.ended == ["Completed"]
    assert cleaned == ["exit", runs.all[0].name], "the body is closed inside its run"


def test_an_exception_in_the_body_fails_the_run_and_reaches_the_consumer(runs: Runs) -> None:
    @task(**runs.options())
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("k")

    values = broken()
    assert next(values) == 1
    with pytest.raises(KeyError):
        next(values)
    assert runs.names == ["Pending", "Running", "Failed"]
    assert isinstance(runs.state.data, KeyError)
    assert list(values) == []


def test_an_exception_thrown_in_that_the_body_lets_through_fails_the_run(runs: Runs) -> None:
    @task(**runs.options())
    def count() -> Iterator[int]:
        yield 1

    values = count()
    next(values)
    with pytest.raises(KeyError):
        values.throw(KeyError("k"))  # type: ignore[attr-defined]
    assert runs.state.is_failed()


def test_a_body_that_raises_as_it_is_closed_fails(runs: Runs) -> None:
    @task(**runs.options())
    def stubborn() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("while closing")

    values = stubborn()
    next(values)
    with pytest.raises(ValueError, match="while closing"):
        values.close()  # type: ignore[attr-defined]
    assert runs.state.is_failed()
    assert runs.ended == ["Failed"]


def test_return_state_consumes_the_run(runs: Runs) -> None:
    @task
    def count(end: int) -> Iterator[int]:
        yield from range(end)

    state = count(3, return_state=True)
    assert state.is_completed()
    assert state.result() == [0, 1, 2]


# -- async generators, called -------------------------------------------------------------------------------------


async def test_an_async_run_is_running_while_it_yields(runs: Runs) -> None:
    @task(**runs.options())
    async def count(end: int) -> AsyncIterator[int]:
        for number in range(end):
            await anyio.sleep(0)
            yield number

    seen = [(number, runs.names) async for number in count(2)]
    assert seen == [(0, ["Pending", "Running"]), (1, ["Pending", "Running"])]
    assert runs.names == ["Pending", "Running", "Completed"]
    state = await count(3, return_state=True)
    assert state.result() == [0, 1, 2]


async def test_what_is_sent_and_thrown_in_reaches_an_async_body(runs: Runs) -> None:
    @task(**runs.options())
    async def echo() -> Any:
        got: Any = "ready"
        while got != "stop":
            try:
                got = yield got
            except KeyError as error:
                got = f"caught {error}"

    values = echo()
    assert await anext(values) == "ready"
    assert await values.asend(1) == 1
    assert await values.athrow(KeyError("k")) == "caught 'k'"
    with pytest.raises(StopAsyncIteration):
        await values.asend("stop")
    assert runs.state.is_completed()


async def test_closing_an_async_generator_early_completes_the_run(runs: Runs) -> None:
    cleaned: list[str | None] = []

    @task(**runs.options())
    async def count() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await anyio.sleep(0.001)
            cleaned.append(task_run.name)

    async with aclosing(count()) as values:  # type: ignore[type-var]
        async for _ in values:
            break
    assert runs.names == ["Pending", "Running", "Completed"]
    assert runs.ended == ["Completed"]
    assert cleaned == [runs.all[0].name]


async def test_an_exception_in_an_async_body_fails_the_run(runs: Runs) -> None:
    @task(**runs.options())
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise KeyError("k")

    values = broken()
    assert await anext(values) == 1
    with pytest.raises(KeyError):
        await anext(values)
    assert runs.names == ["Pending", "Running", "Failed"]


async def test_cancelling_the_consumer_in_a_step_cancels_the_run(runs: Runs) -> None:
    @task(**runs.options())
    async def stuck() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep(30)
        yield 2

    with anyio.move_on_after(0.02) as scope:
        async for _ in stuck():
            pass
    assert scope.cancelled_caught
    assert runs.state.is_cancelled()
    assert runs.ended == ["Cancelled"]


# -- generators that are dropped ----------------------------------------------------------------------------------


def test_a_dropped_sync_generator_is_closed(runs: Runs) -> None:
    @task(**runs.options())
    def count() -> Iterator[int]:
        yield 1
        yield 2

    count()  # never asked for a value: no run
    next(count())
    assert len(runs.all) == 1
    assert runs.state.is_completed()


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's, as of any dropped async generator
async def test_a_dropped_async_generator_is_closed_by_its_loop(runs: Runs) -> None:
    @task(**runs.options())
    async def count() -> AsyncIterator[int]:
        yield 1
        yield 2

    count()
    assert await anext(count()) == 1
    gc.collect()
    with anyio.fail_after(SOON):
        while not runs.state.is_final():  # the loop closes it in its own time
            await anyio.sleep(0.001)
    assert runs.state.is_completed()
    assert runs.ended == ["Completed"]


# -- context ------------------------------------------------------------------------------------------------------


def test_the_context_of_a_run_is_the_bodys_alone(runs: Runs) -> None:
    @task(**runs.options())
    def names() -> Iterator[str | None]:
        yield task_run.name
        yield task_run.name

    @task
    def consumer() -> list[Any]:
        mine = task_run.name
        seen = []
        for name in names():
            seen.append((name, task_run.name == mine))
        return seen

    assert task_run.name is None
    values = names()
    first = next(values)
    assert first == runs.all[0].name
    assert task_run.name is None
    assert list(values) == [first]
    assert task_run.name is None
    inside = consumer()
    assert inside == [(runs.all[1].name, True)] * 2


async def test_the_context_of_an_async_run_is_the_bodys_alone(runs: Runs) -> None:
    @task(**runs.options())
    async def names() -> AsyncIterator[str | None]:
        yield task_run.name
        await anyio.sleep(0.001)
        yield task_run.name

    one, two = names(), names()
    seen = [await anext(one), task_run.name, await anext(two), task_run.name, await anext(one), await anext(two)]
    first, second = (run.name for run in runs.all)
    assert seen == [first, None, second, None, first, second]
    await one.aclose()  # type: ignore[attr-defined]
    await two.aclose()  # type: ignore[attr-defined]


def test_steps_may_be_taken_in_different_threads(runs: Runs) -> None:
    @task(**runs.options())
    def names() -> Iterator[str | None]:
        while True:
            yield task_run.name

    values = names()
    seen = [next(values)]
    thread = threading.Thread(target=lambda: seen.append((next(values), task_run.name)))
    thread.start()
    thread.join(SOON)
    values.close()  # type: ignore[attr-defined]
    name = runs.all[0].name
    assert seen == [name, (name, None)]
    assert runs.state.is_completed()
    assert task_run.name is None


def test_tasks_called_by_the_body_are_children_of_the_generator(runs: Runs) -> None:
    @task
    def parent_of() -> Any:
        run = current_run.get()
        assert run is not None
        return run.parent_task_run_id

    @task(**runs.options())
    def calling() -> Iterator[Any]:
        yield parent_of()
        yield parent_of.submit().result()
        get_run_logger().info("still inside")

    assert list(calling()) == [runs.all[0].id] * 2


class Page:
    """Something that takes a weak reference, as nearly every class does."""


def test_a_task_that_is_given_what_was_yielded_records_the_generator_as_its_parent(runs: Runs) -> None:
    seen: list[Any] = []

    @task
    def parse(page: Page) -> None:
        run = current_run.get()
        assert run is not None
        seen.append(run.parent_task_run_id)

    @task(**runs.options())
    def pages() -> Iterator[Page]:
        yield Page()
        yield Page()

    futures = []
    for page in pages():
        parse(page)
        futures.append(parse.submit(page))
    for future in futures:
        future.result(SOON)
    parse(Page())
    generator = runs.all[0].id
    assert sorted(map(str, seen)) == sorted(map(str, [generator] * 4 + [None]))
