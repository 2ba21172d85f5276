"""The blocking port never suspends: whatever its options, a sync call runs its whole life in one `send`.

`drive` raises an `AsyncTaskError` when the engine suspends, so a test here passes when a call ends as it should. The
last tests plant a suspension, to show that it would be seen.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from asynctask import Runtime, State, ThreadPoolTaskRunner, flow, get_client, states, task, transaction
from asynctask.blocking import Blocking, drive
from asynctask.cache_policies import INPUTS
from asynctask.engine import execute, stream
from asynctask.errors import AsyncTaskError, BlockingWaitError, FailedRun, Interrupted
from asynctask.keywords import FlowOptions, TaskOptions
from asynctask.scopes import current_runtime
from asynctask.stores.memory import MemoryStore
from asynctask.testing import VirtualClock
from testkit import limit_of


class Broken(Exception):
    pass


def hook(task: Any, run: Any, state: Any) -> None:
    pass


async def async_hook(task: Any, run: Any, state: Any) -> None:
    pass


def wanted(task: Any, run: Any, state: Any) -> bool:
    return True


async def async_wanted(task: Any, run: Any, state: Any) -> bool:
    return True


def hooks(one: Any) -> dict[str, Any]:
    return {name: [one] for name in ("on_running", "on_completion", "on_failure", "on_cancellation", "on_crashed")}


def transaction_hook(txn: Any) -> None:
    pass


async def async_transaction_hook(txn: Any) -> None:
    pass


SERIALIZABLE = INPUTS.configure(isolation_level="SERIALIZABLE")
RUNNER = ThreadPoolTaskRunner(max_workers=1)
#: Every option, in groups that are switched on and off together. Those of the last row belong to tasks alone.
FEATURES: tuple[dict[str, Any], ...] = (
    {"retries": 2, "retry_delay_seconds": [10, 3600]},
    {"timeout_seconds": 60},
    hooks(hook),
    {"name": "n", "description": "d", "version": "v", "log_prints": True, "task_runner": RUNNER},
    {"persist_result": True, "result_serializer": "pickle"},
    {"validate_parameters": False, "flow_run_name": "{x}"},
)
TASK_FEATURES: tuple[dict[str, Any], ...] = (
    *FEATURES[:-2],
    {"retry_jitter_factor": 0.5, "retry_on": [Broken]},
    {"retry_condition_fn": wanted},
    {"tags": ["limited"]},
    {"task_run_name": "{x}"},
    {"around": lambda call, run: call()},
)
#: What keeps results, beside what meets it in the engine; and, with a file, what is slower than the others.
KEEPING_FEATURES: tuple[dict[str, Any], ...] = (
    {"retries": 2, "retry_delay_seconds": [10, 3600]},
    {"tags": ["limited"]},
    {"persist_result": True, "result_serializer": "pickle"},
    {"cache_policy": SERIALIZABLE, "cache_expiration": 60, "cache_result_in_memory": False},
    {"cache_key_fn": lambda context, parameters: f"key-{parameters['x']}", "refresh_cache": False},
    {"on_commit": transaction_hook, "on_rollback": [transaction_hook, async_transaction_hook]},
)
FILED_FEATURES: tuple[dict[str, Any], ...] = (
    {"result_storage": "results"},
    {"result_storage_key": "{x}", "refresh_cache": True},
)
SLOW_FEATURES: tuple[dict[str, Any], ...] = (
    {"retries": 1},
    {"timeout_seconds": 60},
    hooks(async_hook),
    {"retry_condition_fn": async_wanted},
)


def fine(x: Any) -> Any:
    return x


def broken(x: Any) -> Any:
    raise Broken


def broken_once() -> Callable[[Any], Any]:
    calls: list[Any] = []

    def body(x: Any) -> Any:
        calls.append(x)
        if len(calls) == 1:
            raise Broken
        return x

    return body


def interrupted(x: Any) -> Any:
    raise KeyboardInterrupt


def stateful(x: Any) -> Any:
    return states.Failed(message="told")


BODIES: tuple[Callable[[], Callable[[Any], Any]], ...] = (
    lambda: fine,
    lambda: broken,
    broken_once,
    lambda: interrupted,
    lambda: stateful,
)


def combinations(features: tuple[dict[str, Any], ...]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product((False, True), repeat=len(features)):
        yield {
            option: value
            for feature, is_on in zip(features, chosen, strict=True)
            if is_on
            for option, value in feature.items()
        }


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A runtime for plain code, in which delays take no time and the tag `limited` has one slot."""
    runtime = Runtime(store=MemoryStore(), clock=VirtualClock())
    token = current_runtime.set(runtime)
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit("limited", 1)
    yield runtime
    runtime.close()
    RUNNER.close(5)
    current_runtime.reset(token)
    assert runtime.runs == []
    assert limit_of(runtime, "limited").active_slots == []
    assert limit_of(runtime, "limited").waiting == 0


