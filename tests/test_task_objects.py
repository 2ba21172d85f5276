"""A task as an object: its names, key and description, `with_options`, hook decorators, and calls that do not fit."""

import inspect
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asynctask import Task, task
from asynctask.errors import OptionError, ParameterBindError, RunError
from asynctask.runtime import task_run
from asynctask.states import Completed, Failed


@task
def double(x: int) -> int:
    return x * 2


@task
async def adouble(x: int) -> int:
    await anyio.sleep(0)
    return x * 2


@task
def count(n: int) -> Iterator[int]:
    yield from range(n)


@task
async def acount(n: int) -> Any:
    for i in range(n):
        await anyio.sleep(0)
        yield i


@task
def broken(x: int = 0) -> int:
    raise LookupError(f"no {x}")


# -- options, names and keys of a task ----------------------------------------------------------------------------


def test_a_bare_decorator_one_with_options_and_a_call_make_the_same_task() -> None:
    def work() -> int:
        return 1

    for made in (task(work), task()(work), task(work, retries=2), task(retries=2)(work)):
        assert made() == 1
        assert made.fn is work
        assert made.name == "work"


def test_fn_is_the_plain_function_and_makes_no_run() -> None:
    @task
    def inside() -> Any:
        return task_run.id

    assert inside() is not None
    assert inside.fn() is None


def test_a_task_looks_like_its_function() -> None:
    assert double.__name__ == "double"
    assert double.__module__ == __name__
    assert inspect.signature(double) == inspect.signature(double.fn)
    assert repr(double) == "<Task 'double'>"


def test_the_description_is_the_docstring_unless_given() -> None:
    @task
    def documented() -> None:
        """Does it.

        And more.
        """

    assert documented.description == "Does it.\n\nAnd more."
    assert documented.with_options(description="other").description == "other"
    assert task(lambda: None).description is None


def test_the_task_key_is_stable_and_follows_names_not_code() -> None:
    def make(value: int) -> Task[[], int]:
        @task
        def same() -> int:
            return value

        return same

    assert make(1).task_key == make(2).task_key
    assert make(1).task_key != make(1).with_options(name="other").task_key
    assert make(1).task_key == make(1).with_options(retries=3, tags=["a"]).task_key
    assert double.task_key != adouble.task_key
    assert double.task_key.startswith("double-")


def test_with_options_gives_a_changed_copy_and_none_clears() -> None:
    first = double.with_options(retries=2, timeout_seconds=5, tags=["a"], version="1")
    assert (first.retries, first.timeout_seconds, first.tags, first.version) == (2, 5.0, {"a"}, "1")
    second = first.with_options(timeout_seconds=None, tags=["b"])
    assert (second.retries, second.timeout_seconds, second.tags) == (2, None, {"b"})
    third = second.with_options(name="twice", tags=None, retries=None)
    assert (third.name, third.tags, third.retries) == ("twice", frozenset(), None)
    assert (double.name, double.tags, double.retries) == ("double", frozenset(), None)
    assert (first(2), second(2), third(2)) == (4, 4, 4)


def test_with_options_clears_hooks_and_keeps_those_of_decorators() -> None:
    seen: list[str] = []
    first = double.with_options(on_completion=[lambda t, r, s: seen.append("option")])

    @first.on_completion
    def decorated(t: Any, r: Any, s: Any) -> None:
        seen.append("decorator")

    first(1)
    assert seen == ["option", "decorator"]
    first.with_options(retries=1)(1)
    assert seen == ["option", "decorator"] * 2
    first.with_options(on_completion=None)(1)
    assert seen == ["option", "decorator"] * 2


def test_a_hook_decorator_adds_to_its_own_task_only_and_gives_the_function_back() -> None:
    seen: list[str] = []
    first, second = broken.with_options(name="first"), broken.with_options(name="second")

    def note(t: Any, r: Any, s: Any) -> None:
        seen.append(f"{t.name} {s.name}")

    assert first.on_failure(note) is note
    for each in (first, second, broken):
        each(return_state=True)
    assert seen == ["first Failed"]


