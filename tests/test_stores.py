"""Which store a URL means, where its files are and who may read them, and when it opens; also after a fork."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import platformdirs
import pytest

from asynctask import Runtime, get_client, get_run_logger, task
from asynctask.errors import OptionError
from asynctask.settings import settings, temporary_settings
from asynctask.stores import sql, sqlite
from asynctask.stores.base import RunFilter, StoredResult
from asynctask.stores.memory import MemoryStore
from asynctask.stores.results_table import Results
from asynctask.stores.sqlite import SQLiteStore
from asynctask.stores.urls import default_url, open_store
from asynctask.testing import VirtualClock
from testkit import until

EVERYTHING = RunFilter()


@task(tags=["t"])
async def double(x: int) -> int:
    return x * 2


def path_of(url: str | None) -> str:
    store: Any = open_store(url)
    assert isinstance(store, SQLiteStore)
    return store.path


def script(text: str, *arguments: str, **environment: str) -> str:
    """What a program of its own prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCTASK_")}
    command = [sys.executable, "-c", text, *arguments]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# -- urls ---------------------------------------------------------------------------------------------------------


def test_the_default_is_a_file_in_the_users_data_folder():
    folder = platformdirs.user_data_dir("asynctask", appauthor=False)
    with temporary_settings(home=None, store_url=None):
        assert default_url() == f"sqlite:///{folder}/asynctask.db"
        assert path_of(None) == f"{folder}/asynctask.db"


def test_the_folder_can_be_another_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for home, path in (
        (str(tmp_path / "data"), tmp_path / "data"),
        ("~/data", tmp_path / "data"),
        ("there", Path("there")),
    ):
        with temporary_settings(home=home, store_url=None):
            assert path_of(None) == str(path.absolute() / "asynctask.db")


RECORD = """
import sys
from asynctask import task
from asynctask.scopes import close_default

@task
def double(x):
    return x * 2

double(int(sys.argv[1]))
close_default()
"""


