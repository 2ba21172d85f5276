"""Do acknowledged commits survive on the SQLite that is linked here, with our guard and without it?

Usage: python benchmarks/wal_guard.py [--without-guard] [--attempts N] [--folder FOLDER] [--json]

SQLite 3.7.0 to 3.51.2 has a race between a checkpoint and a writer (https://sqlite.org/wal.html#walresetbug), and each
attempt brings it about by public means alone:

1. The checkpointer reads the whole database through memory mapping.
2. The writer commits some rows and copies them all into the database (a first, complete checkpoint).
3. The checkpointer begins a checkpoint of its own. It looks how long the log is; then, since the database changed, it
   drops its mapping, which takes a millisecond or two. Meanwhile the writer commits, and begins the log anew. The
   checkpointer does not notice, and marks as copied what the log held before.
4. What the writer commits next falls under that mark: it is acknowledged, and never read nor copied again.

Every row is noted outside the database once its commit has returned. After each attempt a third process commits and
looks which of them are still there. With the guard each write and each checkpoint holds asynctask's `FileLock`, as the
store does. Exit 0 if nothing was lost, 1 at the first loss.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import AbstractAsyncContextManager, closing, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from asynctask.stores.guard import FileLock, loses_commits, taken

#: The size of the database, which decides how long dropping its mapping takes: 64 MB, 2 ms.
PAGES = 16_384
ROWS = 8  # that the writer commits at each turn, each alone
READY = 0.003  # seconds: until both have been told when to begin
LONGEST = 0.005  # seconds: what the writer waits at most


class Side:
    """One process's connection, and the guard (or none) around what it writes."""

    def __init__(self, path: str, is_guarded: bool) -> None:
        self.database = sqlite3.connect(path, isolation_level=None, timeout=10)
        self.database.execute("PRAGMA wal_autocheckpoint = 0")
        # What is lost here is lost without any crash; not to wait for the disk only saves time.
        self.database.execute("PRAGMA synchronous = OFF")
        self._lock = FileLock(f"{path}-guard") if is_guarded else None

    def guarded(self) -> AbstractAsyncContextManager[None] | taken:
        return nullcontext() if self._lock is None else taken(self._lock)

    async def commit(self, number: int) -> int:
        async with self.guarded():
            self.database.execute("BEGIN IMMEDIATE")
            self.database.execute("INSERT INTO ledger VALUES (?)", (number,))
            self.database.execute("COMMIT")
        return number

    async def checkpoint(self) -> None:
        async with self.guarded():
            self.database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    async def close(self) -> None:
        async with self.guarded():  # the last to close makes a checkpoint
            self.database.close()
        if self._lock is not None:
            self._lock.close()


async def checkpointer(path: str, is_guarded: bool, orders: Connection[Any, Any]) -> None:
    side = Side(path, is_guarded)
    side.database.execute(f"PRAGMA mmap_size = {PAGES * 8192}")
    while (order := orders.recv()) is not None:
        if order == "look":
            side.database.execute("SELECT count(*) FROM ballast").fetchone()
            orders.send(None)
        else:
            spin_until(order)
            await side.checkpoint()
            orders.send(time.monotonic() - order)
    await side.close()


async def writer(path: str, is_guarded: bool, orders: Connection[Any, Any]) -> None:
    side = Side(path, is_guarded)
    while (order := orders.recv()) is not None:
        begin, numbers = order
        if begin is None:
            acknowledged = [await side.commit(number) for number in numbers]
            await side.checkpoint()
        else:
            spin_until(begin)
            acknowledged = [await side.commit(numbers[0])]
            orders.send(None)
            orders.recv()  # the checkpoint is over
            acknowledged += [await side.commit(number) for number in numbers[1:]]
        orders.send(acknowledged)
    await side.close()


def spin_until(moment: float) -> None:
    """A sleep would miss it by more than the race lasts. CLOCK_MONOTONIC is one for all processes."""
    while time.monotonic() < moment:
        pass


def run(role: Any, *args: Any) -> None:
    asyncio.run(role(*args))


