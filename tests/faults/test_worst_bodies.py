"""Bodies, hooks and arguments that do the worst they can: each has one right outcome, and nothing is left behind.

That no warning comes of it ("never awaited", "destroyed but pending", an unclosed resource) is seen to by pytest, where
warnings are errors, and by the leak check after every test.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from asynctask import TaskFuture, scopes, task
from asynctask.errors import (
    CancelledRun,
    CrashedRun,
    Interrupted,
    TaskTimeoutError,
)
from asynctask.states import State
from testkit import fresh

KINDS = ("sync", "async")
ENTRIES = ("call", "submit")


class TwoArguments(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.sum = first + second


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Unequal(Exception):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


def as_kind(kind: str, body: Callable[..., Any]) -> Any:
    """The body as a function of a kind."""

    def sync(*args: Any) -> Any:
        return body(*args)

    async def asynchronous(*args: Any) -> Any:
        await anyio.sleep(0)
        return body(*args)

    return sync if kind == "sync" else asynchronous


async def ended(entry: str, t: Any, *args: Any) -> tuple[BaseException | None, State]:
    """What the caller or the future raised, and the run's last state."""
    if entry == "submit":
        future = t.submit(*args)
        await future.wait_async()
        try:
            await future
        except BaseException as error:
            return error, future.state
        return None, future.state
    told: list[State] = []
    options = {name: lambda task, run, state: told.append(state) for name in HOOKS}
    try:
        made = t.with_options(**options)(*args)
        if hasattr(made, "__await__"):
            await made
    except BaseException as error:
        return error, told[-1]
    return None, told[-1]


HOOKS = ("on_completion", "on_failure", "on_cancellation", "on_crashed")

# -- bodies that raise ----------------------------------------------------------------------------------------------

FAILURES = {
    "an exception group": lambda: ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])]),
    "an exception with arguments": lambda: TwoArguments(1, 2),
    "one without words": lambda: Unspeakable(),
    "one that cannot be compared": lambda: Unequal(),
    "an assertion": lambda: AssertionError(),
    "a lookup": lambda: KeyError(),
}
ENDINGS: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": lambda: KeyboardInterrupt("stop"),
    "SystemExit": lambda: SystemExit(3),
    "GeneratorExit": lambda: GeneratorExit(),
    "a base exception of one's own": lambda: type("Ending", (BaseException,), {})("over"),
    "a base exception group": lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError(1)]),
}


def raising(error: BaseException) -> Callable[..., Any]:
    def body(*args: Any) -> Any:
        raise error

    return body


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", FAILURES.values(), ids=FAILURES)
async def test_any_exception_is_a_failure_and_comes_back_as_it_is(kind: str, entry: str, make: Any) -> None:
    error = make()
    async with fresh():
        raised, state = await ended(entry, task(retries=1)(as_kind(kind, raising(error))))
    assert raised is error
    assert state.is_failed()
    assert state.data is error
    assert type(error).__name__ in state.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", ENDINGS.values(), ids=ENDINGS)
async def test_an_ending_goes_through_to_the_caller_and_the_run_is_crashed(kind: str, make: Any) -> None:
    error = make()
    calls: list[int] = []

    def body() -> None:
        calls.append(1)
        raise error

    async with fresh() as rt:
        raised, state = await ended("call", task(retries=3)(as_kind(kind, body)))
        assert rt.runs == []
    assert raised is error
    assert state.is_crashed()
    assert calls == [1], "what ends a run from outside is never retried"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", ENDINGS.values(), ids=ENDINGS)
async def test_an_ending_in_a_submitted_run_ends_neither_the_loop_nor_its_reader(kind: str, make: Any) -> None:
    error = make()
    async with fresh() as rt:
        raised, state = await ended("submit", task(retries=3)(as_kind(kind, raising(error))))
        assert rt.runs == []
        assert await task(as_kind("async", lambda: "the loop lives"))() == "the loop lives"
    assert isinstance(raised, CrashedRun)
    assert raised.__cause__ is error
    assert state.is_crashed()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", ENDINGS.values(), ids=ENDINGS)