@pytest.mark.parametrize("how", ["ASYNCTASK_HOME", "ASYNCTASK_STORE_URL", "XDG_DATA_HOME"])
async def test_a_program_keeps_its_runs_where_its_environment_says(tmp_path, how):
    value, path = {
        "ASYNCTASK_HOME": (str(tmp_path / "home"), tmp_path / "home" / "asynctask.db"),
        "ASYNCTASK_STORE_URL": (f"sqlite:///{tmp_path}/a/b/own.db", tmp_path / "a" / "b" / "own.db"),
        "XDG_DATA_HOME": (str(tmp_path / "xdg"), tmp_path / "xdg" / "asynctask" / "asynctask.db"),
    }[how]
    for number in (1, 2):
        script(RECORD, str(number), HOME=str(tmp_path), **{how: value})
    runs = await SQLiteStore(path).read_runs(EVERYTHING, 10)
    assert [run.parameters for run in runs] == [{"x": "2"}, {"x": "1"}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_relative_absolute_and_home_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("sqlite:///runs.db") == str(tmp_path / "runs.db")
    assert path_of("sqlite:///a/../b/runs.db") == str(tmp_path / "b" / "runs.db")
    assert path_of(f"sqlite:///{tmp_path}/x.db") == str(tmp_path / "x.db")
    assert path_of("sqlite:///~/home.db") == str(tmp_path / "home.db")
    assert path_of("sqlite:///with blank ? # % ü.db") == str(tmp_path / "with blank ? # % ü.db")


def test_one_file_is_one_store_however_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    stores = {
        open_store(url)
        for url in (
            "sqlite:///real/runs.db", f"sqlite:///{tmp_path}/real/runs.db", "sqlite:///./real//runs.db", "sqlite:///link/runs.db"
        )
    }  # fmt: skip
    assert len(stores) == 1
    assert open_store("sqlite:///real/other.db") not in stores


def test_memory_stores_are_told_apart_by_their_names():
    assert open_store("memory://") is open_store("memory://")
    assert open_store("memory://a") is open_store("memory://a")
    assert open_store("memory://a") is not open_store("memory://b")


def test_a_store_stands_for_itself(tmp_path):
    for store in (MemoryStore(), SQLiteStore(tmp_path / "runs.db")):
        assert open_store(store) is store


@pytest.mark.parametrize(
    "url",
    ["", "runs.db", "/var/runs.db", "sqlite", "sqlite:", "sqlite://", "sqlite:///", "sqlite://runs.db",
     "sqlite:runs.db", "mysql://localhost/x", "http://localhost", "memory", "memory:", "SQLITE:///runs.db",
     "sqlite:///a\0b", ":memory:"],
)  # fmt: skip
def test_a_url_of_nothing_is_refused(url):
    with pytest.raises(OptionError, match=r"store '.*' (cannot be opened: there are memory://|must name a file)"):
        Runtime(store=url)


@pytest.mark.parametrize(
    "store", [3, b"sqlite:///x", MemoryStore, object(), Path("runs.db"), ["memory://"]], ids=range(6)
)
def test_what_is_no_store_is_refused(store):
    with pytest.raises(OptionError, match=r"store must be a URL such as '.*', or a store, not "):
        Runtime(store=store)


@pytest.mark.parametrize(
    "url",
    ["postgres://me:hunter2@db/x", "mysql://me:hunter2@db?password=hunter2", "redis://:hunter2@h", "x://a:hunter2 @b"],
)
def test_passwords_in_a_url_are_not_shown(url):
    with pytest.raises(OptionError) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
    assert "***" in str(caught.value)


# -- files --------------------------------------------------------------------------------------------------------


async def test_nothing_is_made_before_it_is_used(tmp_path):
    path = tmp_path / "folder" / "runs.db"
    before = threading.active_count()
    Runtime(store=SQLiteStore(path))
    Runtime(store=f"sqlite:///{path}")
    assert not path.parent.exists()
    assert threading.active_count() == before


async def test_all_files_are_their_owners_alone_whatever_the_umask(tmp_path):
    @task(persist_result=True)
    async def large() -> bytes:
        get_run_logger().info("text")
        return os.urandom(2_000_000)

    folder = tmp_path / "new" / "deep"
    before = os.umask(0)
    try:
        async with Runtime(store=SQLiteStore(folder / "runs.db")) as runtime:
            await large()
            await runtime.flush()
            while_open = list(folder.rglob("*"))
        afterwards = list(folder.rglob("*"))
    finally:
        os.umask(before)
    assert {path.name for path in while_open} >= {"runs.db", "runs.db-wal", "runs.db-shm", "runs.db-guard"}
    assert len(afterwards) >= 4
    for path in {*while_open, *afterwards, folder}:
        if path.exists():
            assert oct(stat.S_IMODE(path.stat().st_mode)) == ("0o700" if path.is_dir() else "0o600"), path


async def test_the_log_files_of_an_open_database_are_its_owners_alone(tmp_path):
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")) as runtime:
        await double(1)
        await runtime.flush()
        for path in tmp_path.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


async def test_it_closes_all_it_opened_with_the_last_runtime(tmp_path):
    """And opens again with the next; the leak check of every test looks for what is left."""
    store = SQLiteStore(tmp_path / "runs.db")
    for number in range(3):
        async with Runtime(store=store), Runtime(store=store):
            await double(number)
        assert not [thread for thread in threading.enumerate() if "asynctask-store" in thread.name]
        assert not (tmp_path / "runs.db-wal").exists()
    assert len(await store.read_runs(EVERYTHING, 10)) == 3


# -- several stores on one file -----------------------------------------------------------------------------------


async def test_another_store_on_the_file_sees_runs_under_way_within_a_second(tmp_path):
    go = anyio.Event()

    @task
    async def work(x: int) -> int:
        await go.wait()
        return x

    @task(retries=1, retry_delay_seconds=3600)
    async def again() -> None:
        raise ValueError("no")

    other = SQLiteStore(tmp_path / "runs.db")
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db"), shutdown_timeout=0):
        running = work.submit(1)
        pending = work.submit(running)
        retry = again.submit()
        await until(lambda: running.state.is_running() and retry.state.name == "AwaitingRetry")
        seen: dict[uuid.UUID, tuple[str, str | None]] = {}
        began = time.monotonic()
        while len(seen) < 3:
            assert time.monotonic() - began < 1
            seen = {run.id: (run.state_name, run.waiting_on) for run in await other.read_runs(EVERYTHING, 10)}
        assert seen[running.task_run_id] == ("Running", None)
        assert seen[pending.task_run_id] == ("Pending", f"upstream {running.name} (Running)")
        assert seen[retry.task_run_id][0] == "AwaitingRetry"
        assert (seen[retry.task_run_id][1] or "").startswith("retry in ")
        go.set()
        await pending
        began = time.monotonic()
        while (await other.read_run(pending.task_run_id)).state_name != "Completed":
            assert time.monotonic() - began < 1
        retry.cancel()


LOOK = """
import sys, time
from asynctask import get_client
end = time.monotonic() + 30
with get_client(sync_client=True) as client:
    while not (runs := client.read_task_runs(state_name="Running")):
        assert time.monotonic() < end
    print(runs[0].id, runs[0].parameters)
"""


async def test_another_process_sees_runs_under_way(tmp_path):
    go = anyio.Event()

    @task
    async def work(x: int) -> None:
        await go.wait()

    url = f"sqlite:///{tmp_path}/runs.db"
    async with Runtime(store=url):
        future = work.submit(7)
        out = await anyio.to_thread.run_sync(lambda: script(LOOK, ASYNCTASK_STORE_URL=url))
        assert out == f"{future.task_run_id} {{'x': '7'}}\n"
        go.set()
        await future


# -- deleting by settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "left", "later"),
    [
        ({}, 10, 12),
        ({"store_keep_runs": 3}, 3, 3),
        ({"store_keep_days": 2.5}, 3, 5),
        ({"store_keep_days": 4.5, "store_keep_runs": 4}, 4, 4),
        ({"store_keep_days": 2.5, "store_keep_runs": 4}, 3, 4),
    ],
    ids=str,
)
async def test_old_runs_are_deleted_by_the_settings(tmp_path, changes, left, later):
    """At the first write, and ten minutes after the last time; what was just written is kept."""
    clock = VirtualClock()
    store = SQLiteStore(tmp_path / "runs.db", clock=clock)
    async with Runtime(store=store, clock=clock) as runtime:
        for number in range(9):
            await double(number)
            await runtime.flush()
            clock.advance(86400)
        assert await store.count_runs(EVERYTHING) == 9
        with temporary_settings(**changes):
            await double(9)
            await runtime.flush()
            runs = await store.read_runs(EVERYTHING, 100)
            assert [int(run.parameters["x"]) for run in runs] == list(range(9, 9 - left, -1))
            assert await store.count_runs(RunFilter(tags=frozenset({"t"}))) == left
            await double(10)
            await runtime.flush()
            assert await store.count_runs(EVERYTHING) == left + 1  # not at every write
            clock.advance(601)
            await double(11)
            await runtime.flush()
            assert await store.count_runs(EVERYTHING) == later


