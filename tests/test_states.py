"""The states: the one table of moves, the constructors, what a state tells, and the history that only goes forward."""

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctask import Runtime, State, StateType, states, task
from asynctask.clocks import Clock
from asynctask.errors import (
    CancelledRun,
    CrashedRun,
    FailedRun,
    RunError,
    TransitionError,
    UnfinishedRun,
    UpstreamTaskError,
)
from asynctask.runs import Run, current_run
from asynctask.scopes import current_runtime
from asynctask.states import MOVES, aggregate
from asynctask.stores.memory import MemoryStore

FINAL = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}

CONSTRUCTORS = {
    "Scheduled": StateType.SCHEDULED,
    "Late": StateType.SCHEDULED,
    "AwaitingRetry": StateType.SCHEDULED,
    "AwaitingConcurrencySlot": StateType.SCHEDULED,
    "Pending": StateType.PENDING,
    "NotReady": StateType.PENDING,
    "Running": StateType.RUNNING,
    "Retrying": StateType.RUNNING,
    "Completed": StateType.COMPLETED,
    "Cached": StateType.COMPLETED,
    "RolledBack": StateType.COMPLETED,
    "Failed": StateType.FAILED,
    "TimedOut": StateType.FAILED,
    "Crashed": StateType.CRASHED,
    "Cancelled": StateType.CANCELLED,
    "Cancelling": StateType.CANCELLING,
    "Paused": StateType.PAUSED,
}
WITH_DATA = ("Completed", "Cached", "Failed", "TimedOut", "Crashed", "Cancelled")


def made(name: str) -> State:
    return getattr(states, name)()


# -- the table ----------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_type() -> None:
    assert set(MOVES) == set(StateType)


def test_what_is_final_is_followed_by_nothing_but_a_rollback() -> None:
    for kind in FINAL:
        assert set(MOVES[kind]) <= ({StateType.COMPLETED} if kind is StateType.COMPLETED else set())
        assert kind.is_final
    for kind in set(StateType) - FINAL:
        assert not kind.is_final


def test_from_every_state_that_is_not_final_a_run_can_fail_crash_or_be_cancelled() -> None:
    for kind in set(StateType) - FINAL:
        assert {StateType.FAILED, StateType.CRASHED, StateType.CANCELLED} <= set(MOVES[kind])


def run_in(kind: StateType, clock: Clock | None = None) -> Run:
    """A run whose history ends with a state of `kind`."""
    runtime = Runtime(store=MemoryStore(), clock=clock)
    seen: list[Run] = []

    @task
    def probe() -> None:
        run = current_run.get()
        assert run is not None
        seen.append(run)

    with inside(runtime):
        probe()
    run = seen[0]
    run.states = (*run.states[:-1], State(kind, kind.value.title(), run.states[-1].time))
    return run


@contextmanager
def inside(runtime: Runtime) -> Iterator[None]:
    """Plain code inside a runtime that lives in no event loop."""
    token = current_runtime.set(runtime)
    try:
        yield
    finally:
        current_runtime.reset(token)
        runtime.close()


@pytest.mark.parametrize("before", list(StateType))
def test_a_run_makes_exactly_the_moves_of_the_table(before: StateType) -> None:
    for after in StateType:
        run = run_in(before)
        history = run.states
        if after in MOVES[before]:
            run.enter(after, after.value.title())
            assert run.states[:-1] == history
            assert run.states[-1].type is after
        else:
            with pytest.raises(TransitionError, match=before.value.title()):
                run.enter(after, after.value.title())
            assert run.states is history, "an illegal move changes nothing"


# -- constructors and predicates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), CONSTRUCTORS.items())
def test_each_name_has_a_constructor_of_its_type(name: str, kind: StateType) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    state = getattr(states, name)(message="why")
    assert (state.type, state.name, state.message) == (kind, name, "why")
    assert before <= state.timestamp <= datetime.now(UTC) + timedelta(milliseconds=1)
    assert state.timestamp.utcoffset() == timedelta(0)
    assert state.data is None
    assert state.task_run_id is None
    assert isinstance(state, State)


@pytest.mark.parametrize("name", WITH_DATA)
def test_the_constructors_of_ends_take_data(name: str) -> None:
    data = object()
    assert getattr(states, name)(data=data).data is data


def test_an_end_may_have_a_name_of_its_own() -> None:
    assert states.Completed(data=1, name="Skipped").name == "Skipped"
    assert states.Failed(name="Rejected").name == "Rejected"


@pytest.mark.parametrize(("name", "kind"), CONSTRUCTORS.items())
def test_exactly_one_predicate_of_type_is_true(name: str, kind: StateType) -> None:
    state = made(name)
    true = {other for other in StateType if getattr(state, f"is_{other.value.lower()}")()}
    assert true == {kind}


@pytest.mark.parametrize(("name", "kind"), CONSTRUCTORS.items())
def test_the_four_ends_and_not_ready_are_final(name: str, kind: StateType) -> None:
    assert made(name).is_final() is (kind in FINAL or name == "NotReady")


def test_a_state_cannot_be_changed() -> None:
    state = states.Completed(data=1)
    with pytest.raises(AttributeError):
        state.name = "Failed"  # type: ignore[misc]


def test_a_state_shows_its_name_and_message() -> None:
    assert repr(states.Failed(message="no disk")) == "Failed('no disk')"
    assert repr(states.Running()) == "Running()"


# -- result -------------------------------------------------------------------------------------------------------


def test_the_result_of_a_completed_state_is_its_data() -> None:
    assert states.Completed(data={"a": 1}).result() == {"a": 1}
    assert states.Cached(data=2).result() == 2
    assert states.Completed().result() is None


