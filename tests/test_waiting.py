"""Timeouts, wherever a body runs; threads that cannot be interrupted; and blocking waits that are refused."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asynctask import Runtime, ThreadPoolTaskRunner, flow, states, task, temporary_settings
from asynctask.errors import CancelledRun, TaskTimeoutError
from asynctask.scopes import current_runtime
from asynctask.stores.memory import MemoryStore

LONG = 30.0  # seconds: what a test that works never waits for
SOON = 20.0


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A runtime with one worker thread, current in plain code and in coroutines."""
    runtime = Runtime(store=MemoryStore(), task_runner=ThreadPoolTaskRunner(max_workers=1))
    token = current_runtime.set(runtime)
    yield runtime
    current_runtime.reset(token)
    runtime.close()


@pytest.fixture
def gate() -> Iterator[Any]:
    """A lock that is taken: `acquire` is stuck in C until the test releases it."""
    lock = threading.Lock()
    lock.acquire()
    yield lock
    if lock.locked():
        lock.release()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def spin() -> None:
    """Pure Python, for ever."""
    while True:
        pass


# -- async bodies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("submitted", [False, True])
async def test_an_async_body_is_cancelled_when_its_time_is_up(submitted: bool) -> None:
    ended: list[str] = []

    @task(name="fetch", timeout_seconds=0.05)
    async def fetch() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            ended.append("cleaned up")

    began = time.monotonic()
    with pytest.raises(TaskTimeoutError, match=r"'fetch' exceeded its timeout of 0\.05 second") as caught:
        await (fetch.submit() if submitted else fetch())
    assert 0.05 <= time.monotonic() - began < SOON
    assert isinstance(caught.value, TimeoutError)
    assert ended == ["cleaned up"]


async def test_a_run_that_took_too_long_is_timed_out_which_is_a_failure() -> None:
    seen: list[Any] = []

    @task(timeout_seconds=0.02, on_failure=lambda task, run, state: seen.append(state.name))
    async def slow() -> None:
        await anyio.sleep(LONG)

    future = slow.submit()
    state = await future.wait_async()
    assert state is not None
    assert (state.type, state.name, seen) == (states.FAILED, "TimedOut", ["TimedOut"])
    assert "0.02" in state.message
    assert isinstance(state.data, TaskTimeoutError)


async def test_a_body_that_is_quick_enough_never_notices_its_timeout() -> None:
    @task(timeout_seconds=LONG)
    async def quick() -> int:
        await anyio.sleep(0.001)
        return 1

    @task(timeout_seconds=LONG)
    def sync() -> int:
        return 2

    assert [await quick(), await quick.submit(), sync(), await sync.submit()] == [1, 1, 2, 2]


async def test_cancelling_a_run_with_a_timeout_cancels_it() -> None:
    started = anyio.Event()

    @task(timeout_seconds=LONG)
    async def slow() -> None:
        started.set()
        await anyio.sleep(LONG)

    future = slow.submit()
    await started.wait()
    future.cancel()
    with pytest.raises(CancelledRun):
        await future


@pytest.mark.parametrize("kind", [TimeoutError, TaskTimeoutError])
async def test_a_timeout_error_that_the_body_raises_itself_is_an_ordinary_failure(kind: type[Exception]) -> None:
    @task(timeout_seconds=LONG)
    async def asynchronous() -> None:
        raise kind("mine")

    @task(timeout_seconds=LONG)
    def sync() -> None:
        raise kind("mine")

    for future in (asynchronous.submit(), sync.submit()):
        state = await future.wait_async()
        assert state is not None
        assert (state.name, state.message) == ("Failed", f"{kind.__name__}: mine")
    assert sync(return_state=True).name == "Failed"


