"""A store whose disk, files or locks fail: the work goes on, it is told once, and what waited is recorded after it."""

import contextlib
import fcntl
import logging
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import anyio.to_thread
import pytest

from asynctask import Runtime, task
from asynctask.errors import StoreBusy, StoreDamaged, StoreError
from asynctask.stores import database, recorder, sqlite
from asynctask.stores.base import RunFilter
from asynctask.stores.sqlite import SQLiteStore

EVERYTHING = RunFilter()


@task
async def double(x: int) -> int:
    return x * 2


@task
def triple(x: int) -> int:
    return x * 3


@task(cache_key_fn=lambda context, parameters: f"key {parameters['x']}")
async def cached(x: int) -> int:
    calls.append(x)
    return x


calls: list[int] = []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    calls.clear()
    return tmp_path / "runs.db"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for seconds in production waits for a fraction of one here."""
    monkeypatch.setattr(database, "GUARD_SECONDS", 0.2)
    monkeypatch.setattr(database, "_PRAGMAS", database._PRAGMAS.replace("busy_timeout = 5000", "busy_timeout = 200"))
    monkeypatch.setattr(recorder, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(sqlite, "LAST_SECONDS", 1.0)


async def at_desk(store: SQLiteStore, statement: str) -> Any:
    """Execute a statement with the connection that writes."""

    async def question() -> Any:
        writer = await store._database.opened()
        return list(await writer.execute_fetchall(statement))

    return await store._desk.ask(question)


async def eventually(holds: Callable[[], Any]) -> None:
    with anyio.fail_after(20):
        while not holds():
            await anyio.sleep(0.01)


def told(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    """What was reported at this level or above."""
    return [one.getMessage() for one in caplog.records if one.levelno >= level]


def rows(path: Path, text: str = "SELECT count(*) FROM runs") -> Any:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(text).fetchone()[0]


def guard(path: Path) -> BinaryIO:
    """The lock file, for another one who holds it."""
    return open(f"{path}-guard", "a+b")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Runtime, SQLiteStore]]:
    """A runtime on this file, with one run on disk."""
    store = SQLiteStore(path)
    async with Runtime(store=store) as runtime:
        assert await double(0) == 0
        await runtime.flush()
        assert await store.count_runs(EVERYTHING) >= 1
        yield runtime, store


async def fails_for_a_while(
    runtime: Runtime, store: SQLiteStore, caplog: pytest.LogCaptureFixture, free: Callable[[], Any]
) -> str:
    """Run tasks while nothing can be written, then after `free()`; what was reported."""
    before = await store.count_runs(EVERYTHING)
    for x in range(300):
        assert await double(x) == 2 * x
    await eventually(lambda: store._recorder.failure is not None)
    assert await anyio.to_thread.run_sync(triple, 2) == 6
    assert await double.submit(4) == 8
    with pytest.raises(StoreError):
        await runtime.flush()
    await anyio.sleep(0.5)  # several more attempts, which are not to be told
    reports = told(caplog)
    assert len(reports) == 1, reports
    assert "The work goes on" in reports[0]
    found = free()
    if found is not None:
        await found
    await eventually(lambda: store._recorder.failure is None)
    assert await double(5) == 10
    await runtime.flush()
    assert await store.count_runs(EVERYTHING) == before + 303
    assert "Runs are recorded again" in told(caplog, logging.WARNING)[-1]
    return reports[0]


# -- no room ----------------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_told_once_and_what_waited_is_recorded_when_there_is_room(path, caplog):
    async with opened(path) as (runtime, store):
        pages = (await at_desk(store, "PRAGMA page_count"))[0][0]
        await at_desk(store, f"PRAGMA max_page_count = {pages}")
        report = await fails_for_a_while(
            runtime, store, caplog, lambda: at_desk(store, "PRAGMA max_page_count = 1000000000")
        )
        assert "there is no room" in report
        assert str(path) in report
    assert rows(path, "SELECT count(*) FROM runs WHERE ended IS NULL") == 0


async def test_a_cached_result_that_has_no_room_is_told_and_the_run_completes(path, caplog):
    async with opened(path) as (_runtime, store):
        pages = (await at_desk(store, "PRAGMA page_count"))[0][0]
        await at_desk(store, f"PRAGMA max_page_count = {pages}")

        @task(cache_key_fn=lambda context, parameters: "large")
        async def large() -> str:
            return "x" * 50_000

        state = await large(return_state=True)
        assert state.name == "Completed"
        assert any("is not kept" in one and "there is no room" in one for one in told(caplog))
        await at_desk(store, "PRAGMA max_page_count = 1000000000")
        assert (await large(return_state=True)).name == "Completed"
        assert (await large(return_state=True)).name == "Cached"


LIMITED = """
import asyncio, logging, resource, sys
from asynctask import Runtime, task
from asynctask.stores.sqlite import SQLiteStore
from asynctask.stores import recorder
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(levelname)s %(message)s")
recorder.LONGEST_PAUSE = 0.2

