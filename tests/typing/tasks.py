"""What an editor shows for tasks made of functions: decorating, calling, submitting, mapping, streaming."""

import json
from collections.abc import AsyncGenerator, Coroutine, Generator
from datetime import timedelta
from typing import Any, assert_type

from asynctask import (
    AsyncGeneratorTask,
    AsyncTask,
    GeneratorTask,
    Task,
    TaskFuture,
    TaskFutureList,
    ThreadPoolTaskRunner,
    allow_failure,
    opaque,
    quote,
    task,
    unmapped,
)
from asynctask.streams import Stream
from asynctask.tasks import exponential_backoff


@task
def plain(number: int, text: str = "") -> float:
    return number + len(text)


@task
async def coloured(number: int, *, text: str = "") -> float:
    return number + len(text)


@task
def steps(number: int) -> Generator[str, int, bool]:
    return bool((yield str(number)))


@task
async def async_steps(number: int) -> AsyncGenerator[str, int]:
    yield str(number)


@task(
    name="all of them",
    description="said at length",
    tags=["a", "b"],
    version="1",
    task_run_name="run-{number}",
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_on=[ValueError, OSError],
    timeout_seconds=timedelta(seconds=3),
    log_prints=True,
    task_runner=ThreadPoolTaskRunner(max_workers=2),
)
def optioned(number: int) -> bytes:
    return bytes(number)


@task(retries=1, retry_delay_seconds=[1, 2.5], tags={"a"})
async def optioned_async(number: int) -> bytes:
    return bytes(number)


@task()
def optioned_steps(number: int) -> Generator[str, Any, None]:
    yield str(number)


@task()
async def optioned_async_steps(number: int) -> AsyncGenerator[str, None]:
    yield str(number)


@task
def loaded(text: str) -> Any:
    return json.loads(text)


@task(retries=1)
def loaded_again(text: str) -> Any:
    return json.loads(text)


@task
async def loaded_later(text: str) -> Any:
    return json.loads(text)


def doubled(number: int, /) -> int:
    return number * 2


async def doubled_later(number: int, /) -> int:
    return number * 2


async def decorated() -> None:
    """The class follows the colour of the function, bare, with options and called as a function."""
    its_class: tuple[Task[..., float], AsyncTask[..., float]] = (plain, coloured)
    of_steps: tuple[GeneratorTask[..., str], AsyncGeneratorTask[..., str]] = (steps, async_steps)
    with_options: tuple[Task[..., bytes], AsyncTask[..., bytes]] = (optioned, optioned_async)
    of_optioned_steps: tuple[GeneratorTask[..., str], AsyncGeneratorTask[..., str]]
    of_optioned_steps = (optioned_steps, optioned_async_steps)
    print(its_class, of_steps, with_options, of_optioned_steps)
    assert_type(task(doubled), Task[[int], int])
    assert_type(task(doubled_later), AsyncTask[[int], int])
    assert_type(task(retries=1)(doubled), Task[[int], int])
    assert_type(task(retries=1)(doubled_later), AsyncTask[[int], int])


async def called() -> None:
    """A call has the parameters and the colour of the function."""
    assert_type(plain(1), float)
    assert_type(plain(1, "a"), float)
    assert_type(plain(number=1, text="a"), float)
    await assert_type(coloured(1), Coroutine[Any, Any, float])
    assert_type(await coloured(1, text="a"), float)
    assert_type(optioned(1), bytes)
    assert_type(await optioned_async(1), bytes)


async def called_for_any() -> None:
    """A function that returns Any is as sync as it says, though Any might be a coroutine: what it gives is not awaited.

    mypy shows Any for all of it, so what is said here is that neither checker sees an error.
    """
    print(loaded("{}")["key"], loaded_again("{}")["key"])
    loaded("{}")
    assert_type(loaded("{}"), Any)
    await loaded_later("{}")


async def generated() -> None:
    """A generator task gives what is yielded."""
    assert_type(steps(1), Generator[str, Any, Any])
    for value in steps(1):
        assert_type(value, str)
    assert_type(async_steps(1), AsyncGenerator[str, Any])
    async for value in async_steps(1):
        assert_type(value, str)
    async for value in optioned_async_steps(1):
        assert_type(value, str)
    assert_type(steps.submit(1), TaskFuture[list[str]])
    assert_type(await async_steps.submit(1), list[str])
    assert_type(steps.map([1, 2]), TaskFutureList[list[str]])
    assert_type(async_steps.map([1, 2]), TaskFutureList[list[str]])


async def submitted() -> None:
    """A future of what the function returns, without the coroutine; futures may stand in for any argument."""
    future = plain.submit(1, "a")
    assert_type(future, TaskFuture[float])
    assert_type(coloured.submit(1), TaskFuture[float])
    assert_type(await coloured.submit(1), float)
    assert_type(coloured.submit(1).result(), float)
    assert_type(plain.submit(future), TaskFuture[float])
    assert_type(plain.submit(number=future, wait_for=[future, coloured.submit(1)]), TaskFuture[float])
    assert_type(coloured.submit(allow_failure(future)), TaskFuture[float])
    assert_type(coloured.submit(quote(future), text=opaque(future)), TaskFuture[float])


async def mapped() -> None:
    """One future per element, in a list that can be awaited."""
    futures = plain.map([1, 2, 3], unmapped("a"))
    assert_type(futures, TaskFutureList[float])
    assert_type(futures[0], TaskFuture[float])
    assert_type(await futures, list[float])
    assert_type(coloured.map(range(3), wait_for=futures), TaskFutureList[float])
    assert_type(coloured.map(range(3)).result(), list[float])


async def streamed() -> None:
    """The results, one by one, of an input of either colour."""
    assert_type(plain.stream([1, 2], concurrency=2), Stream[float])
    assert_type(list(plain.stream([1, 2], concurrency=2)), list[float])
    async for value in coloured.stream(async_steps(1), concurrency=2, ordered=True):
        assert_type(value, float)


async def changed() -> None:
    """A copy with other options is the same kind of task."""
    assert_type(task(doubled).with_options(retries=2, tags=None), Task[[int], int])
    assert_type(task(doubled_later).with_options(name="other", timeout_seconds=1), AsyncTask[[int], int])
    assert_type(plain.with_options(retries=2)(1, text="a"), float)
    assert_type(await coloured.with_options(retries=None).submit(1), float)
    for value in steps.with_options(name="other")(1):
        assert_type(value, str)
    async for value in async_steps.with_options(name="other")(1):
        assert_type(value, str)


def asked() -> None:
    """What a task says of itself."""
    assert_type(plain.name, str)
    assert_type(plain.description, str | None)
    assert_type(plain.version, str | None)
    assert_type(plain.tags, frozenset[str])
    assert_type(plain.task_key, str)
    assert_type(plain.retries, int | None)
    assert_type(plain.timeout_seconds, float | None)
