"""The programs in examples/ run as a user would run them, and show what they promise."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit import on_terminal

EXAMPLES = Path(__file__).parents[2] / "examples"
# Parts of the standard library; .ci/run takes all of it.
ASYNCIO = Path(json.__file__).parents[1] / "asyncio"
ENCODINGS = ASYNCIO.with_name("encodings")

# What a plain `pip install .` does not bring.
WITHOUT = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"trio", "uvloop", "httpx", "starlette", "uvicorn", "attr", "attrs", "pydantic"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-W", "error", *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_every_example_has_a_test_here() -> None:
    source = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in source] == []


def test_quickstart_shows_results_a_retry_and_histories() -> None:
    done = run("-c", WITHOUT, EXAMPLES / "quickstart.py")
    assert "Cairo is warmest, at 88 F" in done.stdout
    assert done.stdout.count("Pending > Running > AwaitingRetry > Retrying > Completed") == 1
    assert done.stdout.count("Pending > Running > Completed") == 8
    assert "compared 4 cities" in done.stderr


def test_the_main_job_reports_modules_also_those_that_fail(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("def long(x):\n    if x and x:\n        return 1\n    return [y for y in x]\n")
    (tmp_path / "bad.py").write_text("print 'two'\n")
    done = run("-c", WITHOUT, EXAMPLES / "stdlib_report.py", tmp_path)
    assert re.search(r"good: long +4 *\n", done.stdout), "its length"
    assert re.search(r"good: long +3 *\n", done.stdout), "its branches: if, and"
    assert re.search(r"bad +SyntaxError", done.stdout)
    assert re.search(r"analyse +2 +1 +1 +0 ", done.stderr), "the summary: runs, completed, failed, retried"


def test_the_main_job_retries_reads_that_fail() -> None:
    """A tenth of the reads of some 120 files: that none should fail has a chance of one in 300,000."""
    done = run(EXAMPLES / "stdlib_report.py", ENCODINGS, "--flaky")
    read = re.search(r"read +(\d+) +(\d+) +(\d+) +(\d+) ", done.stderr)
    assert read
    runs, completed, failed, retried = map(int, read.groups())
    assert runs == completed + failed == len(list(ENCODINGS.glob("*.py")))
    assert retried > 0
    assert completed > 0.9 * runs


def test_the_main_job_shows_its_runs_on_a_terminal() -> None:
    screen = on_terminal(EXAMPLES / "stdlib_report.py", ASYNCIO)
    frames = screen.split("\x1b[2K\x1b[1A")
    assert any(re.search(r"analyse\S* .*[━─]{5}.* \d+/\d+ .*running", frame) for frame in frames), "a bar and counters"
    assert any(re.search(r"• survey-\w+ .*\n\s+• \w+ ", frame) for frame in frames), "a tree"
    assert "Longest functions" in frames[-1]
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize("options", [(), ("--trio",)], ids=["asyncio", "trio"])
def test_the_crawler_has_every_page_that_can_be_had_in_spite_of_the_site(options: tuple[str, ...]) -> None:
    prelude = () if options else ("-c", WITHOUT)
    done = run(*prelude, EXAMPLES / "crawler.py", *options)
    pages, missing = map(int, re.findall(r"^(\d+) pages.* (\d+) could not be had", done.stdout)[0])
    assert pages + missing == 123
    assert pages >= 115
    assert done.stdout.count(": 404 for ") == 3, "pages that are not there are not tried again"
    assert "503" in done.stdout
    retried = re.search(r"fetch +123 +\d+ +\d+ +(\d+) ", done.stderr)
    assert retried
    assert int(retried[1]) > 10


def test_the_tasks_under_trio() -> None:
    done = run(EXAMPLES / "trio_tasks.py")
    assert "the sum: 2490" in done.stdout
    assert "the slow one: TimedOut" in done.stdout
    assert "cancelled by trio" in done.stdout
    assert re.search(r"fetch +20 +20 +0 +1 ", done.stderr), "one retry"


class Server:
    """examples/web_app.py, started."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "error", str(EXAMPLES / "web_app.py"), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.output = ""
        self.address = ""

    def read_until(self, text: str, seconds: float = 20) -> str:
        """Everything written so far, once `text` is in it (or the process has ended)."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while text not in self.output:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self.process.stdout.fileno(), 65536).decode() if ready else ""
            assert part, f"no {text!r} in: {self.output}"
            self.output += part
        return self.output

    def ask(self, path: str, method: str = "GET") -> dict[str, object]:
        request = urllib.request.Request(self.address + path, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, object] = json.load(answer)
        return found

    def end(self) -> None:
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    try:
        started.address = re.findall(r"http://[\d.:]+", started.read_until("archive open"))[0]
        yield started
    finally:
        started.end()


def test_measure_has_a_line_for_each_runner_and_shows_what_a_stall_does_to_whom() -> None:
    done = run("-c", WITHOUT, EXAMPLES / "measure.py", "0.2")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("asyncio")]
    assert [line[1] for line in lines] == ["loop", "threads", "processes"] * 2
    in_turn, at_a_rate = map(float, re.findall(r"(\d+\.\d)% of the calls took over 50 ms", done.stdout))
    assert 0 < in_turn < at_a_rate
    plots = re.search(r"with plots: (.*)", done.stdout)
    assert plots
    assert "</svg>" in Path(plots[1]).read_text()


def test_the_web_app_awaits_tasks_in_handlers_and_knows_its_runs(server: Server) -> None:
    assert server.ask("/square/12") == {"square": 144}
    submitted = server.ask("/reports?seconds=0.1&title=weekly", "POST")
    server.read_until("archived: weekly")
    history = server.ask(f"/runs/{submitted['id']}")["history"]
    assert isinstance(history, list)
    assert [entry["state"] for entry in history][:2] == ["Pending", "Running"]
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        server.ask("/runs/nonsense")
    missing.value.close()


def test_the_web_app_told_to_stop_finishes_what_it_was_given(server: Server) -> None:
    """SIGTERM while three runs are under way: each ends, while the application's archive is still open."""
    for title in ("first", "second", "third"):
        server.ask(f"/reports?seconds=1&title={title}", "POST")
    assert "archived" not in server.output
    server.process.send_signal(signal.SIGTERM)
    server.read_until("archive closed")
    assert server.process.wait(timeout=20) in (0, -signal.SIGTERM), "uvicorn ends as the signal would have"
    # On a slow machine there may be a warning among them that the loop was blocked.
    lines = [line.split("  ", 1)[1] for line in server.output.splitlines() if "  " in line]
    assert sorted(line for line in lines if line.startswith("archived")) == [
        "archived: first, made in 1 s",
        "archived: second, made in 1 s",
        "archived: third, made in 1 s",
    ]
    assert lines[-1] == "archive closed, after the last run"


