"""The cache key of a run: what it is made of, and why there may be none."""

import logging
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from asynctask.cache_keys import MOST_CHARACTERS, compute_key, prepare, task_input_hash
from asynctask.cache_policies import (
    DEFAULT,
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    RUN_ID,
    TASK_SOURCE,
    CacheContext,
    CachePolicy,
)
from asynctask.errors import CacheKeyError, HashError, OptionError
from asynctask.options import Options
from asynctask.runs import Run
from asynctask.specs import TaskSpec, make_spec
from asynctask.states import PENDING, State


def spec_of(
    fn: Callable[..., Any], policy: Any = None, key_fn: Any = None, *, what: str = "task", name: str = "t"
) -> TaskSpec:
    return make_spec(what, fn, Options(name=name, cache_policy=policy, cache_key_fn=key_fn))


def run_of(spec: TaskSpec, *args: Any, flow: Run | None = None, number: int = 5, **kwargs: Any) -> Run:
    return Run(
        spec, number, (State(PENDING, "Pending", 1.0),), frozenset(), None, None if flow is None else flow.number,
        args=args, kwargs=kwargs, flow=flow,
    )  # fmt: skip


def key_of(run: Run) -> str:
    key, problem = compute_key(run)
    assert problem is None
    assert key is not None
    return key


def why_not(run: Run) -> Exception:
    key, problem = compute_key(run)
    assert key is None
    assert problem is not None
    return problem


def add(x: Any, y: Any = 1, *, scale: Any = 1) -> Any:
    return x + y


def other_add(x: Any, y: Any = 1, *, scale: Any = 1) -> Any:
    return x + y


def many(x: Any, *rest: Any, flag: bool = False, **named: Any) -> None: ...


def nothing() -> None: ...


def fail(context: CacheContext, parameters: dict[str, Any]) -> str:
    raise RuntimeError("no key today")


# What makes a key -----------------------------------------------------------------------------------------------------


def test_one_call_has_one_key_however_it_is_written() -> None:
    spec = spec_of(add, INPUTS)
    keys = {
        key_of(run)
        for run in (
            run_of(spec, 1),
            run_of(spec, 1, 1),
            run_of(spec, x=1),
            run_of(spec, y=1, x=1),
            run_of(spec, 1, scale=1),
            run_of(spec, 1, y=1, scale=1, number=6),
        )
    }
    assert len(keys) == 1
    others = [run_of(spec, 2), run_of(spec, 1, 2), run_of(spec, 1, scale=2), run_of(spec, 1.0), run_of(spec, [1])]
    assert len(keys | {key_of(run) for run in others}) == 6


def test_calls_with_any_number_of_arguments_have_keys_too() -> None:
    spec = spec_of(many, INPUTS)
    calls = [
        *(run_of(spec, 1), run_of(spec, 1, 2), run_of(spec, 1, 2, 3), run_of(spec, 1, (2, 3)), run_of(spec, 1, a=2)),
        *(run_of(spec, 1, b=2), run_of(spec, 1, flag=True), run_of(spec, x=2)),
    ]
    assert len({key_of(run) for run in calls}) == len(calls)
    assert key_of(run_of(spec, 1, a=1, b=2)) == key_of(run_of(spec, 1, b=2, a=1, flag=False))


@pytest.mark.parametrize("policy", [INPUTS, INPUTS - "y", INPUTS + FLOW_PARAMETERS, INPUTS + TASK_SOURCE], ids=repr)
def test_two_tasks_with_equal_inputs_do_not_meet(policy: CachePolicy) -> None:
    for value in (1, [1]):
        keys = [
            key_of(run_of(spec_of(add, policy), value)),
            key_of(run_of(spec_of(other_add, policy), value)),
            key_of(run_of(spec_of(add, policy, name="u"), value)),
        ]
        assert len(set(keys)) == 3
        assert key_of(run_of(spec_of(add, policy), value)) == keys[0]


