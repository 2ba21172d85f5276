"""The life of a run: what comes after what, what a returned value stands for, and what the end leaves behind."""

import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from asynctask import Runtime, State, StateType, TaskFuture, states, task
from asynctask.errors import (
    CancelledRun,
    ConcurrencyLimitAborted,
    CrashedRun,
    FailedRun,
    UpstreamTaskError,
)
from asynctask.runtime import task_run
from asynctask.stores.memory import MemoryStore
from testkit import limit_of

SOON = 20.0


def names_of(future: TaskFuture[Any]) -> list[str]:
    return [state.name for state in future.run.states]


# -- the order of things ------------------------------------------------------------------------------------------


async def test_inputs_come_before_slots_and_slots_before_the_body() -> None:
    store = MemoryStore()
    store.limits.set("tag:db", 1)
    async with Runtime(store=store):
        give_input, free_slot = anyio.Event(), anyio.Event()

        @task
        async def upstream() -> int:
            await give_input.wait()
            return 1

        @task(tags=["db"])
        async def holder() -> None:
            await free_slot.wait()

        @task(tags=["db"])
        async def body(value: int) -> int:
            return value

        future = body.submit(upstream.submit())
        await anyio.wait_all_tasks_blocked()
        assert names_of(future) == ["Pending"]
        assert (future.run.waiting_on or "").startswith("upstream upstream-")
        held = holder.submit()  # not behind `future`, which is in no line yet
        await anyio.wait_all_tasks_blocked()
        assert held.state.is_running()
        give_input.set()
        await anyio.wait_all_tasks_blocked()
        assert names_of(future) == ["Pending", "AwaitingConcurrencySlot"]
        assert 'tag "db"' in (future.run.waiting_on or "")
        free_slot.set()
        assert await future == 1
        await held
        assert names_of(future) == ["Pending", "AwaitingConcurrencySlot", "Running", "Completed"]


async def test_a_run_whose_upstream_failed_takes_no_slot_and_never_starts() -> None:
    store = MemoryStore()
    store.limits.set("tag:db", 1)
    started: list[int] = []
    async with Runtime(store=store):

        @task
        async def broken() -> None:
            raise KeyError("cause")

        @task(tags=["db"], on_running=lambda *_: started.append(1))
        async def body(value: int) -> None:
            started.append(2)

        future = body.submit(broken.submit())
        with pytest.raises(UpstreamTaskError, match="broken-") as caught:
            await future
        assert isinstance(caught.value.__cause__, KeyError)
        assert names_of(future) == ["Pending", "NotReady"]
        assert future.state.is_final()
        assert future.done()
        assert not started


async def test_a_limit_of_zero_cancels_the_run_before_its_body() -> None:
    store = MemoryStore()
    store.limits.set("tag:db", 0)
    async with Runtime(store=store):
        ended: list[str] = []

        async def hook(task: Any, run: Any, state: State) -> None:
            await anyio.sleep(0.001)
            ended.append(state.name)

        refused = task(tags=["db"], on_cancellation=hook)(lambda: 1)
        future = refused.submit()
        with pytest.raises(ConcurrencyLimitAborted, match='"db"'):
            await future
        assert future.state.is_cancelled()
        assert ended == ["Cancelled"], "an async hook is done before the future is, since nobody cancelled anything"
        with pytest.raises(ConcurrencyLimitAborted):
            refused()


async def test_the_slot_is_free_before_the_hooks_of_the_end_are_called() -> None:
    store = MemoryStore()
    store.limits.set("tag:db", 1)
    held: list[int] = []
    async with Runtime(store=store):

        def hook(task: Any, run: Any, state: State) -> None:
            held.append(len(limit_of(store, "db").active_slots))

        @task(tags=["db"], on_running=hook, on_completion=hook, on_failure=hook)
        async def body(error: Exception | None) -> None:
            if error is not None:
                raise error

        await body.submit(None)
        await body.submit(ValueError("x")).wait_async()
    assert held == [1, 0, 1, 0]


# -- what a returned value stands for -----------------------------------------------------------------------------


@contextmanager
def calls_of(body: Callable[[], Any], **options: Any) -> Iterator[list[State]]:
    """The final states of a body, called and submitted, from plain code."""
    one = task(**options)(body)
    called = one(return_state=True)
    submitted = one.submit().wait(SOON)
    assert submitted is not None
    yield [called, submitted]


