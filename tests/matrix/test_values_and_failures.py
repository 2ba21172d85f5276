"""What comes back from a run, and what is tried again, in every cell of the matrix."""

from typing import Any

import pytest

from asynctask import allow_failure, states
from asynctask.errors import CancelledRun, TaskTimeoutError, UpstreamTaskError


class Broken(Exception):
    pass


class Attempts:
    """A body that fails until it has been called often enough."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.count = 0

    def __call__(self, x: Any) -> Any:
        self.count += 1
        if self.count <= self.failures:
            raise Broken(f"attempt {self.count}")
        return x


def test_the_value_comes_back(cell: Any) -> None:
    ended = cell.run(cell.task(lambda x: x + 1), 1)
    assert (ended.value, ended.error) == (2, None)
    assert ended.names == ["Pending", "Running", "Completed"]


def test_the_very_exception_of_the_body_comes_back(cell: Any) -> None:
    error = Broken("no luck")

    def body(x: Any) -> Any:
        raise error

    ended = cell.run(cell.task(body), 1)
    assert ended.error is error
    assert ended.names == ["Pending", "Running", "Failed"]
    assert ended.run.state.message == "Broken: no luck"


def test_a_retry_that_succeeds_gives_the_value(cell: Any) -> None:
    attempts = Attempts(failures=2)
    ended = cell.run(cell.task(attempts, retries=3), "x")
    assert (ended.value, attempts.count, ended.run.run_count) == ("x", 3, 3)
    assert ended.names == [
        "Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Completed",
    ]  # fmt: skip


def test_retries_end_with_the_last_exception(cell: Any) -> None:
    attempts = Attempts(failures=9)
    ended = cell.run(cell.task(attempts, retries=1), 1)
    assert isinstance(ended.error, Broken)
    assert str(ended.error) == "attempt 2"
    assert (attempts.count, ended.run.run_count) == (2, 2)
    assert ended.names == ["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"]


def test_what_retry_on_does_not_name_is_not_retried(cell: Any) -> None:
    attempts = Attempts(failures=9)
    ended = cell.run(cell.task(attempts, retries=5, retry_on=[KeyError]), 1)
    assert isinstance(ended.error, Broken)
    assert attempts.count == 1


def test_the_retry_condition_is_asked_with_task_run_and_state(cell: Any) -> None:
    asked = []

    def wanted(task: Any, run: Any, state: Any) -> bool:
        asked.append((task, run.name, state.name, str(state.data)))
        return len(asked) < 2

    attempts = Attempts(failures=9)
    t = cell.task(attempts, retries=5, retry_condition_fn=wanted, task_run_name="named")
    ended = cell.run(t, 1)
    assert attempts.count == 2
    assert [(name, state, text) for _, name, state, text in asked] == [
        ("named", "Failed", "attempt 1"),
        ("named", "Failed", "attempt 2"),
    ]
    assert all(task is t for task, *_ in asked)
    assert ended.names[-1] == "Failed"


def test_past_its_timeout_an_attempt_is_timed_out(cell: Any, pause: Any) -> None:
    ended = cell.run(cell.task(lambda x: pause(30), timeout_seconds=0.02), 1)
    assert isinstance(ended.error, TaskTimeoutError)
    assert isinstance(ended.error, TimeoutError)
    assert ended.names == ["Pending", "Running", "TimedOut"]
    assert ended.run.state.is_failed()
    assert ended.run.total_run_time < 5


def test_a_timeout_counts_for_one_attempt_and_is_retried(cell: Any, pause: Any) -> None:
    calls = []

    def body(x: Any) -> Any:
        calls.append(x)
        return pause(30) if len(calls) == 1 else "in time"

    ended = cell.run(cell.task(body, timeout_seconds=0.05, retries=1), 1)
    assert ended.value == "in time"
    assert ended.names == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]


def test_a_timeout_error_of_the_body_itself_is_an_ordinary_failure(cell: Any) -> None:
    def body(x: Any) -> Any:
        raise TimeoutError("the server's")

    ended = cell.run(cell.task(body, timeout_seconds=10), 1)
    assert ended.names[-1] == "Failed"
    assert str(ended.error) == "the server's"


def test_a_returned_state_becomes_the_state_of_the_run(function: Any) -> None:
    t = function.task(lambda x: states.Completed(data=x, message="as it wished", name="Skipped"))
    ended = function.run(t, 7)
    assert ended.value == 7
    assert (ended.run.state.name, ended.run.state.message) == ("Skipped", "as it wished")


def test_a_returned_failed_state_fails_the_run_and_is_retried(function: Any) -> None:
    calls = []

    def body(x: Any) -> Any:
        calls.append(x)
        return states.Failed(data=Broken("told"), message="told so")

    ended = function.run(function.task(body, retries=1), 1)
    assert isinstance(ended.error, Broken)
    assert ended.names == ["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"]
    assert ended.run.state.message == "told so"


def test_a_returned_cancelled_state_cancels_the_run(function: Any) -> None:
    ended = function.run(function.task(lambda x: states.Cancelled(message="not today"), retries=3), 1)
    assert isinstance(ended.error, CancelledRun)
    assert ended.names == ["Pending", "Running", "Cancelled"]


def test_a_future_in_the_arguments_becomes_its_value(cell: Any) -> None:
    upstream = cell.settled(cell.task(lambda x: x * 10), 4)
    plain = 40 if "generator" not in cell.kind else [40]
    ended = cell.run(cell.task(lambda x: x), {"deep": [upstream, 1]})
    assert ended.value == {"deep": [plain, 1]}
    assert ended.run.upstream_task_run_ids == [upstream.task_run_id]


def test_a_state_in_the_arguments_becomes_its_value(cell: Any) -> None:
    upstream = cell.settled(cell.task(lambda x: x * 10), 4)
    plain = 40 if "generator" not in cell.kind else [40]
    ended = cell.run(cell.task(lambda x: x), (upstream.state, 1))
    assert ended.value == (plain, 1)
    assert ended.run.upstream_task_run_ids == [upstream.task_run_id]


def broken_upstream(cell: Any) -> Any:
    def body(x: Any) -> Any:
        raise Broken("upstream")

    return cell.settled(cell.task(body, task_run_name="the culprit"), 1)


def test_after_a_failed_upstream_the_run_does_not_start(cell: Any) -> None:
    calls: list[Any] = []
    ended = cell.run(cell.task(calls.append, retries=3), [broken_upstream(cell)])
    assert isinstance(ended.error, UpstreamTaskError)
    assert "the culprit" in str(ended.error)
    assert isinstance(ended.error.__cause__, Broken)
    assert ended.names == ["Pending", "NotReady"]
    assert ended.run.state.is_pending()
    assert ended.run.state.is_final()
    assert calls == []


def test_allow_failure_passes_the_exception_in(cell: Any) -> None:
    ended = cell.run(cell.task(lambda x: str(x[0])), [allow_failure(broken_upstream(cell))])
    assert ended.value == "upstream"


def test_wait_for_waits_without_passing_data(cell: Any) -> None:
    upstream = cell.settled(cell.task(lambda x: x), 1)
    ended = cell.run(cell.task(lambda x: x), "own", wait_for=[upstream])
    assert ended.value == "own"
    assert ended.run.upstream_task_run_ids == [upstream.task_run_id]


def test_a_failed_wait_for_keeps_the_run_from_starting(cell: Any) -> None:
    calls: list[Any] = []
    ended = cell.run(cell.task(calls.append), 1, wait_for=[broken_upstream(cell)])
    assert isinstance(ended.error, UpstreamTaskError)
    assert ended.names == ["Pending", "NotReady"]
    assert calls == []


def test_a_run_waits_for_an_upstream_that_is_under_way(submitted: Any, pause: Any) -> None:
    order: list[str] = []
    upstream = submitted.future(submitted.task(lambda x: pause(0.02, x, and_then=lambda: order.append("upstream"))), 1)
    ended = submitted.run(submitted.task(lambda x: order.append("downstream")), "x", wait_for=[upstream])
    assert ended.error is None
    assert order == ["upstream", "downstream"]


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "waiting for an upstream"])
def test_cancelled_through_its_future_a_run_ends_cancelled(submitted: Any, pause: Any, is_running: bool) -> None:
    slow = submitted.future(submitted.task(lambda x: pause(30)), 1)
    future = slow if is_running else submitted.future(submitted.task(lambda x: x, retries=3), [slow])
    assert future.cancel("enough")
    state = future.wait(20)
    slow.cancel()
    assert slow.wait(20) is not None
    assert state is not None
    assert state.is_cancelled()
    assert state.message == "enough"
    with pytest.raises(CancelledRun, match="enough"):
        future.result()
