"""Four processes, one database: at most three of all of them at work at once, and one killed in the middle.

Each process counts the words of docstrings in a part of Python's own standard library, three files at a time over all
processes, and goes on at most 200 times a second. One of them is killed while it holds a slot: the others go on without
waiting for any timeout. How many were at work at once is told at the end, from a log in which each task wrote when it
began and ended.

    python examples/shared_limits.py
"""

import ast
import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from asynctask import Runtime, get_client, rate_limit, task, unmapped

PROCESSES, AT_ONCE, A_SECOND = 4, 3, 200
LIBRARY = Path(ast.__file__).parent
FOLDERS = ["asyncio", "email", "json", "logging"]


@task(tags=["parser"], task_run_name="count {path.name}")
def count_words(path: Path, log: Path) -> int:
    """Hold a slot for as long as the work takes, and write down from when to when that was."""
    began = time.monotonic_ns()  # one clock for all processes of a machine
    tree = ast.parse(path.read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    time.sleep(0.005)
    with log.open("a") as lines:
        lines.write(f"{os.getpid()} {began} {time.monotonic_ns()}\n")
    return sum(len(text.split()) for text in texts)


async def work(folder: Path, number: int) -> None:
    """What one process does."""
    files = sorted((LIBRARY / FOLDERS[number]).glob("*.py"))
    async with Runtime(store=f"sqlite:///{folder}/runs.db"):
        futures = count_words.map(files * 4, unmapped(folder / "log"))
        words = 0
        for future in futures:
            words += await future
            await rate_limit("counter")
        print(f"{FOLDERS[number]}: {words:,} words in {len(files)} files, four times over", flush=True)


async def manage(folder: Path) -> None:
    """Set the limits, start the processes, kill one, and see that nothing is left behind."""
    console = Console()
    async with Runtime(store=f"sqlite:///{folder}/runs.db"), get_client() as client:
        await client.create_concurrency_limit("parser", AT_ONCE)
        await client.create_global_concurrency_limit("counter", 10, slot_decay_per_second=A_SECOND)
        command = [sys.executable, __file__, str(folder)]
        processes = [await asyncio.create_subprocess_exec(*command, str(number)) for number in range(PROCESSES)]
        victim = None
        while victim is None:
            limit = await client.read_concurrency_limit_by_tag("parser")
            for holder in limit.holders:
                console.print(f"{holder.name} of process {holder.pid} holds a slot, {limit.waiting} wait")
            victim = next((one for one in processes for holder in limit.holders if holder.pid == one.pid), None)
        console.print(f"process {victim.pid} is killed", style="bold red")
        victim.send_signal(signal.SIGKILL)
        for process in processes:
            await process.wait()
        limit = await client.read_concurrency_limit_by_tag("parser")
        crashed = await client.count_task_runs(state_name="Crashed")
        console.print(f"afterwards {limit.in_use} slots are in use; {crashed} runs of the killed process are Crashed")
    tell(console, folder / "log")


def tell(console: Console, log: Path) -> None:
    rows = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    changes = sorted([(began, 1) for _, began, _ in rows] + [(ended, -1) for _, _, ended in rows])
    inside = most = 0
    for _, step in changes:
        inside += step
        most = max(most, inside)
    table = Table("process", "files", title=f"never more than {most} of {AT_ONCE} at once")
    for pid in dict.fromkeys(pid for pid, _, _ in rows):
        table.add_row(str(pid), str(sum(row[0] == pid for row in rows)))
    console.print(table)
    sys.exit(most > AT_ONCE)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2])))
    else:
        with tempfile.TemporaryDirectory() as here:
            asyncio.run(manage(Path(here)))
