"""What can be decorated, what cannot, and what a decorated function is known as."""

import functools
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asynctask import flow, task
from asynctask.errors import OptionError, ReservedArgumentError

# -- what is refused ----------------------------------------------------------------------------------------------


def wait_for_first(wait_for: int) -> None: ...


def return_state_later(x: int, *, return_state: bool = False) -> None: ...


async def wait_for_async(x: int, wait_for: Any = None) -> None: ...


def wait_for_generator(wait_for: int) -> Any:
    yield wait_for


def wait_for_rest(*wait_for: int) -> None: ...


class WithReserved:
    def __call__(self, return_state: bool) -> None: ...


@pytest.mark.parametrize(
    ("fn", "name", "reserved"),
    [
        (wait_for_first, "wait_for_first", "wait_for"),
        (return_state_later, "return_state_later", "return_state"),
        (wait_for_async, "wait_for_async", "wait_for"),
        (wait_for_generator, "wait_for_generator", "wait_for"),
        (wait_for_rest, "wait_for_rest", "wait_for"),
        (WithReserved(), "WithReserved", "return_state"),
        (functools.partial(wait_for_async, 1), "wait_for_async", "wait_for"),
        (staticmethod(wait_for_first), "wait_for_first", "wait_for"),
        (classmethod(return_state_later), "return_state_later", "return_state"),
    ],
    ids=["function", "keyword", "async", "generator", "rest", "object", "partial", "static", "class"],
)
def test_reserved_parameter_names_are_refused_at_definition(fn: Any, name: str, reserved: str) -> None:
    message = rf"task '{name}': a parameter may not be called '{reserved}', because .*; rename it"
    with pytest.raises(ReservedArgumentError, match=message):
        task(fn)
    with pytest.raises(ReservedArgumentError, match=message):
        task(retries=1)(fn)
    assert issubclass(ReservedArgumentError, TypeError)


def test_reserved_parameter_names_are_refused_by_flows_too() -> None:
    with pytest.raises(ReservedArgumentError, match=r"flow 'wait_for_first': .*'wait_for'"):
        flow(wait_for_first)


class Tool:
    def use(self) -> None: ...


@pytest.mark.parametrize("what", [task, flow], ids=["task", "flow"])
def test_a_class_is_refused_saying_what_to_decorate_instead(what: Any) -> None:
    message = rf"@{what.__name__} on the class 'Tool': decorate its methods, or an instance with __call__"
    for decorate in (what, what(name="x"), lambda cls: what(cls, retries=1)):
        with pytest.raises(OptionError, match=message):
            decorate(Tool)


@pytest.mark.parametrize("what", [task, flow], ids=["task", "flow"])
@pytest.mark.parametrize(
    "thing", [5, "name", ["list"], {"k": 1}, object()], ids=["int", "str", "list", "dict", "object"]
)
def test_what_cannot_be_called_is_refused(what: Any, thing: Any) -> None:
    message = f"@{what.__name__} needs a function or another callable, not {type(thing).__name__}"
    with pytest.raises(OptionError, match=message):
        what(thing)
    with pytest.raises(OptionError, match=message):
        what()(thing)


def test_what_is_decorated_already_is_refused() -> None:
    made_task, made_flow = task(lambda: 1, name="t"), flow(lambda: 1, name="f")
    for what in (task, flow):
        for made in (made_task, made_flow):
            with pytest.raises(OptionError, match=r"<\w+ '[tf]'> is decorated already; use with_options"):
                what(made)
            with pytest.raises(OptionError, match="is decorated already"):
                what(retries=1)(made)
    with pytest.raises(OptionError, match="is decorated already"):
        task(staticmethod(made_task))  # type: ignore[call-overload]


def test_options_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        task(lambda: 1, 3)  # type: ignore[call-overload]


def test_nothing_is_left_half_decorated_when_a_class_body_fails() -> None:
    with pytest.raises(OptionError, match="task 'work': option 'retries'"):

        class Holder:
            @task(retries=-1)
            def work(self) -> None: ...


# -- around -------------------------------------------------------------------------------------------------------


