"""Every option is checked when the decorator runs; a wrong one is refused by name, with what to write instead."""

import functools
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from asynctask import ThreadPoolTaskRunner, flow, task, temporary_settings
from asynctask.cache_policies import DEFAULT, INPUTS, NO_CACHE, Inputs
from asynctask.errors import OptionError
from asynctask.keywords import FlowOptions, TaskOptions
from asynctask.options import FLOW_OPTIONS, TASK_OPTIONS
from asynctask.tasks import exponential_backoff
from asynctask.testing import virtual_time


class NoRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def hook(task: Any, run: Any, state: Any) -> None: ...


async def ahook(task: Any, run: Any, state: Any) -> None: ...


class Reversed:
    """A serializer of the user's own."""

    name = "reversed option"

    def dumps(self, value: Any) -> bytes:
        return repr(value)[::-1].encode()

    def loads(self, data: bytes) -> Any:
        return eval(data.decode()[::-1])


HOOKS = ["on_running", "on_completion", "on_failure", "on_cancellation", "on_crashed"]
TEXTS = ["name", "description", "version"]
TRANSACTION_HOOKS = ["on_commit", "on_rollback"]
FLAGS = ["refresh_cache", "persist_result", "cache_result_in_memory"]
TASK_TEXT = r"a string that is not empty"

WRONG: list[tuple[str, Any, str]] = [
    *((option, value, TASK_TEXT) for option in TEXTS for value in ("", 5, b"x", ["x"], True)),
    *(("tags", value, "a collection of strings") for value in ("alone", 5, [""], [1], ["a", None], b"ab")),
    *(("task_run_name", value, "a format string") for value in ("", 5, ["x"])),
    *(("task_run_name", value, "a valid format string") for value in ("{x", "x}", "{x!z}")),
    *(("retries", value, "a whole number that is not negative") for value in (-1, 1.5, "3", True, [1])),
    *(("retry_delay_seconds", value, "seconds that is not negative") for value in (-1, "1", True, [1, -1], [None])),
    *(("retry_delay_seconds", value, "seconds that is not negative") for value in (float("nan"), float("inf"), {})),
    ("retry_delay_seconds", lambda retries: "x", "seconds that is not negative"),
    ("retry_delay_seconds", lambda: [1], "a function of one whole number"),
    ("retry_delay_seconds", timedelta(seconds=-1), "seconds that is not negative"),
    ("retry_delay_seconds", [0.1] * 51, r"at most 50 delays \(the last one repeats\)"),
    ("retry_delay_seconds", lambda retries: [0] * 51, "at most 50 delays"),
    *(("retry_jitter_factor", value, "a number that is not negative") for value in (-0.1, "x", True, float("nan"))),
    *(("retry_on", value, "an exception type or a list") for value in (5, "ValueError", [], [int], ValueError("x"))),
    *(("retry_condition_fn", value, "a function") for value in (5, "x", [hook])),
    *(("timeout_seconds", value, "seconds that is not negative") for value in (-1, "1", True, [1], float("nan"))),
    ("timeout_seconds", timedelta(seconds=-1), "seconds that is not negative"),
    *(("log_prints", value, "True, False or None") for value in (1, "yes", [])),
    *((option, value, "True, False or None") for option in FLAGS for value in (1, "yes", [])),
    *(("cache_policy", value, "a cache policy") for value in (5, "INPUTS", Inputs, lambda context, parameters: "k")),
    *(("cache_key_fn", value, "function") for value in (5, "key", INPUTS, ahook)),
    *(("cache_expiration", value, "a timedelta") for value in (-1, "1", True, [1], float("nan"), timedelta(days=-1))),
    *(("result_storage", value, "the path of a folder") for value in (5, "", ["x"], True, b"x", "sqlite:///a.db")),
    *(("result_storage_key", value, TASK_TEXT) for value in ("", 5, ["x"], b"x")),
    *(("result_serializer", value, "result_serializer must be one of") for value in (5, "yaml", "", Reversed, b"x")),
    *(("result_serializer", value, "result_serializer must be one of") for value in ("compressed/", "compressed/x/y")),
    *(
        (option, value, "a function or a list of functions")
        for option in (*HOOKS, *TRANSACTION_HOOKS)
        for value in (5, "x", [hook, 5], {hook})
    ),
    *(("around", value, "a function or a list of functions") for value in (5, "x", [None])),
    *(("task_runner", value, "a task runner") for value in (5, "threads", ThreadPoolTaskRunner, object())),
    ("description", NoRepr(), TASK_TEXT),
    ("retries", "x" * 500, "a whole number"),
]