async def test_very_many_old_runs_are_deleted_in_slices_between_which_runs_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(sql, "DELETED_AT_ONCE", 10)
    monkeypatch.setattr(sqlite, "PRUNED_AT_ONCE", 20)
    clock = VirtualClock()
    store = SQLiteStore(tmp_path / "runs.db", clock=clock)
    async with Runtime(store=store, clock=clock) as runtime:
        for number in range(60):
            await double(number)
        await runtime.flush()
        clock.advance(601)
        left: list[int] = []
        with temporary_settings(store_keep_runs=5):
            for number in range(8):
                await double(number)
                await runtime.flush()
                left.append(await store.count_runs(EVERYTHING))
                clock.advance(1.1)
        assert left == [41, 22, 5, 6, 7, 8, 9, 10]  # then every ten minutes again


async def test_a_clock_set_back_does_not_put_off_what_is_deleted_by_the_settings(tmp_path):
    clock = VirtualClock()
    store = SQLiteStore(tmp_path / "runs.db", clock=clock)
    async with Runtime(store=store, clock=clock) as runtime:
        with temporary_settings(store_keep_runs=1):
            for _ in range(2):
                await double(1)
                await runtime.flush()
            assert await store.count_runs(EVERYTHING) == 2
            clock.elapsed -= 3600
            await double(2)
            await runtime.flush()
            assert await store.count_runs(EVERYTHING) == 1