@task
async def double(x):
    return x * 2

async def main():
    store = SQLiteStore(sys.argv[1])
    async with Runtime(store=store) as runtime:
        await double(1)
        await runtime.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, resource.RLIM_INFINITY))
        for x in range(5000):
            assert await double(x) == 2 * x
        while store._recorder.failure is None:
            await asyncio.sleep(0.01)
        for x in range(5000):
            assert await double(x) == 2 * x
        await asyncio.sleep(0.5)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        while store._recorder.failure is not None:
            await asyncio.sleep(0.01)
    print(sys.stderr is not None)

asyncio.run(main())
"""


def test_files_that_may_not_grow_any_more_are_as_a_full_disk(path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split()[0] for line in done.stdout.splitlines()]
    assert lines == ["ERROR", "WARNING", "True"], done.stdout
    assert rows(path) == 10_001
    assert rows(path, "PRAGMA integrity_check") == "ok"


# -- no permission ----------------------------------------------------------------------------------------------------


async def test_a_database_that_cannot_be_written_is_told_once_and_written_when_it_can_be(path, caplog):
    async with opened(path) as (runtime, store):
        await at_desk(store, "PRAGMA query_only = ON")
        report = await fails_for_a_while(runtime, store, caplog, lambda: at_desk(store, "PRAGMA query_only = OFF"))
        assert "cannot be written" in report
        assert "check the permissions" in report


NOBODY = """
import asyncio, logging, os, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(levelname)s %(message)s")
import asynctask.stores.sqlite as sqlite, aiosqlite, encodings.idna
from asynctask import Runtime, task
from asynctask.errors import StoreError
sqlite.LAST_SECONDS = 0.5

@task(cache_key_fn=lambda context, parameters: "key")
async def double(x):
    return x * 2

async def main(path):
    store = sqlite.SQLiteStore(path)
    async with Runtime(store=store) as runtime:
        assert await double(2) == 4
        assert await double.submit(2) == 4
        try:
            await runtime.flush()
        except StoreError as error:
            print("flush:", error)

asyncio.run(main(sys.argv[1]))  # all is imported now, which nobody may do from a folder of root's
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
asyncio.run(main(sys.argv[2]))
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_or_folder_of_somebody_else_is_reported_and_the_work_goes_on(tmp_path, what):
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = folder / "runs.db"
    if what == "file":
        path.touch(0o400)
    else:
        folder.chmod(0o500)
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NOBODY, str(tmp_path / "mine.db"), str(path)],
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert any(line.startswith("ERROR Runs cannot be recorded") and str(path) in line for line in lines), lines
    assert any(line.startswith("flush: ") and str(path) in line for line in lines), lines
    assert sum(line.startswith("ERROR Runs cannot") for line in lines) == 1
    assert any("could not be recorded" in line and line.startswith("ERROR 2 runs") for line in lines), lines


# -- files that go away -----------------------------------------------------------------------------------------------


@pytest.mark.allow_leak("files", reason="what is open of a file that was deleted is never closed")
async def test_a_database_deleted_while_open_is_told_and_what_comes_is_in_a_new_one(path, caplog):
    go = anyio.Event()

    @task(name="long", tags=["under way"])
    async def long() -> None:
        await go.wait()

    async with opened(path) as (runtime, store):
        under_way = long.submit()
        await runtime.flush()
        for end in ("", "-wal", "-shm"):
            os.unlink(f"{path}{end}")
        for x in range(100):
            await double(x)
        await eventually(path.exists)
        await eventually(lambda: store._recorder.failure is None and not store._recorder.waiting)
        assert await double(7) == 14
        assert await cached(3) == 3
        runs = await store.read_runs(EVERYTHING, 1000)
        assert sorted(one.task_name for one in runs if one.state_name == "Running") == ["long"]
        assert len(await store.read_runs(RunFilter(tags=frozenset(["under way"])), 10)) == 1
        assert await store.count_runs(EVERYTHING) == 103
        go.set()
        await under_way
    reports = told(caplog)
    assert len(reports) == 1
    assert "was deleted or replaced" in reports[0]
    assert rows(path) == 103
    assert rows(path, "SELECT count(*) FROM runs WHERE ended IS NULL") == 0