@pytest.mark.parametrize(
    ("make", "kind", "name", "message"),
    [
        (lambda: states.Completed(data=5, message="fine"), StateType.COMPLETED, "Completed", "fine"),
        (lambda: states.Completed(data=5, name="Skipped"), StateType.COMPLETED, "Skipped", ""),
        (lambda: states.Failed(message="bad"), StateType.FAILED, "Failed", "bad"),
        (lambda: states.TimedOut(message="late"), StateType.FAILED, "TimedOut", "late"),
        (lambda: states.Cancelled(message="no use"), StateType.CANCELLED, "Cancelled", "no use"),
        (lambda: states.Crashed(message="boom"), StateType.CRASHED, "Crashed", "boom"),
    ],
    ids=["completed", "named", "failed", "timed-out", "cancelled", "crashed"],
)
def test_a_returned_state_becomes_that_of_the_run(make: Any, kind: StateType, name: str, message: str) -> None:
    with calls_of(make) as ends:
        for state in ends:
            assert (state.type, state.name, state.message) == (kind, name, message)
            assert state.task_run_id is not None


def test_a_plain_call_gives_the_result_of_a_returned_state_or_raises() -> None:
    assert task(lambda: states.Completed(data=5))() == 5
    for make, error in (
        (lambda: states.Failed(data=KeyError("k")), KeyError),
        (lambda: states.Failed(message="bad"), FailedRun),
        (lambda: states.Cancelled(message="bad"), CancelledRun),
        (lambda: states.Crashed(message="bad"), CrashedRun),
    ):
        with pytest.raises(error):
            task(make)()
        with pytest.raises(error):
            task(make).submit().result(SOON)


@pytest.mark.parametrize("make", [states.Running, states.Pending, states.AwaitingRetry, states.Paused, states.NotReady])
def test_a_returned_state_that_is_no_end_is_an_error_that_says_so(make: Callable[[], State]) -> None:
    with calls_of(make) as ends:
        for state in ends:
            assert state.is_failed()
            with pytest.raises(TypeError, match="which is no end; return Completed"):
                state.result()


@pytest.mark.parametrize("kind", [list, tuple, set])
def test_several_returned_states_make_one(kind: type) -> None:
    with calls_of(lambda: kind([states.Completed(data=1), states.Cached(data=2)])) as ends:
        for state in ends:
            assert (state.type, state.message) == (StateType.COMPLETED, "All states completed.")
            assert {one.data for one in state.result()} == {1, 2}
    with calls_of(lambda: kind([states.Completed(), states.Failed(data=KeyError("k"))])) as ends:
        for state in ends:
            assert (state.type, state.message) == (StateType.FAILED, "1/2 states failed.")
            with pytest.raises(KeyError):
                state.result()


@pytest.mark.parametrize(
    "value", [[], (), set(), [1, states.Failed()], {"a": states.Failed()}, None, ...], ids=range(7)
)
def test_other_values_are_values(value: Any) -> None:
    with calls_of(lambda: value) as ends:
        for state in ends:
            assert state.is_completed()
            assert state.result() is value


def test_a_returned_generator_is_consumed_into_a_list_by_the_thread_of_the_body() -> None:
    threads: list[Any] = []

    def body() -> Any:
        def generator() -> Iterator[int]:
            threads.append((threading.get_ident(), task_run.name))
            yield from (1, 2)

        threads.append((threading.get_ident(), task_run.name))
        return generator()

    with calls_of(body) as ends:
        assert [state.result() for state in ends] == [[1, 2], [1, 2]]
    assert threads[0] == threads[1]
    assert threads[2] == threads[3]
    assert threads[0] != threads[2]


async def test_a_generator_returned_by_an_async_task_is_consumed_into_a_list() -> None:
    async def ticks() -> AsyncIterator[int]:
        for number in (1, 2):
            await anyio.sleep(0.001)
            yield number

    @task
    async def sync_one() -> Any:
        return (number for number in (1, 2))

    @task
    async def async_one() -> Any:
        return ticks()

    for one in (sync_one, async_one):
        assert await one() == [1, 2]
        assert await one.submit() == [1, 2]


