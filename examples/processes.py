"""Work for processors: the same task on threads, and on processes.

Files of Python's own standard library are parsed and their functions counted, which keeps an interpreter busy: threads
share one, processes have one each. Nothing but the runner differs.

    python examples/processes.py
"""

import ast
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from asynctask import ProcessPoolTaskRunner, TaskFuture, ThreadPoolTaskRunner, flow, task
from asynctask.options import TaskRunner

LIBRARY = Path(ast.__file__).parent


@task(task_run_name="count {path.name}")
def count(path: Path) -> tuple[int, int]:
    """How many functions a file has, and in which process they were counted."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_bytes())
    return sum(isinstance(node, functions) for node in ast.walk(tree)), os.getpid()


def count_all(files: list[Path], runner: TaskRunner) -> tuple[int, int, float]:
    """The functions of all files, the number of processes that counted them, and the seconds that it took."""

    @flow(task_runner=runner)
    def counting() -> list[TaskFuture[tuple[int, int]]]:
        return count.map(files)

    count.with_options(task_runner=runner).map(files[:4]).wait()  # workers start
    began = time.monotonic()
    found = counting()
    return sum(number for number, _ in found), len({pid for _, pid in found}), time.monotonic() - began


def main() -> None:
    most = int(sys.argv[1]) if sys.argv[1:] else 150
    files = sorted(LIBRARY.glob("*.py"), key=lambda path: -path.stat().st_size)[:most]
    processors = os.cpu_count() or 1
    table = Table("runner", "functions", "processes", "seconds", title=f"{len(files)} files, {processors} processors")
    runners = {"threads": ThreadPoolTaskRunner(processors), "processes": ProcessPoolTaskRunner(processors)}
    seconds: dict[str, float] = {}
    for name, runner in runners.items():
        functions, used, seconds[name] = count_all(files, runner)
        table.add_row(name, f"{functions:,}", str(used), f"{seconds[name]:.2f}")
    console = Console()
    console.print(table)
    console.print(f"processes are {seconds['threads'] / seconds['processes']:.1f} times as fast")


if __name__ == "__main__":
    os.environ.setdefault("ASYNCTASK_STORE_URL", "memory://")
    main()