async def test_deleting_that_fails_is_told_and_nothing_is_recorded_twice(tmp_path, monkeypatch, caplog):
    async def fails(self: Results) -> None:
        raise OSError("the folder of results is gone")

    @task
    async def logs() -> None:
        get_run_logger().warning("once")

    monkeypatch.setattr(Results, "sweep_files", fails)
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
        for number in range(3):
            await double(number)
    with temporary_settings(store_keep_runs=1):
        async with Runtime(store=SQLiteStore(tmp_path / "runs.db")) as runtime:
            await logs()
            await runtime.flush()
            (run,) = await runtime.store.read_runs(RunFilter(task_name="logs"), 10)
            assert [entry.message for entry in await runtime.store.read_logs(run.id)] == ["once"]
    assert [one.getMessage() for one in caplog.records if one.levelname == "ERROR"] == [
        "Old runs could not be deleted: the folder of results is gone"
    ]


async def test_pruning_without_either_deletes_nothing(tmp_path):
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")), get_client() as client:
        await double(1)
        assert await client.prune() == 0
        assert await client.prune(older_than=timedelta(days=1)) == 0
        assert await client.count() == 1


# -- forks --------------------------------------------------------------------------------------------------------


def in_child(path: str, pipe: Any) -> None:
    """Runs tasks in a forked child, on the store that its parent has open."""
    os.environ["ASYNCTASK_STORE_URL"] = f"sqlite:///{path}"

    async def main() -> None:
        async with Runtime(store=f"sqlite:///{path}"):
            for number in range(100, 120):
                await double(number)

    anyio.run(main)
    pipe.send(os.getpid())
    pipe.close()


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_child_records_into_the_same_file_and_the_parent_goes_on(tmp_path):
    path = tmp_path / "runs.db"
    fork = multiprocessing.get_context("fork")
    async with Runtime(store=f"sqlite:///{path}") as runtime:
        for number in range(20):
            await double(number)
        await runtime.flush()
        here, there = fork.Pipe()
        child = fork.Process(target=in_child, args=(str(path), there))
        child.start()
        there.close()
        for number in range(20, 40):
            await double(number)
        assert await anyio.to_thread.run_sync(here.poll, 30)
        assert here.recv() == child.pid
        here.close()
        await anyio.to_thread.run_sync(child.join)
        assert child.exitcode == 0
        child.close()
        for number in range(40, 60):
            await double(number)
        store = runtime.store
        runs = await store.read_runs(EVERYTHING, 1000)
    numbers = sorted(int(run.parameters["x"]) for run in runs)
    assert numbers == [*range(60), *range(100, 120)]
    assert {run.state_name for run in runs} == {"Completed"}
    assert settings.values.store_url == "memory://"


def limited_in_child(path: str, runtime: Runtime) -> int:
    """How many runs of a limited tag are Running at once, at most, in a runtime that was made before the fork."""
    now = most = 0

    @task(tags=["narrow"])
    async def work() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(0.001)
        now -= 1

    async def main() -> None:
        async with runtime, anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(work)

    anyio.run(main)
    return most


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_runtime_made_before_a_fork_keeps_to_the_limits_in_the_child(tmp_path):
    """As a web application has it that is loaded before its workers are forked."""
    path = tmp_path / "runs.db"

    async def set_limit() -> None:
        async with Runtime(store=SQLiteStore(path)), get_client() as client:
            await client.create_concurrency_limit("narrow", 1)

    anyio.run(set_limit)
    runtime = Runtime(store=SQLiteStore(path))
    child = os.fork()
    if not child:
        os._exit(limited_in_child(str(path), runtime))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_children_forked_while_results_are_put_at_hand_can_put_their_own(tmp_path):
    """A lock that was held by a thread of the parent would never be given back."""
    store = SQLiteStore(tmp_path / "runs.db")
    result = StoredResult(key="k", payload=b"1", serializer="json", task_name="t", run_number=1, created=1.0)
    with store._shelf._lock:  # as another thread has it at that moment
        child = os.fork()
        if not child:
            signal.alarm(5)
            store._shelf.put(result)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