async def test_the_timeout_of_a_nested_task_is_an_ordinary_failure_of_the_outer_one() -> None:
    @task(timeout_seconds=0.02)
    async def inner() -> None:
        await anyio.sleep(LONG)

    @task(timeout_seconds=LONG)
    async def outer() -> None:
        await inner()

    future = outer.submit()
    with pytest.raises(TaskTimeoutError, match="inner"):
        await future
    assert future.state.name == "Failed"


def test_the_timeout_of_a_nested_sync_task_is_an_ordinary_failure_of_the_outer_one() -> None:
    inner = task(timeout_seconds=0.02, name="inner")(spin)

    @task(timeout_seconds=LONG)
    def outer() -> None:
        inner()

    for state in (outer(return_state=True), outer.submit().wait()):
        assert (state.name, type(state.data)) == ("Failed", TaskTimeoutError)


def test_when_an_outer_timeout_is_up_the_inner_run_in_the_same_thread_is_cancelled(runtime: Runtime) -> None:
    ended: list[Any] = []
    inner = task(timeout_seconds=LONG, on_cancellation=lambda task, run, state: ended.append(state.name))(spin)

    @task(timeout_seconds=0.03)
    def outer() -> None:
        inner()

    with pytest.raises(TaskTimeoutError, match="outer"):
        outer()
    with pytest.raises(TaskTimeoutError, match="outer"):
        outer.submit().result()
    until(lambda: len(ended) == 2)
    assert ended == ["Cancelled", "Cancelled"]


# -- bodies in threads --------------------------------------------------------------------------------------------


async def test_a_busy_body_in_a_thread_is_interrupted_at_its_next_bytecode(runtime: Runtime) -> None:
    ended = threading.Event()

    @task(timeout_seconds=0.05)
    def busy() -> None:
        try:
            spin()
        finally:
            ended.set()

    began = time.monotonic()
    with pytest.raises(TaskTimeoutError):
        await busy.submit()
    assert time.monotonic() - began < SOON
    assert await anyio.to_thread.run_sync(ended.wait, SOON)
    await anyio.to_thread.run_sync(until, lambda: runtime.abandoned_threads == [])
    assert await task(lambda: "next").submit() == "next", "the only worker thread is free again"


def test_a_busy_body_that_is_cancelled_is_interrupted_too(runtime: Runtime) -> None:
    started, ended = threading.Event(), threading.Event()

    @task
    def busy() -> None:
        started.set()
        try:
            spin()
        finally:
            ended.set()

    future = busy.submit()
    assert started.wait(SOON)
    future.cancel("enough")
    with pytest.raises(CancelledRun, match="enough"):
        future.result(SOON)
    assert ended.wait(SOON)


def test_a_call_stuck_in_c_is_abandoned_and_its_run_ends_on_time(
    runtime: Runtime, gate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = task(name="stuck", timeout_seconds=0.05)(lambda: gate.acquire())
    began = time.monotonic()
    future = stuck.submit()
    with pytest.raises(TaskTimeoutError):
        future.result(SOON)
    assert time.monotonic() - began < 1
    (name,) = runtime.abandoned_threads
    assert name in {thread.name for thread in threading.enumerate()}
    until(lambda: "is abandoned" in caplog.text)
    assert repr(name) in caplog.text
    assert f"{future.name!r} is over (TimedOut)" in caplog.text
    gate.release()
    until(lambda: runtime.abandoned_threads == [])


def test_a_sleep_is_such_a_call(runtime: Runtime) -> None:
    slept = task(timeout_seconds=0.03)(lambda: time.sleep(0.4))
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError):
        slept.submit().result()
    assert time.monotonic() - began < 0.35
    assert len(runtime.abandoned_threads) == 1
    until(lambda: runtime.abandoned_threads == [])
    assert time.monotonic() - began >= 0.4


