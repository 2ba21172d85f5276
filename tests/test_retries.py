"""Retries: which delays, which failures, how often, and what a run holds while it waits for the next attempt."""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctask import Runtime, State, flow, states, task, temporary_settings
from asynctask.clocks import Clock
from asynctask.errors import FailedRun, OptionError, TaskTimeoutError
from asynctask.retries import exponential_backoff, jittered
from asynctask.scopes import current_runtime
from asynctask.stores.memory import MemoryStore
from testkit import failing

YEAR = 365 * 24 * 3600.0


class VirtualClock(Clock):
    """Time that moves only when somebody would have slept, and a note of each sleep."""

    is_virtual = True

    def __init__(self) -> None:
        self.seconds = 1.8e9
        self.slept: list[float] = []
        self.now = self.monotonic = lambda: self.seconds

    def advance(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def runtime(clock: VirtualClock) -> Iterator[Runtime]:
    """A runtime with virtual time and seeded dice, current in plain code and in coroutines."""
    runtime = Runtime(store=MemoryStore(), clock=clock, source=random.Random(1))
    token = current_runtime.set(runtime)
    yield runtime
    current_runtime.reset(token)
    runtime.close()


def delays_of(clock: VirtualClock, **options: Any) -> list[float]:
    """The delays of a task that fails until its retries are used up."""
    del clock.slept[:]

    @task(**options)
    def broken() -> None:
        raise ValueError("broken")

    state = broken(return_state=True)
    assert state.is_failed()
    return clock.slept


# -- which delays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "delays"),
    [
        (2, [2, 2, 2, 2]),
        (0.25, [0.25] * 4),
        (timedelta(minutes=1), [60] * 4),
        ([1, 2, 4, 8], [1, 2, 4, 8]),
        ((1, 5), [1, 5, 5, 5]),
        ([timedelta(seconds=3), 1], [3, 1, 1, 1]),
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4]),
        ([], [0, 0, 0, 0]),
        (exponential_backoff(10), [10, 20, 40, 80]),
        (lambda retries: [retries] * retries, [4, 4, 4, 4]),
        (lambda retries: [0.5], [0.5] * 4),
        (None, [0] * 4),
    ],
    ids=range(12),
)
def test_each_form_of_retry_delay_seconds(
    given: Any, delays: list[float], runtime: Runtime, clock: VirtualClock
) -> None:
    assert delays_of(clock, retries=4, retry_delay_seconds=given) == delays


def test_exponential_backoff_doubles_and_stops_at_fifty_delays() -> None:
    assert exponential_backoff(10)(3) == [10, 20, 40]
    assert exponential_backoff(0.5)(0) == []
    assert len(exponential_backoff(1)(1000)) == 50
    with pytest.raises(ValueError, match="-1"):
        exponential_backoff(-1)


def test_exponential_backoff_is_where_scripts_import_it_from() -> None:
    from asynctask import tasks

    assert tasks.exponential_backoff is exponential_backoff


WRONG: list[Any] = [-1, [1, -2], [0] * 51, "1", math.nan, math.inf, True, [True], lambda: [1], lambda retries: [-1.0]]


@pytest.mark.parametrize("given", WRONG, ids=range(len(WRONG)))
def test_a_delay_that_cannot_be_is_refused_at_the_decorator(given: Any) -> None:
    with pytest.raises(OptionError, match=r"(?s)'fetch'.*'retry_delay_seconds'"):
        task(name="fetch", retries=2, retry_delay_seconds=given)(lambda: None)


def test_a_year_of_retries_takes_no_time(runtime: Runtime, clock: VirtualClock) -> None:
    start, began = clock.seconds, time.monotonic()
    count = 365
    slept = delays_of(clock, retries=count, retry_delay_seconds=YEAR / count)
    assert len(slept) == count
    assert clock.seconds - start == pytest.approx(YEAR)
    assert time.monotonic() - began < 10


async def test_a_year_of_retries_takes_no_time_on_a_loop(runtime: Runtime, clock: VirtualClock) -> None:
    start = clock.seconds

    @task(retries=365, retry_delay_seconds=YEAR / 365)
    async def broken() -> None:
        raise ValueError("broken")

    with anyio.fail_after(20):
        assert (await broken(return_state=True)).is_failed()  # type: ignore[call-arg]
        assert (await broken.submit().wait_async()).is_failed()  # type: ignore[union-attr]
    assert clock.seconds - start == pytest.approx(2 * YEAR)


def test_the_delay_is_really_waited_for() -> None:
    body = failing(1)
    began = time.monotonic()
    assert task(retries=1, retry_delay_seconds=0.05)(body)() == 2
    assert time.monotonic() - began >= 0.05


