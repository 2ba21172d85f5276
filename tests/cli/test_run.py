"""`asynctask run`: results, failures, output and the way a file is loaded."""

import json
import os
import subprocess
import sys

import pytest

KINDS = """
import anyio
from asynctask import flow, get_run_logger, task

@task
def plain(n: int = 2): return n * 2

@task
async def waits(n: int = 2):
    await anyio.sleep(0)
    return n * 2

@task
def several(n: int = 2):
    yield from range(n)

@task
async def several_later(n: int = 2):
    for one in range(n):
        await anyio.sleep(0)
        yield one

@flow
def plain_flow(n: int = 2): return {"n": plain.submit(n), "m": waits.submit(n)}

@flow
async def async_flow(n: int = 2): return [plain.submit(n), await waits(n)]
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("plain", "4\n", 4),
        ("waits", "4\n", 4),
        ("several", "0\n1\n", [0, 1]),
        ("several_later", "0\n1\n", [0, 1]),
        ("plain_flow", "{'n': 4, 'm': 4}\n", {"n": 4, "m": 4}),
        ("async_flow", "[4, 4]\n", [4, 4]),
    ],
)
def test_each_kind_of_flow_and_task_runs_and_its_result_is_printed(here, folder, backend, name, text, value):
    (folder / "kinds.py").write_text(KINDS)
    assert here("run", f"kinds.py:{name}", "--backend", backend) == (0, text, "")
    done = here("run", f"kinds.py:{name}", "--backend", backend, "--json")
    assert (done.code, json.loads(done.out)) == (0, value)


VALUES = """
import dataclasses, datetime, uuid
from asynctask import task

@dataclasses.dataclass
class Point:
    x: int

class Odd:
    def __repr__(self): return "<odd>"

@task
def value(): return {value}
"""


@pytest.mark.parametrize(
    ("value", "document"),
    [
        ("None", None),
        ("'text'", "text"),
        ("[Point(1), {2}]", [{"x": 1}, [2]]),
        ("datetime.date(2030, 1, 31)", "2030-01-31"),
        ("Odd()", "<odd>"),
        ("{'a': Odd()}", {"a": "<odd>"}),
        ("{(1, 2): 3}", {"(1, 2)": 3}),
        ("2 ** 70", 2**70),
        ("'\\ud800'", "\ud800"),
        ("'\\x1b]0;x\\x07'", "\x1b]0;x\x07"),
    ],
)
def test_any_result_is_one_json_document_on_one_line(here, folder, value, document):
    (folder / "values.py").write_text(VALUES.format(value=value))
    code, out, err = here("run", "values.py", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == document


@pytest.mark.parametrize(
    ("value", "out"),
    [("None", ""), ("'two\\nlines'", "two\nlines\n"), ("'\\x1b]0;x\\x07[/]'", "]0;x[/]\n"), ("[1, 'a']", "[1, 'a']\n")],
)
def test_for_people_a_text_is_printed_as_it_is_and_nothing_that_a_terminal_obeys(here, folder, value, out):
    (folder / "values.py").write_text(VALUES.format(value=value))
    assert here("run", "values.py") == (0, out, "")


def test_with_json_what_the_run_prints_goes_to_standard_error(here, folder):
    (folder / "prints.py").write_text(
        "print('loading')\nfrom asynctask import task\n@task\ndef it():\n    print('hi')\n"
    )
    assert here("run", "prints.py", "--json") == (0, "null\n", "loading\nhi\n")
    assert here("run", "prints.py").out == "loading\nhi\n"


FAILS = """
from asynctask import flow, task

@task
def inner():
    raise ValueError("[/] \\x1b]0;x\\x07 no")

@flow
def outer():
    inner()
"""


def test_a_failure_is_one_with_its_traceback_from_the_users_code_on(command, folder):
    (folder / "fails.py").write_text(FAILS)
    code, out, err = command("run", "fails.py")
    assert (code, out) == (1, "")
    lines = err[err.index("Traceback") :].splitlines()
    assert lines[1] == f'  File "{folder}/fails.py", line 10, in outer'
    assert lines[-1] == "ValueError: [/] ]0;x no"
    assert "\x1b" not in err


@pytest.mark.parametrize("body", ["raise KeyError('x')", "import nothing_of_this_name", "def ("])
def test_a_file_that_cannot_be_loaded_is_a_failure_with_its_traceback(here, folder, body):
    (folder / "broken.py").write_text(body)
    code, out, err = here("run", "broken.py")
    assert (code, out) == (1, "")
    assert f'File "{folder}/broken.py", line 1' in err
    assert "asynctask/cli" not in err


def test_a_module_whose_import_fails_inside_is_a_failure_and_not_called_missing(here, folder):
    (folder / "outside.py").write_text("import nothing_of_this_name")
    code, _, err = here("run", "outside:x")
    assert (code, "No module named 'nothing_of_this_name'" in err) == (1, True)


def test_a_body_that_exits_gives_its_own_code(command, folder):
    (folder / "exits.py").write_text("import sys\nfrom asynctask import task\n@task\ndef it(): sys.exit(7)\n")
    assert command("run", "exits.py").code == 7


KEYS = """
from asynctask import flow, task