def test_an_abandoned_thread_takes_no_place_in_the_pool(runtime: Runtime, gate: Any) -> None:
    calls: list[int] = []

    @task(timeout_seconds=0.05, retries=1)
    def stuck_at_first() -> str:
        calls.append(1)
        if len(calls) == 1:
            gate.acquire()
        return "second attempt"

    assert stuck_at_first.submit().result(SOON) == "second attempt"
    assert len(runtime.abandoned_threads) == 1
    gate.release()
    until(lambda: runtime.abandoned_threads == [])
    pool = runtime.task_runner.executor()
    until(lambda: len([t for t in threading.enumerate() if t.name.startswith(pool._name)]) == 1)


def test_what_a_thread_waits_for_through_a_future_does_not_keep_it(runtime: Runtime) -> None:
    release = threading.Event()

    @task
    async def endless() -> None:
        await anyio.sleep(LONG)

    waiting = endless.submit()

    @task(timeout_seconds=0.05)
    def waiter() -> None:
        try:
            waiting.result()
        finally:
            release.set()

    with pytest.raises(TaskTimeoutError):
        waiter.submit().result(SOON)
    assert release.wait(SOON)
    until(lambda: runtime.abandoned_threads == [])
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError):
        waiter()
    assert time.monotonic() - began < SOON
    waiting.cancel()
    waiting.wait(SOON)


def test_bodies_that_end_just_as_their_time_is_up_end_one_way_or_the_other(runtime: Runtime) -> None:
    seconds = 0.004

    @task(timeout_seconds=seconds)
    def close(number: int) -> int:
        end = time.perf_counter() + seconds * (0.9 + number % 20 / 100)
        while time.perf_counter() < end:
            pass
        return number

    futures = close.map(range(150))
    for number, future in enumerate(futures):
        state = future.wait(LONG)
        assert state is not None
        assert (state.name, state.data if state.is_completed() else number) in (
            ("Completed", number),
            ("TimedOut", number),
        )
    until(lambda: runtime.abandoned_threads == [])
    assert task(lambda: "alive").submit().result(SOON) == "alive"


async def test_waiting_for_a_free_thread_is_no_part_of_the_attempt(runtime: Runtime) -> None:
    started, release = threading.Event(), threading.Event()

    @task
    def holder() -> None:
        started.set()
        assert release.wait(SOON)

    quick = task(timeout_seconds=0.05)(lambda: "in time")
    first = holder.submit()
    assert await anyio.to_thread.run_sync(started.wait, SOON)
    second = quick.submit()
    await anyio.sleep(0.1)
    assert (second.state.name, second.run.waiting_on) == ("Pending", "a free thread")
    release.set()
    assert await second == "in time"
    assert second.run.total_run_time < 0.1
    await first


async def test_a_run_waiting_for_a_free_thread_is_cancelled_without_ever_running(runtime: Runtime) -> None:
    started, release = threading.Event(), threading.Event()

    @task
    def holder() -> None:
        started.set()
        assert release.wait(SOON)

    first = holder.submit()
    assert await anyio.to_thread.run_sync(started.wait, SOON)
    second = task(lambda: pytest.fail("it ran")).submit()
    while second.run.waiting_on is None:
        await anyio.sleep(0)
    second.cancel()
    assert [state.name for state in (await second.wait_async() and second.run.states)] == ["Pending", "Cancelled"]
    release.set()
    await first


async def test_waiting_for_an_upstream_or_a_slot_is_no_part_of_the_attempt() -> None:
    store = MemoryStore()
    store.limits.set("tag:db", 1)
    async with Runtime(store=store):
        holding, release = anyio.Event(), anyio.Event()

        @task(tags=["db"])
        async def holder() -> int:
            holding.set()
            await release.wait()
            return 1

        @task(timeout_seconds=0.05)
        async def quick(value: int) -> int:
            return value + 1

        upstream = holder.submit()
        await holding.wait()
        for_upstream = quick.submit(upstream)
        for_slot = quick.with_options(tags=["db"]).submit(2)
        await anyio.sleep(0.1)
        assert [for_upstream.state.name, for_slot.state.name] == ["Pending", "AwaitingConcurrencySlot"]
        release.set()
        assert [await for_upstream, await for_slot] == [2, 3]


