"""Retries, continued: who decides about one, what is never retried, and what a run holds while it waits."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asynctask import Runtime, State, ThreadPoolTaskRunner, task
from asynctask.errors import CancelledRun, CrashedRun
from asynctask.scopes import current_runtime
from asynctask.stores.memory import MemoryStore
from asynctask.testing import VirtualClock
from testkit import failing, limit_of


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A runtime without delays, current in plain code and in coroutines."""
    runtime = Runtime(store=MemoryStore(), clock=VirtualClock())
    token = current_runtime.set(runtime)
    yield runtime
    current_runtime.reset(token)
    runtime.close()


# -- the condition ------------------------------------------------------------------------------------------------


def sync_condition(calls: list[Any], answer: Callable[[], Any]) -> Any:
    def condition(task: Any, run: Any, state: State) -> Any:
        calls.append((task, run, state))
        return answer()

    return condition


def async_condition(calls: list[Any], answer: Callable[[], Any]) -> Any:
    async def condition(task: Any, run: Any, state: State) -> Any:
        calls.append((task, run, state))
        await anyio.lowlevel.checkpoint()
        return answer()

    return condition


class Object:
    """A condition may be any callable."""

    def __init__(self, calls: list[Any], answer: Callable[[], Any]) -> None:
        self.condition = sync_condition(calls, answer)

    def __call__(self, task: Any, run: Any, state: State) -> Any:
        return self.condition(task, run, state)


CONDITIONS = pytest.mark.parametrize("make", [sync_condition, async_condition, Object])


@CONDITIONS
def test_a_condition_decides_for_a_sync_task(make: Any, runtime: Runtime) -> None:
    calls: list[Any] = []
    answers = iter([True, 1, False])
    broken = task(retries=9, retry_condition_fn=make(calls, lambda: next(answers)))(failing(9))
    with pytest.raises(ValueError, match="no"):
        broken()
    assert [(one, run.task_name, state.name, type(state.data)) for one, run, state in calls] == [
        (broken, "body", "Failed", ValueError)
    ] * 3


@CONDITIONS
async def test_a_condition_decides_for_an_async_task(make: Any, runtime: Runtime) -> None:
    for submitted in (False, True):
        calls: list[Any] = []
        answers = iter([True, "yes", None])

        @task(retries=9, retry_condition_fn=make(calls, lambda answers=answers: next(answers)))
        async def broken() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await (broken.submit() if submitted else broken())
        assert [(one, state.name) for one, _, state in calls] == [(broken, "Failed")] * 3


@CONDITIONS
async def test_a_condition_decides_for_a_sync_task_on_a_loop(make: Any, runtime: Runtime) -> None:
    calls: list[Any] = []
    answers = iter([True, False, True, False])
    broken = task(retries=9, retry_condition_fn=make(calls, lambda: next(answers)))(failing(99))
    with pytest.raises(ValueError, match="no"):
        broken()
    with pytest.raises(ValueError, match="no"):
        await broken.submit()
    assert len(calls) == 4


