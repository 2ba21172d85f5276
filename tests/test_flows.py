"""Flows: parameters checked, the final state, and that nothing outlives its flow."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import msgspec
import pydantic
import pydantic.dataclasses
import pytest

from asynctask import State, TaskFuture, allow_failure, flow, get_client, task
from asynctask.errors import (
    FailedRun,
    OptionError,
    ParameterBindError,
    ParameterValidationError,
    TaskTimeoutError,
    UpstreamTaskError,
)
from asynctask.states import Completed, Failed
from testkit import until


@task
async def double(x: int) -> int:
    await anyio.sleep(0)
    return x * 2


@task
def triple(x: int) -> int:
    return x * 3


@task
async def fails() -> None:
    raise ValueError("no")


@task
async def forever() -> None:
    await anyio.sleep(60)


# -- parameters ----------------------------------------------------------------------------------------------------


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Model(pydantic.BaseModel):
    count: int


@dataclasses.dataclass
class Plain:
    name: str


@pydantic.dataclasses.dataclass
class PydanticPlain:
    size: int


class Custom:
    pass


@pytest.mark.parametrize(
    ("annotation", "given", "wanted"),
    [
        (int, "3", 3),
        (float, 1, 1.0),
        (bool, "true", True),
        (list[int], ("1", 2), [1, 2]),
        (dict[str, int], {"a": "1"}, {"a": 1}),
        (int | None, None, None),
        (Literal["a", "b"], "a", "a"),
        (datetime, "2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (Point, {"x": "1"}, Point(1, 0)),
        (Plain, {"name": "n"}, Plain("n")),
        (list[Plain], [Plain("n")], [Plain("n")]),
        (Annotated[int, msgspec.Meta(gt=0)], "5", 5),
        (Model, {"count": "3"}, Model(count=3)),
        (list[Model], [{"count": 1}], [Model(count=1)]),
        (Model | None, {"count": 1}, Model(count=1)),
        (Annotated[int, pydantic.Field(gt=0)], "5", 5),
        (Any, object, object),
    ],
    ids=str,
)
def test_arguments_become_what_their_annotation_says(annotation, given, wanted):
    def body(value):
        return [value]

    body.__annotations__ = {"value": annotation}
    assert flow(body)(given) == [wanted]
    assert flow(body)(value=given) == [wanted]


@pytest.mark.parametrize(
    ("annotation", "given"),
    [
        (int, "three"),
        (list[int], [1, "x"]),
        (Literal["a", "b"], "c"),
        (Point, {"y": 1}),
        (Model, {"count": "many"}),
        (Custom, 3),
        (Annotated[int, msgspec.Meta(gt=0)], -1),
        (Annotated[int, pydantic.Field(gt=0)], -1),
        (list[pydantic.PositiveInt], [1, -1]),
        (PydanticPlain, {"size": "x"}),
    ],
    ids=str,
)
def test_an_argument_that_does_not_fit_is_refused_before_there_is_a_run(annotation, given):
    ran = []

    def strict(value):
        ran.append(value)

    strict.__annotations__ = {"value": annotation}
    with pytest.raises(ParameterValidationError, match=r"flow 'strict'.*'value'"):
        flow(strict)(given)
    assert ran == []


def test_an_instance_is_passed_as_it_is_and_a_generator_is_not_consumed():
    custom, plain = Custom(), ["a"]

    @flow
    def take(a: Custom, b: list, c: Iterable[int], d: list[int], e: Callable[[], int]) -> Any:  # type: ignore[type-arg]
        return a is custom, b is plain, list(c), list(d), e()

    squares = (n * n for n in range(3))
    assert take(custom, plain, squares, iter([1, 2]), lambda: 7) == (True, True, [0, 1, 4], [1, 2], 7)


def test_defaults_star_arguments_and_what_cannot_be_resolved_are_left_alone():
    @flow
    def take(a: "NoSuchName", *rest: int, b: int = "default", **more: int) -> Any:  # type: ignore[assignment] # noqa: F821
        return a, rest, b, more

    assert take("1", "2", c="3") == ("1", ("2",), "default", {"c": "3"})


def test_without_validation_arguments_are_passed_as_they_are():
    @flow(validate_parameters=False)
    def take(x: int) -> Any:
        return x

    assert take("3") == "3"  # type: ignore[arg-type]


def test_arguments_that_do_not_fit_the_signature_are_refused_before_there_is_a_run():
    @flow
    async def one(x: int) -> int:
        return x

    with pytest.raises(ParameterBindError, match="'one'"):
        one()  # type: ignore[call-arg]


def test_a_future_as_argument_is_resolved_and_then_checked_as_well():
    @flow
    def inner(x: int) -> Any:
        return x

    @task
    def text(value: str) -> str:
        return value

    @flow
    def outer(value: str) -> Any:
        return inner(text.submit(value))  # type: ignore[arg-type]

    assert outer("3") == 3
    with pytest.raises(ParameterValidationError, match="inner"):
        outer("three")


def test_methods_can_be_flows():
    class Service:
        def __init__(self, base: int) -> None:
            self.base = base

        @flow
        def plus(self, x: int) -> int:
            return self.base + x

    one, two = Service(1).plus, Service(2).plus
    assert (one("1"), two("1")) == (2, 3)


def test_a_generator_function_cannot_be_a_flow():
    with pytest.raises(OptionError, match="generator"):

        @flow
        def values() -> Iterator[int]:
            yield 1


# -- the final state -----------------------------------------------------------------------------------------------


def test_a_plain_value_completes_the_flow():
    @flow
    def plain() -> dict[str, int]:
        return {"a": 1}

    state = plain(return_state=True)
    assert (state.type, state.result()) == ("COMPLETED", {"a": 1})


@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, lambda f: [f], lambda f: {"a": (f, 1)}, lambda f: {"b": [{"c": f}]}],
    ids=["alone", "list", "tuple", "nested"],
)
async def test_futures_anywhere_in_the_return_value_become_their_results(wrap):
    @flow
    async def good() -> Any:
        return wrap(double.submit(2))

    @flow
    async def bad() -> Any:
        return wrap(fails.submit())

    assert await good() == wrap(4)
    state = await bad(return_state=True)
    assert state.is_failed()
    with pytest.raises(ValueError, match="no"):
        state.result()


def test_a_failed_future_that_is_not_returned_does_not_fail_the_flow():
    @flow
    def careless() -> str:
        fails.submit()
        return "done"

    assert careless() == "done"


def test_returned_states_decide_the_final_state():
    def of_states(*several: State) -> Any:
        return flow(lambda: list(several) if len(several) != 1 else several[0])

    assert of_states(Completed(data=3))() == 3
    assert of_states(Completed(data=1), Completed(data=2))() == [1, 2]
    with pytest.raises(FailedRun, match="broken"):
        of_states(Failed(message="broken"))()
    state = of_states(Completed(data=1), Failed(message="x"), Failed(message="y"))(return_state=True)
    assert state.message == "2/3 states failed."


def test_a_returned_failure_that_is_allowed_is_passed_on_as_its_exception():
    @flow
    def lenient() -> Any:
        return allow_failure(fails.submit())

    assert isinstance(lenient(), ValueError)


def test_a_returned_future_that_never_started_fails_the_flow_with_the_cause():
    @flow
    def chain() -> Any:
        return triple.submit(fails.submit())

    with pytest.raises(UpstreamTaskError) as caught:
        chain()
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_exception_fails_the_flow_and_reaches_the_caller():
    @flow
    def raising() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        raising()
    assert raising(return_state=True).is_failed()


# -- retries, timeouts, hooks --------------------------------------------------------------------------------------


async def test_a_flow_is_retried_as_one_run():
    attempts = []

    @flow(retries=2)
    async def flaky() -> int:
        attempts.append(await double.submit(1))
        if len(attempts) < 3:
            raise ValueError("again")
        return len(attempts)

    state = await flaky(return_state=True)
    assert state.result() == 3
    async with get_client() as client:
        run = await client.read_flow_run(state.task_run_id)
        assert run.run_count == 3
        children = await client.read_task_runs(flow_run_id=run.id)
    assert len(children) == 3


def test_a_flow_is_retried_when_what_it_returned_failed():
    attempts = []

    @task
    def flaky() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("once")
        return 7

    @flow(retries=1)
    def again() -> Any:
        return flaky.submit()

    assert again() == 7


@pytest.mark.parametrize("waits", ["in its body", "for its children"])
async def test_the_timeout_of_an_async_flow_ends_its_children_too(waits):
    futures: list[TaskFuture[None]] = []

    @flow(timeout_seconds=0.05)
    async def slow() -> None:
        futures.append(forever.submit())
        await until(lambda: futures[0].state.is_running())
        if waits == "in its body":
            await futures[0]

    state = await slow(return_state=True)
    assert (state.name, state.type) == ("TimedOut", "FAILED")
    assert isinstance(state.data, TaskTimeoutError)
    assert futures[0].state.is_cancelled()


@pytest.mark.parametrize("waits", ["in its body", "for its children"])
def test_the_timeout_of_a_sync_flow_interrupts_its_waiting_and_ends_its_children(waits):
    futures: list[TaskFuture[None]] = []

    @flow(timeout_seconds=0.05)
    def slow() -> None:
        futures.append(forever.submit())
        if waits == "in its body":
            futures[0].result()

    start = time.monotonic()
    assert slow(return_state=True).name == "TimedOut"
    assert time.monotonic() - start < 5
    assert futures[0].state.is_cancelled()


async def test_hooks_of_a_flow():
    seen: list[tuple[str, str]] = []

    def hook(about: str) -> Callable[..., None]:
        def told(flow: Any, run: Any, state: State) -> None:
            assert (flow, run.task_name) == (observed, "observed")
            seen.append((about, state.name))

        return told

    names = ("running", "completion", "failure", "cancellation", "crashed")

    @flow(**{f"on_{name}": hook(name) for name in names})  # type: ignore[arg-type]
    async def observed(what: str) -> None:
        if what == "fail":
            raise ValueError("no")
        if what == "wait":
            await anyio.sleep(60)
        if what == "exit":
            raise SystemExit(3)

    await observed("complete")
    await observed("fail", return_state=True)
    with anyio.move_on_after(0.01):
        await observed("wait")
    try:
        await observed("exit")
    except SystemExit:
        pass
    assert seen == [
        ("running", "Running"), ("completion", "Completed"),
        ("running", "Running"), ("failure", "Failed"),
        ("running", "Running"), ("cancellation", "Cancelled"),
        ("running", "Running"), ("crashed", "Crashed"),
    ]  # fmt: skip


def test_the_name_of_a_flow_run_is_made_of_its_checked_parameters():
    @flow(flow_run_name="on-{day:03d}")
    def daily(day: int) -> State | None:
        return None

    state = daily("7", return_state=True)  # type: ignore[call-arg, arg-type]
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(state.task_run_id).name == "on-007"


def test_a_path_is_made_of_a_string_also_inside_a_list() -> None:
    @flow
    def read(path: Path, others: list[Path]) -> tuple[Path, list[Path]]:
        return path, others

    assert read("a/b", ["c"]) == (Path("a/b"), [Path("c")])  # type: ignore[arg-type]
    with pytest.raises(ParameterValidationError, match=r"flow 'read': parameter 'path'"):
        read(3, [])  # type: ignore[arg-type]


def test_an_argument_that_does_not_fit_is_told_in_one_line_by_either_library():
    @flow
    def counts(number: int, several: list[pydantic.PositiveInt]) -> None: ...

    with pytest.raises(ParameterValidationError) as caught:
        counts("five", [])
    assert str(caught.value) == ("flow 'counts': parameter 'number': Expected `int`, got `str`; it was given 'five'")
    with pytest.raises(ParameterValidationError) as caught:
        counts(5, [1, -2, "x"])
    assert str(caught.value) == (
        "flow 'counts': parameter 'several': 1: Input should be greater than 0; 2: Input should be a valid integer, "
        "unable to parse string as an integer; it was given [1, -2, 'x']"
    )


def test_what_goes_wrong_in_a_flow_is_not_said_of_a_task():
    async def forgotten() -> None: ...

    with pytest.raises(TypeError, match="flow 'careless' returned a coroutine that nobody awaited"):
        flow(name="careless")(lambda: forgotten())()
    with pytest.raises(TimeoutError, match=r"flow 'slow' exceeded its timeout of 0\.01 second"):
        flow(name="slow", timeout_seconds=0.01)(lambda: time.sleep(0.02))()
