"""The file of the SQLite store: how it is opened, who may read it, and who shares it."""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import anyio.to_thread
import pytest

from asynctask import Runtime, get_client, task
from asynctask.cache_policies import INPUTS
from asynctask.clocks import Clock
from asynctask.errors import ObjectNotFound, StoreError
from asynctask.scopes import current_runtime
from asynctask.stores import database
from asynctask.stores.base import RunFilter
from asynctask.stores.sqlite import SQLiteStore
from testkit import until

EVERYTHING = RunFilter()


@task
async def double(x: int) -> int:
    return x * 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture(autouse=True)
def gives_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asynctask.stores.sqlite.LAST_SECONDS", 0.2)


def ask(path: Path, text: str) -> Any:
    """The first value that a statement gives, of a connection of its own."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(text).fetchone()[0]


def beside(path: Path, end: str) -> Path:
    """One of the files that belong to the database."""
    return path.with_name(path.name + end)


async def call(runtime: Runtime, times: int) -> None:
    """Call a task in this runtime, whichever one was entered last."""
    token = current_runtime.set(runtime)
    try:
        for x in range(times):
            await double(x)
    finally:
        current_runtime.reset(token)


# -- opening ----------------------------------------------------------------------------------------------------------


async def test_every_file_is_for_its_owner_alone_whatever_the_umask(path):
    before = os.umask(0)
    try:
        async with Runtime(store=SQLiteStore(path.parent / "new" / "folder" / "runs.db")) as runtime:
            await double(1)
            await runtime.flush()
            await runtime.store.count_runs(EVERYTHING)
            folder = path.parent / "new"
            files = [one for one in folder.rglob("*") if one.is_file()]
            assert {one.name for one in files} >= {"runs.db", "runs.db-wal", "runs.db-shm", "runs.db-guard"}
            assert {stat.S_IMODE(one.stat().st_mode) for one in files} == {0o600}
            folders = [one for one in folder.rglob("*") if one.is_dir()]
            assert {stat.S_IMODE(one.stat().st_mode) for one in folders} == {0o700}
    finally:
        os.umask(before)


async def test_it_writes_ahead_and_leaves_one_file_and_no_process_when_it_is_closed(path):
    async with Runtime(store=SQLiteStore(path)) as runtime:
        await double(1)
        await runtime.flush()
        assert ask(path, "PRAGMA journal_mode") == "wal"
    assert not beside(path, "-wal").exists()
    assert not beside(path, "-shm").exists()
    assert os.listdir(beside(path, "-processes")) == []
    assert ask(path, "SELECT count(*) FROM processes") == 0
    assert ask(path, "PRAGMA application_id") == database.APPLICATION


async def test_nothing_is_opened_before_something_is_recorded_or_asked(path):
    store = SQLiteStore(path)
    assert not path.exists()
    async with Runtime(store=store):
        pass
    assert await store.count_runs(EVERYTHING) == 0


async def test_a_store_can_be_opened_again_and_asked_while_it_is_closed(path):
    store = SQLiteStore(path)
    for turn in range(3):
        async with Runtime(store=store):
            await double(turn)
        assert await store.count_runs(EVERYTHING) == turn + 1


async def test_a_store_opened_at_once_when_it_was_closed_has_one_desk_at_a_time(path):
    """Runtimes that come and go on one store, side by side: no session overlaps another on the same files."""
    store = SQLiteStore(path)

    async def comes_and_goes() -> None:
        for _ in range(15):
            async with Runtime(store=store) as runtime:
                await call(runtime, 2)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(comes_and_goes)
    assert await store.count_runs(EVERYTHING) == 120
    assert ask(path, "SELECT count(*) FROM processes") == 0


@pytest.mark.parametrize("application", [0, 77])
async def test_a_database_of_another_program_is_refused_and_not_touched(path, application):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"CREATE TABLE theirs (x); PRAGMA application_id = {application}")
    before = path.read_bytes()
    async with Runtime(store=SQLiteStore(path)) as runtime:
        assert await double(2) == 4
        with pytest.raises(StoreError, match=r"runs\.db' is the database of some other program; give this store"):
            await runtime.flush()
    assert path.read_bytes() == before
    assert not beside(path, "-wal").exists()


async def test_a_symbolic_link_is_refused(path):
    path.symlink_to(path.parent / "elsewhere.db")
    async with Runtime(store=SQLiteStore(path)) as runtime:
        assert await double(2) == 4
        with pytest.raises(StoreError, match=r"runs\.db' is a symbolic link"):
            await runtime.flush()
    assert not (path.parent / "elsewhere.db").exists()


async def test_a_folder_in_the_place_of_the_file_is_refused(path):
    path.mkdir()
    async with Runtime(store=SQLiteStore(path)) as runtime:
        assert await double(2) == 4
        with pytest.raises(StoreError, match=r"runs\.db' is a folder; give the store the path of a file"):
            await runtime.flush()


async def test_a_file_in_the_place_of_a_folder_is_refused(path):
    path.write_text("not a folder")
    async with Runtime(store=SQLiteStore(path / "runs.db")) as runtime:
        assert await double(2) == 4
        with pytest.raises(StoreError, match=r"runs\.db/runs\.db' cannot be opened: .*runs\.db'\); see to its"):
            await runtime.flush()


async def test_an_empty_file_becomes_a_store(path):
    path.touch(0o600)
    async with Runtime(store=SQLiteStore(path)) as runtime:
        await double(2)
        await runtime.flush()
    assert ask(path, "SELECT count(*) FROM runs") == 1


# -- sharing ----------------------------------------------------------------------------------------------------------


async def test_two_stores_on_one_file_in_one_process_see_each_other_s_runs_and_leave_them_alone(path):
    begun, go = anyio.Event(), anyio.Event()

    @task
    async def long() -> None:
        begun.set()
        await go.wait()

    async with Runtime(store=SQLiteStore(path)) as first:
        under_way = long.submit()
        await begun.wait()
        await first.flush()
        async with Runtime(store=SQLiteStore(path)) as second:
            await call(second, 10)
            await second.flush()
            assert await second.store.count_runs(RunFilter(state_name="Running")) == 1
            assert await first.store.count_runs(RunFilter(state_name="Completed")) == 10
        async with Runtime(store=SQLiteStore(path)) as third:
            assert await third.store.count_runs(RunFilter(state_name="Running")) == 1
        go.set()
        await under_way
    assert ask(path, "SELECT count(*) FROM runs WHERE owner IS NULL") == 11


LOAD = """
import asyncio, sys, time
from asynctask import Runtime, get_client, task
from asynctask.stores.base import RunFilter
from asynctask.stores.sqlite import SQLiteStore

