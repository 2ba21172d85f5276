"""What runs are called, and the tags they carry."""

import threading
from datetime import date
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asynctask import flow, tags, task
from asynctask.errors import OptionError
from asynctask.runtime import task_run

# -- names --------------------------------------------------------------------------------------------------------


@task
def name_of_run(x: Any = None, *rest: Any, kw: int = 3, **more: Any) -> str:
    return task_run.name


def test_the_default_name_is_the_tasks_and_a_piece_of_the_run_id() -> None:
    @task(name="work")
    def both() -> tuple[str, Any]:
        return task_run.name, task_run.id

    name, run_id = both()
    assert name.startswith("work-")
    assert name.removeprefix("work-") in str(run_id).replace("-", "")
    assert both()[0] != name


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("fixed", "fixed"),
        ("x={x}", "x=2024-02-03"),
        ("{x:%A}", "Saturday"),
        ("{x.year}/{kw:>4}", "2024/   3"),
        ("{x!r:.13}", "datetime.date"),
        ("{{x}} {rest} {more[k]}", "{x} (7,) v"),
    ],
)
def test_a_name_may_be_a_format_string_over_all_parameters(template: str, expected: str) -> None:
    named = name_of_run.with_options(task_run_name=template)
    assert named(date(2024, 2, 3), 7, k="v") == expected
    assert named.submit(date(2024, 2, 3), 7, k="v").result(20) == expected


def test_a_name_is_made_from_resolved_parameters() -> None:
    value = task(lambda: 5).submit()
    assert name_of_run.with_options(task_run_name="{x[0]}").submit([value]).result(20) == "5"


def test_a_name_may_be_a_function_of_nothing_or_of_the_parameters() -> None:
    assert name_of_run.with_options(task_run_name=lambda: "made")() == "made"
    named = name_of_run.with_options(task_run_name=lambda parameters: "-".join(map(str, parameters.values())))
    assert named(1, 2, k=4) == "1-(2,)-3-{'k': 4}"
    assert named.submit(1).result(20) == "1-()-3-{}"


def test_a_name_is_made_once_and_kept_over_retries() -> None:
    made: list[int] = []
    names: list[str] = []

    def name() -> str:
        made.append(1)
        return f"name {len(made)}"

    @task(task_run_name=name, retries=2)
    def flaky() -> None:
        names.append(task_run.name)
        if len(names) < 3:
            raise OSError

    flaky()
    assert names == ["name 1"] * 3
    assert made == [1]


async def test_names_of_every_kind_of_task_and_of_futures() -> None:
    @task(task_run_name="a{x}")
    async def aname(x: int) -> str:
        return task_run.name

    @task(task_run_name="g{x}")
    def gname(x: int) -> Any:
        yield task_run.name

    @task(task_run_name="ag{x}")
    async def agname(x: int) -> Any:
        yield task_run.name

    assert await aname(1) == "a1"
    assert list(gname(2)) == ["g2"]
    assert [name async for name in agname(3)] == ["ag3"]
    future = aname.submit(4)
    assert await future == "a4"
    assert future.name == "a4"


class BrokenRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


@pytest.mark.parametrize(
    ("run_name", "argument", "cause"),
    [
        ("{x.nope}", 1, AttributeError),
        ("{x[k]}", {}, KeyError),
        ("{x:%Z%Z}", 1, ValueError),
        ("{x}", BrokenRepr(), RuntimeError),
        (lambda: 1 / 0, 1, ZeroDivisionError),
    ],
    ids=["attribute", "key", "format", "repr", "function"],
)
def test_a_name_that_cannot_be_made_fails_the_run_naming_the_option(run_name: Any, argument: Any, cause: Any) -> None:
    named = name_of_run.with_options(task_run_name=run_name)
    with pytest.raises(OptionError, match=r"'name_of_run': option 'task_run_name' could not make a name") as caught:
        named(argument)
    assert isinstance(caught.value.__cause__, cause)
    state = named(argument, return_state=True)
    assert state.is_failed()
    with pytest.raises(OptionError):
        named.submit(argument).result(20)