def test_an_ending_in_plain_code(kind: str, make: Any) -> None:
    error = make()
    t = task(as_kind(kind, raising(error)))
    with pytest.raises(CrashedRun) as raised:
        t.submit().result(timeout=20)
    assert raised.value.__cause__ is error
    if kind == "sync":
        with pytest.raises(type(error)) as through:
            t()
        assert through.value is error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error_type", [StopIteration, StopAsyncIteration])
async def test_a_stop_iteration_never_passes_for_a_value(kind: str, error_type: Any) -> None:
    """Python lets none of these out of a coroutine: `await` raises a RuntimeError whose cause it is."""
    error = error_type(5)
    body = raising(error) if kind == "sync" else None

    async def asynchronous() -> None:
        raise error

    async with fresh():
        future = task(body or asynchronous).submit()
        state = await future.wait_async()
        assert state is not None
        assert state.is_failed()
        raised, _ = await ended("call", task(body or asynchronous))
    assert raised is error or (isinstance(raised, RuntimeError) and raised.__cause__ is error)


async def test_a_cancelled_error_that_the_body_made_itself_ends_only_its_run() -> None:
    async with fresh() as rt:

        @task
        async def odd() -> None:
            raise asyncio.CancelledError

        with pytest.raises(CancelledRun):
            await odd.submit()
        with pytest.raises(asyncio.CancelledError):
            await odd()
        assert rt.runs == []


# -- bodies that forget, recurse, mutate --------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_coroutine_that_was_not_awaited_is_a_failure_that_says_so(kind: str, entry: str) -> None:
    async def forgotten() -> None:
        raise AssertionError("nobody runs this")

    async with fresh():
        raised, state = await ended(entry, task(name="sloppy")(as_kind(kind, forgotten)))
    assert isinstance(raised, TypeError)
    assert "'sloppy' returned a coroutine" in str(raised)
    assert state.is_failed()


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_endless_recursion_is_a_failure_and_the_next_call_works(kind: str, entry: str) -> None:
    t: Any

    def down(depth: int) -> Any:
        return t(depth + 1) if depth >= 0 else depth

    async def down_async(depth: int) -> Any:
        return await t(depth + 1) if depth >= 0 else depth

    t = task(down if kind == "sync" else down_async)
    async with fresh() as rt:
        raised, state = await ended(entry, t, 0)
        assert isinstance(raised, RecursionError)
        assert state.is_failed()
        assert rt.runs == []
        assert (await ended(entry, t, -1))[0] is None


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_that_mutates_its_arguments(kind: str, entry: str) -> None:
    """The caller's own objects are passed as they are; a container that had to be filled is a copy."""

    def body(own: list[Any], filled: dict[str, Any]) -> None:
        own.append("mine")
        filled.clear()

    async with fresh():
        upstream = task(lambda: 1).submit()
        await upstream
        own: list[Any] = []
        filled = {"one": upstream}
        raised, _ = await ended(entry, task(as_kind(kind, body)), own, filled)
    assert raised is None
    assert own == ["mine"]
    assert filled == {"one": upstream}


# -- bodies that never finish -------------------------------------------------------------------------------------