@task
async def double(x):
    return x * 2

@task(cache_key_fn=lambda context, parameters: f"key {parameters['x']}")
async def cached(x):
    return [x] * 1000

@task(tags=["short"])
def triple(x):
    return x * 3

async def main():
    store = SQLiteStore(sys.argv[1])
    count = 0
    async with Runtime(store=store) as runtime:
        end = time.monotonic() + float(sys.argv[2])
        while time.monotonic() < end:
            for x in range(50):
                await double(x)
            assert await cached(count % 97) == [count % 97] * 1000
            futures = triple.map(range(10))
            assert await futures == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
            count += 61
            if count % 5 == 0:
                await runtime.flush()
            if count % 7 == 0:
                assert await store.count_runs(RunFilter(task_name="double")) >= 50
                assert len(await store.read_runs(RunFilter(tags=frozenset(["short"])), 20)) == 20
    print(count)

asyncio.run(main())
"""


@pytest.mark.timeout(120)
def test_eight_processes_on_one_file_record_every_run_and_none_meets_a_locked_database(path):
    largest = 0
    command = [sys.executable, "-W", "error", "-c", LOAD, str(path), "4"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    try:
        while any(child.poll() is None for child in children):
            largest = max(largest, database.size_of(f"{path}-wal"))
            time.sleep(0.02)
    finally:
        for child in children:
            child.kill()
        ends = [(child.returncode, *child.communicate()) for child in children]
    assert [(code, err) for code, _, err in ends] == [(0, "")] * 8
    assert ask(path, "SELECT count(*) FROM runs") == sum(int(out) for _, out, _ in ends)
    assert ask(path, "SELECT count(*) FROM runs WHERE ended IS NULL OR owner IS NOT NULL") == 0
    assert ask(path, "SELECT count(*) FROM results") == min(97, max(int(out) for _, out, _ in ends) // 61)
    assert ask(path, "PRAGMA integrity_check") == "ok"
    assert largest < 4 * database.CHECKPOINT
    assert not beside(path, "-wal").exists()


# -- the log ----------------------------------------------------------------------------------------------------------


async def test_the_log_is_copied_and_begun_anew_however_much_is_written(path, monkeypatch):
    monkeypatch.setattr(database, "CHECKPOINT", 200_000)
    sizes = []
    async with Runtime(store=SQLiteStore(path)) as runtime:
        for _ in range(30):
            await call(runtime, 1000)
            await runtime.flush()
            sizes.append(database.size_of(f"{path}-wal"))
    assert path.stat().st_size > 5_000_000
    assert max(sizes) < 3_000_000


async def test_a_reader_that_is_held_open_lets_the_log_grow_but_delays_nobody_and_then_it_is_cut_off(path, monkeypatch):
    monkeypatch.setattr(database, "CHECKPOINT", 100_000)
    monkeypatch.setattr(database, "TRUNCATE", 1_000_000)
    async with Runtime(store=SQLiteStore(path)) as runtime:
        await call(runtime, 100)
        await runtime.flush()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM runs").fetchone() == (100,)
            slowest = 0.0
            for _ in range(10):
                await call(runtime, 1000)
                began = time.monotonic()
                await runtime.flush()
                slowest = max(slowest, time.monotonic() - began)
            held = database.size_of(f"{path}-wal")
            assert held > 1_000_000
            assert slowest < 2
            assert reader.execute("SELECT count(*) FROM runs").fetchone() == (100,)
            reader.execute("COMMIT")
        for _ in range(3):
            await call(runtime, 100)
            await runtime.flush()
        assert database.size_of(f"{path}-wal") < 500_000


async def test_a_checkpoint_that_fails_does_not_make_the_write_before_it_fail(path, monkeypatch, caplog):
    monkeypatch.setattr(database, "CHECKPOINT", -1)
    store = SQLiteStore(path)
    async with Runtime(store=store) as runtime:
        await store.count_runs(EVERYTHING)

        async def question() -> None:
            writer = await store._database.opened()
            real = writer.execute_fetchall

            def fails(text: str, *values: Any) -> Any:
                if "checkpoint" in text:
                    raise sqlite3.OperationalError("disk I/O error")
                return real(text, *values)

            monkeypatch.setattr(writer, "execute_fetchall", fails)

        await store._desk.ask(question)
        await double(1)
        await runtime.flush()
        assert await store.count_runs(EVERYTHING) == 1
    assert "was not copied into it" in caplog.text
    assert "cannot be recorded" not in caplog.text


# -- asking -----------------------------------------------------------------------------------------------------------


async def test_whoever_is_cancelled_while_he_asks_leaves_the_store_in_order(path):
    store = SQLiteStore(path)
    async with Runtime(store=store) as runtime:
        await call(runtime, 500)
        for turn in range(30):
            with anyio.move_on_after(turn * 0.0002):
                await store.count_runs(EVERYTHING)
        assert await store.count_runs(EVERYTHING) == 500
    for turn in range(10):  # each opens and closes the store
        with anyio.move_on_after(turn * 0.001):
            await store.count_runs(EVERYTHING)
    assert await store.count_runs(EVERYTHING) == 500


@pytest.mark.asyncio
async def test_a_cancellation_of_asyncio_s_own_leaves_the_store_in_order(path):
    import asyncio

    store = SQLiteStore(path)
    async with Runtime(store=store) as runtime:
        await call(runtime, 100)
        for turn in range(30):
            asking = asyncio.create_task(store.count_runs(EVERYTHING))
            await asyncio.sleep(turn * 0.0002)
            asking.cancel()
            asking.cancel()
            await asyncio.wait([asking])
        assert await store.count_runs(EVERYTHING) == 100
    for turn in range(10):
        asking = asyncio.create_task(store.count_runs(EVERYTHING))
        await asyncio.sleep(turn * 0.001)
        asking.cancel()
        await asyncio.wait([asking])
    assert await store.count_runs(EVERYTHING) == 100
    await until(lambda: not beside(path, "-wal").exists())


# -- under the lock ---------------------------------------------------------------------------------------------------


async def live(path: Path) -> None:
    """All that a store does: record, keep, set a limit, look up, delete, copy its log, close, open again."""

    @task(cache_policy=INPUTS, tags=["t"], task_run_name="named {x}")
    async def kept(x: int, size: int) -> str:
        return "x" * size

    for _ in range(2):
        async with Runtime(store=SQLiteStore(path)) as runtime, get_client() as client:
            for x in range(20):
                await kept(x, 5)
            await kept(1, 300_000)
            await call(runtime, 2000)
            await runtime.flush()
            (run,) = await client.read_task_runs(limit=1)
            await client.delete_task_run(run.id)
            await client.prune(keep=1000)
            await client.create_concurrency_limit("t", 5)
            await client.clear_cache(task_name="kept")
            await client.store_info()


async def test_all_that_writes_opens_copies_or_closes_is_done_under_the_lock(path, monkeypatch):
    """Looked at from outside: while the library works on such a statement, nobody else can take the lock."""
    monkeypatch.setattr(database, "CHECKPOINT", 100_000)
    seen: Counter[str] = Counter()
    unguarded: list[str] = []

    def look(statement: str) -> None:
        words = statement.split()
        seen[" ".join(words[:2]).partition("(")[0]] += 1
        if words[0] == "SELECT" or statement == "PRAGMA user_version":
            return
        descriptor = os.open(f"{path}-guard", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        else:
            unguarded.append(statement)
        finally:
            os.close(descriptor)

    connect, settings = database.connected, []

    async def connected(where: str) -> aiosqlite.Connection:
        look("connect to")
        connection = await connect(where)
        close = connection.close
        await connection.set_trace_callback(look)

        async def closed() -> None:
            settings.append(list(await connection.execute_fetchall("PRAGMA wal_autocheckpoint")))
            look("close it")
            await close()

        monkeypatch.setattr(connection, "close", closed)
        return connection

    monkeypatch.setattr(database, "connected", connected)
    await live(path)
    assert unguarded == []
    assert settings == [[(0,)]] * 4  # a connection that writes and one that reads, twice: none copies by itself
    assert seen["connect to"] == seen["close it"] == 4
    assert seen["INSERT INTO"] > 20
    assert seen["DELETE FROM"] > 5
    assert seen["PRAGMA wal_checkpoint"] > 2
    assert {statement for statement in seen if statement.startswith("BEGIN")} == {"BEGIN IMMEDIATE"}


#: Says which files of the database were opened by anything but the library, and how.
OPENS = """
import os, sys
import anyio, test_sqlite

