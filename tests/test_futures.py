"""Futures: waiting, awaiting, cancelling, from any thread and from either loop."""

import threading
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import anyio
import anyio.from_thread
import pytest

from asynctask import Runtime, TaskFutureList, as_completed, task, wait
from asynctask.errors import BlockingWaitError, CancelledRun, UpstreamTaskError
from asynctask.stores.memory import MemoryStore
from testkit import until


@task
async def double(x: int) -> int:
    await anyio.sleep(0)
    return x * 2


@task
def triple(x: int) -> int:
    return x * 3


@task
async def fails(text: str = "no") -> int:
    raise ValueError(text)


@task
async def forever() -> int:
    await anyio.sleep(60)
    return 1


@task
def opened(gate: threading.Event, value: int = 1) -> int:
    """Ends when the gate is opened."""
    assert gate.wait(10)
    return value


# -- one future, from plain code -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "value"), [(double, 4), (triple, 6)], ids=["async", "sync"])
def test_result_gives_the_value(what, value):
    future = what.submit(2)
    assert future.result(timeout=20) == value
    assert future.result() == value
    assert future.done()
    assert future.state.is_completed()
    assert future.get_state().data == value


def test_result_raises_the_exception_or_returns_it():
    future = fails.submit("lost")
    with pytest.raises(ValueError, match="lost"):
        future.result()
    error = future.result(raise_on_failure=False)
    assert isinstance(error, ValueError)
    state = future.wait()
    assert state is not None
    assert state.is_failed()
    assert state.data is error


def test_a_wait_that_is_too_short_is_told_from_a_timeout_of_the_task_itself():
    @task
    def own_timeout() -> None:
        raise TimeoutError("of the body")

    future = forever.submit()
    assert future.wait(timeout=0) is None
    assert future.wait(timeout=0.01) is None
    with pytest.raises(TimeoutError, match=r"still (Running|Pending) after 0\.01 s"):
        future.result(timeout=0.01)
    assert not future.done()
    future.cancel()
    assert future.wait(20).is_cancelled()
    with pytest.raises(TimeoutError, match="of the body"):
        own_timeout.submit().result(20)


def test_the_id_and_the_name_are_there_at_once():
    future = double.submit(1)
    assert isinstance(future.task_run_id, UUID)
    assert future.name.startswith("double-")
    assert "double-" in repr(future)
    assert future.result() == 2
    assert future.state.task_run_id == future.task_run_id


def test_a_run_whose_upstream_failed_is_done_and_says_why():
    future = triple.submit(fails.submit("the cause"))
    state = future.wait(20)
    assert state is not None
    assert (state.name, state.is_final(), future.done()) == ("NotReady", True, True)
    with pytest.raises(UpstreamTaskError, match="fails-") as caught:
        future.result()
    assert isinstance(caught.value.__cause__, ValueError)


def test_waiting_from_many_threads_gives_all_of_them_the_same():
    gate = threading.Event()
    future = opened.submit(gate, 7)
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(future.result(timeout=20))) for _ in range(10)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(5)
    assert got == [7] * 10


# -- one future, on a loop -----------------------------------------------------------------------------------------


async def test_await_gives_the_value_or_raises_and_can_be_repeated():
    future, failing = double.submit(2), fails.submit("lost")
    assert [await future, await future] == [4, 4]
    for _ in range(2):
        with pytest.raises(ValueError, match="lost"):
            await failing


async def test_the_async_forms_are_like_the_blocking_ones():
    assert await triple.submit(1).result_async() == 3
    assert await triple.submit(1).result_async(timeout=20) == 3
    assert isinstance(await fails.submit().result_async(raise_on_failure=False), ValueError)
    future = forever.submit()
    assert await future.wait_async(timeout=0) is None
    with pytest.raises(TimeoutError, match=r"after 0\.01 s"):
        await future.result_async(timeout=0.01)
    future.cancel()
    state = await future.wait_async()
    assert state is not None
    assert state.is_cancelled()


async def test_being_cancelled_while_awaiting_does_not_cancel_the_run():
    gate = threading.Event()
    future = opened.submit(gate)
    with anyio.move_on_after(0.01):
        await future
    assert not future.done()
    gate.set()
    assert await future == 1