async def test_a_log_deleted_while_open_loses_nothing(path, caplog):
    go = anyio.Event()

    @task(name="long")
    async def long() -> None:
        await go.wait()

    async with opened(path) as (runtime, store):
        under_way = long.submit()
        await runtime.flush()
        os.unlink(f"{path}-wal")
        for x in range(100):
            await double(x)
        await eventually(lambda: os.path.exists(f"{path}-wal"))
        await runtime.flush()
        assert await store.count_runs(EVERYTHING) == 102
        assert await store.count_runs(RunFilter(state_name="Running")) == 1
        async with Runtime(store=SQLiteStore(path)) as other:  # another one sees all of it
            assert await other.store.count_runs(EVERYTHING) == 102
        go.set()
        await under_way
    assert not any("Crashed" in one for one in told(caplog, logging.WARNING))
    assert rows(path) == 102
    assert rows(path, "PRAGMA integrity_check") == "ok"


@pytest.mark.allow_leak("files", reason="what is open of a file that was deleted is never closed")
async def test_of_two_stores_on_a_file_whose_log_is_deleted_neither_loses_anything(path):
    async with Runtime(store=SQLiteStore(path)) as first, Runtime(store=SQLiteStore(path)) as second:
        for turn in range(4):
            for runtime in (first, second):
                async with anyio.create_task_group() as group:
                    group.start_soon(in_runtime, runtime, turn)
            await first.flush()
            await second.flush()
            os.unlink(f"{path}-wal")
        for runtime in (second, first):
            await in_runtime(runtime, 4)
    assert rows(path) == 100
    assert rows(path, "PRAGMA integrity_check") == "ok"


async def in_runtime(runtime: Runtime, x: int) -> None:
    from asynctask.scopes import current_runtime

    token = current_runtime.set(runtime)
    try:
        for _ in range(10):
            assert await double(x) == 2 * x
    finally:
        current_runtime.reset(token)


REPLACED = """
import asyncio, logging, os, sys
from asynctask import Runtime, task
from asynctask.stores.sqlite import SQLiteStore
logging.disable()

@task
async def double(x):
    return x * 2

async def main():
    store = SQLiteStore(sys.argv[1])
    async with Runtime(store=store) as runtime:
        await double(1)
        await runtime.flush()
        for end in sys.argv[2:]:
            os.unlink(sys.argv[1] + end)
        for _ in range(100):
            await double(1)
            await asyncio.sleep(0.005)

asyncio.run(main())
"""


@pytest.mark.parametrize("gone", [["", "-wal", "-shm"], ["-wal"], ["-wal", "-shm"], [""]])
def test_a_program_whose_files_were_deleted_ends_without_a_word_on_stderr(path, gone):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", REPLACED, str(path), *gone], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert rows(path) == (100 if "" in gone else 101)
    assert rows(path, "PRAGMA integrity_check") == "ok"


# -- locks of others --------------------------------------------------------------------------------------------------


async def test_a_foreign_transaction_longer_than_the_wait_delays_what_is_recorded_and_no_more(path, caplog):
    async with opened(path) as (runtime, store):
        foreign = sqlite3.connect(path, isolation_level=None)
        try:
            foreign.execute("BEGIN IMMEDIATE")
            report = await fails_for_a_while(runtime, store, caplog, lambda: foreign.rollback())
            assert "is locked by a program that is not asynctask" in report
        finally:
            foreign.close()


async def test_a_lock_held_by_another_process_delays_what_is_recorded_and_no_more(path, caplog):
    async with opened(path) as (runtime, store):
        with guard(path) as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            report = await fails_for_a_while(runtime, store, caplog, lambda: fcntl.flock(other, fcntl.LOCK_UN))
            assert "fuser" in report
            assert f"{path}-guard" in report


async def test_a_cached_task_runs_while_the_store_is_locked_and_says_that_its_result_is_not_kept(path, caplog):
    async with opened(path):
        with guard(path) as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            assert await cached(1) == 1
            assert any("is not kept" in one for one in told(caplog))
            fcntl.flock(other, fcntl.LOCK_UN)
        assert await cached(1) == 1
        assert await cached(1) == 1
    assert calls == [1, 1]