@pytest.mark.parametrize(("option", "value", "wanted"), WRONG, ids=[f"{w[0]}-{n}" for n, w in enumerate(WRONG)])
def test_a_wrong_option_is_refused_at_definition_naming_task_and_option(option: str, value: Any, wanted: str) -> None:
    def work() -> None: ...

    with pytest.raises(OptionError) as caught:
        task(**{option: value})(work)
    message = str(caught.value)
    assert message.startswith("task 'work': ")
    assert repr(option) in message
    assert any(one in message for one in wanted.replace("\\", "").split("|")), message
    assert len(message) < 400
    with pytest.raises(OptionError, match=option):
        task(work).with_options(**{option: value})
    with pytest.raises(OptionError, match=option):
        task(work, **{option: value})


WRONG_FLOW = [(o, v) for o, v, _ in WRONG if o in FlowOptions.__annotations__ and o != "name"]


@pytest.mark.parametrize(("option", "value"), WRONG_FLOW, ids=[f"{w[0]}-{n}" for n, w in enumerate(WRONG_FLOW)])
def test_a_wrong_option_of_a_flow_is_refused_in_the_same_words(option: str, value: Any) -> None:
    def work() -> None: ...

    with pytest.raises(OptionError, match=rf"^flow 'work': option '{option}'(: result_serializer)? must be "):
        flow(**{option: value})(work)


@pytest.mark.parametrize("value", [1, "yes"])
def test_validate_parameters_of_a_flow_is_a_flag(value: Any) -> None:
    with pytest.raises(OptionError, match="flow 'whole': option 'validate_parameters' must be True, False or None"):

        @flow(validate_parameters=value)
        def whole() -> None: ...


def test_an_option_error_is_a_type_error_and_a_value_error() -> None:
    for kind in (TypeError, ValueError):
        with pytest.raises(kind, match="'retries'"):
            task(retries=-1)(hook)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("max_retries", "retries"), ("timeout", "timeout_seconds"), ("tag", "tags"), ("on_complete", "on_completion")],
)
def test_an_unknown_option_is_refused_with_a_hint(written: str, meant: str) -> None:
    def work() -> None: ...

    message = rf"task 'work': there is no option '{written}'; did you mean '{meant}'\?"
    with pytest.raises(OptionError, match=message):
        task(**{written: 1})(work)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=message):
        task(work).with_options(**{written: None})


def test_an_option_like_no_other_is_refused_with_the_list() -> None:
    with pytest.raises(OptionError, match=r"there is no option 'zzz'; there are: around, cache_expiration, .*version"):
        task(zzz=1)(hook)  # type: ignore[call-overload]


def test_options_of_flows_and_tasks_are_not_mixed_up() -> None:
    with pytest.raises(OptionError, match=r"flow 'hook': there is no option 'task_run_name'; .*'flow_run_name'"):
        flow(task_run_name="x")(hook)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=r"task 'hook': there is no option 'validate_parameters'"):
        task(validate_parameters=True)(hook)  # type: ignore[call-overload]


RIGHT: list[tuple[str, Any]] = [
    ("name", "other"),
    ("description", "text"),
    ("version", "1.2"),
    *(("tags", value) for value in (["a"], {"a"}, ("a", "b"), iter("ab"), [], frozenset("a"))),
    ("task_run_name", "{x}-{kw:>5}"),
    ("retries", 0),
    ("retries", 100_000),
    *(("retry_delay_seconds", value) for value in (0, 1.5, [1, 2], (1,), [], timedelta(seconds=1), [timedelta(1)])),
    *(("retry_delay_seconds", value) for value in ([1] * 50, exponential_backoff(2), lambda retries: [retries])),
    *(("retry_jitter_factor", value) for value in (0, 0.5, 3)),
    *(("retry_on", value) for value in (ValueError, [ValueError], (OSError, KeyError), {OSError})),
    *(("retry_condition_fn", value) for value in (hook, ahook, functools.partial(hook))),
    *(("timeout_seconds", value) for value in (0, 1, 0.5, timedelta(minutes=1))),
    *((option, value) for option in ("log_prints", *FLAGS) for value in (True, False)),
    *(("cache_policy", value) for value in (INPUTS, DEFAULT, NO_CACHE, INPUTS - "kw")),
    *(
        ("cache_key_fn", value)
        for value in (lambda context, parameters: "k", functools.partial(lambda a, b, c: a, "k"))
    ),
    *(("cache_expiration", value) for value in (0, 60, 0.5, timedelta(days=1), timedelta.max)),
    *(("result_storage_key", value) for value in ("{parameters[x]}-{task_run.name}", "plain")),
    *(
        ("result_serializer", value)
        for value in ("msgpack", "json", "pickle", "compressed/json", "compressed/bz2/pickle")
    ),
    *(("result_serializer", value) for value in ("compressed/lzma/json", Reversed())),
    *((option, value) for option in TRANSACTION_HOOKS for value in (len, [len, repr], (len,), [])),
    *((option, value) for option in HOOKS for value in (hook, [hook, ahook], (hook,), [])),
    *(("around", value) for value in (lambda call, run: call(), [], ())),
    ("task_runner", ThreadPoolTaskRunner(1)),
]