def ends(call: Callable[[], Any]) -> None:
    """The call gives a value, or raises what its body raised."""
    with contextlib.suppress(Broken, FailedRun, KeyboardInterrupt):
        ended = call()
        assert not isinstance(ended, State) or not ended.is_crashed()


def as_generator(body: Callable[[Any], Any]) -> Callable[[Any], Iterator[Any]]:
    def generator(x: Any) -> Iterator[Any]:
        yield 0
        yield body(x)

    return generator


@pytest.mark.parametrize("features", [TASK_FEATURES, SLOW_FEATURES], ids=["all", "asynchronous"])
@pytest.mark.parametrize("make_body", BODIES, ids=["value", "error", "error once", "interrupt", "state"])
def test_a_task_call_never_suspends(runtime: Runtime, features: Any, make_body: Any) -> None:
    for options in combinations(features):
        t = task(**options)(make_body())
        ends(lambda t=t: t(1))
        ends(lambda t=t: t(1, return_state=True, wait_for=[states.Completed()]))


@pytest.mark.parametrize("features", [KEEPING_FEATURES, FILED_FEATURES], ids=["keeping", "in files"])
@pytest.mark.parametrize("make_body", BODIES, ids=["value", "error", "error once", "interrupt", "state"])
def test_a_task_that_keeps_its_results_never_suspends(
    runtime: Runtime, features: Any, make_body: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, options in enumerate(combinations(features)):
        t = task(name=f"t{number}", **options)(make_body())
        for x in (1, 1, object()):
            ends(lambda t=t, x=x: t(x))
            ends(lambda t=t, x=x: t(x, return_state=True, wait_for=[states.Completed()]))
        with transaction():
            ends(lambda t=t: t(2))


@pytest.mark.parametrize("features", [TASK_FEATURES[:-1], SLOW_FEATURES], ids=["all", "asynchronous"])
@pytest.mark.parametrize("make_body", BODIES[:-1], ids=["value", "error", "error once", "interrupt"])
def test_a_generator_never_suspends(runtime: Runtime, features: Any, make_body: Any) -> None:
    for options in combinations(features):
        t = task(**options)(as_generator(make_body()))
        ends(lambda t=t: list(t(1)))
        ends(lambda t=t: t(1, return_state=True))
        steps = t(1)
        ends(lambda steps=steps: [next(steps), steps.send("sent"), steps.close()])
        thrown_into = t(1)
        next(thrown_into)
        ends(lambda steps=thrown_into: steps.throw(Broken()))


@pytest.mark.parametrize("features", [FEATURES, SLOW_FEATURES[:-1]], ids=["all", "asynchronous"])
@pytest.mark.parametrize("make_body", BODIES, ids=["value", "error", "error once", "interrupt", "state"])
def test_a_flow_call_never_suspends(runtime: Runtime, features: Any, make_body: Any) -> None:
    children = [task(fine), task(broken)]
    for options in combinations(features):
        body = make_body()

        def with_children(x: Any, body: Callable[[Any], Any] = body) -> Any:
            for child in children:
                child.submit(x)
            return body(x)

        f = flow(**options)(with_children)
        ends(lambda f=f: f(1))
        ends(lambda f=f: f(1, return_state=True))


def test_every_option_is_in_the_tables_above() -> None:
    """A new option has to be added there, and so is tried."""
    of_tasks = (*TASK_FEATURES, *KEEPING_FEATURES, *FILED_FEATURES)
    assert {option for feature in of_tasks for option in feature} == set(TaskOptions.__annotations__)
    assert {option for feature in FEATURES for option in feature} == set(FlowOptions.__annotations__)


def test_execute_and_stream_end_with_their_first_send(runtime: Runtime) -> None:
    """The same at the seam itself: the first `send` of the coroutine is its last."""
    run = task(fine)._new_run((1,), {})
    with pytest.raises(StopIteration) as ended:
        execute(run, runtime.blocking_port).send(None)
    assert ended.value.value == 1
    steps = stream(task(as_generator(fine))._new_run((1,), {}), runtime.blocking_port)
    assert [drive(steps.asend(None)), drive(steps.asend(None))] == [0, 1]
    with pytest.raises(StopAsyncIteration):
        drive(steps.asend(None))


# -- where there is something to wait for, the thread is blocked ----------------------------------------------------


def test_an_upstream_under_way_is_waited_for_in_place(runtime: Runtime) -> None:
    go = threading.Event()
    upstream = task(go.wait).submit(10)
    threading.Timer(0.02, go.set).start()
    assert task(fine)([upstream]) == [True]
    assert task(fine)(1, wait_for=[upstream]) == 1


def test_a_taken_slot_is_waited_for_in_place(runtime: Runtime) -> None:
    begun, go = threading.Event(), threading.Event()

    @task(tags=["limited"])
    def hold() -> None:
        begun.set()
        go.wait(10)

    holder = hold.submit()
    assert begun.wait(10)
    threading.Timer(0.02, go.set).start()
    assert task(tags=["limited"])(fine)(1) == 1
    assert holder.result() is None


def test_a_flow_waits_for_its_children_in_place(runtime: Runtime) -> None:
    go = threading.Event()
    ended: list[Any] = []

    @task
    def child() -> None:
        go.wait(10)
        ended.append(1)

    @flow
    def outer() -> None:
        child.submit()
        threading.Timer(0.02, go.set).start()

    outer()
    assert ended == [1]


def test_a_flow_that_fails_waits_for_the_end_of_its_children_in_place(runtime: Runtime) -> None:
    begun, interrupted = threading.Event(), threading.Event()

    @task
    def child() -> None:
        begun.set()
        try:
            while True:
                time.sleep(0.002)
        except Interrupted:
            interrupted.set()
            raise

    @flow
    def outer() -> None:
        child.submit()
        assert begun.wait(10)
        raise Broken

    with pytest.raises(Broken):
        outer()
    assert interrupted.wait(20)
    assert runtime.runs == []


async def test_on_a_loop_what_would_block_it_is_refused() -> None:
    """An inline call that would have to wait for the very loop says so, instead of suspending or hanging."""
    async with Runtime(store=MemoryStore()) as runtime:
        runtime.limits.set("tag:one", 1)
        begun, go = anyio.Event(), anyio.Event()

        @task(tags=["one"])
        async def hold() -> None:
            begun.set()
            await go.wait()

        holder = hold.submit()
        await begun.wait()
        with pytest.raises(BlockingWaitError, match="submit"):
            task(fine)([holder])
        with pytest.raises(BlockingWaitError, match="submit"):
            task(tags=["one"])(fine)(1)
        go.set()
        await holder
        assert limit_of(runtime, "one").active_slots == []
        assert task(tags=["one"])(fine)(1) == 1


# -- the proof that it would be seen --------------------------------------------------------------------------------


class Suspends:
    def __await__(self) -> Iterator[None]:
        yield


async def suspend(*_: Any) -> None:
    await Suspends()


@pytest.mark.parametrize(
    ("method", "options"),
    [("sleep", {"retries": 1}), ("call_hooks", hooks(hook)), ("until_settled", {})],
    ids=["sleep", "hooks", "upstream"],
)
def test_a_port_that_suspends_is_found_out(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, Any]
) -> None:
    upstream = task(threading.Event().wait).submit(0.05)
    monkeypatch.setattr(Blocking, method, suspend)
    with pytest.raises(AsyncTaskError, match="suspended"):
        task(**options)(broken)([upstream] if method == "until_settled" else 1)