@pytest.mark.parametrize("is_open", [True, False])
async def test_closing_while_nothing_can_be_written_ends_in_time_and_says_how_many_runs_are_lost(path, caplog, is_open):
    if is_open:
        async with opened(path):
            pass
    store = SQLiteStore(path)
    with guard(path) as other:
        began = time.monotonic()
        async with Runtime(store=store) as runtime:
            if is_open:
                await runtime.flush()
                await store.count_runs(EVERYTHING)
            fcntl.flock(other, fcntl.LOCK_EX)
            for x in range(50):
                await double(x)
            began = time.monotonic()
        assert time.monotonic() - began < 5
    assert "50 runs of this process could not be recorded" in told(caplog)[-1]
    async with Runtime(store=store) as runtime:  # the same store, opened again, has not forgotten them
        await runtime.flush()
        assert await store.count_runs(EVERYTHING) == 50 + is_open


async def test_closing_while_a_long_run_is_recorded_and_its_end_cannot_be_leaves_it_to_the_next_opener(path):
    go = anyio.Event()

    @task
    async def long() -> None:
        await go.wait()

    with guard(path) as other:
        async with opened(path) as (runtime, _store):
            under_way = long.submit()
            await runtime.flush()
            fcntl.flock(other, fcntl.LOCK_EX)
            go.set()
            await under_way
    async with Runtime(store=SQLiteStore(path)) as runtime:
        (found,) = await runtime.store.read_runs(RunFilter(task_name="long"), 10)
        assert found.state_name == "Crashed"


# -- damage -----------------------------------------------------------------------------------------------------------


def overwritten(content: bytearray) -> bytearray:
    return bytearray(random.Random(1).randbytes(100)) + content[100:]


def truncated(content: bytearray) -> bytearray:
    return content[: len(content) // 2]


def noisy(content: bytearray) -> bytearray:
    """Random bytes from the second page on, all the way through the middle."""
    return content[:4096] + bytearray(random.Random(1).randbytes(len(content) - 8192)) + content[-4096:]


def not_a_database(content: bytearray) -> bytearray:
    return bytearray(b"dear diary, " * 1000)


@pytest.mark.parametrize("damage", [overwritten, truncated, noisy, not_a_database])
async def test_a_damaged_database_is_reported_with_advice_and_not_touched_and_the_work_goes_on(path, caplog, damage):
    async with opened(path):
        for x in range(500):
            await double(x)
            if x < 10:
                await cached(x)
    content = bytes(damage(bytearray(path.read_bytes())))
    path.write_bytes(content)
    async with Runtime(store=SQLiteStore(path)) as runtime:
        calls.clear()
        for x in range(100):
            assert await double(x) == 2 * x
        assert await cached(1) == 1
        assert calls == [1]
        with pytest.raises(StoreDamaged, match=r"is damaged .*Restore a backup, or move it away.*recover"):
            await runtime.flush()
        with pytest.raises(StoreDamaged):
            await runtime.store.count_runs(EVERYTHING)
    assert path.read_bytes() == content
    reports = [one for one in told(caplog) if "cannot be recorded" in one]
    assert len(reports) == 1
    assert "is damaged" in reports[0]
    assert "101 runs of this process could not be recorded" in told(caplog)[-1]


async def test_a_log_of_another_database_is_not_believed(path):
    async with opened(path):
        pass
    log = path.with_name("runs.db-wal")
    log.write_bytes(random.Random(2).randbytes(20_000))
    async with opened(path) as (_, store):
        assert await store.count_runs(EVERYTHING) == 2
    assert rows(path, "PRAGMA integrity_check") == "ok"


async def test_a_store_that_is_busy_says_so_by_the_type_of_its_error(path):
    async with opened(path) as (runtime, _):
        with guard(path) as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            await double(1)
            with pytest.raises(StoreBusy):
                await runtime.flush()
            fcntl.flock(other, fcntl.LOCK_UN)


@pytest.mark.parametrize("hopeless", ["no database", "no folder"])
async def test_closing_does_not_wait_long_where_no_waiting_will_help(tmp_path, caplog, monkeypatch, hopeless):
    monkeypatch.setattr(sqlite, "LAST_SECONDS", 600.0)
    (tmp_path / "file").write_bytes(b"garbage" * 1000)
    path = tmp_path / "file" if hopeless == "no database" else tmp_path / "file" / "runs.db"
    with anyio.fail_after(20):
        async with Runtime(store=SQLiteStore(path)):
            await double(1)
    assert "1 runs of this process could not be recorded" in told(caplog)[-1]