def test_around_wraps_the_body_the_first_one_outermost() -> None:
    seen: list[str] = []

    def outer(call: Any, run: Any) -> Any:
        seen.append(f"outer {run.task_name}")
        return call() + "!"

    def inner(call: Any, run: Any) -> Any:
        seen.append("inner")
        return call().upper()

    @task(around=[outer, inner])
    def say(word: str) -> str:
        seen.append(word)
        return word

    assert say("hi") == "HI!"
    assert say.submit(word="ho").result(20) == "HO!"
    assert say.fn("hi") == "hi"
    assert seen == ["outer say", "inner", "hi", "outer say", "inner", "ho", "hi"]


async def test_around_an_async_task_may_be_async_or_plain() -> None:
    async def outer(call: Any, run: Any) -> Any:
        return await call() + "!"

    def inner(call: Any, run: Any) -> Any:
        return call()

    @task(around=(outer, inner))
    async def say(word: str) -> str:
        return word

    assert await say("hi") == "hi!"
    assert await say.submit("hi") == "hi!"
    assert await task(say.fn, around=inner)("hi") == "hi"


def test_around_is_inside_each_attempt_and_may_fail_it_or_skip_it() -> None:
    attempts: list[int] = []

    def flaky(call: Any, run: Any) -> Any:
        attempts.append(run.run_count)
        if run.run_count < 3:
            raise OSError("not yet")
        return "instead"

    @task(around=flaky, retries=2)
    def never() -> str:
        raise AssertionError("skipped")

    assert never() == "instead"
    assert attempts == [1, 2, 3]


def test_around_that_does_not_fit_the_task_is_refused() -> None:
    async def awaited(call: Any, run: Any) -> Any: ...

    with pytest.raises(OptionError, match=r"task 'work': option 'around' has the async function 'awaited', .* sync"):

        @task(around=awaited)
        def work() -> None: ...

    with pytest.raises(OptionError, match="task 'values': option 'around' cannot be used with a generator"):

        @task(around=lambda call, run: call())
        def values() -> Any:
            yield 1


def test_with_options_can_replace_and_clear_around() -> None:
    made = task(lambda: "x", around=lambda call, run: call() + "1")
    assert made() == "x1"
    assert made.with_options(around=lambda call, run: call() + "2")() == "x2"
    assert made.with_options(around=None)() == "x"


# -- colours and keys ---------------------------------------------------------------------------------------------


def test_a_plain_wrapper_around_an_async_function_says_what_is_wrong() -> None:
    async def inner() -> int:
        return 1

    @functools.wraps(inner)
    def wrapper() -> Any:
        return inner()

    with pytest.raises(TypeError, match="make the function async if it is not"):
        task(wrapper)()


async def test_a_task_around_an_async_wrapper_is_async() -> None:
    async def inner() -> int:
        return 1

    @functools.wraps(inner)
    async def wrapper() -> int:
        return await inner() + 1

    assert await task(wrapper)() == 2


def test_an_async_task_looks_async_to_those_who_ask_from_python_3_12_on() -> None:
    @task
    async def work() -> None: ...

    @task
    def plain() -> None: ...

    assert inspect.iscoroutinefunction(work) is (sys.version_info >= (3, 12))
    assert inspect.iscoroutinefunction(inspect.unwrap(work))
    assert not inspect.iscoroutinefunction(plain)


KEYS = """
from asynctask import task

class Shop:
    @task
    def buy(self): ...

@task
def buy(): ...

@task(name="named", tags=["x"], retries=3)
async def other(): ...

if __name__ == "__main__":
    for made in (Shop.buy, buy, other, other.with_options(name="again")):
        print(made.task_key)
"""


def test_keys_are_the_same_in_every_process_and_for_main(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(KEYS)
    imported = "import shop; print(*[t.task_key for t in (shop.Shop.buy, shop.buy, shop.other)], sep='\\n')"
    outputs = [
        subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
        for args in (["shop.py"], ["-m", "shop"], ["-c", imported])
    ]
    assert outputs[0] == outputs[1]
    assert outputs[2] == outputs[0][:3]
    assert len(set(outputs[0])) == 4
    (tmp_path / "shop.py").write_text(KEYS.replace("def buy(): ...", "def buy():\n    return 'edited'"))
    edited = subprocess.run([sys.executable, "shop.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert edited.stdout.split() == outputs[0]