@pytest.mark.parametrize("wait_by", ["result", "wait", "list result", "wait()", "as_completed", "iteration", "map"])
async def test_a_blocking_wait_on_the_loop_that_must_run_the_task_says_what_to_write(wait_by):
    @task
    async def values() -> AsyncIterator[int]:
        yield 1

    async with Runtime(store=MemoryStore()):
        future: Any = values.submit() if wait_by == "iteration" else forever.submit()
        several = TaskFutureList([future])
        ways: dict[str, Callable[[], Any]] = {
            "result": future.result,
            "wait": future.wait,
            "list result": several.result,
            "wait()": lambda: wait(several),
            "as_completed": lambda: list(as_completed(several)),
            "iteration": lambda: list(future),
            "map": lambda: triple.map(future),
        }
        with pytest.raises(BlockingWaitError, match=r"await|async for"):
            ways[wait_by]()
        future.cancel()
        await future.wait_async()
        if wait_by in ("wait", "wait()", "as_completed"):
            ways[wait_by]()  # over by now: nothing to wait for, nothing to refuse


async def test_a_sync_body_on_the_loop_cannot_wait_for_what_it_submits_there():
    @task
    def inline() -> int:
        return double.submit(1).result()

    async with Runtime(store=MemoryStore()):
        with pytest.raises(BlockingWaitError, match="await"):
            inline()
        assert await inline.submit() == 2  # on a thread it can


# -- cancelling ----------------------------------------------------------------------------------------------------


async def test_a_cancelled_run_ends_cancelled_and_its_result_says_so():
    future = forever.submit()
    await until(lambda: future.state.is_running())
    assert future.cancel("no longer wanted")
    with pytest.raises(CancelledRun, match="no longer wanted"):
        await future
    assert future.state.is_cancelled()
    assert not future.cancel()


async def test_a_run_cancelled_before_its_first_step_ends_cancelled():
    futures = [forever.submit() for _ in range(3)]
    for future in futures:
        future.cancel()
    for future in futures:
        state = await future.wait_async()
        assert state is not None
        assert state.is_cancelled()


def test_a_run_can_be_cancelled_from_another_thread_at_any_time():
    for _ in range(20):
        future = forever.submit()
        thread = threading.Thread(target=future.cancel)
        thread.start()
        assert future.wait(20).is_cancelled()
        thread.join()


async def test_a_body_in_a_thread_is_cancelled_where_it_waits():
    """Also when it blocks in `result()` of another run."""

    @task
    def outer() -> int:
        return inner.result()

    inner = forever.submit()
    future = outer.submit()
    await until(lambda: future.state.is_running())
    future.cancel()
    with anyio.fail_after(20):
        assert (await future.wait_async()).is_cancelled()
    assert not inner.done()  # it was not submitted inside
    inner.cancel()
    await inner.wait_async()


async def test_cancelling_a_run_cancels_what_was_submitted_inside_it():
    inside: list[Any] = []

    @task
    async def grandchild() -> None:
        await anyio.sleep(60)

    @task
    async def child() -> None:
        inside.append(grandchild.submit())
        await anyio.sleep(60)

    @task
    async def parent() -> None:
        inside.append(child.submit())
        await anyio.sleep(60)

    bystander, future = forever.submit(), parent.submit()
    await until(lambda: len(inside) == 2 and all(one.state.is_running() for one in inside))
    future.cancel()
    for one in (future, *inside):
        with anyio.fail_after(20):
            assert (await one.wait_async()).is_cancelled()
    assert not bystander.done()
    bystander.cancel()
    await bystander.wait_async()


async def test_a_run_that_has_ended_cannot_be_cancelled():
    future = double.submit(1)
    await future
    assert not future.cancel()
    assert future.state.is_completed()


# -- callbacks -----------------------------------------------------------------------------------------------------


def test_callbacks_are_called_once_when_the_run_is_over_or_at_once_if_it_is(caplog):
    gate, called = threading.Event(), threading.Event()
    seen: list[Any] = []

    def raising(_: Any) -> None:
        raise RuntimeError("of the callback")

    future = opened.submit(gate)
    future.add_done_callback(seen.append)
    future.add_done_callback(raising)
    future.add_done_callback(lambda one: (seen.append(one.done()), called.set()))
    assert seen == []
    gate.set()
    assert called.wait(20)
    assert seen == [future, True]
    future.add_done_callback(seen.append)
    assert seen == [future, True, future]
    assert "of the callback" in caplog.text
