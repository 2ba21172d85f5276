"""What must not pass: each line is wrong, and one of the two checkers' comments would be reported if it were not told.

`submit` and `map` take futures in the place of any value, so their arguments are not checked here but at the call.
"""

from typing import Any, TypeVar, assert_type

from asynctask import Runtime, State, TaskFuture, as_completed, flow, get_client, task
from asynctask.states import Completed


@task
def plain(number: int) -> str:
    return str(number)


@task
async def coloured(number: int) -> str:
    return str(number)


@flow
def whole(number: int) -> str:
    return str(number)


class Shelf:
    @task
    async def method(self, number: int) -> str:
        return str(number)


async def wrong_calls(shelf: Shelf, future: TaskFuture[int]) -> None:
    plain("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain(nummer=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain(future)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await coloured("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await shelf.method("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await shelf.method(shelf, 1)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    whole("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.with_options(retries=1)("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def wrong_colours(future: TaskFuture[int]) -> None:
    await plain(1)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    number: int = coloured(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    text: str = await future  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    more: str = future.result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    mapped: list[int] = await coloured.map([1])  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    for ended in as_completed([future]):
        text = ended.result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    coloured(1)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    print(number, text, more, mapped)


def wrong_options() -> None:
    task(retrys=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    task(retries="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(tags=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(retry_on=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    task(flow_run_name="a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    flow(task_run_name="a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    plain.with_options(timeout_seconds="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.with_options(retrys=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain.stream([1])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain.stream([1], 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Runtime(shutdown_timeout="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    get_client(sync_client=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


@plain.on_failure  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
def too_few(state: State) -> None:
    print(state)


def wrong_states(state: State, run: Any) -> None:
    state.name = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    Completed(value=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    task(on_failure=too_few)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def right_but_refused() -> None:
    """The price of clear messages for every wrong call: `__call__` has no overloads, so its own keywords are unknown.

    Who checks types strictly has the same, typed, from `plain.submit(1, wait_for=[...]).wait()`.
    """
    plain(1, return_state=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain(1, wait_for=[])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


T = TypeVar("T")


class Desk:
    @classmethod
    @task
    def made(cls, number: int) -> str:
        return str(number)


@task
def same(value: T) -> T:
    return value


def right_but_refused_by_the_checkers() -> None:
    """What they cannot tell apart: `cls` and `self`, when the class is asked; to mypy, a T and a coroutine."""
    Desk.made(1)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    assert_type(Desk().made(1), str)
    same(1)  # type: ignore[arg-type]
