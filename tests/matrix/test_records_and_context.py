"""What a run knows of itself, what is recorded of it, and whom it tells, in every cell of the matrix."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from asynctask import flow, tags, task
from asynctask.runtime import flow_run, task_run


class Broken(Exception):
    pass


class Inside:
    """A body that stays until everybody is there, and counts how many are at work at once."""

    def __init__(self, pause: Any, is_everybody_there: Callable[[Inside], bool]) -> None:
        self._pause = pause
        self._is_everybody_there = is_everybody_there
        self._is_open = False
        self._lock = threading.Lock()
        self.now = self.peak = 0

    def __call__(self, x: Any) -> Any:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
        return self._pause(5, x, until=self._may_leave, and_then=self._leave)

    def _may_leave(self) -> bool:
        self._is_open = self._is_open or self._is_everybody_there(self)
        return self._is_open

    def _leave(self) -> None:
        with self._lock:
            self.now -= 1


def failing(x: Any) -> Any:
    raise Broken(x)


def test_a_run_is_named_after_its_task_and_id(cell: Any) -> None:
    t = cell.task(lambda x: x)
    run = cell.run(t, 1).run
    assert run.name.startswith(f"{t.name}-")
    assert run.name != t.name
    assert run.task_name == t.name
    assert run.task_key == t.task_key


def test_a_run_name_is_a_template_over_the_parameters(cell: Any) -> None:
    t = cell.task(lambda x: x, task_run_name="x is {x[key]:>3}, y is {y}")
    assert cell.run(t, {"key": 5}).run.name == "x is   5, y is 0"


def test_a_run_name_may_be_a_function_of_the_parameters(cell: Any) -> None:
    t = cell.task(lambda x: x, task_run_name=lambda parameters: f"from {sorted(parameters.items())}")
    assert cell.run(t, 3).run.name == "from [('x', 3), ('y', 0)]"


def test_a_run_name_may_be_a_function_without_parameters(cell: Any) -> None:
    assert cell.run(cell.task(lambda x: x, task_run_name=lambda: "as it is"), 3).run.name == "as it is"


def test_a_run_keeps_its_name_through_retries(cell: Any) -> None:
    made: list[str] = []

    def name() -> str:
        made.append(f"name {len(made) + 1}")
        return made[-1]

    ended = cell.run(cell.task(failing, task_run_name=name, retries=2), 1)
    assert ended.run.run_count == 3
    assert ended.run.name == "name 1"
    assert made == ["name 1"]


def test_tags_of_the_decorator_and_of_the_block_are_joined(cell: Any) -> None:
    t = cell.task(lambda x: task_run.tags, tags=["own", "both"])
    with tags("outer"), tags("block", "both"):
        ended = cell.run(t, 1)
    assert ended.value == ended.run.tags == ["block", "both", "outer", "own"]
    assert cell.run(t, 1).value == ["both", "own"]


def test_the_body_sees_its_own_run(cell: Any) -> None:
    def body(x: Any) -> Any:
        return {
            "id": task_run.id, "name": task_run.name, "task_name": task_run.task_name, "tags": task_run.tags,
            "parameters": dict(task_run.parameters), "run_count": task_run.run_count,
            "flow_run_id": task_run.flow_run_id, "start_time": task_run.start_time, "flow": flow_run.name,
        }  # fmt: skip

    t = cell.task(body, tags=["a"], task_run_name="named")
    value, _, run = cell.run(t, 5)
    assert value == {
        "id": run.id, "name": "named", "task_name": t.name, "tags": ["a"], "parameters": {"x": 5, "y": 0},
        "run_count": 1, "flow_run_id": None, "start_time": run.start_time, "flow": None,
    }  # fmt: skip
    assert task_run.id is None
    assert task_run.run_count == 0


def test_the_body_sees_which_attempt_it_is(cell: Any) -> None:
    seen: list[Any] = []

    def body(x: Any) -> Any:
        seen.append((task_run.id, task_run.run_count))
        raise Broken

    run = cell.run(cell.task(body, retries=2), 1).run
    assert seen == [(run.id, 1), (run.id, 2), (run.id, 3)]
    assert run.run_count == 3


def test_the_history_only_goes_forward_and_ends_once(cell: Any) -> None:
    run = cell.run(cell.task(failing, retries=2), 1).run
    assert [state.name for state in run.states] == [
        "Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Failed",
    ]  # fmt: skip
    times = [state.timestamp for state in run.states]
    assert times == sorted(set(times))
    assert [state.is_final() for state in run.states] == [False] * 6 + [True]
    assert (run.state_type, run.state_name, run.end_time) == ("FAILED", "Failed", times[-1])
    assert run.start_time == times[1]
    running = sum((times[at + 1] - times[at]).total_seconds() for at in (1, 3, 5))
    assert run.total_run_time == pytest.approx(running, abs=1e-4)


def test_hooks_of_a_completed_run(cell: Any) -> None:
    told: list[Any] = []
    t = cell.task(lambda x: x)
    t.on_running(lambda task, run, state: told.append(("running", task, state.name, task_run.id == run.id)))
    t.on_completion(lambda task, run, state: told.append(("completion", task, state.name, task_run.id == run.id)))
    t.on_failure(lambda task, run, state: told.append("failure"))
    t.on_cancellation(lambda task, run, state: told.append("cancellation"))
    t.on_crashed(lambda task, run, state: told.append("crashed"))
    cell.run(t, 1)
    assert told == [("running", t, "Running", True), ("completion", t, "Completed", True)]


def test_on_running_is_called_for_each_attempt_and_on_failure_once_at_the_end(cell: Any) -> None:
    told: list[str] = []

    async def on_failure(task: Any, run: Any, state: Any) -> None:
        told.append(f"failure in {state.name} after {run.run_count}")

    cell.run(
        cell.task(
            failing,
            retries=1,
            on_running=[lambda task, run, state: told.append(state.name)],
            on_completion=[lambda task, run, state: told.append("completion")],
            on_failure=[on_failure],
        ),
        1,
    )
    assert told == ["Running", "Retrying", "failure in Failed after 2"]


def test_a_hook_that_raises_changes_nothing_and_is_logged(cell: Any, caplog: Any) -> None:
    told: list[str] = []

    def broken(task: Any, run: Any, state: Any) -> None:
        raise Broken("in the hook")

    later = [broken, lambda task, run, state: told.append(state.name)]
    ended = cell.run(cell.task(lambda x: x, on_running=later, on_completion=later), 1)
    assert (ended.value, ended.names) == (1, ["Pending", "Running", "Completed"])
    assert told == ["Running", "Completed"]
    assert sum("raised on entering" in record.message for record in caplog.records) == 2


def test_on_cancellation_is_called_when_a_run_is_cancelled(submitted: Any, pause: Any) -> None:
    told: list[str] = []
    begun = threading.Event()

    def body(x: Any) -> Any:
        begun.set()
        return pause(30)

    async def hook(task: Any, run: Any, state: Any) -> None:
        told.append(f"async {state.name}")

    hooks = [lambda task, run, state: told.append(state.name), hook]
    future = submitted.future(submitted.task(body, on_cancellation=hooks, on_failure=hooks, on_crashed=hooks), 1)
    assert begun.wait(20)
    future.cancel()
    assert future.wait(20) is not None
    submitted.close()
    assert told == ["Cancelled", "async Cancelled"]


def test_a_run_started_in_a_task_has_it_as_parent(cell: Any) -> None:
    ended, outer = cell.inside(task, cell.task(lambda x: x), 1)
    assert ended.value in (1, [1])
    assert ended.run.parent_task_run_id == outer.id
    assert ended.run.flow_run_id is None
    assert outer.parent_task_run_id is None


def test_a_run_started_in_a_flow_belongs_to_it(cell: Any) -> None:
    ended, outer = cell.inside(flow, cell.task(lambda x: (task_run.flow_run_id, flow_run.name)), 1)
    value = ended.value[0] if isinstance(ended.value, list) else ended.value
    assert value == (outer.id, outer.name)
    assert ended.run.flow_run_id == outer.id


def test_a_limit_is_respected_and_its_slots_come_back(cell: Any, pause: Any) -> None:
    tag = cell.limit(2)
    most, waiting = (2, 3) if cell.overlaps else (1, 0)
    body = Inside(pause, lambda inside: inside.now == most and cell.read_limit(tag).waiting == waiting)
    t = cell.task(body, tags=[tag])
    assert cell.run_together(t, list(range(5))) == [0, 1, 2, 3, 4]
    assert body.peak == most
    waited = [run for run in cell.runs(t) if [state.name for state in run.states][1] == "AwaitingConcurrencySlot"]
    assert len(waited) == waiting
    assert cell.read_limit(tag).active_slots == []


def test_without_a_limit_they_overlap(submitted: Any, pause: Any) -> None:
    body = Inside(pause, lambda inside: inside.now == 5)
    submitted.run_together(submitted.task(body), list(range(5)))
    assert body.peak == 5


def test_a_failed_attempt_gives_its_slot_back(cell: Any) -> None:
    tag = cell.limit(1)
    ended = cell.run(cell.task(failing, tags=[tag], retries=2), 1)
    assert isinstance(ended.error, Broken)
    assert ended.run.run_count == 3
    assert cell.read_limit(tag).active_slots == []
    assert cell.run(cell.task(lambda x: x, tags=[tag]), "free").value == "free"


def test_a_limit_of_zero_aborts_the_run(cell: Any) -> None:
    calls: list[Any] = []
    ended = cell.run(cell.task(calls.append, tags=[cell.limit(0)], retries=3), 1)
    assert type(ended.error).__name__ == "ConcurrencyLimitAborted"
    assert ended.names == ["Pending", "Cancelled"]
    assert calls == []