def test_run_id_is_the_flow_run_or_else_the_task_run() -> None:
    spec = spec_of(add, RUN_ID)
    flow = run_of(spec_of(nothing, what="flow"), number=100)
    again = run_of(spec_of(nothing, what="flow"), number=101)
    assert key_of(run_of(spec, 1, flow=flow, number=1)) == key_of(run_of(spec, 2, flow=flow, number=2))
    assert key_of(run_of(spec, 1, flow=flow)) != key_of(run_of(spec, 1, flow=again))
    assert key_of(run_of(spec, 1, number=1)) != key_of(run_of(spec, 1, number=2))


def test_flow_parameters_are_those_of_the_flow() -> None:
    spec, flow_spec = spec_of(add, FLOW_PARAMETERS), spec_of(add, what="flow")
    flow = run_of(flow_spec, 1)
    assert key_of(run_of(spec, 1, flow=flow)) == key_of(run_of(spec, 2, flow=run_of(flow_spec, x=1, y=1)))
    assert key_of(run_of(spec, 1, flow=flow)) != key_of(run_of(spec, 1, flow=run_of(flow_spec, 2)))
    assert compute_key(run_of(spec, 1)) == (None, None)
    assert compute_key(run_of(spec, 1, flow=run_of(spec_of(nothing, what="flow")))) == (None, None)
    locked = run_of(flow_spec, threading.Lock())
    assert "flow parameter 'x'" in str(why_not(run_of(spec, 1, flow=locked)))


def test_no_policy_no_cache_and_no_inputs_give_no_key_and_no_reason() -> None:
    for spec in (spec_of(add), spec_of(add, NO_CACHE)):
        assert compute_key(run_of(spec, 1)) == (None, None)
    assert compute_key(run_of(spec_of(nothing, INPUTS))) == (None, None)


