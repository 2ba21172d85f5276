"""What a program defines in its own file is itself again when it comes out of the store, whoever put it there."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from asynctask import pickles

PROGRAM = dedent("""
    import dataclasses, enum, multiprocessing, sys, threading, typing
    from asynctask import task
    from asynctask.cache_policies import INPUTS

    @dataclasses.dataclass
    class Point:
        x: int

    class Colour(enum.Enum):
        RED = 1

    class Pair(typing.NamedTuple):
        left: Point
        right: object

    def helper():
        return Point

    @task(cache_policy=INPUTS)
    def make(x):
        print("the body runs")
        return Pair(Point(x), [Colour.RED, helper])

    def look():
        made = make(1)
        print(made == Pair(Point(1), [Colour.RED, helper]), type(made) is Pair, made.right[0] is Colour.RED)

    if __name__ == "__main__":
        if "spawn" in sys.argv:
            child = multiprocessing.get_context("spawn").Process(target=look)
            child.start()
            child.join()
        else:
            look()
""")
FIRST = ["the body runs", "True True True"]
#: How the program can be run: as a script, imported, by the command, and its function in a spawned child.
WAYS = {
    "script": ["program.py"],
    "import": ["-c", "import program; program.look()"],
    "spawn": ["program.py", "spawn"],
    "command": ["-c", "import asynctask.cli.targets as t; t.find_target('program.py:make').fn.__globals__['look']()"],
}


def run(folder: Path, *arguments: str) -> list[str]:
    environment = {**os.environ, "ASYNCTASK_STORE_URL": f"sqlite:///{folder}/runs.db", "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == ""
    return ended.stdout.splitlines()


@pytest.mark.parametrize("reader", WAYS)
@pytest.mark.parametrize("writer", WAYS)
def test_cached_dataclasses_and_enums_of_the_program_are_equal_in_the_next_process(
    writer: str, reader: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    assert run(tmp_path, *WAYS[writer]) == FIRST
    assert run(tmp_path, *WAYS[reader]) == FIRST[1:]


def test_another_program_reads_them_as_copies(tmp_path: Path) -> None:
    writer = (
        "import dataclasses, sys; from asynctask import pickles\n"
        "@dataclasses.dataclass\n"
        "class Point:\n"
        "    x: int\n"
        "    def double(self): return Point(2 * self.x)\n"
        "open('kept', 'wb').write(pickles.dumps(Point(4)))\n"
    )
    (tmp_path / "writer.py").write_text(writer)
    assert run(tmp_path, "writer.py") == []
    again = pickles.loads((tmp_path / "kept").read_bytes())
    assert repr(again.double()) == "Point(x=8)"


def test_what_is_defined_in_a_function_of_the_program_comes_back_as_a_copy(tmp_path: Path) -> None:
    program = (
        "from asynctask import pickles\n"
        "def make(n):\n"
        "    class Point: value = n\n"
        "    return Point\n"
        "one, two = (pickles.loads(pickles.dumps(make(n)())) for n in (1, 2))\n"
        "print(one.value, two.value, pickles.loads(pickles.dumps(lambda: 7))())\n"
    )
    (tmp_path / "program.py").write_text(program)
    assert run(tmp_path, "program.py") == ["1 2 7"]