class Endless:
    """A body of either kind that never ends by itself."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.stopped = threading.Event()

    def sync(self) -> None:
        self.begun.set()
        try:
            while True:
                time.sleep(0.002)
        except Interrupted:
            self.stopped.set()
            raise

    async def asynchronous(self) -> None:
        self.begun.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.stopped.set()
            raise

    def task(self, kind: str, **options: Any) -> Any:
        return task(**options)(self.sync if kind == "sync" else self.asynchronous)


async def begun(endless: Endless, t: Any) -> TaskFuture[Any]:
    future = t.submit()
    while not endless.begun.is_set():
        await anyio.sleep(0.001)
    return future


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_that_never_finishes_is_ended_by_its_timeout(kind: str, entry: str) -> None:
    endless = Endless()
    async with fresh() as rt:
        raised, state = await ended(entry, endless.task(kind, timeout_seconds=0.02))
        assert isinstance(raised, TaskTimeoutError)
        assert state.name == "TimedOut"
        assert rt.runs == []
    assert endless.stopped.wait(20)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_that_never_finishes_is_ended_by_cancel(kind: str) -> None:
    endless = Endless()
    async with fresh() as rt:
        future = await begun(endless, endless.task(kind))
        future.cancel("enough")
        with anyio.fail_after(20):
            with pytest.raises(CancelledRun, match="enough"):
                await future
        assert rt.runs == []
    assert endless.stopped.wait(20)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_that_never_finishes_is_ended_by_the_shutdown(kind: str) -> None:
    endless = Endless()
    async with fresh(shutdown_timeout=0.01):
        future = await begun(endless, endless.task(kind))
    assert future.done()
    assert future.state.is_cancelled()
    assert endless.stopped.wait(20)


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_never_finishes_is_ended_in_plain_code(kind: str) -> None:
    endless = Endless()
    future = endless.task(kind).submit()
    assert endless.begun.wait(20)
    future.cancel()
    with pytest.raises(CancelledRun):
        future.result(timeout=20)
    assert endless.stopped.wait(20)


async def test_a_body_stuck_in_c_is_abandoned_by_name_and_its_run_ends_in_time(caplog: Any) -> None:
    release = threading.Event()
    async with fresh() as rt:
        start = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            await task(timeout_seconds=0.02)(release.wait).submit(10)
        assert time.monotonic() - start < 5
        assert len(rt.abandoned_threads) == 1
        with anyio.fail_after(20):
            while "is abandoned" not in caplog.text:
                await anyio.sleep(0.01)
        release.set()
        while rt.abandoned_threads:
            await anyio.sleep(0.001)


# -- bodies and cancellation --------------------------------------------------------------------------------------


async def test_a_body_that_is_cancelled_while_it_cleans_up_ends_cancelled_once() -> None:
    cleaning = anyio.Event()
    told: list[str] = []

    @task(on_cancellation=[lambda task, run, state: told.append(state.name)])
    async def tidy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaning.set()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)

    async with fresh() as rt:
        future = tidy.submit()
        await anyio.sleep(0.001)
        future.cancel("first")
        await cleaning.wait()
        future.cancel("second")
        with pytest.raises(CancelledRun, match="first"):
            await future
        assert rt.runs == []
    assert told == ["Cancelled"]


@task(retries=5)
async def clumsy(begun: anyio.Event) -> None:
    try:
        begun.set()
        await anyio.sleep_forever()
    finally:
        raise ValueError("dropped it")


async def test_a_cancelled_body_that_raises_while_it_cleans_up_has_failed_and_is_not_retried() -> None:
    async with fresh() as rt:
        begun = anyio.Event()
        future = clumsy.submit(begun)
        await begun.wait()
        future.cancel()
        with anyio.fail_after(20), pytest.raises(ValueError, match="dropped it"):
            await future
        assert future.run.run_count == 1
        assert rt.runs == []


async def test_a_caller_cancelled_in_a_body_that_raises_while_it_cleans_up_is_not_kept_waiting() -> None:
    async with fresh() as rt:
        with anyio.fail_after(20), pytest.raises(ValueError, match="dropped it"):
            with anyio.move_on_after(0.01):
                await clumsy(anyio.Event())
        assert rt.runs == []


async def test_a_task_that_cleans_up_after_a_cancellation_is_retried_like_any_other() -> None:
    attempts: list[int] = []

    @task(retries=2)
    async def flaky_cleaning() -> None:
        attempts.append(1)
        await anyio.sleep(0)
        if len(attempts) < 3:
            raise ValueError

    async with fresh():
        with anyio.move_on_after(0.01):
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await flaky_cleaning()
    assert len(attempts) == 3


async def test_a_body_that_swallows_its_cancellation_keeps_its_value() -> None:
    async with fresh() as rt:

        @task
        async def stubborn() -> str:
            try:
                await anyio.sleep_forever()
            except BaseException:
                return "done all the same"

        future = stubborn.submit()
        await anyio.sleep(0.001)
        future.cancel()
        assert await future == "done all the same"
        assert future.state.is_completed()
        assert rt.runs == []


@pytest.mark.asyncio
async def test_a_body_that_will_not_stop_is_given_up_when_its_runtime_closes(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(scopes, "LAST_SECONDS", 0.05)
    release = asyncio.Event()

    @task
    async def immortal() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    async with fresh(shutdown_timeout=0.01) as rt:
        future = immortal.submit()
        await asyncio.sleep(0.001)
    assert future.done()
    assert future.state.is_final()
    assert not future.state.is_completed()
    assert rt.runs == []
    assert "is given up" in caplog.text
    release.set()