@pytest.mark.parametrize("made", [5, None, b"x"])
def test_a_name_function_must_give_a_string(made: Any) -> None:
    with pytest.raises(OptionError, match=f"must give a string, not {type(made).__name__}"):
        name_of_run.with_options(task_run_name=lambda: made)()


def test_a_parameter_with_a_broken_repr_hurts_nobody_without_a_template() -> None:
    assert name_of_run(BrokenRepr()).startswith("name_of_run-")
    assert name_of_run.submit(BrokenRepr()).result(20).startswith("name_of_run-")


# -- tags ---------------------------------------------------------------------------------------------------------


@task
def my_tags() -> list[str]:
    return sorted(task_run.tags)


@task
async def my_atags() -> list[str]:
    await anyio.sleep(0)
    return sorted(task_run.tags)


def test_tags_of_the_decorator_and_of_enclosing_blocks_are_joined() -> None:
    tagged = my_tags.with_options(tags=["own"])
    with tags("a", "b") as outer:
        assert outer == {"a", "b"}
        with tags("b", "c") as inner:
            assert inner == {"a", "b", "c"}
            assert tagged() == ["a", "b", "c", "own"]
        assert tagged() == ["a", "b", "own"]
    assert tagged() == ["own"]
    assert my_tags() == []


def test_tags_end_with_their_block_also_when_it_raises() -> None:
    with pytest.raises(LookupError), tags("a"):
        raise LookupError
    assert my_tags() == []


async def test_submitted_runs_have_the_tags_of_where_they_were_submitted() -> None:
    with tags("a"):
        futures = [my_tags.submit(), my_atags.submit(), *my_tags.map([]), *my_atags.map([])]
        direct = await my_atags()
    assert direct == ["a"]
    assert [await future for future in futures] == [["a"], ["a"]]


async def test_tags_reach_what_runs_start_in_turn_in_threads_and_on_the_loop() -> None:
    @task
    def parent() -> Any:
        with tags("inner"):
            return my_tags(), my_tags.submit().result(20), my_atags.submit().result(20)

    @task
    async def aparent() -> Any:
        with tags("inner"):
            return my_tags(), await my_tags.submit(), await my_atags.submit()

    with tags("outer"):
        one, two = parent.submit(), aparent.submit()
    expected = (["inner", "outer"],) * 3
    assert await one == expected
    assert await two == expected


def test_tags_reach_flows_and_what_they_start() -> None:
    @flow
    def whole() -> Any:
        with tags("inside"):
            return my_tags.submit()

    with tags("outside"):
        assert whole() == ["inside", "outside"]


def test_tags_of_a_run_are_not_those_of_its_children() -> None:
    @task(tags=["parent"])
    def parent() -> list[str]:
        return my_tags()

    assert parent() == []


def test_threads_that_the_user_starts_have_tags_of_their_own() -> None:
    seen: dict[str, list[str]] = {}
    together = threading.Barrier(4)

    def work(name: str) -> None:
        together.wait(20)
        with tags(name):
            together.wait(20)
            seen[name] = my_tags()
        assert my_tags() == []

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {str(number): [str(number)] for number in range(4)}


async def test_tags_follow_the_context_into_a_thread_of_anyio() -> None:
    with tags("a"):
        assert await anyio.to_thread.run_sync(my_tags) == ["a"]


async def test_one_tags_object_may_be_used_by_many_tasks_at_once_and_inside_itself() -> None:
    shared = tags("shared")
    inside = [anyio.Event() for _ in range(3)]
    seen: list[Any] = []

    async def use(number: int) -> None:
        with shared:
            inside[number].set()
            await inside[(number + 1) % 3].wait()
            with tags(str(number)), shared:
                seen.append(await my_atags())
        assert await my_atags() == []

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(use, number)
    assert sorted(seen) == [[str(number), "shared"] for number in range(3)]
    with shared, shared:
        assert my_tags() == ["shared"]
    assert my_tags() == []


@pytest.mark.parametrize("wrong", ["", 5, None, ["a"]])
def test_tags_are_strings_that_are_not_empty(wrong: Any) -> None:
    with pytest.raises(OptionError, match="tags"):
        tags("a", wrong)
