"""The command as a whole: what it is, what it loads, its exit codes, and interrupts."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import asynctask
from asynctask.cli.main import COMMANDS, program
from testkit import running


def test_version_names_the_package_and_python(command):
    code, out, err = command("version")
    assert (code, err) == (0, "")
    assert out.startswith(f"asynctask {asynctask.__version__} (Python 3.")


def test_version_as_a_document(command):
    assert json.loads(command("version", "--json").out)["version"] == asynctask.__version__


def test_the_usual_option_gives_the_version_too(here):
    assert here("--version") == here("version")


def test_the_installed_command_is_the_same_function():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    script = EntryPoint("asynctask", project["project"]["scripts"]["asynctask"], "console_scripts")
    assert script.load() is program


LOADED = """
import sys
from asynctask.cli.main import main
code = main({words!r})
print(*sorted(name for name in sys.modules), file=sys.stderr)
raise SystemExit(code)
"""


def loaded(words, **environment):
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(words=words)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_version_loads_neither_cyclopts_nor_an_event_loop(folder):
    assert not loaded(["version"]) & {"cyclopts", "rich", "asyncio", "trio", "sqlite3", "asynctask.cli.runs"}


@pytest.mark.parametrize("group", ["runs", "concurrency-limit", "gcl"])
def test_listing_into_a_pipe_loads_neither_cyclopts_nor_rich_nor_trio(folder, group):
    assert not loaded([group, "ls"]) & {"cyclopts", "rich", "trio", "asynctask.cli.run"}


def test_help_imports_no_command(folder):
    modules = {place.partition(":")[0] for place, _ in COMMANDS.values()}
    assert not loaded(["--help"]) & modules


def test_help_names_every_command_and_group(here):
    code, out, _ = here("--help")
    assert code == 0
    for path in COMMANDS:
        assert f" {path[0]} " in out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_command_explains_its_options(here, path):
    code, out, err = here(*path, "--help")
    assert (code, err) == (0, "")
    assert f"asynctask {' '.join(path)}" in out
    if path != ("completion",):  # a script for a shell
        assert "JSON" in out.split("--json", 1)[1]
    assert "--no-" not in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nope"], "nope"),
        (["runs", "nope"], "nope"),
        (["runs", "ls", "--nope"], "--nope"),
        (["runs", "ls", "--limit", "many"], "many"),
        (["runs", "ls", "--limit", "2.5"], "a whole number is needed, not '2.5'"),
        (["runs", "ls", "--limit", "0"], "--limit must be at least 1"),
        (["runs", "inspect"], "requires an argument"),
        (["version", "extra"], "extra"),
        (["--store", "memory://", "version"], "--store"),
        (["runs", "ls", "--store", "nope"], "'nope'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_two_with_one_complaint_on_standard_error(here, words, told):
    code, out, err = here(*words)
    assert (code, out) == (2, "")
    assert err.startswith("asynctask: ")
    assert told in err
    assert "Traceback" not in err


def test_the_store_may_be_named_before_the_command(here, folder):
    missing = f"sqlite:///{folder}/missing.db"
    told = (1, "", f"asynctask: there is no store at {folder}/missing.db\n")
    assert here("--store", missing, "runs", "ls") == told
    assert here(f"--store={missing}", "runs", "ls") == told
    assert here("runs", "ls", "--store", missing) == told


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    lines = "from asynctask import task\n@task\ndef many():\n    for n in range(100_000):\n        yield n\n"
    (folder / "flow.py").write_text(lines)
    with running(
        [sys.executable, "-m", "asynctask", "run", "flow.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "0\n"
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 1


@pytest.mark.parametrize("words", ["runs ls", "version", "run flow.py"])
def test_with_standard_output_closed_a_command_does_its_work(folder, words):
    (folder / "flow.py").write_text("from asynctask import task\n@task\ndef one(): return 1\n")
    line = f"{shlex.quote(sys.executable)} -W error -m asynctask {words} >&-"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


# Python sees a signal that comes in the microsecond before a blocking call only after that call; not so a loop.
WAITING = """
import sys, time
import anyio
from asynctask import flow, task

@task
def plain():
    print("ready", flush=True)
    for _ in range(1200):
        time.sleep(0.05)

@task
async def on_a_loop():
    print("ready", flush=True)
    await anyio.sleep(60)

@task
def leaves():
    on_a_loop.submit()
    for _ in range(1200):
        time.sleep(0.05)

@task
async def late():
    await anyio.sleep(0.3)  # by now the flow waits
    await on_a_loop()

@flow
def waits():
    late.submit()
"""


@pytest.mark.parametrize(
    "words", [["plain"], ["on_a_loop"], ["on_a_loop", "--backend", "trio"], ["leaves"], ["waits"]], ids=" ".join
)
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupt_ends_the_run_at_once_and_in_the_store(folder, command, words, number, code, word):
    (folder / "flow.py").write_text(WAITING)
    name, *options = words
    with running(
        [sys.executable, "-m", "asynctask", "run", f"flow.py:{name}", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        _, err = child.communicate(timeout=20)
    assert child.returncode == code
    assert err.splitlines()[-1] == f"asynctask: {word}"
    assert "Traceback" not in err
    states = [run["state_name"] for run in json.loads(command("runs", "ls", "--json").out)["items"]]
    assert states
    assert set(states) <= {"Crashed", "Cancelled"}
