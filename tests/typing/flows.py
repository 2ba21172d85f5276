"""What an editor shows for flows."""

from collections.abc import Coroutine
from typing import Any, assert_type

from asynctask import AsyncFlow, Flow, State, TaskFuture, ThreadPoolTaskRunner, flow, task


@task
async def fetched(number: int) -> str:
    return str(number)


@flow
def plain(number: int, text: str = "") -> float:
    return number + len(text)


@flow
async def coloured(number: int) -> float:
    return number


@flow(
    name="all of them",
    description="said at length",
    version="1",
    flow_run_name="flow-{number}",
    retries=1,
    retry_delay_seconds=0.5,
    timeout_seconds=3,
    validate_parameters=False,
    log_prints=True,
    task_runner=ThreadPoolTaskRunner(),
)
def optioned(number: int) -> bytes:
    return bytes(number)


@flow(retries=1)
async def optioned_async(number: int) -> TaskFuture[str]:
    return fetched.submit(number)


@flow
def loaded(text: str) -> Any:
    return text


@flow(retries=1)
def loaded_again(text: str) -> Any:
    return text


def halved(number: int, /) -> float:
    return number / 2


async def halved_later(number: int, /) -> float:
    return number / 2


async def decorated() -> None:
    its_class: tuple[Flow[..., float], AsyncFlow[..., float]] = (plain, coloured)
    with_options: tuple[Flow[..., bytes], AsyncFlow[..., TaskFuture[str]]] = (optioned, optioned_async)
    print(its_class, with_options)
    assert_type(flow(halved), Flow[[int], float])
    assert_type(flow(halved_later), AsyncFlow[[int], float])
    assert_type(flow(retries=1)(halved), Flow[[int], float])
    assert_type(flow(retries=1)(halved_later), AsyncFlow[[int], float])
    assert_type(flow(halved).with_options(retries=None), Flow[[int], float])


async def called() -> None:
    assert_type(plain(1, text="a"), float)
    print(loaded("a")["key"], loaded_again("a")["key"])  # what may be anything is not awaited
    await assert_type(coloured(1), Coroutine[Any, Any, float])
    assert_type(await coloured(number=1), float)
    assert_type(optioned(1), bytes)


@plain.on_failure
def told(flow: Flow[..., float], run: Any, state: State) -> int:
    return len(f"{flow}{run}{state}")


def hooked(state: State) -> None:
    """A function used as a hook keeps its own type."""
    assert_type(told(plain, None, state), int)
    plain.with_options(on_completion=told, on_crashed=[told])