def test_the_result_of_a_failed_state_is_its_exception() -> None:
    error = ZeroDivisionError("x")
    state = states.Failed(data=error)
    with pytest.raises(ZeroDivisionError) as caught:
        state.result()
    assert caught.value is error
    assert state.result(raise_on_failure=False) is error


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (states.Failed, FailedRun),
        (states.Cancelled, CancelledRun),
        (states.Crashed, CrashedRun),
        (states.TimedOut, FailedRun),
    ],
)
def test_an_end_without_an_exception_raises_one_that_says_what_it_is(
    make: Callable[..., State], kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="out of paper"):
        make(message="out of paper").result()
    with pytest.raises(kind, match="out of ink"):
        make(data="out of ink").result()
    assert isinstance(make().result(raise_on_failure=False), kind)
    assert issubclass(kind, RunError)


def test_a_crash_by_an_exit_does_not_end_who_reads_the_result() -> None:
    with pytest.raises(CrashedRun) as caught:
        states.Crashed(data=SystemExit(3)).result()
    assert isinstance(caught.value.__cause__, SystemExit)


@pytest.mark.parametrize("name", ["Scheduled", "Pending", "Running", "AwaitingRetry", "Cancelling", "Paused"])
def test_the_result_of_a_state_that_is_no_end_raises_even_when_told_not_to(name: str) -> None:
    for raise_on_failure in (True, False):
        with pytest.raises(UnfinishedRun, match=name):
            made(name).result(raise_on_failure)


def test_not_ready_gives_an_upstream_error() -> None:
    with pytest.raises(UpstreamTaskError, match="a failed"):
        states.NotReady("a failed").result()


# -- aggregate ----------------------------------------------------------------------------------------------------


def test_many_completed_states_are_one_completed_state() -> None:
    for several in ([made("Completed"), made("Cached")], []):
        whole = aggregate(several)
        assert whole.type is StateType.COMPLETED
        assert whole.message == "All states completed."


def test_one_failure_makes_the_whole_fail_with_its_exception() -> None:
    error = KeyError("k")
    whole = aggregate([made("Completed"), states.Failed(data=error), made("Completed")])
    assert (whole.type, whole.message) == (StateType.FAILED, "1/3 states failed.")
    assert whole.data is error


def test_a_crash_and_what_is_unfinished_count_as_failures() -> None:
    whole = aggregate([made("Crashed"), made("Running"), made("Completed")])
    assert (whole.type, whole.message) == (StateType.FAILED, "2/3 states failed.")


@given(st.lists(st.sampled_from(sorted(CONSTRUCTORS)), max_size=8))
def test_cancelled_goes_before_paused_before_failed(names: list[str]) -> None:
    several = [made(name) for name in names]
    kinds = {state.type for state in several}
    whole = aggregate(several)
    if kinds <= {StateType.COMPLETED}:
        assert whole.type is StateType.COMPLETED
    elif StateType.CANCELLED in kinds:
        assert whole.type is StateType.CANCELLED
    elif StateType.PAUSED in kinds:
        assert whole.type is StateType.PAUSED
    else:
        assert whole.type is StateType.FAILED
    if whole.type is not StateType.COMPLETED:
        assert isinstance(whole.data, Exception)


# -- the history --------------------------------------------------------------------------------------------------


class Stepping(Clock):
    """A wall clock that shows what it is told to."""

    def __init__(self, times: Callable[[], float]) -> None:
        self.now = times


def history_by(clock: Clock) -> tuple[State, ...]:
    attempts: list[Run] = []

    @task(retries=5)
    def flaky() -> int:
        run = current_run.get()
        assert run is not None
        attempts.append(run)
        if len(attempts) < 6:
            raise ValueError(len(attempts))
        return 1

    with inside(Runtime(store=MemoryStore(), clock=clock)):
        assert flaky() == 1
    return attempts[0].states


@pytest.mark.parametrize("start", [0.5, 1.8e9, 4e9])
@pytest.mark.parametrize("step", [-3600.0, -1e-6, 0.0, 1e-9, 2e-7, 4e-7, 1e-6, 1.5e-6, 1.0])
def test_times_in_a_history_only_go_forward_whatever_the_wall_clock_does(start: float, step: float) -> None:
    times = iter(start + 100_000 + step * count for count in range(100))
    history = history_by(Stepping(lambda: next(times)))
    stamps = [state.timestamp for state in history]
    assert len(stamps) == 13  # Pending, six attempts, five waits for the next, and the end
    assert all(before < after for before, after in itertools.pairwise(stamps))


def test_times_in_a_history_only_go_forward_with_a_clock_gone_mad() -> None:
    dice = random.Random(7)
    history = history_by(Stepping(lambda: 1e9 + dice.uniform(-5e-6, 5e-6)))
    stamps = [state.timestamp for state in history]
    assert all(before < after for before, after in itertools.pairwise(stamps))


def test_every_state_of_a_run_is_kept_in_order() -> None:
    names = [state.name for state in history_by(Clock())]
    assert names == ["Pending", "Running", *(["AwaitingRetry", "Retrying"] * 5), "Completed"]


def test_the_final_state_names_its_run_and_carries_its_value() -> None:
    @task
    def one() -> dict[str, int]:
        return {"a": 1}

    future = one.submit()
    assert future.result() == {"a": 1}
    assert future.state.data == {"a": 1}
    assert future.state.task_run_id == future.task_run_id


def test_times_that_do_not_move_on_are_told_apart_to_the_microsecond() -> None:
    history = history_by(Stepping(lambda: 1_800_000_000.1234567))
    shown = [state.timestamp.isoformat(timespec="microseconds") for state in history]
    assert len(set(shown)) == len(shown)
    assert shown == sorted(shown)