def test_task_source_is_the_text_at_definition(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "sourced.py"

    def load(text: str) -> TaskSpec:
        file.write_text(text)
        sys.modules.pop("sourced", None)
        spec = __import__("importlib.util").util.spec_from_file_location("sourced", file)
        module = __import__("importlib.util").util.module_from_spec(spec)
        exec(compile(text, str(file), "exec"), module.__dict__)
        made = spec_of(module.work, TASK_SOURCE)
        prepare(made)
        return made

    first = load("def work(x):\n    return x + 1\n")
    before = key_of(run_of(first, 1))
    same = load("def work(x):\n    return x + 1\n")
    changed = load("def work(x):\n    return x + 2222\n")
    assert before == key_of(run_of(same, 1)) == key_of(run_of(first, 2)), "though the file has changed since"
    assert before != key_of(run_of(changed, 1))


def test_default_is_inputs_source_and_run() -> None:
    spec = spec_of(add, DEFAULT)
    flow = run_of(spec_of(nothing, what="flow"), number=100)
    key = key_of(run_of(spec, 1, flow=flow))
    assert key == key_of(run_of(spec, 1, flow=flow, number=7))
    assert key != key_of(run_of(spec, 2, flow=flow))
    assert key != key_of(run_of(spec, 1, number=7))


class Mine(CachePolicy):
    def compute_key(self, task_ctx: Any, inputs: Any, flow_parameters: Any, **kwargs: Any) -> str | None:
        return f"{sorted(inputs)} {sorted(flow_parameters)} {task_ctx.task_run.id}"


def test_a_policy_of_ones_own_is_given_inputs_with_defaults_and_the_flows_parameters() -> None:
    seen: list[Any] = []

    class Seeing(Mine):
        def compute_key(self, task_ctx: Any, inputs: Any, flow_parameters: Any, **kwargs: Any) -> str | None:
            seen.append((inputs, flow_parameters, task_ctx.parameters))
            return "k"

    flow = run_of(spec_of(add, what="flow"), 7)
    key_of(run_of(spec_of(add, Seeing()), 1, flow=flow))
    assert seen == [({"x": 1, "y": 1, "scale": 1}, {"x": 7, "y": 1, "scale": 1}, {"x": 1, "y": 1, "scale": 1})]


# Key functions --------------------------------------------------------------------------------------------------------


def test_the_key_of_a_function_is_used_as_it_is_by_all_tasks() -> None:
    for spec in (
        spec_of(add, key_fn=lambda context, parameters: f"sum-{parameters['x']}-{parameters['y']}"),
        spec_of(other_add, INPUTS, key_fn=lambda context, parameters: f"sum-{parameters['x']}-{parameters['y']}"),
        spec_of(other_add, CachePolicy.from_cache_key_fn(lambda c, p: f"sum-{p['x']}-{p['y']}")),
    ):
        assert compute_key(run_of(spec, 3)) == ("sum-3-1", None)
    assert compute_key(run_of(spec_of(add, INPUTS, key_fn=lambda c, p: None), 3)) == (None, None)


def test_the_context_tells_of_the_task_the_run_and_the_flow() -> None:
    seen: list[CacheContext] = []

    def note(context: CacheContext, parameters: dict[str, Any]) -> str:
        seen.append(context)
        assert parameters == context.parameters == context.task_run.parameters
        return "k"

    spec = spec_of(add, key_fn=note)
    spec.task = object()
    flow = run_of(spec_of(nothing, what="flow"), number=100)
    key_of(run_of(spec, 1, flow=flow, number=7))
    key_of(run_of(spec, 1, number=8))
    inside, alone = seen
    assert inside.task is spec.task
    assert inside.task_run_id == inside.task_run.id == UUID(int=7)
    assert inside.flow_run_id == inside.task_run.flow_run_id == UUID(int=100)
    assert inside.task_run.name.startswith("t-")
    assert alone.flow_run_id is None


class Word(str):
    def __str__(self) -> str:
        return "not this"


def test_a_key_of_a_kind_of_str_becomes_a_plain_one() -> None:
    key = key_of(run_of(spec_of(add, key_fn=lambda c, p: Word("word")), 1))
    assert key == "word"
    assert type(key) is str


async def later(context: Any, parameters: Any) -> str:
    return "k"


@pytest.mark.parametrize(
    ("key_fn", "told"),
    [
        (fail, "raised RuntimeError: no key today"),
        (lambda context: "k", "raised TypeError"),
        (lambda c, p: 5, "gave 5 as key"),
        (lambda c, p: b"k", "gave b'k' as key"),
        (lambda c, p: later(c, p), "as key"),
        (lambda c, p: "", "empty key"),
        (lambda c, p: "k" * (MOST_CHARACTERS + 1), "2,001 characters"),
        (lambda c, p: "k\ud800", "not valid Unicode"),
    ],
    ids=["raises", "signature", "number", "bytes", "coroutine", "empty", "long", "surrogate"],
)
def test_a_key_function_that_gives_no_key_that_can_be_used_is_the_reason(key_fn: Any, told: str) -> None:
    for spec in (spec_of(add, key_fn=key_fn), spec_of(add, CachePolicy.from_cache_key_fn(lambda c, p: key_fn(c, p)))):
        if told != "raised TypeError":
            problem = why_not(run_of(spec, 1))
            assert isinstance(problem, CacheKeyError)
            assert told in str(problem)
    if key_fn is fail:
        assert isinstance(why_not(run_of(spec_of(add, key_fn=fail), 1)).__cause__, RuntimeError)


def test_the_longest_key_is_used() -> None:
    key = "k" * MOST_CHARACTERS
    assert compute_key(run_of(spec_of(add, key_fn=lambda c, p: key), 1)) == (key, None)


def test_a_policy_that_raises_is_the_reason() -> None:
    class Raises(CachePolicy):
        def compute_key(self, task_ctx: Any, inputs: Any, flow_parameters: Any, **kwargs: Any) -> str | None:
            raise LookupError("gone")

    for policy in (Raises(), INPUTS + Raises()):
        problem = why_not(run_of(spec_of(add, policy), 1))
        assert "raised LookupError: gone" in str(problem)
        assert isinstance(problem.__cause__, LookupError)


@pytest.mark.parametrize("policy", [INPUTS, INPUTS - "x", DEFAULT], ids=repr)
def test_an_argument_that_cannot_be_hashed_is_named(policy: CachePolicy) -> None:
    problem = why_not(run_of(spec_of(add, policy), 1, threading.Lock()))
    assert isinstance(problem, HashError)
    assert "argument 'y'" in str(problem)
    assert "INPUTS - 'y'" in str(problem)
    key_of(run_of(spec_of(add, policy - "y"), 1, threading.Lock()))


# task_input_hash ------------------------------------------------------------------------------------------------------


def test_task_input_hash_is_over_the_task_its_code_and_its_inputs() -> None:
    def keyed(fn: Callable[..., Any], *args: Any, name: str = "t") -> str:
        return key_of(run_of(spec_of(fn, key_fn=task_input_hash, name=name), *args))

    assert keyed(add, 1) == keyed(add, 1, 1)
    assert len({keyed(add, 1), keyed(add, 2), keyed(other_add, 1), keyed(add, 1, name="u"), keyed(len, [1])}) == 5

    def version(number: int) -> Callable[..., Any]:
        scope: dict[str, Any] = {}
        exec(f"def f(x): return x + {number}", scope)
        function: Callable[..., Any] = scope["f"]
        return function

    assert keyed(version(1), 1) == keyed(version(1), 1) != keyed(version(2), 1)


def test_task_input_hash_gives_none_and_a_warning_that_names_the_argument(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "asynctask"):
        assert compute_key(run_of(spec_of(add, key_fn=task_input_hash), threading.Lock())) == (None, None)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "argument 'x'" in caplog.text
    assert "task 't'" in caplog.text


# At definition --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["INPUTS", CachePolicy, 1, True, lambda c, p: "k", [INPUTS]])
def test_a_task_takes_nothing_for_a_policy_that_is_none(wrong: Any) -> None:
    with pytest.raises(OptionError, match="task 't': option 'cache_policy' must be a cache policy"):
        prepare(spec_of(add, wrong))


@pytest.mark.parametrize("wrong", [later, "f", 1])
def test_a_task_takes_only_plain_functions_for_keys(wrong: Any) -> None:
    with pytest.raises(OptionError, match="task 't': option 'cache_key_fn' must be a plain function"):
        prepare(spec_of(add, key_fn=wrong))


def test_a_policy_beside_a_key_function_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "asynctask"):
        prepare(spec_of(add, INPUTS))
        assert not caplog.records
        prepare(spec_of(add, INPUTS, lambda c, p: "k"))
    assert "its cache_policy is not" in caplog.text