path = sys.argv[1]

def look(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        name = os.fsdecode(arguments[0])
        if name.startswith(path) and name[len(path):] in ("", "-wal", "-shm", "-journal"):
            print(name[len(path):], bool(arguments[2] & os.O_EXCL))

sys.addaudithook(look)
anyio.run(test_sqlite.live, test_sqlite.Path(path))
"""


def test_no_file_of_the_database_is_opened_but_by_the_library_and_to_make_it(path):
    """Closing it would drop the locks that the library has on it in this process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((*sys.path, str(Path(__file__).parent)))}
    command = [sys.executable, "-c", OPENS, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=True)
    assert set(done.stdout.splitlines()) == {" True"}


# -- the clock --------------------------------------------------------------------------------------------------------


class Wall(Clock):
    """The real clock, with a wall clock that can be set."""

    def __init__(self) -> None:
        self.offset = 0.0
        self.now = lambda: time.time() + self.offset


async def test_a_clock_set_back_an_hour_changes_neither_ids_nor_order_nor_what_is_seen(path):
    clock = Wall()
    go = anyio.Event()

    @task
    async def long(x: int) -> None:
        await go.wait()

    store = SQLiteStore(path, clock=clock)
    async with Runtime(store=store, clock=clock) as runtime:
        for x in range(5):
            await double(x)
        before = long.submit(5)
        clock.offset = -3600
        after = long.submit(6)
        for x in range(7, 10):
            await double(x)
        runs = await store.read_runs(EVERYTHING, 100)
        assert [one.parameters["x"] for one in runs] == [str(x) for x in reversed(range(10))]
        with anyio.fail_after(20):  # runs under way are written for others all the same
            while ask(path, "SELECT count(*) FROM runs WHERE owner IS NOT NULL") != 2:
                await anyio.sleep(0.05)
        go.set()
        await before
        await after
        await runtime.flush()
    for one in await store.read_runs(EVERYTHING, 100):
        times = [state.time for state in one.states]
        assert times == sorted(times)
        assert one.total_run_time >= 0