class Box:
    @task
    def method(self): pass

@task
def one(): pass

@flow
def keys(): return [one.task_key, keys.spec.key, Box.method.task_key]

if __name__ == "__main__":
    print(keys())
"""


def test_keys_are_those_of_the_file_run_as_a_script_and_its_main_block_does_not_run(command, folder):
    inner = folder / "inner"
    inner.mkdir()
    (inner / "my-keys.py").write_text(KEYS)
    script = subprocess.run(
        [sys.executable, "inner/my-keys.py"], capture_output=True, text=True, check=True, timeout=30
    )
    assert command("run", "inner/my-keys.py") == (0, script.stdout, "")


def test_a_file_sees_its_own_folder_and_name_as_a_script_does(command, folder):
    inner = folder / "inner"
    inner.mkdir()
    (inner / "beside.py").write_text("VALUE = 'from beside'\n")
    (inner / "flow.py").write_text(
        "import sys, beside\nfrom asynctask import task\n"
        "@task\ndef it(): return [beside.VALUE, sys.path[0], sys.argv]\n"
    )
    done = command("run", "inner/flow.py", "--json")
    assert json.loads(done.out) == ["from beside", os.path.realpath(inner), ["inner/flow.py"]]


def test_a_safe_path_keeps_all_that_was_on_it(command, folder):
    (folder / "flow.py").write_text("import sys\nfrom asynctask import task\n@task\ndef it(): return sys.path\n")
    code = "import sys; print(*sys.path, sep='\\n')"
    safe = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    done = command("run", "flow.py", "--json", PYTHONSAFEPATH="1")
    assert json.loads(done.out) == [str(folder), *safe.stdout.splitlines()]


def test_a_module_is_found_from_the_current_folder(command, folder):
    package = folder / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "flows.py").write_text("from asynctask import task\n@task\ndef it(): return it.task_key\n")
    done = command("run", "pack.flows:it")
    imported = subprocess.run(
        [sys.executable, "-c", "import pack.flows; print(pack.flows.it.task_key)"],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert done == (0, imported.stdout, "")


@pytest.mark.parametrize("name", ["inspect", "asynctask", "json", "logging"])
def test_a_file_called_like_a_module_that_is_loaded_takes_nobodys_place(command, folder, name):
    (folder / f"{name}.py").write_text("from asynctask import task\n@task\ndef it(n: int = 1): return n\n")
    code, out, _ = command("run", f"{name}.py", "--param", "n=2", PYTHONSAFEPATH="1")
    assert (code, out) == (0, "2\n")


def test_a_class_of_the_file_can_be_pickled_as_a_script_of_that_name_would_be_imported(command, folder):
    (folder / "things.py").write_text(
        "import pickle\nfrom asynctask import task\nclass Thing: pass\n"
        "@task\ndef it(): return len(pickle.dumps(Thing())) > 9\n"
    )
    assert command("run", "things.py") == (0, "True\n", "")


def test_what_a_run_logs_and_prints_to_its_log_is_seen(command, folder):
    (folder / "logs.py").write_text(
        "from asynctask import get_run_logger, task\n@task(log_prints=True)\ndef it():\n"
        "    print('printed')\n    get_run_logger().info('logged')\n"
    )
    code, out, err = command("run", "logs.py")
    assert (code, out) == (0, "")
    assert [line.split(None, 2)[1:] for line in err.splitlines()] == [["INFO", "printed"], ["INFO", "logged"]]


def test_logging_that_the_file_sets_up_itself_is_left_alone(command, folder):
    (folder / "logs.py").write_text(
        "import logging, sys\nlogging.basicConfig(format='own %(message)s', level='WARNING')\n"
        "from asynctask import get_run_logger, task\n@task\ndef it():\n"
        "    get_run_logger().info('quiet')\n    get_run_logger().warning('loud')\n"
    )
    assert command("run", "logs.py").err == "own loud\n"


def test_work_that_was_submitted_is_finished_before_the_command_ends(command, folder):
    (folder / "later.py").write_text(
        "import anyio\nfrom asynctask import task\n@task\nasync def later():\n"
        "    await anyio.sleep(0.05)\n    print('later', flush=True)\n"
        "@task\ndef now():\n    later.submit()\n    print('now', flush=True)\n"
        "@task\nasync def now_too():\n    later.submit()\n    print('now', flush=True)\n"
    )
    assert command("run", "later.py:now") == (0, "now\nlater\n", "")
    assert command("run", "later.py:now_too") == (0, "now\nlater\n", "")


def test_the_store_that_is_named_keeps_the_run(here, folder):
    (folder / "flow.py").write_text("from asynctask import task\n@task\ndef it(): return 3\n")
    url = f"sqlite:///{folder}/named.db"
    assert here("run", "flow.py", "--store", url).code == 0
    [run] = json.loads(here("runs", "ls", "--json", "--store", url).out)["items"]
    assert (run["task_name"], run["state_name"]) == ("it", "Completed")
    assert not (folder / "home").exists()