def test_only_policies_with_the_source_take_it() -> None:
    for policy, is_taken in ((INPUTS, False), (DEFAULT, True), (TASK_SOURCE, True), (None, False)):
        spec = spec_of(add, policy)
        prepare(spec)
        assert (spec.source is not None) is is_taken


PROGRAM = """
import sys
from asynctask.cache_policies import *
from asynctask.cache_keys import compute_key, task_input_hash
from asynctask.options import Options
from asynctask.runs import Run
from asynctask.specs import make_spec
from asynctask.states import PENDING, State

class Point:
    def __init__(self): self.tags = {"a", "b", "c"}

def work(x, y={"p", "q"}): return x

for options in ({"cache_policy": INPUTS}, {"cache_policy": INPUTS + TASK_SOURCE}, {"cache_key_fn": task_input_hash}):
    for value in (1, {"k", "l"}, Point(), lambda x: x in {"s", "t"}):
        spec = make_spec("task", work, Options(name="t", **options))
        run = Run(spec, 5, (State(PENDING, "Pending", 1.0),), frozenset(), args=(value,))
        print(*compute_key(run))
"""


def test_keys_are_the_same_in_the_next_process(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first = run("1")
    assert first == run("2")
    assert len(set(first)) == 12
    assert all(line.endswith(" None") and not line.startswith("None") for line in first)