def test_shared_limits_holds_a_limit_over_processes_of_which_one_is_killed() -> None:
    done = run("-c", WITHOUT, EXAMPLES / "shared_limits.py")
    assert re.search(r"process \d+ is killed", done.stdout)
    assert re.search(r"never more than [123] +\n? *of 3 at once", done.stdout)
    assert re.search(r"afterwards 0 slots are in use; \d+ runs of the killed process are Crashed", done.stdout)
    assert done.stdout.count("four times over") == 3


def test_own_runner_has_all_that_asks_the_database_in_one_thread() -> None:
    done = run("-c", WITHOUT, EXAMPLES / "own_runner.py", "30")
    (functions,) = re.findall(r"([\d,]+) functions in 30", done.stdout)
    assert re.findall(r"([\d,]+) rows were written by (\w+)", done.stdout) == [(functions, "database_0")]


def test_pipeline_sums_up_all_files_and_has_few_of_them_at_once() -> None:
    done = run("-c", WITHOUT, EXAMPLES / "pipeline.py", "30")
    assert re.search(r"^30 files, .* [1-9][\d,]* functions in ", done.stdout, re.MULTILINE)
    found = re.search(r"at most (\d+) files were in the pipeline at once, of (\d+) that may be", done.stdout)
    assert found is not None
    assert 1 <= int(found[1]) <= int(found[2]) <= 4 + 2 * 4 + 1


def test_processes_counts_the_same_on_threads_and_on_processes() -> None:
    done = run("-c", WITHOUT, EXAMPLES / "processes.py", "40")
    (threads,) = re.findall(r"threads +│ ([\d,]+) +│ 1 ", done.stdout)
    (processes,) = re.findall(r"processes +│ ([\d,]+) +│ \d+ ", done.stdout)
    assert threads == processes
    assert re.search(r"processes are \d+\.\d times as fast", done.stdout)


@pytest.mark.parametrize(
    ("words", "runner"), [(["processes"], "ProcessPoolTaskRunner"), ([], "DaskTaskRunner")], ids=["processes", "dask"]
)
def test_cluster_does_the_same_wherever_its_one_line_says(words: list[str], runner: str) -> None:
    done = run(EXAMPLES / "cluster.py", *words)
    assert re.search(r"60 files, [\d.]+ MB, compressed to \d+%", done.stdout)
    assert f"on {runner}, in" in done.stdout
