"""A task runner of one's own: bodies that must all be in one thread, and others that need not.

A connection of Python's sqlite3 can be used only in the thread that has opened it. So what asks the database runs on
`OneThread`, which is all there is to a runner; the files of the standard library are read on threads as usual, side by
side. How to test a runner is in docs/guide.md.

    python examples/own_runner.py
"""

import ast
import os
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from asynctask import TaskFuture, flow, task

LIBRARY = Path(ast.__file__).parent


class OneThread:
    """Runs all bodies in one thread, one after the other."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def executor(self) -> ThreadPoolExecutor:  # for each call of a sync body that was submitted; in any thread
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            return self._pool

    def close(self) -> None:  # when a runtime that has used it is left; it may be used again
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)


database = OneThread("database")
connections: dict[str, sqlite3.Connection] = {}


@task(task_runner=database)
def open_index() -> None:
    connections["index"] = sqlite3.connect(":memory:")
    connections["index"].execute("CREATE TABLE functions (module TEXT, name TEXT, lines INTEGER, thread TEXT)")


@task(task_run_name="read {path.name}")
def read(path: Path) -> list[tuple[str, str, int]]:
    """The functions of a file: module, name, length."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, functions)]
    return [(path.stem, node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in found]


@task(task_runner=database)
def add(functions: list[tuple[str, str, int]]) -> int:
    thread = threading.current_thread().name
    rows = [(*function, thread) for function in functions]
    connections["index"].executemany("INSERT INTO functions VALUES (?, ?, ?, ?)", rows)
    return len(rows)


@task(task_runner=database)
def ask(question: str) -> list[tuple[str, int]]:
    return connections["index"].execute(question).fetchall()


@task(task_runner=database)
def close_index() -> None:
    connections.pop("index").close()


@flow
def index(files: list[Path]) -> list[TaskFuture[int]]:
    return add.map(read.map(files))


def main() -> None:
    most = int(sys.argv[1]) if sys.argv[1:] else 100
    files = sorted(LIBRARY.glob("*.py"), key=lambda path: -path.stat().st_size)[:most]
    open_index.submit().result()
    functions = sum(index(files))
    table = Table("name", "functions", title=f"{functions:,} functions in {len(files)} files")
    for name, count in ask.submit(
        "SELECT name, count(*) AS count FROM functions GROUP BY name ORDER BY count DESC, name LIMIT 8"
    ).result():
        table.add_row(name, str(count))
    writers = ask.submit("SELECT thread, count(*) FROM functions GROUP BY thread").result()
    close_index.submit().result()
    console = Console()
    console.print(table)
    for thread, rows in writers:
        console.print(f"{rows:,} rows were written by {thread}")


if __name__ == "__main__":
    os.environ.setdefault("ASYNCTASK_STORE_URL", "memory://")
    main()