async def test_the_delay_is_really_waited_for_on_a_loop_and_lets_others_run() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.sleep(0.005)

    @task(retries=1, retry_delay_seconds=0.06)
    async def flaky(body: Callable[[], int]) -> int:
        return body()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        began = time.monotonic()
        assert await flaky(failing(1)) == 2
        assert time.monotonic() - began >= 0.06
        group.cancel_scope.cancel()
    assert ticks >= 3


# -- jitter -------------------------------------------------------------------------------------------------------


def bounds(delay: float, factor: float) -> tuple[float, float]:
    """features.md 1.7: [c * d, (1 + k) * d] with c = log2(2^K / (2^K - 1)), K = 1 + k, and c = 0 from K = 50."""
    spread = 1 + factor
    low = 0.0 if spread >= 50 else math.log2(2**spread / (2**spread - 1))
    return low * delay, spread * delay


def test_the_bounds_are_those_measured_elsewhere() -> None:
    assert bounds(10, 0.5) == (pytest.approx(6.29, abs=0.01), 15)
    assert bounds(10, 1) == (pytest.approx(4.15, abs=0.01), 20)


@pytest.mark.parametrize("factor", [0.05, 0.5, 1, 3, 10, 48.9, 49, 60, 2000])
@pytest.mark.parametrize("delay", [1e-3, 10, 86400])
def test_a_jittered_delay_keeps_within_its_bounds_and_keeps_its_mean(delay: float, factor: float) -> None:
    dice = random.Random(5)
    drawn = [jittered(delay, factor, dice) for _ in range(20_000)]
    low, high = bounds(delay, factor)
    assert min(drawn) >= low * (1 - 1e-9)
    assert max(drawn) <= high
    # of an exponential of mean d cut to [low, high], by its integral; it is d to within a few percent
    a, b = low / delay, high / delay
    exact = ((a + 1) * math.exp(-a) - (b + 1) * math.exp(-b)) / (math.exp(-a) - math.exp(-b))
    assert exact == pytest.approx(1, rel=0.04)
    assert sum(drawn) / len(drawn) == pytest.approx(delay * exact, rel=0.04)
    assert len(set(drawn)) > 19_000


@given(st.floats(0, 1e9), st.floats(0, 1e4), st.integers(0, 1000))
def test_jitter_never_gives_a_negative_or_endless_delay(delay: float, factor: float, seed: int) -> None:
    assert 0 <= jittered(delay, factor, random.Random(seed)) <= delay * (1 + factor)


def test_no_jitter_leaves_the_delay_and_the_dice_alone() -> None:
    dice = random.Random(3)
    assert jittered(7.0, 0, dice) == 7.0
    assert jittered(0, 2.0, dice) == 0
    assert dice.random() == random.Random(3).random()


def test_the_jitter_of_a_task_is_drawn_for_each_retry_from_the_dice_of_its_runtime(
    runtime: Runtime, clock: VirtualClock
) -> None:
    options = {"retries": 30, "retry_delay_seconds": 10, "retry_jitter_factor": 0.5}
    slept = list(delays_of(clock, **options))
    assert all(6.28 < delay <= 15 for delay in slept)
    assert len(set(slept)) == 30
    again = VirtualClock()
    with within(Runtime(store=MemoryStore(), clock=again, source=random.Random(1))):
        assert delays_of(again, **options) == slept


@contextmanager
def within(runtime: Runtime) -> Iterator[Runtime]:
    token = current_runtime.set(runtime)
    try:
        yield runtime
    finally:
        current_runtime.reset(token)
        runtime.close()


