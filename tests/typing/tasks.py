"""What an editor shows for tasks made of functions: decorating, calling, submitting, mapping, streaming."""

from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterable, Sequence
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
def generic[T](value: T) -> list[T]:
    return [value]


def decorated() -> None:
    """The class follows the colour of the function, bare and with options."""
    print(assert_type(plain.name, str), assert_type(plain.tags, frozenset[str]), assert_type(plain.task_key, str))
    keep_plain: Task[..., float] = plain
    keep_coloured: AsyncTask[..., float] = coloured
    keep_steps: GeneratorTask[..., str] = steps
    keep_async_steps: AsyncGeneratorTask[..., str] = async_steps
    keep_optioned: Task[[int], bytes] = optioned
    keep_optioned_async: AsyncTask[[int], bytes] = optioned_async
    keep_optioned_steps: GeneratorTask[[int], str] = optioned_steps
    keep_optioned_async_steps: AsyncGeneratorTask[[int], str] = optioned_async_steps
    print(keep_plain, keep_coloured, keep_steps, keep_async_steps)
    print(keep_optioned, keep_optioned_async, keep_optioned_steps, keep_optioned_async_steps)
    assert_type(task(abs_of), Task[[int], int])


def abs_of(number: int, /) -> int:
    return abs(number)
