"""Generator tasks, continued: retries, timeouts, and generators that are submitted."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asynctask import Runtime, task
from asynctask.errors import BlockingWaitError, CancelledRun, OptionError, TaskTimeoutError
from asynctask.stores.memory import MemoryStore
from asynctask.testing import VirtualClock
from testkit import Runs

SOON = 20.0


@pytest.fixture
def runs() -> Runs:
    return Runs()


# -- retries and timeouts -----------------------------------------------------------------------------------------


def flaky(failures: int, first: list[int]) -> Callable[[], Iterator[int]]:
    """A generator function that fails `failures` times, each time after yielding `first`."""
    calls = 0

    def body() -> Iterator[int]:
        nonlocal calls
        calls += 1
        if calls <= failures:
            yield from first
            raise ValueError(calls)
        yield 10
        yield 20

    return body


def test_a_generator_is_retried_until_its_first_value_is_out(runs: Runs) -> None:
    assert list(task(retries=2, **runs.options())(flaky(2, []))()) == [10, 20]
    assert runs.names == [
        "Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Completed",
    ]  # fmt: skip
    values = task(retries=2, **runs.options())(flaky(1, [1]))()
    assert next(values) == 1
    with pytest.raises(ValueError, match="1"):
        next(values)
    assert runs.names == ["Pending", "Running", "Failed"]


async def test_an_async_generator_is_retried_until_its_first_value_is_out(runs: Runs) -> None:
    def asynchronous(body: Callable[[], Iterator[int]]) -> Any:
        async def generator() -> AsyncIterator[int]:
            for value in body():
                yield value

        return task(retries=2, **runs.options())(generator)

    async with Runtime(store=MemoryStore(), clock=VirtualClock()):
        assert [value async for value in asynchronous(flaky(2, []))()] == [10, 20]
        assert await asynchronous(flaky(2, [])).submit() == [10, 20]
        values = asynchronous(flaky(1, [1]))()
        assert await anext(values) == 1
        with pytest.raises(ValueError, match="1"):
            await anext(values)
        with pytest.raises(ValueError, match="1"):
            await asynchronous(flaky(1, [1])).submit()


def test_a_submitted_generator_is_not_retried_once_a_value_is_out() -> None:
    future = task(retries=2)(flaky(1, [1])).submit()
    with pytest.raises(ValueError, match="1"):
        future.result(SOON)
    assert future.run.run_count == 1
    assert task(retries=2)(flaky(2, [])).submit().result(SOON) == [10, 20]


def test_the_timeout_of_a_sync_generator_counts_the_time_in_its_body_only(runs: Runs) -> None:
    @task(timeout_seconds=0.1, **runs.options())
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        while True:
            pass

    values = numbers()
    assert next(values) == 1
    time.sleep(0.12)
    assert next(values) == 2
    with pytest.raises(TaskTimeoutError):
        next(values)
    assert runs.state.name == "TimedOut"


def test_the_timeout_of_a_generator_is_the_sum_of_its_steps(runs: Runs) -> None:
    closed: list[int] = []

    @task(timeout_seconds=0.06, **runs.options())
    def numbers() -> Iterator[int]:
        try:
            while True:
                end = time.monotonic() + 0.02
                while time.monotonic() < end:
                    pass
                yield 1
        finally:
            closed.append(1)

    with pytest.raises(TaskTimeoutError):
        list(numbers())
    assert closed == [1]
    assert runs.ended == ["TimedOut"]


async def test_the_timeout_of_an_async_generator(runs: Runs) -> None:
    @task(timeout_seconds=0.05, **runs.options())
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep(30)
        yield 2

    values = numbers()
    assert await anext(values) == 1
    await anyio.sleep(0.06)
    with anyio.fail_after(SOON), pytest.raises(TaskTimeoutError):
        await anext(values)
    assert runs.state.name == "TimedOut"
    with anyio.fail_after(SOON), pytest.raises(TaskTimeoutError):
        await numbers.submit()


async def test_an_async_generator_without_time_left_is_closed(runs: Runs) -> None:
    closed: list[int] = []

    @task(timeout_seconds=0.03, **runs.options())
    async def numbers() -> AsyncIterator[int]:
        try:
            while True:
                end = time.monotonic() + 0.02
                while time.monotonic() < end:
                    pass
                yield 1
        finally:
            closed.append(1)

    with pytest.raises(TaskTimeoutError):
        async for _ in numbers():
            pass
    assert closed == [1]


# -- submitted ----------------------------------------------------------------------------------------------------


def gated(runs: Runs, gate: threading.Event) -> Any:
    @task(**runs.options())
    def numbers() -> Iterator[int]:
        yield 1
        assert gate.wait(SOON)
        yield 2

    return numbers


def test_a_submitted_generator_gives_its_values_while_it_runs(runs: Runs) -> None:
    gate = threading.Event()
    future = gated(runs, gate).submit()
    seen = []
    for value in future:
        seen.append((value, future.done()))
        gate.set()
    assert seen == [(1, False), (2, seen[1][1])]
    assert future.result() == [1, 2]
    assert list(future) == [1, 2], "and again, to whoever asks"


async def test_a_submitted_generator_gives_its_values_on_a_loop_while_it_runs(runs: Runs) -> None:
    gate = threading.Event()
    future = gated(runs, gate).submit()
    seen = []
    async for value in future:
        seen.append((value, future.done()))
        gate.set()
    assert seen[0] == (1, False)
    assert await future == [1, 2]


async def test_a_submitted_async_generator_gives_its_values_while_it_runs() -> None:
    gate = anyio.Event()

    @task
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await gate.wait()
        yield 2

    future = numbers.submit()
    seen = []
    async for value in future:
        seen.append((value, future.done()))
        gate.set()
    assert [value for value, _ in seen] == [1, 2]
    assert seen[0] == (1, False)
    assert await future == [1, 2]
    assert await anyio.to_thread.run_sync(list, future) == [1, 2]


def test_iterating_over_a_submitted_generator_that_fails_gives_its_values_then_raises() -> None:
    @task
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("k")

    values = iter(broken.submit())
    assert next(values) == 1
    with pytest.raises(KeyError):
        next(values)


async def test_a_submitted_generator_can_be_cancelled_between_its_values() -> None:
    closed: list[int] = []

    @task
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await anyio.sleep(0.001)
        finally:
            closed.append(1)

    future = endless.submit()
    values = aiter(future)
    assert await anext(values) == 1
    future.cancel()
    with pytest.raises(CancelledRun):
        [value async for value in values]
    assert closed == [1]


async def test_only_the_future_of_a_generator_can_be_iterated_over() -> None:
    future = task(lambda: 1).submit()
    with pytest.raises(TypeError, match="not a generator"):
        list(future)
    await future


async def test_a_generator_maps_like_any_task() -> None:
    @task
    async def twice(number: int) -> AsyncIterator[int]:
        yield number
        yield number

    assert await twice.map([1, 2]) == [[1, 1], [2, 2]]


async def test_a_generator_submitted_on_its_loop_is_not_waited_for_by_blocking() -> None:
    @task
    async def numbers() -> AsyncIterator[int]:
        yield 1

    future = numbers.submit()
    with pytest.raises(BlockingWaitError):
        future.result()
    assert await future == [1]


def test_a_generator_cannot_be_wrapped_by_around() -> None:
    with pytest.raises(OptionError, match="'around' cannot be used with a generator"):

        @task(around=lambda call, run: call())
        def numbers() -> Iterator[int]:
            yield 1