@pytest.mark.parametrize(("option", "value"), RIGHT, ids=[f"{option}-{n}" for n, (option, _) in enumerate(RIGHT)])
def test_a_right_option_is_taken_and_none_means_that_it_is_not_given(option: str, value: Any) -> None:
    def work(x: int, kw: int = 0) -> int:
        return x

    made = task(**{option: value, "log_prints": None} if option != "log_prints" else {option: value})(work)
    assert made(5) == 5
    cleared = made.with_options(**{option: None})
    assert cleared.spec.options == task(work).spec.options
    assert cleared(5) == 5


@pytest.mark.parametrize("kind", [str, Path])
def test_result_storage_is_a_folder_by_its_path(tmp_path: Path, kind: Any) -> None:
    made = task(result_storage=kind(tmp_path / "kept"))(lambda: 5)
    with virtual_time():
        assert made() == 5
    assert (tmp_path / "kept" / "results.db").is_file()
    assert made.with_options(result_storage=None).spec.options.result_storage is None


def test_every_option_is_tried_above() -> None:
    assert {option for option, *_ in RIGHT} | {"result_storage"} == set(TaskOptions.__annotations__)
    assert {option for option, *_ in WRONG} == set(TaskOptions.__annotations__)


def test_type_checkers_know_the_options_there_are() -> None:
    assert set(TaskOptions.__annotations__) == set(TASK_OPTIONS)
    assert set(FlowOptions.__annotations__) == set(FLOW_OPTIONS)


def test_a_timeout_of_zero_is_none() -> None:
    assert task(hook, timeout_seconds=0).timeout_seconds is None


def test_a_delay_function_is_asked_at_definition_with_the_number_of_retries() -> None:
    asked: list[int] = []

    def delays(retries: int) -> list[int]:
        asked.append(retries)
        return [1] * retries

    task(hook, retries=3, retry_delay_seconds=delays)
    assert set(asked) == {3}
    asked.clear()
    with temporary_settings(task_default_retries=2):
        task(hook, retry_delay_seconds=delays)
    assert set(asked) == {2}


def test_tags_may_come_from_an_iterator() -> None:
    made = task(hook, tags=iter("ab"))
    assert made.tags == {"a", "b"}
    assert made.with_options(retries=1).tags == {"a", "b"}
    decorator = task(tags=(tag for tag in "ab"))
    assert decorator(hook).tags == decorator(ahook).tags == {"a", "b"}


def test_a_delay_function_that_raises_is_refused_with_its_exception_as_cause() -> None:
    def delays(retries: int) -> list[int]:
        raise LookupError("broken")

    with pytest.raises(
        OptionError, match=r"task 'hook': option 'retry_delay_seconds' .*LookupError\('broken'\)"
    ) as caught:
        task(hook, retries=1, retry_delay_seconds=delays)
    assert isinstance(caught.value.__cause__, LookupError)


# -- run names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{y}", r"has \{y\}, which is no parameter; there are: x, kw"),
        ("{}", "has a field without a name"),
        ("{0}", "has a field without a name"),
        ("{x:{width}}", r"has \{width\}"),
        ("{nope.x[1]}", r"has \{nope\}"),
    ],
)
def test_a_run_name_over_what_is_no_parameter_is_refused(template: str, said: str) -> None:
    def work(x: int, kw: int = 0) -> None: ...

    with pytest.raises(OptionError, match=rf"task 'work': option 'task_run_name' {said}"):
        task(task_run_name=template)(work)
    with pytest.raises(OptionError, match=rf"flow 'work': option 'flow_run_name' {said}"):
        flow(flow_run_name=template)(work)


@pytest.mark.parametrize("template", ["plain", "{{x}}", "{x}", "{x.real:>{kw}}", "{x!r}", "{rest[0]}-{more[k]}"])
def test_a_run_name_over_parameters_of_every_kind_is_taken(template: str) -> None:
    def work(x: int, *rest: int, kw: int = 3, **more: int) -> None: ...

    task(task_run_name=template)(work)


def test_a_run_name_function_must_be_plain_and_take_nothing_or_parameters() -> None:
    async def aname() -> str:
        return "x"

    with pytest.raises(
        OptionError, match="task 'hook': option 'task_run_name' must be a plain function, not the async"
    ):
        task(hook, task_run_name=aname)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=r"must be a function of nothing, or of .*'parameters', not of 'x'"):
        task(hook, task_run_name=lambda x: "x")
    for right in (lambda: "x", lambda parameters: "x", lambda *, parameters: "x", lambda x=1: "x", lambda **k: "x"):
        assert task(hook, task_run_name=right)(1, 2, 3) is None
