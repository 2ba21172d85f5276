"""Hooks: when each is called, with what, and that none of them changes its run."""

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from asynctask import Runtime, State, flow, get_run_logger, states, task
from asynctask.errors import CancelledRun, CrashedRun
from asynctask.runtime import flow_run, task_run
from asynctask.stores.memory import MemoryStore

SOON = 20.0
OPTIONS = ("on_running", "on_completion", "on_failure", "on_cancellation", "on_crashed")


class Seen:
    """Hooks of all kinds, sync or async, that note what they are called with."""

    def __init__(self, *, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.calls: list[tuple[str, str]] = []
        self.arguments: list[tuple[Any, Any, State]] = []

    def hook(self, option: str) -> Callable[[Any, Any, State], Any]:
        def sync(task: Any, run: Any, state: State) -> None:
            self.calls.append((option, state.name))
            self.arguments.append((task, run, state))

        async def asynchronous(task: Any, run: Any, state: State) -> None:
            await anyio.sleep(0.001)
            sync(task, run, state)

        return asynchronous if self.asynchronous else sync

    @property
    def options(self) -> dict[str, Any]:
        return {option: [self.hook(option)] for option in OPTIONS}


BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def outcome(kind: str) -> Any:
    if kind == "failure":
        raise ValueError("bad")
    if kind == "crash":
        raise SystemExit(3)
    return states.Cancelled(message="no use") if kind == "cancelled" else kind


EXPECTED = {
    "value": [("on_running", "Running"), ("on_completion", "Completed")],
    "failure": [("on_running", "Running"), ("on_failure", "Failed")],
    "cancelled": [("on_running", "Running"), ("on_cancellation", "Cancelled")],
    "crash": [("on_running", "Running"), ("on_crashed", "Crashed")],
}


@BOTH
@pytest.mark.parametrize("make", [task, flow], ids=["task", "flow"])
@pytest.mark.parametrize("kind", EXPECTED)
def test_each_hook_of_a_sync_run_is_called_for_its_state(make: Any, kind: str, asynchronous: bool) -> None:
    seen = Seen(asynchronous=asynchronous)

    @make(**seen.options)
    def body(kind: str) -> Any:
        return outcome(kind)

    try:
        body(kind)
    except (Exception, SystemExit):
        assert kind != "value"
    assert seen.calls == EXPECTED[kind]
    assert {one for one, _, _ in seen.arguments} == {body}
    assert len({run.id for _, run, _ in seen.arguments}) == 1


@BOTH
@pytest.mark.parametrize("kind", EXPECTED)
async def test_each_hook_of_an_async_run_is_called_for_its_state(kind: str, asynchronous: bool) -> None:
    for make in (task, flow):
        seen = Seen(asynchronous=asynchronous)

        @make(**seen.options)
        async def body(kind: str) -> Any:
            return outcome(kind)

        try:
            await body(kind)
        except (Exception, SystemExit):
            assert kind != "value"
        with anyio.fail_after(SOON):
            while len(seen.calls) < 2:  # the async hook of a crashed run goes on beside its caller
                await anyio.sleep(0.001)
        assert seen.calls == EXPECTED[kind]


@BOTH
async def test_the_hooks_of_a_submitted_run_are_done_before_its_future_is(asynchronous: bool) -> None:
    for sync_body in (False, True):
        for kind in ("value", "failure", "cancelled"):
            seen = Seen(asynchronous=asynchronous)

            async def body(kind: str) -> Any:
                return outcome(kind)

            made = task(**seen.options)(outcome if sync_body else body)
            await made.submit(kind).wait_async()
            assert seen.calls == EXPECTED[kind]


@BOTH
async def test_a_cancelled_run_calls_on_cancellation_alone(asynchronous: bool) -> None:
    seen = Seen(asynchronous=asynchronous)
    started = anyio.Event()
    async with Runtime(store=MemoryStore()):

        @task(**seen.options)
        async def waiting() -> None:
            started.set()
            await anyio.sleep(30)

        future = waiting.submit()
        await started.wait()
        future.cancel("enough")
        with pytest.raises(CancelledRun, match="enough"):
            await future
    assert seen.calls == [("on_running", "Running"), ("on_cancellation", "Cancelled")], "the runtime waits for them"


async def test_a_hook_of_a_cancelled_run_that_goes_on_raises_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def hook(task: Any, run: Any, state: State) -> None:
        await anyio.sleep(0.001)
        raise RuntimeError("hook is broken")

    started = anyio.Event()
    async with Runtime(store=MemoryStore()):

        @task(on_cancellation=hook)
        async def waiting() -> None:
            started.set()
            await anyio.sleep(30)

        future = waiting.submit()
        await started.wait()
        future.cancel()
        await future.wait_async()
    assert "hook is broken" in caplog.text
    assert future.state.is_cancelled()


@BOTH
def test_on_running_is_called_for_every_attempt_and_the_others_once(asynchronous: bool) -> None:
    seen = Seen(asynchronous=asynchronous)
    broken = task(retries=2, **seen.options)(outcome)
    assert broken("failure", return_state=True).is_failed()
    assert seen.calls == [
        ("on_running", "Running"), ("on_running", "Retrying"), ("on_running", "Retrying"), ("on_failure", "Failed"),
    ]  # fmt: skip


def test_on_failure_is_not_called_when_a_retry_helped() -> None:
    seen = Seen(asynchronous=False)
    calls: list[int] = []

    @task(retries=2, **seen.options)
    def flaky() -> None:
        calls.append(1)
        if len(calls) < 2:
            raise ValueError("again")

    flaky()
    assert [option for option, _ in seen.calls] == ["on_running", "on_running", "on_completion"]


def test_on_running_is_called_before_the_body_and_delays_it() -> None:
    order: list[str] = []

    @task(on_running=[lambda *_: order.append("first"), lambda *_: order.append("second")])
    def body() -> None:
        order.append("body")

    body()
    body.submit().result(SOON)
    assert order == ["first", "second", "body"] * 2


def test_the_state_that_a_hook_gets_carries_the_value_or_the_exception() -> None:
    data: list[Any] = []

    @task(on_completion=lambda task, run, state: data.append(state.data))
    def good() -> int:
        return 7

    @task(on_failure=lambda task, run, state: data.append(repr(state.data)))
    def bad() -> None:
        raise ValueError("bad")

    good()
    bad(return_state=True)
    assert data == [7, "ValueError('bad')"]


def test_hooks_are_inside_the_context_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def hook(task: Any, run: Any, state: State) -> None:
        seen.append((task_run.id == run.id, task_run.parameters, flow_run.flow_name))
        get_run_logger().warning("from the hook")

    @task(on_running=hook, on_completion=hook, on_failure=hook)
    def body(number: int) -> None:
        if number:
            raise ValueError(number)

    @flow
    def pipeline() -> None:
        body(0)
        body.submit(1).wait()

    pipeline(return_state=True)
    assert seen == [(True, {"number": 0}, "pipeline")] * 2 + [(True, {"number": 1}, "pipeline")] * 2
    records = [record for record in caplog.records if record.getMessage() == "from the hook"]
    assert [record.task_name for record in records] == ["body"] * 4  # type: ignore[attr-defined]


@BOTH
@pytest.mark.parametrize("kind", ["value", "failure", "cancelled"])
def test_a_hook_that_raises_is_logged_and_changes_nothing(
    kind: str, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def sync(task: Any, run: Any, state: State) -> None:
        raise RuntimeError(f"broken on {state.name}")

    async def later(task: Any, run: Any, state: State) -> None:
        raise RuntimeError(f"broken on {state.name}")

    seen = Seen(asynchronous=asynchronous)
    hook = later if asynchronous else sync
    options = {option: [hook, seen.hook(option)] for option in OPTIONS}
    one = task(**options)(outcome)
    for state in (one(kind, return_state=True), one.submit(kind).wait(SOON)):
        assert state is not None
        assert (state.is_completed(), state.is_failed(), state.is_cancelled()) == (
            kind == "value", kind == "failure", kind == "cancelled",
        )  # fmt: skip
    assert seen.calls == EXPECTED[kind] * 2, "the hooks after it are called all the same"
    assert caplog.text.count("RuntimeError: broken on Running") == 2
    assert caplog.text.count(f"RuntimeError: broken on {EXPECTED[kind][1][1]}") == 2


def test_a_hook_may_be_any_callable_and_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Notifier:
        def __call__(self, task: Any, run: Any, state: State) -> None:
            raise RuntimeError("no network")

    task(on_completion=Notifier())(lambda: 1)()
    assert "Hook 'Notifier'" in caplog.text


def test_hooks_can_be_added_as_decorators_and_the_function_stays_usable() -> None:
    calls: list[str] = []

    @task
    def body(kind: str) -> Any:
        return outcome(kind)

    @body.on_running
    def running(task: Any, run: Any, state: State) -> None:
        calls.append("running")

    @body.on_completion
    def completed(task: Any, run: Any, state: State) -> None:
        calls.append("completed")

    @body.on_failure
    def failed(task: Any, run: Any, state: State) -> None:
        calls.append("failed")

    @body.on_cancellation
    def cancelled(task: Any, run: Any, state: State) -> None:
        calls.append("cancelled")

    @body.on_crashed
    def crashed(task: Any, run: Any, state: State) -> None:
        calls.append("crashed")

    for kind in EXPECTED:
        body.submit(kind).wait(SOON)
    assert calls == [
        "running", "completed", "running", "failed", "running", "cancelled", "running", "crashed",
    ]  # fmt: skip
    running(None, None, states.Running())
    assert calls[-1] == "running"


def test_a_hook_of_the_end_sees_the_run_in_its_final_state_and_not_yet_done() -> None:
    seen: list[Any] = []
    future_is_there = threading.Event()
    futures: list[Any] = []

    def hook(task: Any, run: Any, state: State) -> None:
        assert future_is_there.wait(SOON)
        seen.append((run.state.name, futures[0].done()))

    @task(on_completion=hook)
    def body() -> None:
        pass

    futures.append(body.submit())
    future_is_there.set()
    futures[0].wait(SOON)
    assert seen == [("Completed", False)]
    assert futures[0].done()


def test_a_hook_may_call_tasks_which_are_children_of_its_run() -> None:
    parents: list[Any] = []

    @task
    def notify() -> None:
        from asynctask.runs import current_run

        parents.append(current_run.get().parent_task_run_id)  # type: ignore[union-attr]

    @task(on_completion=lambda task, run, state: (notify(), notify.submit().result(SOON)))
    def body() -> None:
        pass

    body()
    assert len(set(parents)) == 1
    assert parents[0] is not None


def test_an_exit_in_a_body_calls_on_crashed_and_reaches_the_caller() -> None:
    seen = Seen(asynchronous=False)
    one = task(**seen.options)(outcome)
    with pytest.raises(SystemExit):
        one("crash")
    with pytest.raises(CrashedRun):
        one.submit("crash").result(SOON)
    assert seen.calls == EXPECTED["crash"] * 2
