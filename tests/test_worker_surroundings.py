"""Where functions come from that go to workers, and what befalls the workers there."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from asynctask import ProcessPoolTaskRunner, Runtime, task
from asynctask.errors import WorkerLostError
from asynctask.stores.memory import MemoryStore

pytestmark = pytest.mark.timeout(60)

PROGRAM = """
import os
from asynctask import ProcessPoolTaskRunner, flow, task
FACTOR = 3

class Pair:
    def __init__(self, one, other):
        self.one, self.other = one, other

def helper(number):
    return FACTOR * number

@task
def pair(number):
    return Pair(helper(number), os.getpid())

@flow(task_runner=ProcessPoolTaskRunner(max_workers=1))
def several():
    return pair.map(range(4))

found = several()
print([one.one for one in found], {type(one) is Pair for one in found}, os.getpid() in {one.other for one in found})
"""
SAID = "[0, 3, 6, 9] {True} False\n"


def said_by(*arguments: str, given: str = "") -> str:
    environment = {**os.environ, "ASYNCTASK_STORE_URL": "memory://"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], input=given, capture_output=True, text=True, env=environment,
        timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_functions_of_a_program_on_the_command_line_travel():
    assert said_by("-c", PROGRAM) == SAID


def test_functions_of_a_program_on_standard_input_travel():
    assert said_by("-", given=PROGRAM) == SAID


def test_functions_that_are_typed_in_travel():
    """As at a prompt: statement by statement, of no file."""
    typed = "\n".join(f"{block}\n" for block in PROGRAM.strip().split("\n\n"))
    assert said_by("-q", "-i", given=typed + "\n") == SAID


def test_functions_of_the_cells_of_a_notebook_travel(tmp_path: Path):
    """A kernel is no script: its `__main__` has no file, and each cell is compiled by itself under a made-up name."""
    kernel = tmp_path / "kernel.py"
    kernel.write_text(
        textwrap.dedent("""
        import linecache, sys, types
        program = sys.argv.pop()
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__builtins__ = __builtins__
        def cells():
            for number, cell in enumerate(program.strip().split("\\n\\n")):
                name = f"/tmp/ipykernel_1/{number}.py"
                linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
                exec(compile(cell, name, "exec"), vars(main))
        cells()
    """)
    )
    assert said_by(str(kernel), PROGRAM) == SAID


def little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))


@task
def take(gigabytes: float) -> int:
    return len(bytearray(int(gigabytes * (1 << 30))))


async def test_a_body_that_finds_no_memory_fails_as_it_would_here_and_its_worker_lives_on():
    pid = task(os.getpid, name="pid")
    runner: Any = ProcessPoolTaskRunner(1, initializer=little_memory)
    async with Runtime(store=MemoryStore(), task_runner=runner):
        before = await pid.submit()
        with pytest.raises(MemoryError):
            await take.submit(4)
        assert await take.submit(0.001) == int(0.001 * (1 << 30))
        assert await pid.submit() == before


def leave() -> None:
    sys.exit("no licence")


def vanish() -> None:
    os._exit(3)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def vanish_once(path: str) -> None:
    """The first time alone."""
    with contextlib.suppress(FileExistsError):
        Path(path).touch(exist_ok=False)
        os._exit(9)


@task
def pid() -> int:
    return os.getpid()


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
@pytest.mark.parametrize(
    ("initializer", "said"),
    [
        (leave, r"its initializer raised SystemExit\(no licence\)"),
        (vanish, "it ended with exit code 3"),
        (be_killed, "it was killed by SIGKILL"),
    ],
)
async def test_runs_whose_worker_cannot_start_end_crashed_and_all_others_go_on(initializer, said, start_method):
    runner = ProcessPoolTaskRunner(2, initializer=initializer, start_method=start_method)
    async with Runtime(store=MemoryStore(), task_runner=ProcessPoolTaskRunner(1)):
        crashing = [pid.with_options(task_runner=runner, retries=1).submit() for _ in range(3)]
        others = [pid.submit() for _ in range(3)]
        for future in crashing:
            with pytest.raises(WorkerLostError, match=f"a worker process could not start: {said}"):
                await future
            assert [state.name for state in future.run.states] == ["Pending", "AwaitingRetry", "Crashed"]
        assert os.getpid() not in {await future for future in others}


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
async def test_an_attempt_whose_worker_could_not_start_is_followed_by_another(tmp_path: Path, start_method):
    marker = str(tmp_path / "marker")
    runner = ProcessPoolTaskRunner(1, initializer=vanish_once, initargs=(marker,), start_method=start_method)
    async with Runtime(store=MemoryStore(), task_runner=runner):
        future = pid.with_options(retries=1).submit()
        assert await future != os.getpid()
        assert [state.name for state in future.run.states] == ["Pending", "AwaitingRetry", "Running", "Completed"]


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
async def test_without_an_interpreter_to_start_runs_end_crashed_until_there_is_one_again(start_method, monkeypatch):
    async with Runtime(store=MemoryStore(), task_runner=ProcessPoolTaskRunner(1, start_method=start_method)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nowhere/python")
            future = pid.submit()
            with pytest.raises(WorkerLostError, match=r"could not start: .*'/nowhere/python'"):
                await future
        assert future.state.is_crashed()
        assert await pid.submit() != os.getpid()
