"""What `FILE.py:NAME`, `module:name` and `--param name=value` mean."""

import json

import pytest

ONE = """
from asynctask import flow, task
from asynctask.tasks import task as same

@task
def double(n: int):
    return n * 2

@flow(name="nightly import")
def nightly(n: int = 1):
    return double(n)

again = nightly
plain = len
number = 3

class Box:
    @staticmethod
    @task
    def inside():
        return "in a box"
"""


@pytest.fixture
def one(folder):
    (folder / "one.py").write_text(ONE)
    return folder


@pytest.mark.parametrize(
    ("target", "out"),
    [
        ("one.py", "2\n"),
        ("one.py:nightly", "2\n"),
        ("one.py:again", "2\n"),
        ("one.py:nightly import", "2\n"),
        ("./one.py:nightly", "2\n"),
        ("one:nightly", "2\n"),
        ("one", "2\n"),
        ("one.py:Box.inside", "in a box\n"),
    ],
)
def test_a_target_is_found_by_file_or_module_and_by_attribute_or_name(here, one, target, out):
    assert here("run", target) == (0, out, "")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("none.py", "there is no file 'none.py'"),
        ("none", "there is no module 'none', nor a file of that name"),
        ("none.inner:x", "there is no module 'none.inner', nor a file of that name"),
        (".", "'.' is no module name"),
        ("..:x", "'..' is no module name"),
        (":x", "':x' names nothing to run"),
        ("one.py:", "'one.py:' names nothing to run"),
        (
            "one.py:nope",
            "one.py has no 'nope'; there are: one.py:again (flow), one.py:nightly (flow), one.py:double (task)",
        ),
        ("one.py:plain", "is a plain builtin_function_or_method (put @task or @flow on it), not a flow or task"),
        ("one.py:number", "one.py:number is int, not a flow or task"),
        ("empty.py", "empty.py has no flows or tasks"),
        ("two.py", "two.py has 2 flows; say which: two.py:first (flow), two.py:second (flow)"),
        ("tasks.py", "tasks.py has 2 flows or tasks; say which: tasks.py:a (task), tasks.py:b (task)"),
        ("data.txt", "'data.txt' is not a Python file"),
        ("folder/", "there is no file 'folder/'"),
    ],
)
def test_what_is_not_there_is_told_with_what_there_is(here, one, target, told):
    (one / "empty.py").write_text("")
    (one / "data.txt").write_text("")
    (one / "two.py").write_text(
        "from asynctask import flow\n@flow\ndef first(): pass\n@flow\ndef second(): pass\nfrom one import nightly\n"
    )
    (one / "tasks.py").write_text("from asynctask import task\n@task\ndef a(): pass\n@task\ndef b(): pass\n")
    code, out, err = here("run", target)
    assert (code, out) == (2, "")
    assert err.startswith("asynctask: ")
    assert told in err


def test_the_only_task_of_a_file_needs_no_name(here, folder):
    (folder / "flow.py").write_text("from asynctask import task\n@task\ndef only(): return 'it'\n")
    assert here("run", "flow.py").out == "it\n"


TYPED = """
import datetime, decimal, enum, pathlib
from asynctask import flow, task

class Colour(enum.Enum):
    RED = "red"

@task
def show({parameters}):
    return {value}
"""


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("int", "3", "3"),
        ("int", "-3", "-3"),
        ("float", "3", "3.0"),
        ("float", "1e3", "1000.0"),
        ("str", "3", "'3'"),
        ("str", '"quoted"', "'\"quoted\"'"),
        ("str", "", "''"),
        ("str", "a=b", "'a=b'"),
        ("'str | None'", "3", "'3'"),
        ("'str | None'", "null", "None"),
        ("'int | None'", "null", "None"),
        ("bool", "true", "True"),
        ("bool", "false", "False"),
        ("list[int]", "[1, 2]", "[1, 2]"),
        ("'dict[str, list[float]]'", '{"a": [1]}', "{'a': [1.0]}"),
        ("set[int]", "[1, 1]", "{1}"),
        ("tuple[int, str]", '[1, "a"]', "(1, 'a')"),
        ("datetime.date", "2030-01-31", "datetime.date(2030, 1, 31)"),
        ("decimal.Decimal", "1.10", "Decimal('1.10')"),
        ("pathlib.Path", "a/b", "PosixPath('a/b')"),
        ("Colour", "red", "<Colour.RED: 'red'>"),
        ("object", "[1]", "[1]"),
        ("'Undefined'", "[1]", "[1]"),
    ],
)
def test_a_value_is_what_the_annotation_makes_of_its_text(here, folder, annotation, text, value):
    (folder / "typed.py").write_text(TYPED.format(parameters=f"x: {annotation}", value="repr(x)"))
    assert here("run", "typed.py", "--param", f"x={text}") == (0, f"{value}\n", "")


@pytest.mark.parametrize(
    ("text", "value"), [("1", "1"), ("[1", "'[1'"), ('{"a": null}', "{'a': None}"), ("word", "'word'")]
)
def test_a_value_without_annotation_is_json_if_it_can_be(here, folder, text, value):
    (folder / "typed.py").write_text(TYPED.format(parameters="x", value="repr(x)"))
    assert here("run", "typed.py", "--param", f"x={text}").out == f"{value}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["n=abc"], "task 'double': parameter 'n': Expected `int`, got `str`; it was given 'abc'"),
        (["n=1.5"], "parameter 'n'"),
        (["m=1"], "task 'double' has no parameter 'm'; it has: n: int"),
        (["n"], "--param 'n' has no value; write --param name=value"),
        (["=1"], "has no value"),
        (["n=1", "n=2"], "--param n is given twice"),
        ([], "task 'double' needs n: add --param n=..."),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_wrong_use_and_nothing_runs(here, one, words, told):
    code, out, err = here("run", "one.py:double", *(word for each in words for word in ("--param", each)))
    assert (code, out) == (2, "")
    assert told in err


def test_positional_only_keyword_only_and_any_other_parameters_are_given_by_name(here, folder):
    (folder / "typed.py").write_text(TYPED.format(parameters="a, /, b: int = 5, *, c, **more", value="[a, b, c, more]"))
    done = here("run", "typed.py", "--param", "a=1", "--param", "c=x", "--param", "d=[2]", "--json")
    assert json.loads(done.out) == [1, 5, "x", {"d": [2]}]
    assert here("run", "typed.py", "--param", "a=1").err == "asynctask: task 'show' needs c: add --param c=...\n"


def test_a_parameter_that_takes_any_number_is_refused(here, folder):
    (folder / "typed.py").write_text(TYPED.format(parameters="*values", value="values"))
    code, _, err = here("run", "typed.py", "--param", "values=[1]")
    assert (code, "*values cannot be given" in err) == (2, True)
