"""What the end of a run leaves behind: nothing. A run that nobody holds is freed at once, without the collector."""

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asynctask import flow, states, task
from asynctask.runs import current_run
from testkit import no_collector

SOON = 20.0


def bottom() -> None:
    raise ZeroDivisionError("at the bottom")


class Marker:
    """A value that can be watched."""


KINDS = {
    "value": lambda error: Marker(),
    "failure": lambda error: bottom(),
    "state": lambda error: states.Failed(message="x"),
}


@pytest.mark.parametrize("timeout", [None, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_over_is_freed_at_once_without_the_collector(kind: str, timeout: float | None) -> None:
    runs: list[weakref.ref[Any]] = []
    body = KINDS[kind]

    def noted(error: Any) -> Any:
        runs.append(weakref.ref(current_run.get()))
        return body(error)

    one = task(timeout_seconds=timeout)(noted)
    with no_collector():
        try:
            one(None)
        except Exception as error:  # noqa: F841
            pass
        one(None, return_state=True)
        one.submit(None).wait(SOON)
        # The thread and the loop of a submitted run may be a step behind its future.
        for _ in range(500):
            if not any(ref() for ref in runs):
                break
            threading.Event().wait(0.002)
        assert [ref() for ref in runs] == [None] * 3


@pytest.mark.parametrize("timeout", [None, 30])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_on_a_loop_is_freed_at_once_too(kind: str, timeout: float | None) -> None:
    runs: list[weakref.ref[Any]] = []
    body = KINDS[kind]

    @task(timeout_seconds=timeout)
    async def one() -> Any:
        runs.append(weakref.ref(current_run.get()))
        return body(None)

    async def called() -> None:
        try:
            await one()
        except Exception as error:  # noqa: F841
            pass

    with no_collector():
        await called()
        await one.submit().wait_async()
        for _ in range(5):
            await anyio.sleep(0)
        assert [ref() for ref in runs] == [None] * 2


async def test_a_run_that_timed_out_is_freed_at_once_too() -> None:
    runs: list[weakref.ref[Any]] = []

    @task(timeout_seconds=0.01)
    async def slow() -> Any:
        runs.append(weakref.ref(current_run.get()))
        await anyio.sleep(30)

    @task(timeout_seconds=0.01)
    def spinning() -> Any:
        runs.append(weakref.ref(current_run.get()))
        while True:
            pass

    with no_collector():
        await slow.submit().wait_async()
        await spinning.submit().wait_async()
        spinning(return_state=True)
        for _ in range(500):
            if not any(ref() for ref in runs):
                break
            await anyio.sleep(0.002)
        assert [ref() for ref in runs] == [None] * 3


def test_generator_and_flow_runs_are_freed_at_once_too() -> None:
    runs: list[weakref.ref[Any]] = []

    @task(timeout_seconds=30)
    def numbers() -> Iterator[int]:
        runs.append(weakref.ref(current_run.get()))  # type: ignore[arg-type]
        yield 1
        bottom()

    @flow
    def pipeline() -> None:
        runs.append(weakref.ref(current_run.get()))  # type: ignore[arg-type]
        bottom()

    def called() -> None:
        for call in (lambda: list(numbers()), pipeline):
            try:
                call()
            except ZeroDivisionError as error:  # noqa: F841
                pass

    with no_collector():
        called()
        numbers(return_state=True)
        pipeline(return_state=True)
        next(numbers())
        assert [ref() for ref in runs] == [None] * 5


@pytest.mark.parametrize("gives_up", ["time is up", "first failure", "cancelled"])
async def test_runs_whose_list_was_waited_for_in_vain_are_freed_at_once_too(gives_up: str) -> None:
    runs: list[weakref.ref[Any]] = []
    gate = anyio.Event()

    @task
    async def each(number: int) -> None:
        runs.append(weakref.ref(current_run.get()))  # type: ignore[arg-type]
        if number == 3 and gives_up == "first failure":
            bottom()
        await gate.wait()

    async def in_vain() -> None:
        futures = each.map(range(4))
        if gives_up == "time is up":
            assert await futures.wait_async(timeout=0.05) is None
        elif gives_up == "first failure":
            with pytest.raises(ZeroDivisionError):
                await futures
        else:
            with anyio.move_on_after(0.05) as scope:
                await futures
            assert scope.cancelled_caught
        gate.set()
        for future in futures:
            await future.wait_async()
        del futures, future  # the failure, which was logged, leads to this frame

    with no_collector():
        await in_vain()
        for _ in range(5):
            await anyio.sleep(0)
        assert [ref() for ref in runs] == [None] * 4