async def test_every_hook_has_a_decorator() -> None:
    seen: list[str] = []

    @task
    async def ends(how: BaseException | None) -> None:
        if how is not None:
            raise how

    for event in ("running", "completion", "failure", "cancellation", "crashed"):
        getattr(ends, f"on_{event}")(lambda t, r, s, event=event: seen.append(event))
    with pytest.raises(OptionError, match="on_failure"):
        ends.on_failure("not a function")  # type: ignore[arg-type]
    await ends(None)
    await ends(ValueError(), return_state=True)
    with pytest.raises(SystemExit):
        await ends(SystemExit())
    assert seen == ["running", "completion", "running", "failure", "running", "crashed"]


# -- calls that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2), {}), ((1,), {"y": 2}), ((), {"y": 2}), ((1,), {"x": 2})],
)
def test_arguments_that_do_not_fit_are_refused_before_any_run_is_made(args: Any, kwargs: Any) -> None:
    hooks: list[Any] = []
    for each in (double, adouble, count, acount):
        seeing = each.with_options(on_failure=[lambda t, r, s: hooks.append(s)])
        for call in (seeing, seeing.submit):
            with pytest.raises(ParameterBindError, match=rf"task '{each.name}': .*its signature is \("):
                call(*args, **kwargs)
    assert hooks == []


def test_parameters_of_every_kind_are_passed_through() -> None:
    @task
    def everything(a: int, /, b: int, *rest: int, c: int, d: int = 4, **more: int) -> Any:
        return a, b, rest, c, d, more

    assert everything(1, 2, 3, c=5, e=6) == (1, 2, (3,), 5, 4, {"e": 6})
    assert everything.submit(1, b=2, c=3).result(20) == (1, 2, (), 3, 4, {})
    with pytest.raises(ParameterBindError, match="'c'"):
        everything(1, 2)


def test_a_parameter_may_be_called_self_or_fn() -> None:
    @task
    def odd(self: int, fn: int = 0, args: int = 0) -> tuple[int, int, int]:
        return self, fn, args

    assert odd(self=1, fn=2, args=3) == (1, 2, 3)
    assert odd.submit(self=1, fn=2, args=3).result(20) == (1, 2, 3)
    assert odd.map(self=[1], fn=[2]).result(20) == [(1, 2, 0)]


# -- states as return values --------------------------------------------------------------------------------------


def test_a_returned_state_becomes_the_runs_state() -> None:
    @task
    def chosen(good: bool) -> Any:
        return Completed(data=7, message="as planned") if good else Failed(message="not today")

    assert chosen(True) == 7
    state = chosen(True, return_state=True)
    assert (state.name, state.message, state.result()) == ("Completed", "as planned", 7)
    with pytest.raises(RunError, match="not today"):
        chosen(False)
    assert chosen(False, return_state=True).message == "not today"


def test_a_coroutine_that_nobody_awaited_fails_the_run_and_is_closed() -> None:
    async def forgotten() -> None: ...

    @task
    def forgets() -> Any:
        return forgotten()

    with pytest.raises(TypeError, match="task 'forgets' returned a coroutine that nobody awaited"):
        forgets()
    with pytest.raises(TypeError, match="nobody awaited"):
        forgets.submit().result(20)


def test_a_task_tells_its_kind_and_its_retries():
    @task(retries=2, retry_delay_seconds=5)
    def plain() -> None: ...

    @task(retries=2, retry_delay_seconds=lambda retries: [1.0] * retries)
    async def later() -> None: ...

    @task
    def values():
        yield 1

    @task
    async def later_values():
        yield 1

    kinds = [(one.isasync, one.isgenerator) for one in (plain, later, values, later_values)]
    assert kinds == [(False, False), (True, False), (False, True), (True, True)]
    assert (plain.retries, plain.retry_delay_seconds) == (2, 5)
    assert later.retry_delay_seconds == [1, 1]
    assert (values.retries, values.retry_delay_seconds, values.timeout_seconds) == (None, None, None)