def test_the_iterator_of_a_generator_task_is_consumed_too() -> None:
    @task
    def numbers() -> Iterator[int]:
        yield from (1, 2)

    with calls_of(lambda: numbers()) as ends:
        assert [state.result() for state in ends] == [[1, 2], [1, 2]]


def test_a_generator_that_fails_while_it_is_consumed_fails_the_run() -> None:
    def generator() -> Iterator[int]:
        yield 1
        raise KeyError("k")

    with calls_of(lambda: generator()) as ends:
        assert [type(state.data) for state in ends] == [KeyError, KeyError]


def test_a_coroutine_that_the_body_forgot_to_await_is_closed_and_an_error_that_says_so() -> None:
    async def forgotten() -> None:
        raise AssertionError("never run")

    with calls_of(lambda: forgotten(), name="careless") as ends:
        for state in ends:
            with pytest.raises(TypeError, match="'careless' returned a coroutine that nobody awaited"):
                state.result()


# -- exceptions ---------------------------------------------------------------------------------------------------


class Broken(Exception):
    """Takes arguments, and cannot be shown."""

    def __init__(self, one: int, *, two: int) -> None:
        self.one, self.two = one, two

    def __str__(self) -> str:
        raise RuntimeError("no message")

    __repr__ = __str__


def test_an_exception_that_cannot_be_shown_ends_the_run_like_any_other() -> None:
    def body() -> None:
        raise Broken(1, two=2)

    with calls_of(body, retries=1) as ends:
        for state in ends:
            assert state.is_failed()
            assert "Broken" in state.message
            assert isinstance(state.data, Broken)
            assert (state.data.one, state.data.two) == (1, 2)


def test_a_huge_message_is_cut_in_the_state_and_kept_in_the_exception() -> None:
    def body() -> None:
        raise ValueError("x" * 1_000_000)

    with calls_of(body) as ends:
        for state in ends:
            assert len(state.message) < 2000
            assert len(str(state.data)) == 1_000_000


def test_an_exception_group_stays_whole() -> None:
    group = ExceptionGroup("several", [ValueError("1"), ExceptionGroup("inner", [KeyError("2")])])

    def body() -> None:
        raise group

    with calls_of(body) as ends:
        for state in ends:
            assert state.data is group
    with pytest.RaisesGroup(ValueError, pytest.RaisesGroup(KeyError)):
        task(body)()


def test_a_cause_is_kept() -> None:
    def body() -> None:
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise ValueError("effect") from error

    with calls_of(body) as ends:
        assert [type(state.data.__cause__) for state in ends] == [KeyError, KeyError]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_ends_the_interpreter_crashes_a_submitted_run_and_does_not_reach_the_loop(kind: type) -> None:
    @task
    async def asynchronous() -> None:
        raise kind

    @task
    def sync() -> None:
        raise kind

    for future in (asynchronous.submit(), sync.submit()):
        with pytest.raises(CrashedRun) as caught:
            await future
        assert isinstance(caught.value.__cause__, kind)
        assert future.state.is_crashed()


def bottom() -> None:
    raise ZeroDivisionError("at the bottom")


def failing_body() -> None:
    bottom()


async def failing_async_body() -> None:
    bottom()


@pytest.mark.parametrize("submitted", [False, True])
@pytest.mark.parametrize("timeout", [None, 30])
async def test_the_traceback_of_a_failed_run_begins_in_the_users_body(submitted: bool, timeout: float | None) -> None:
    sync = task(timeout_seconds=timeout)(failing_body)
    asynchronous = task(timeout_seconds=timeout)(failing_async_body)
    if submitted:
        ends = [await sync.submit().wait_async(), await asynchronous.submit().wait_async()]
    else:
        ends = [sync(return_state=True), await asynchronous(return_state=True)]  # type: ignore[call-arg]
    for state, body in zip(ends, ("failing_body", "failing_async_body"), strict=True):
        assert state is not None
        frames = [frame.name for frame in traceback.extract_tb(state.data.__traceback__)]
        if submitted:
            assert frames == [body, "bottom"]
        else:
            assert frames[-2:] == [body, "bottom"]


def test_an_exception_that_a_caller_sees_leads_to_the_body() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        task(failing_body)()
    assert [entry.name for entry in caught.traceback][-2:] == ["failing_body", "bottom"]