# -- calls in the caller's own thread -----------------------------------------------------------------------------


def test_a_busy_direct_call_is_interrupted() -> None:
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError, match="spin"):
        task(timeout_seconds=0.05)(spin)()
    assert 0.05 <= time.monotonic() - began < SOON


def test_a_direct_call_stuck_in_c_raises_as_soon_as_python_runs_again() -> None:
    began = time.monotonic()
    ended: list[int] = []

    @task(timeout_seconds=0.03)
    def slept() -> None:
        time.sleep(0.1)
        ended.append(1)

    with pytest.raises(TaskTimeoutError):
        slept()
    assert time.monotonic() - began >= 0.1
    assert slept(return_state=True).name == "TimedOut"
    assert not ended


async def test_a_direct_sync_call_on_a_loop_is_interrupted_too() -> None:
    with temporary_settings(blocking_warning_seconds=LONG), pytest.raises(TaskTimeoutError):
        task(timeout_seconds=0.05)(spin)()
    await anyio.sleep(0)


def test_a_timeout_bounds_each_attempt_anew() -> None:
    calls: list[float] = []

    @task(timeout_seconds=0.15, retries=2)
    def slow() -> None:
        calls.append(time.monotonic())
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass
        if len(calls) < 3:
            raise ValueError("again")

    slow()
    assert len(calls) == 3


# -- flows --------------------------------------------------------------------------------------------------------


async def test_the_timeout_of_a_flow_ends_its_body_and_its_runs() -> None:
    ended: list[str] = []

    @task(on_cancellation=lambda task, run, state: ended.append(run.name))
    async def child() -> None:
        await anyio.sleep(LONG)

    @flow(timeout_seconds=0.05)
    async def in_its_body() -> None:
        child.submit()
        await anyio.sleep(LONG)

    @flow(timeout_seconds=0.05)
    async def in_its_runs() -> None:
        child.submit()

    for slow in (in_its_body, in_its_runs):
        with anyio.fail_after(SOON), pytest.raises(TaskTimeoutError, match=slow.name):
            await slow()
    assert len(ended) == 2


def test_the_timeout_of_a_sync_flow_ends_its_waits_and_its_runs() -> None:
    ended: list[str] = []

    @task(on_cancellation=lambda task, run, state: ended.append(run.name))
    async def child() -> None:
        await anyio.sleep(LONG)

    @flow(timeout_seconds=0.05)
    def in_its_body() -> None:
        child.submit().result()

    @flow(timeout_seconds=0.05)
    def in_its_runs() -> None:
        child.submit()

    for slow in (in_its_body, in_its_runs):
        began = time.monotonic()
        assert slow(return_state=True).name == "TimedOut"
        assert time.monotonic() - began < SOON
    assert len(ended) == 2


def test_an_interrupt_never_leaves_a_lock_of_logging_locked(runtime: Runtime) -> None:
    """Nor the runtime's own, while bodies log, submit and call tasks at the moment in which their time is up."""

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(0.0002)

    log, slow = logging.getLogger("test.busy"), Slow()
    log.addHandler(slow)
    log.propagate = False
    log.setLevel(logging.INFO)
    inner = task(lambda: log.info("inner"))

    @task(timeout_seconds=0.01, task_runner=ThreadPoolTaskRunner(4))
    def busy() -> None:
        while True:
            log.info("outer")
            inner()
            inner.submit().wait(SOON)

    try:
        futures = [busy.submit() for _ in range(40)]
        assert [future.wait(LONG).name for future in futures] == ["TimedOut"] * 40  # type: ignore[union-attr]
        until(lambda: runtime.abandoned_threads == [])
        assert slow.lock is not None
        assert slow.lock.acquire(timeout=SOON)
        slow.lock.release()
        assert inner.submit().wait(SOON).name == "Completed"  # type: ignore[union-attr]
    finally:
        log.removeHandler(slow)