# -- which failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_on", "attempts"),
    [(None, 3), (ValueError, 3), ([KeyError, ValueError], 3), (Exception, 3), (KeyError, 1), ((OSError, TypeError), 1)],
    ids=str,
)
def test_retry_on_names_what_is_retried(runtime: Runtime, retry_on: Any, attempts: int) -> None:
    calls: list[int] = []

    @task(retries=2, retry_on=retry_on)
    def broken() -> None:
        calls.append(1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert len(calls) == attempts


def test_retry_on_looks_at_each_failure_anew(runtime: Runtime) -> None:
    errors = iter([ConnectionError("1"), ConnectionResetError("2"), TypeError("3"), ConnectionError("4")])

    @task(retries=10, retry_on=ConnectionError)
    def broken() -> None:
        raise next(errors)

    with pytest.raises(TypeError, match="3"):
        broken()


def test_retries_end_with_the_last_error_and_the_same_run_counts_them(runtime: Runtime) -> None:
    seen: list[Any] = []

    @task(retries=3)
    def broken(errors: Iterator[int]) -> None:
        from asynctask.runtime import task_run

        seen.append((task_run.id, task_run.run_count))
        raise ValueError(next(errors))

    with pytest.raises(ValueError, match="4"):
        broken(iter(range(1, 9)))
    assert len({run_id for run_id, _ in seen}) == 1
    assert [count for _, count in seen] == [1, 2, 3, 4]


def test_the_wait_is_told_in_the_state(runtime: Runtime) -> None:
    future = task(retries=2, retry_delay_seconds=1.5)(failing(1)).submit()
    assert future.result() == 2
    waits = [state for state in future.run.states if state.name == "AwaitingRetry"]
    assert [state.message for state in waits] == ["ValueError: no; attempt 2 of 3 starts in 1.5 s"]
    assert [state.name for state in future.run.states] == [
        "Pending", "Running", "AwaitingRetry", "Retrying", "Completed",
    ]  # fmt: skip


def test_a_returned_failed_state_is_retried_like_an_exception(runtime: Runtime) -> None:
    calls: list[State] = []

    @task(retries=2, retry_condition_fn=lambda task, run, state: calls.append(state) or True)
    def polite() -> State:
        if len(calls) < 2:
            return states.Failed(message=f"busy {len(calls)}")
        return states.Completed(data="at last")

    assert polite() == "at last"
    assert [(state.name, state.message) for state in calls] == [("Failed", "busy 0"), ("Failed", "busy 1")]


def test_a_returned_failed_state_without_retries_left_is_the_end(runtime: Runtime) -> None:
    polite = task(retries=1)(lambda: states.Failed(message="busy", name="Rejected"))
    future = polite.submit()
    assert future.wait() is not None
    assert (future.state.name, future.run.run_count) == ("Rejected", 2)
    with pytest.raises(FailedRun, match="busy"):
        polite()


def test_retry_on_looks_into_a_returned_failed_state(runtime: Runtime) -> None:
    calls: list[int] = []

    @task(retries=3, retry_on=KeyError)
    def polite() -> State:
        calls.append(1)
        return states.Failed(data=KeyError("k") if len(calls) < 3 else ValueError("v"))

    with pytest.raises(ValueError, match="v"):
        polite()
    assert len(calls) == 3


async def test_timeouts_are_retried() -> None:
    starts: list[int] = []

    @task(retries=2, timeout_seconds=0.03)
    async def slow() -> int:
        starts.append(1)
        await anyio.sleep(30 if len(starts) < 3 else 0)
        return len(starts)

    future = slow.submit()
    assert await future == 3
    assert [state.name for state in future.run.states] == [
        "Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Completed",
    ]  # fmt: skip


async def test_a_timeout_reaches_retry_on_and_the_condition() -> None:
    seen: list[State] = []

    async def condition(task: Any, run: Any, state: State) -> bool:
        seen.append(state)
        return False

    @task(retries=2, timeout_seconds=0.03, retry_on=TimeoutError, retry_condition_fn=condition)
    async def slow() -> None:
        await anyio.sleep(30)

    with pytest.raises(TaskTimeoutError):
        await slow()
    assert [(state.name, type(state.data)) for state in seen] == [("TimedOut", TaskTimeoutError)]


# -- defaults -----------------------------------------------------------------------------------------------------


def test_tasks_and_flows_without_retries_of_their_own_take_the_settings(runtime: Runtime, clock: VirtualClock) -> None:
    with temporary_settings(
        task_default_retries=2,
        task_default_retry_delay_seconds=[3, 5],
        flow_default_retries=1,
        flow_default_retry_delay_seconds=7,
    ):
        assert task(failing(2))() == 3
        assert clock.slept == [3, 5]
        assert flow(failing(1))() == 2
        assert clock.slept == [3, 5, 7]


def test_the_settings_never_override_the_decorator(runtime: Runtime, clock: VirtualClock) -> None:
    with temporary_settings(task_default_retries=5, task_default_retry_delay_seconds=9):
        assert delays_of(clock, retries=0) == []
        assert delays_of(clock, retries=2, retry_delay_seconds=1) == [1, 1]
        assert delays_of(clock, retry_delay_seconds=0) == [0] * 5
        assert delays_of(clock, retries=1) == [9]


def test_with_options_changes_and_clears_retries(runtime: Runtime, clock: VirtualClock) -> None:
    fetch = task(retries=3, retry_delay_seconds=4)(failing(99))
    assert fetch.with_options(retries=1)(return_state=True).is_failed()
    assert clock.slept == [4]
    assert fetch.with_options(retries=None)(return_state=True).is_failed()
    assert clock.slept == [4]


async def test_flows_are_retried_too(runtime: Runtime, clock: VirtualClock) -> None:
    body = failing(2)

    @flow(retries=2, retry_delay_seconds=[1, 2])
    async def pipeline() -> int:
        return body()

    assert await pipeline() == 3
    assert clock.slept == [1, 2]
