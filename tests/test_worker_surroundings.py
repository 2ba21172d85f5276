"""Where functions come from that go to workers, and what befalls the workers there."""

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from asynctask import ProcessPoolTaskRunner, Runtime, task
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
