"""A pipeline of streams: files are read on threads, parsed in processes, and summed up on the event loop, all at once.

Each stage is a stream over the one before it. None runs ahead: a file is opened when there is room for it further down,
so that however many files there are, only a handful are in memory. The library that is read is Python's own.

    python examples/pipeline.py
"""

import ast
import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from asynctask import ProcessPoolTaskRunner, ThreadPoolTaskRunner, task

LIBRARY = Path(ast.__file__).parent
READERS, PARSERS = 4, min(4, os.cpu_count() or 1)


class Source(NamedTuple):
    """A file that was read, and by which thread."""

    name: str
    code: bytes
    thread: str


class Function(NamedTuple):
    """A function, by its length in lines."""

    lines: int
    name: str
    file: str


class Parsed(NamedTuple):
    """What is in a file, and which threads and processes found out."""

    source: tuple[str, int, str]
    functions: list[Function]
    process: int


@task(task_runner=ThreadPoolTaskRunner(READERS), task_run_name="read {path.name}")
def read(path: Path) -> Source:
    return Source(path.name, path.read_bytes(), threading.current_thread().name)


@task(task_runner=ProcessPoolTaskRunner(PARSERS), task_run_name="parse {source.name}")
def parse(source: Source) -> Parsed:
    """Keeps a processor busy: that is why it is done in processes."""
    functions = [
        Function((node.end_lineno or node.lineno) - node.lineno + 1, node.name, source.name)
        for node in ast.walk(ast.parse(source.code))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return Parsed((source.name, len(source.code), source.thread), functions, os.getpid())


class Report:
    """What all files have come to. Only the loop writes it, so it needs no lock."""

    def __init__(self) -> None:
        self.opened = self.done = self.most_open = self.bytes = self.functions = 0
        self.longest: list[Function] = []
        self.threads: set[str] = set()
        self.processes: set[int] = set()

    def files(self, most: int) -> Iterator[Path]:
        """The input: pulled by the first stage, one by one, when it has room."""
        for path in sorted(LIBRARY.glob("*.py"))[:most]:
            self.opened += 1
            self.most_open = max(self.most_open, self.opened - self.done)
            yield path

    def add(self, parsed: Parsed) -> None:
        _, size, thread = parsed.source
        self.done += 1
        self.bytes += size
        self.functions += len(parsed.functions)
        self.longest = sorted([*self.longest, *parsed.functions], reverse=True)[:5]
        self.threads.add(thread)
        self.processes.add(parsed.process)


async def main(most: int) -> None:
    report = Report()

    @task
    async def sum_up(parsed: Parsed) -> str:
        report.add(parsed)
        return parsed.source[0]

    began = time.monotonic()
    sources = read.stream(report.files(most), concurrency=READERS)
    trees = parse.stream(sources, concurrency=2 * PARSERS)  # the next file is there when a process has done with one
    async for _ in sum_up.stream(trees, concurrency=1):
        pass
    seconds = time.monotonic() - began

    table = Table("lines", "function", "file", title="the longest functions")
    for function in report.longest:
        table.add_row(str(function.lines), function.name, function.file)
    console = Console()
    console.print(table)
    size = report.bytes / 1e6
    console.print(f"{report.done} files, {size:.1f} MB, {report.functions:,} functions in {seconds:.1f} s")
    console.print(f"read by {len(report.threads)} threads, parsed in {len(report.processes)} processes")
    bound = READERS + 2 * PARSERS + 1
    console.print(f"at most {report.most_open} files were in the pipeline at once, of {bound} that may be")


if __name__ == "__main__":
    os.environ.setdefault("ASYNCTASK_STORE_URL", "memory://")
    asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 1_000))
