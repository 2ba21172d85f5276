"""What an editor shows for futures, lists of them, states, hooks, clients and the runtime."""

from collections.abc import Awaitable, Callable
from typing import Any, assert_type
from uuid import UUID

from asynctask import (
    Runtime,
    State,
    StateType,
    Task,
    TaskFuture,
    TaskFutureList,
    TaskRun,
    as_completed,
    get_client,
    tags,
    task,
    wait,
)
from asynctask.runtime import flow_run, task_run
from asynctask.states import Completed, Failed


@task
def plain(number: int) -> str:
    return str(number)


@task
async def coloured(number: int) -> str:
    return str(number)


async def one(future: TaskFuture[str]) -> None:
    assert_type(await future, str)
    assert_type(future.result(), str)
    assert_type(future.result(timeout=1.5), str)
    assert_type(await future.result_async(timeout=1), str)
    assert_type(future.wait(), State | None)
    assert_type(await future.wait_async(1), State | None)
    assert_type(future.state, State)
    assert_type(future.get_state(), State)
    assert_type(future.task_run_id, UUID)
    assert_type(future.done(), bool)
    assert_type(future.cancel(), bool)
    awaitable: Awaitable[str] = future
    callback: Callable[[TaskFuture[str]], None] = print
    future.add_done_callback(callback)
    future.add_done_callback(lambda ended: print(assert_type(ended, TaskFuture[str])))
    print(awaitable)


async def several(futures: TaskFutureList[str]) -> None:
    assert_type(await futures, list[str])
    assert_type(futures.result(), list[str])
    assert_type(await futures.result_async(), list[str])
    assert_type(futures[0], TaskFuture[str])
    for future in futures:
        assert_type(future, TaskFuture[str])
    for future in as_completed(futures):
        assert_type(future.result(), str)
    async for future in as_completed([plain.submit(1), coloured.submit(2)], timeout=3):
        assert_type(await future, str)
    done, not_done = wait(futures, timeout=1)
    assert_type(done, set[TaskFuture[str]])
    assert_type(not_done, set[TaskFuture[str]])
    assert_type(wait([plain.submit(1)]).done, set[TaskFuture[str]])


def of_several_tasks(number: TaskFuture[int], text: TaskFuture[str]) -> None:
    """Futures of different tasks are waited for together, and stand where one of something wider is asked for."""
    for future in as_completed([number, text]):
        print(future.result())
    print(wait([number, text]).not_done, wait({number: "a", text: "b"}).done, wait((number, text), timeout=1))
    wider: TaskFuture[int | str] = number
    print(wider)


def of_a_state(state: State) -> None:
    assert_type(state.type, StateType)
    assert_type(state.name, str)
    assert_type(state.message, str)
    assert_type(state.is_completed(), bool)
    assert_type(state.is_final(), bool)
    assert_type(Completed(data=1, message="done"), State)
    assert_type(Failed(message="no"), State)


@plain.on_completion
def told(task: Task[..., str], run: Any, state: State) -> int:
    return len(f"{task}{run}{state}")


@coloured.on_failure
async def told_later(task: Any, run: Any, state: State) -> None:
    print(task, run, state)


async def hooks() -> None:
    """A function used as a hook keeps its own type."""
    state = plain.submit(1).state
    assert_type(told(plain, None, state), int)
    assert_type(await told_later(coloured, None, state), None)

    def condition(task: Any, run: Any, state: State) -> bool:
        return bool(task) and bool(run) and state.is_failed()

    async def later(task: Any, run: Any, state: State) -> bool:
        return condition(task, run, state)

    task(retry_condition_fn=condition, on_running=told, on_crashed=[told, told_later])(abs)
    plain.with_options(retry_condition_fn=later, on_cancellation=told_later)


async def the_rest() -> None:
    async with Runtime(name="mine", shutdown_timeout=1) as runtime:
        assert_type(runtime, Runtime)
        assert_type(runtime.runs, list[TaskRun])
    with tags("a", "b") as joined:
        assert_type(joined, frozenset[str])
    async with get_client() as client:
        assert_type((await client.create_concurrency_limit("a", 3)).concurrency_limit, int)
        assert_type(await client.read_task_runs(), list[TaskRun])
    with get_client(sync_client=True) as sync_client:
        assert_type(sync_client.read_concurrency_limit_by_tag("a").tag, str)
        assert_type(sync_client.read_task_run("an id").state, State)
    assert_type(task_run.name, str | None)
    assert_type(flow_run.flow_name, str | None)
