"""The standard library without a loop: `concurrent.futures`, `functools.lru_cache`, and `sqlite3` in batches.

A floor: futures have results and nothing else. Processes are spawned. What `recorded` writes is a row of four columns,
a thousand to a transaction, in WAL mode with `synchronous=NORMAL`: no history, and nothing is called.
"""

import functools
import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from harness import FOLDER, MEGABYTE, THREADS, WORKERS, main, workload

TITLE = "standard library"
VARIANTS = {"": "floor"}
PACKAGES: list[str] = []
IMPORT = "import concurrent.futures, concurrent.futures.process, concurrent.futures.thread"
ABSENT = {
    "awaited": "nothing is awaited without a loop",
    "submitted": "see threads",
    "limited": "its limit is the number of its threads",
    "retry": "see asyncio: a loop is a loop",
    "others": "a thread for each",
}


def nothing() -> None:
    pass


def add_one(number: int) -> int:
    return number + 1


@workload("threads")
def threads() -> Iterator[object]:
    def run(count: int) -> None:
        for future in [pool.submit(nothing) for _ in range(count)]:
            future.result()

    with ThreadPoolExecutor(THREADS) as pool:
        yield run


def spawned() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn"))


@workload("mapped")
def mapped() -> Iterator[object]:
    """In the two processes, by its own `map`, in chunks of a hundred."""

    def run(count: int) -> None:
        assert sum(pool.map(add_one, range(count), chunksize=100)) == count * (count + 1) // 2

    with spawned() as pool:
        yield run


@workload("processes")
def processes() -> Iterator[object]:
    def run(count: int) -> None:
        for future in [pool.submit(nothing) for _ in range(count)]:
            future.result()

    with spawned() as pool:
        yield run


@workload("megabyte")
def megabyte() -> Iterator[object]:
    def run(count: int) -> None:
        for _ in range(count):
            assert len(pool.submit(bytes, MEGABYTE).result()) == len(MEGABYTE)

    with spawned() as pool:
        yield run


@functools.lru_cache
def cached(number: int, text: str) -> int:
    return number


@workload("hit")
def hit(count: int) -> None:
    for _ in range(count):
        cached(1, "one")


@workload("recorded")
def recorded() -> Iterator[object]:
    database = sqlite3.connect(FOLDER / "runs.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT, state TEXT, began REAL)")

    def run(count: int) -> None:
        for first in range(0, count, 1_000):
            rows = [("nothing", "COMPLETED", time.time()) for _ in range(first, min(first + 1_000, count))]
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT INTO runs (name, state, began) VALUES (?, ?, ?)", rows)
            database.execute("COMMIT")

    yield run
    database.close()


if __name__ == "__main__":
    main()