@CONDITIONS
def test_a_condition_that_raises_is_logged_and_means_no(
    make: Any, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    def raising() -> bool:
        raise RuntimeError("cannot decide")

    calls: list[Any] = []
    broken = task(name="fetch", retries=9, retry_condition_fn=make(calls, raising))(failing(9))
    with pytest.raises(ValueError, match="no"):
        broken()
    assert len(calls) == 1
    assert "retry_condition_fn of task 'fetch' raised" in caplog.text
    assert "cannot decide" in caplog.text


def test_a_condition_is_asked_only_while_attempts_remain_and_retry_on_admits(runtime: Runtime) -> None:
    calls: list[Any] = []
    task(retries=2, retry_condition_fn=sync_condition(calls, lambda: True))(failing(9))(return_state=True)
    assert len(calls) == 2
    never = task(retries=2, retry_on=KeyError, retry_condition_fn=sync_condition(calls, lambda: True))
    never(failing(9))(return_state=True)
    assert len(calls) == 2


# -- what is never retried ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_or_exit_is_never_retried(error: type[BaseException], runtime: Runtime) -> None:
    calls: list[int] = []

    @task(retries=3, retry_on=BaseException)
    def interrupted() -> None:
        calls.append(1)
        raise error

    with pytest.raises(error):
        interrupted()
    future = interrupted.submit()
    with pytest.raises(CrashedRun):
        future.result()
    assert future.state.is_crashed()
    assert len(calls) == 2


async def test_a_cancelled_attempt_is_never_retried() -> None:
    starts: list[int] = []
    started = anyio.Event()

    @task(retries=3, retry_on=BaseException)
    async def waiting() -> None:
        starts.append(1)
        started.set()
        await anyio.sleep_forever()

    future = waiting.submit()
    await started.wait()
    assert future.cancel()
    with pytest.raises(CancelledRun):
        await future
    assert len(starts) == 1


async def test_a_run_cancelled_while_it_waits_for_its_retry_is_cancelled_at_once() -> None:
    asked = anyio.Event()

    @task(retries=3, retry_delay_seconds=600, retry_condition_fn=lambda *_: asked.set() or True)
    async def broken() -> None:
        raise ValueError("broken")

    future = broken.submit()
    await asked.wait()
    await anyio.wait_all_tasks_blocked()
    assert future.state.name == "AwaitingRetry"
    assert "attempt 2 of 4 starts in 600 s" in future.state.message
    assert future.run.waiting_on == "retry in 600 s"
    future.cancel("enough")
    with anyio.fail_after(20):
        with pytest.raises(CancelledRun, match="enough"):
            await future
    assert future.run.run_count == 1


# -- what a waiting run holds -------------------------------------------------------------------------------------


async def test_while_waiting_for_a_retry_a_run_holds_no_slot() -> None:
    store = MemoryStore()
    store.limits.set("tag:db", 1)
    async with Runtime(store=store):
        asked = anyio.Event()

        @task(tags=["db"], retries=1, retry_delay_seconds=600, retry_condition_fn=lambda *_: asked.set() or True)
        async def broken() -> None:
            raise ValueError("broken")

        @task(tags=["db"])
        async def quick() -> str:
            return "done"

        waiting = broken.submit()
        await asked.wait()
        with anyio.fail_after(20):
            assert await quick.submit() == "done"
            assert await quick() == "done"
        assert waiting.state.name == "AwaitingRetry"
        assert limit_of(store, "db").active_slots == []
        waiting.cancel()
        await waiting.wait_async()


async def test_a_retry_takes_its_slot_again_in_its_turn() -> None:
    store = MemoryStore()
    store.limits.set("tag:db", 1)
    async with Runtime(store=store):
        release, holding = anyio.Event(), anyio.Event()

        @task(tags=["db"], retries=1)
        async def flaky(body: Callable[[], int]) -> int:
            return body()

        @task(tags=["db"])
        async def holder() -> None:
            holding.set()
            await release.wait()

        first = flaky.submit(failing(1))
        second = holder.submit()
        await holding.wait()
        await anyio.wait_all_tasks_blocked()
        assert first.state.name == "AwaitingConcurrencySlot"
        release.set()
        assert await first == 2
        await second


async def test_while_waiting_for_a_retry_a_run_holds_no_worker_thread() -> None:
    async with Runtime(store=MemoryStore(), task_runner=ThreadPoolTaskRunner(max_workers=1)):
        asked = threading.Event()

        def condition(*_: Any) -> bool:
            asked.set()
            return True

        @task(retries=1, retry_delay_seconds=600, retry_condition_fn=condition)
        def broken() -> None:
            raise ValueError("broken")

        @task
        def quick() -> str:
            return threading.current_thread().name

        waiting = broken.submit()
        with anyio.fail_after(20):
            assert await anyio.to_thread.run_sync(asked.wait, 5)
            assert "worker" in await quick.submit()
        assert waiting.state.name == "AwaitingRetry"
        waiting.cancel()
        await waiting.wait_async()