async def test_a_clock_set_back_an_hour_prolongs_no_expiry(path):
    from datetime import timedelta

    clock = Wall()
    calls = []

    @task(cache_key_fn=lambda context, parameters: "key", cache_expiration=timedelta(seconds=60))
    async def cached() -> int:
        calls.append(1)
        return len(calls)

    async with Runtime(store=SQLiteStore(path, clock=clock), clock=clock):
        assert [await cached(), await cached()] == [1, 1]
        clock.offset = -3600
        assert [await cached(), await cached()] == [2, 2]
    async with Runtime(store=SQLiteStore(path, clock=clock), clock=clock):
        assert await cached() == 2
        clock.offset = 0
        assert await cached() == 3
        clock.offset = 61
        assert await cached() == 4


async def test_a_run_that_is_not_there_is_said_with_the_path(path):
    import uuid

    store = SQLiteStore(path)
    with pytest.raises(ObjectNotFound, match=r"runs\.db"):
        await store.read_run(uuid.uuid4())


async def test_a_key_taken_while_an_earlier_desk_closes_stays_taken(path, monkeypatch):
    disappear = SQLiteStore._disappear
    is_leaving, may_leave = threading.Event(), threading.Event()

    async def slowly(self: SQLiteStore) -> None:
        await disappear(self)
        is_leaving.set()
        await asyncio.to_thread(may_leave.wait, 5)

    monkeypatch.setattr(SQLiteStore, "_disappear", slowly)
    store, other = SQLiteStore(path), SQLiteStore(path)
    store.hold()
    async with anyio.create_task_group() as group:
        group.start_soon(store.release)
        await anyio.to_thread.run_sync(is_leaving.wait)
        store.hold()
        assert await store.try_take_key("k")
        may_leave.set()
    await store.ready()  # at the next desk, which waits for the end of the one before
    assert not await other.try_take_key("k")
    store.give_key("k")
    assert await other.try_take_key("k")
    other.give_key("k")
    await store.release()
    other._keys.close()