def build(path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(
            f"""
            PRAGMA page_size = 4096; PRAGMA synchronous = OFF;
            CREATE TABLE ledger (number INTEGER PRIMARY KEY);
            BEGIN;
            CREATE TABLE ballast AS
                WITH RECURSIVE some(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM some WHERE n < {PAGES})
                SELECT zeroblob(3900) FROM some;
            COMMIT;
            PRAGMA journal_mode = WAL;
            """
        )


class Numbers:
    """Rows that were asked for, and those whose commit has returned."""

    def __init__(self) -> None:
        self.last = 0
        self.acknowledged: set[int] = set()

    def next(self, count: int) -> list[int]:
        self.last += count
        return list(range(self.last - count + 1, self.last + 1))


def attempt(numbers: Numbers, checkpoints: Connection[Any, Any], writes: Connection[Any, Any], usual: float) -> float:
    """Steps 1 to 4; how long the checkpoint took."""
    checkpoints.send("look")
    checkpoints.recv()
    writes.send((None, numbers.next(ROWS)))
    numbers.acknowledged.update(writes.recv())

    begin = time.monotonic() + READY
    checkpoints.send(begin)
    writes.send((begin + random.random() * min(usual, LONGEST), numbers.next(ROWS)))
    took: float = checkpoints.recv()
    writes.recv()
    writes.send(None)
    numbers.acknowledged.update(writes.recv())
    return took


async def look_after(path: str, is_guarded: bool, numbers: Numbers) -> tuple[set[int], str]:
    """Which acknowledged rows are gone once a third process has committed, and what SQLite says of its file."""
    side = Side(path, is_guarded)
    numbers.acknowledged.add(await side.commit(*numbers.next(1)))
    there = {number for (number,) in side.database.execute("SELECT number FROM ledger")}
    gone = numbers.acknowledged - there
    says = str(side.database.execute("PRAGMA quick_check").fetchone()[0]) if gone else "not asked"
    await side.close()
    return gone, says


def probe(folder: str, attempts: int, is_guarded: bool) -> dict[str, Any]:
    path = str(Path(folder, "probe.db"))
    build(path)
    numbers = Numbers()
    began, usual, made, gone, says = time.monotonic(), 0.002, 0, set[int](), "not asked"
    spawn = multiprocessing.get_context("spawn")
    pipes: list[Connection[Any, Any]] = []
    processes: list[SpawnProcess] = []
    for role in (checkpointer, writer):
        ours, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=run, args=(role, path, is_guarded, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    checkpoints, writes = pipes
    while made < attempts and not gone:
        made += 1
        usual = attempt(numbers, checkpoints, writes, usual)
        gone, says = asyncio.run(look_after(path, is_guarded, numbers))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
        pipe.close()
    return {
        "check": "wal_guard",
        "sqlite": sqlite3.sqlite_version,
        "affected": loses_commits(sqlite3.sqlite_version_info),
        "guarded": is_guarded,
        "attempts": made,
        "acknowledged": len(numbers.acknowledged),
        "lost": len(gone),
        "quick_check": says,
        "seconds": round(time.monotonic() - began, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--without-guard", action="store_true", help="leave the lock out")
    parser.add_argument(
        "--attempts", type=int, default=200, help="at most; the first loss ends it (default: %(default)s)"
    )
    parser.add_argument(
        "--folder", help="where to make the database, of 64 MB (default: the system's temporary folder)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = probe(folder, options.attempts, not options.without_guard)
    if options.json:
        print(json.dumps(found))
    else:
        print(
            f"SQLite {found['sqlite']} ({'affected' if found['affected'] else 'mended'}),"
            f" {'with' if found['guarded'] else 'without'} the guard: {found['attempts']:,} attempts in"
            f" {found['seconds']:g} s, {found['acknowledged']:,} acknowledged commits, {found['lost']:,} of them lost"
        )
        if found["lost"]:
            print(f"SQLite itself says of the file: {found['quick_check']}")
    return 1 if found["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
