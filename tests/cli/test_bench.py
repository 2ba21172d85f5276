"""`asynctask bench`: targets, options, what is written where, comparisons, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testkit import on_terminal

pytestmark = pytest.mark.timeout(120)

WORKS = """
import anyio, os, time
from asynctask import flow, task
from asynctask.bench import Scenario, Work

@task
async def nap(seconds: float = 0.001):
    await anyio.sleep(seconds)

async def plain(number: int):
    assert type(number) is int
    await anyio.sleep(0.001)

@flow
def outer(count: int = 2):
    return [nap.submit(0.0) for _ in range(count)]

def breaks():
    raise KeyError("no")

mixed = Scenario(Work(nap, weight=2), Work(plain, (1,)))
number = 3
"""

BRIEF = ("--duration", "0.2", "--warmup", "0", "--repeats", "1", "--concurrency", "2")


@pytest.fixture
def works(folder: Path) -> Path:
    (folder / "works.py").write_text(WORKS)
    return folder


def test_a_task_is_measured_and_told_in_a_table_a_document_and_a_page(command, works):
    done = command(
        *("bench", "works.py:nap", "--concurrency", "1,3", "--rate", "100", "--arg", "seconds=0.002"),
        *("--duration", "0.2", "--warmup", "0.1", "--repeats", "2", "--json", "out.json", "--html", "out.html"),
    )
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "works.py:nap seconds='0.002': 2 rounds of 0.2 s after 0.1 s of warm-up, store memory://"
    loads = [line.split("  ")[2].strip() for line in lines if re.match(r"asyncio +loop +", line)]
    assert len(loads) == 6, "each load in both tables"
    rounds = [line for line in done.err.splitlines() if line.startswith("round ")]
    assert [line.split("  ")[0] for line in rounds] == ["round 1/2"] * 3 + ["round 2/2"] * 3
    report = json.loads((works / "out.json").read_text())
    assert [one["cell"]["load"] for one in report["cells"]] == [
        {"kind": "closed", "clients": 1},
        {"kind": "closed", "clients": 3},
        {"kind": "open", "rate": 100.0, "arrivals": "poisson"},
    ]
    assert all(one["figures"]["p50"]["median"] >= 0.002 for one in report["cells"])
    assert all(round["runs"]["runs"] > 0 for one in report["cells"] for round in one["rounds"])
    assert "<svg" in (works / "out.html").read_text()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["works.py"], ["nap", "plain"]),
        (["works:mixed"], ["nap", "plain"]),
        (["works:plain", "--arg", "number=3"], ["plain"]),
        (["works.py:outer", "--arg", "count=1"], ["outer"]),
    ],
    ids=["the only scenario", "a scenario", "a plain function", "a flow"],
)
def test_scenarios_functions_and_flows_are_targets_as_well(here, works, words, names):
    code, out, err = here("bench", *words, *BRIEF, "--json", "-")
    assert code == 0, err
    report = json.loads(out)
    [round] = report["cells"][0]["rounds"]
    assert [work["name"] for work in round["works"]] == names
    assert all(work["errors"] == {} and work["succeeded"] > 0 for work in round["works"])


def test_a_module_that_raises_as_it_is_loaded_is_shown_and_what_it_prints_is_no_part_of_the_document(here, folder):
    (folder / "loud.py").write_text("print('loaded')\nimport anyio\nasync def work(): await anyio.sleep(0.001)\n")
    code, out, err = here("bench", "loud.py:work", *BRIEF, "--json", "-")
    assert (code, json.loads(out)["target"]) == (0, "loud.py:work"), err
    (folder / "broken.py").write_text("def work(): pass\n1 / 0\n")
    code, out, err = here("bench", "broken.py:work")
    assert (code, out) == (1, "")
    assert "broken.py" in err
    assert err.endswith("ZeroDivisionError: division by zero\n")


def test_what_fails_is_in_the_table_and_the_exit_code_is_that_of_the_measurement(here, works):
    code, out, _ = here("bench", "works.py:breaks", *BRIEF)
    assert code == 0
    assert "(100.0%)" in out
    assert re.search(r"- asyncio, loop, 2 clients: [\d,]+ x KeyError", out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["works.py:nope"], "works.py has no 'nope'; there are:"),
        (["works.py:number"], "works.py:number is int, not a flow or task"),
        (["none.py:x"], "there is no file 'none.py'"),
        (["works.py:plain"], "task 'plain' needs number: add --arg number=..."),
        (["works.py:nap", "--arg", "seconds=soon"], "parameter 'seconds'"),
        (["works.py:nap", "--arg", "seconds"], "--arg 'seconds' has no value; write --arg name=value"),
        (["works.py:mixed", "--arg", "n=1"], "is a scenario, whose works have their arguments already"),
        (["works.py:nap", "--concurrency", "1,x"], "--concurrency must be whole numbers with commas between them"),
        (["works.py:nap", "--concurrency", "0"], "concurrency must be a whole number from 1, not 0"),
        (["works.py:nap", "--rate", "fast"], "--rate must be numbers with commas"),
        (["works.py:nap", "--loop", "gevent"], "there is no event loop 'gevent'; there are: asyncio, uvloop, trio"),
        (["works.py:nap", "--runner", "loop,,threads"], "--runner must be names with commas between them"),
        (["works.py:nap", "--duration", "0"], "duration must be a number above 0, not 0"),
        (["works.py:nap", "--runner", "threads"], "nap is async: its bodies run on the event loop, never on threads"),
        (["works.py:nap", "--fail-over", "10%"], "--fail-over needs something to compare with"),
        (["works.py:nap", "--compare", "x.json", "--fail-over", "much"], "--fail-over must be a share such as 10%"),
        (["works.py:nap", "--compare", "none.json"], "the report 'none.json' cannot be read"),
        (["works.py:nap", "--json", "none/out.json"], "'none/out.json' cannot be written: there is no folder 'none'"),
        (["works.py:nap", "--html", "."], "'.' cannot be written: it is a folder"),
        (["works.py:nap", "--store", "foo://x"], "store 'foo://x' cannot be opened: there are memory://"),
        (["works.py:nap", "--arrivals", "bursts"], "bursts"),
        ([], "TARGET"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_is_told_before_anything_is_measured(here, works, words, told):
    code, out, err = here("bench", *words)
    assert (code, out) == (2, "")
    assert told in err
    assert "round 1" not in err


@pytest.mark.parametrize(("loop", "package"), [("uvloop", "uvloop"), ("trio", "asynctask[trio]")])
def test_a_loop_that_is_not_installed_is_told_with_what_to_install(here, works, monkeypatch, loop, package):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == loop else found(name, *rest))
    code, _, err = here("bench", "works.py:nap", "--loop", f"asyncio,{loop}")
    assert (code, err) == (2, f"asynctask: {loop} is not installed: pip install '{package}'\n")


def changed(report: dict[str, Any], path: Path, factor: float) -> None:
    """The report as if all had taken `factor` times as long, in rounds that hardly differ."""
    for cell in report["cells"]:
        for name, change in (("throughput", 1 / factor), ("p50", factor), ("p99", factor)):
            figure = cell["figures"][name]
            figure["median"] *= change
            figure["rounds"] = [figure["median"]] * 2
            figure["spread"] = 0.0
    path.write_text(json.dumps(report))


def test_a_comparison_says_what_changed_and_fails_past_what_is_allowed(here, works):
    brief = ("--concurrency", "2", "--duration", "0.2", "--warmup", "0", "--repeats", "2")
    assert here("bench", "works.py:nap", *brief, "--json", "now.json").code == 0
    now = (works / "now.json").read_text()
    changed(json.loads(now), works / "fast.json", 1 / 1000)
    changed(json.loads(now), works / "slow.json", 1000)
    worse = here("bench", "works.py:nap", *brief, "--compare", "fast.json", "--fail-over", "10%")
    assert worse.code == 1
    assert re.search(r"2 clients +calls/s +.* worse$", worse.out, re.MULTILINE)
    assert re.search(r"2 clients +p50 +.* worse$", worse.out, re.MULTILINE)
    assert "something is worse by more than 10%, beyond the noise" in worse.err
    better = here("bench", "works.py:nap", *brief, "--compare", "slow.json", "--fail-over", "10%")
    assert better.code == 0, better.err
    assert re.search(r"2 clients +p50 +.* better$", better.out, re.MULTILINE)
    only_told = here("bench", "works.py:nap", *brief, "--compare", "fast.json")
    assert only_told.code == 0, "without --fail-over a change is told, no more"
    other = here("bench", "works.py:nap", *BRIEF[:-1], "5", "--compare", "fast.json", "--fail-over", "10%")
    assert other.code == 2, "who asks whether it is worse is not told that it is not"
    assert "nothing to compare: the reports have no line in common" in other.out
    assert "--fail-over could judge nothing" in other.err
    once = here("bench", "works.py:nap", *brief[:-1], "1", "--compare", "fast.json", "--fail-over", "10%")
    assert once.code == 2
    assert "--fail-over could judge nothing" in once.err


def test_ctrl_c_tears_down_leaves_no_process_and_shows_what_there_is(works):
    """Of two lines the first has its only round when the second is interrupted."""
    (works / "slow.py").write_text(
        "import os, subprocess, sys, time\n"
        "from asynctask.bench import Scenario\n"
        "def setup():\n"
        "    server = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    with open('pids', 'a') as file: file.write(f'{os.getpid()} {server.pid}\\n')\n"
        "    return server\n"
        "def teardown(server):\n"
        "    with open('over', 'a') as file: file.write('over\\n')\n"
        "    server.kill(); server.wait()\n"
        "async def work(server):\n"
        "    import anyio\n"
        "    await anyio.sleep(0.001)\n"
        "slow = Scenario(work, setup=setup, teardown=teardown)\n"
    )
    words = ("slow.py:slow", "--concurrency", "1,2", "--duration", "3", "--warmup", "0", "--repeats", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "asynctask", "bench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "ASYNCTASK_STORE_URL": "memory://"},
    )
    try:
        wait_for(lambda: (works / "pids").exists() and len((works / "pids").read_text().splitlines()) == 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "asynctask: interrupted" in err
    assert re.search(r"^asyncio +loop +1 client ", out, re.MULTILINE)
    assert not re.search(r"^asyncio +loop +2 clients ", out, re.MULTILINE)
    assert "the measurement was broken off" in out
    assert (works / "over").read_text() == "over\nover\n", "both rounds were torn down"
    for pid in (works / "pids").read_text().split():
        wait_for(lambda pid=pid: not is_there(int(pid)))


def test_ctrl_c_ends_a_work_that_holds_the_loop_and_all_that_it_has_started(works):
    (works / "stuck.py").write_text(
        "import os, subprocess, sys, time\n"
        "def stuck():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    with open('pids', 'w') as file: file.write(f'{os.getpid()} {child.pid}')\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "asynctask", "bench", "stuck.py:stuck", "--concurrency", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "ASYNCTASK_STORE_URL": "memory://"},
    )
    try:
        wait_for(lambda: (works / "pids").exists() and len((works / "pids").read_text().split()) == 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.wait()
    for pid in (works / "pids").read_text().split():
        wait_for(lambda pid=pid: not is_there(int(pid)))


def is_there(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_on_a_terminal_it_is_seen_while_it_runs(works):
    words = ("works.py:nap", "--concurrency", "1,2", "--duration", "1", "--warmup", "0.5", "--repeats", "1")
    screen = on_terminal("-W", "error", "-m", "asynctask", "bench", *words, columns=150)
    for told in ("waits", "round 1/1, starts", "round 1/1, warm-up", "about "):
        assert told in screen, told
    figures = r"1 client +[\d.,]+ +[\d.]+ (us|ms) +[\d.]+ (us|ms) +0 +round 1/1, \d+%"
    assert re.search(figures, screen), "a line under way has figures"
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l"), "the cursor is back"
    last = screen[screen.rindex("\x1b[?25h") :]
    assert "CALLS/S" in last
    assert "round 1/1" not in last, "and the view is gone"


def test_a_round_that_fails_is_told_with_the_users_own_lines_and_what_there_is_shown(here, works):
    (works / "fails.py").write_text(
        "import os\nfrom asynctask.bench import Scenario\n"
        "def setup():\n"
        "    with open('rounds', 'a') as file: file.write('x')\n"
        "    if os.path.getsize('rounds') > 1: raise ConnectionError('no server')\n"
        "async def work():\n"
        "    import anyio\n"
        "    await anyio.sleep(0.001)\n"
        "scenario = Scenario(work, setup=setup)\n"
    )
    code, out, err = here("bench", "fails.py", *BRIEF[:-1], "1,2")
    assert code == 1
    assert "ConnectionError: no server" in err
    assert re.search(r"^asyncio +loop +1 client ", out, re.MULTILINE)


def test_a_store_on_disk_is_used_where_it_is_named(here, works):
    code, _, err = here("bench", "works.py:nap", *BRIEF, "--store", f"sqlite:///{works / 'runs.db'}")
    assert code == 0, err
    told = here("runs", "ls", "--store", f"sqlite:///{works / 'runs.db'}")
    assert "nap-" in told.out


def test_help_says_what_each_option_means(command, works):
    done = command("bench", "--help", COLUMNS="120")
    assert done.code == 0
    for option in ("--concurrency", "--rate", "--arrivals", "--runner", "--loop", "--compare", "--fail-over", "--html"):
        assert option in done.out
