"""What runs leave behind, on its way to the database: in batches, in order, bounded, without holding up the work."""

import contextlib
import random
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asynctask import Runtime, flow, get_client, get_run_logger, task
from asynctask.clocks import Clock, Ids
from asynctask.errors import CancelledRun, StoreError
from asynctask.records import LogEntry
from asynctask.runs import Journal
from asynctask.stores import recorder, rows
from asynctask.stores.base import Journals, RunFilter
from asynctask.stores.recorder import Batch
from asynctask.stores.sqlite import SQLiteStore
from testkit import until

EVERYTHING = RunFilter()


@task
async def double(x: int) -> int:
    return x * 2


@task
def triple(x: int) -> int:
    return x * 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


class Watched(SQLiteStore):
    """Notes what it writes, and writes only while it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[Batch] = []
        self.may = threading.Event()
        self.may.set()
        self.is_held = False

    async def _write_batch(self, batch: Batch) -> None:
        self.is_held = not self.may.is_set()
        await anyio.to_thread.run_sync(self.may.wait, 3)  # not for ever, should the test fail
        self.batches.append(batch)
        await super()._write_batch(batch)


def ask(path: Path, text: str) -> Any:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(text).fetchone()[0]


async def test_many_short_runs_are_written_in_few_batches_and_each_once(path):
    store = Watched(path)
    async with Runtime(store=store):
        for x in range(5000):
            await double(x)
    written = [trace.number for batch in store.batches for trace in batch.traces]
    assert len(written) == len(set(written)) == 5000
    assert len(store.batches) < 200
    assert max(len(batch.traces) for batch in store.batches) <= recorder.BATCH


async def test_runs_are_written_in_the_order_in_which_they_ended(path):
    store = Watched(path)
    async with Runtime(store=store):
        for x in range(2000):
            await (double(x) if x % 2 else double.submit(x))
    ends = [trace.states[-1].time for batch in store.batches for trace in batch.traces]
    assert ends == sorted(ends)


async def test_a_run_under_way_appears_while_it_runs_and_each_change_of_its_state_does(path):
    go, retried = anyio.Event(), anyio.Event()
    attempts = []

    @task(retries=1, retry_delay_seconds=0.6)
    async def long() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            await go.wait()
            raise ValueError("no")
        await retried.wait()

    def state() -> Any:
        with contextlib.suppress(TypeError, sqlite3.OperationalError):
            return ask(path, "SELECT json_extract(states, '$[#-1][1]') FROM runs")

    async with Runtime(store=SQLiteStore(path)):
        future = long.submit()
        await until(lambda: state() == "Running")
        go.set()
        await until(lambda: state() == "AwaitingRetry")
        await until(lambda: state() == "Retrying")
        retried.set()
        await future
        await until(lambda: state() == "Completed")


async def test_a_run_that_is_over_at_once_is_never_written_while_it_runs(path):
    store = Watched(path)
    async with Runtime(store=store):
        for x in range(1000):
            await double(x)
    assert not any(batch.lengths for batch in store.batches)


async def test_flush_writes_what_has_just_begun_as_well(path):
    go = anyio.Event()

    @task
    async def long() -> None:
        await go.wait()

    async with Runtime(store=SQLiteStore(path)) as runtime:
        for count in range(1, 20):
            long.submit()
            await runtime.flush()
            assert ask(path, "SELECT count(*) FROM runs WHERE owner IS NOT NULL") == count
        go.set()


async def test_flush_returns_when_all_that_was_kept_before_is_on_disk(path):
    async with Runtime(store=SQLiteStore(path)) as runtime:
        for count in range(1, 20):
            for x in range(count):
                await double(x)
            await runtime.flush()
            assert ask(path, "SELECT count(*) FROM runs") == count * (count + 1) / 2


async def test_whoever_reads_reads_all_that_was_kept_before(path):
    store = SQLiteStore(path)
    async with Runtime(store=store):
        for count in range(1, 50):
            await double(count)
            assert await store.count_runs(EVERYTHING) == count
            assert (await store.read_runs(EVERYTHING, 1))[0].parameters == {"x": str(count)}


async def test_flows_and_their_runs_made_in_threads_and_on_the_loop_all_arrive(path):
    @flow
    def whole(n: int) -> int:
        return sum(triple(x) for x in range(n))

    @task
    def logs(x: int) -> None:
        get_run_logger().warning("line %d", x)

    async with Runtime(store=SQLiteStore(path)) as runtime, anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(anyio.to_thread.run_sync, whole, 100)
        for x in range(100):
            await double(x)
            await logs.submit(x)
    assert runtime.is_closed
    assert ask(path, "SELECT count(*) FROM runs") == 604
    assert ask(path, "SELECT count(*) FROM logs") == 100


# -- back-pressure ----------------------------------------------------------------------------------------------------


async def test_who_makes_runs_waits_for_a_slow_disk_and_the_queue_stays_bounded(path, monkeypatch):
    monkeypatch.setattr(recorder, "MOST_WAITING", 500)
    monkeypatch.setattr(recorder, "BATCH", 100)
    store = Watched(path)
    longest = 0
    made = 0

    async def make() -> None:
        nonlocal longest, made
        for x in range(1000):
            assert await double(x) == 2 * x
            made += 1
            longest = max(longest, store._recorder.waiting)

    async with Runtime(store=store):
        await double(0)
        await store.flush()
        store.may.clear()
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(make)
            await until(store.is_full)
            await anyio.sleep(0.2)
            stopped = made
            assert stopped < 700
            ticks = 0
            with anyio.move_on_after(0.2):
                while True:
                    await anyio.sleep(0.001)
                    ticks += 1
            assert ticks > 20  # it is runs that wait, not the loop
            assert made == stopped
            store.may.set()
    assert made == 5000
    assert longest < 700
    assert ask(path, "SELECT count(*) FROM runs") == 5001


async def test_threads_wait_for_a_slow_disk_as_well(path, monkeypatch):
    monkeypatch.setattr(recorder, "MOST_WAITING", 500)
    monkeypatch.setattr(recorder, "BATCH", 100)
    store = Watched(path)
    longest = 0

    def make() -> None:
        nonlocal longest
        for x in range(1000):
            triple(x)
            longest = max(longest, store._recorder.waiting)

    async with Runtime(store=store):
        await double(0)
        await store.flush()
        store.may.clear()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(anyio.to_thread.run_sync, make)
            await until(store.is_full)
            await anyio.sleep(0.1)
            store.may.set()
    assert longest < 700
    assert ask(path, "SELECT count(*) FROM runs") == 3001


async def test_whoever_waits_for_room_can_be_cancelled(path, monkeypatch):
    monkeypatch.setattr(recorder, "MOST_WAITING", 50)
    monkeypatch.setattr(recorder, "BATCH", 10)
    store = Watched(path)
    async with Runtime(store=store):
        await double(0)
        await store.flush()
        store.may.clear()
        await double(0)
        await until(lambda: store.is_held)
        others = [double.submit(x) for x in range(200)]
        await until(store.is_full)
        with anyio.move_on_after(0.05) as scope:
            await double(1)
        assert scope.cancelled_caught
        future = double.submit(2)
        await anyio.sleep(0.05)
        assert not future.done()
        future.cancel()
        with pytest.raises(CancelledRun):
            await future
        store.may.set()
        assert await double(3) == 6
        assert [await one for one in others] == [2 * x for x in range(200)]


async def test_nobody_waits_for_room_while_writing_fails_and_the_oldest_are_dropped_past_a_bound(
    path, monkeypatch, caplog
):
    monkeypatch.setattr(recorder, "MOST_WAITING", 100)
    monkeypatch.setattr(recorder, "MOST_KEPT", 1000)
    monkeypatch.setattr(recorder, "REPORT_AGAIN", 0.0)
    monkeypatch.setattr(recorder, "LONGEST_PAUSE", 0.1)
    broken = True

    class Broken(SQLiteStore):
        async def _write_batch(self, batch: Batch) -> None:
            if broken:
                raise OSError(5, "the disk is on fire")
            await super()._write_batch(batch)

    store = Broken(path)
    async with Runtime(store=store) as runtime:
        for x in range(3000):
            assert await double(x) == 2 * x
        await until(lambda: store._recorder.failure is not None)
        for x in range(3000):
            assert await double(x) == 2 * x
        assert store._recorder.waiting <= 1001
        await until(lambda: "records were dropped" in caplog.text)
        broken = False
        await until(lambda: store._recorder.failure is None)
        await runtime.flush()
        assert 1000 <= await store.count_runs(EVERYTHING) <= 1100
    assert "the disk is on fire" in caplog.text
    assert "records were lost" in caplog.text


async def test_memory_does_not_grow_with_the_number_of_runs(path):
    import gc
    import tracemalloc

    store = SQLiteStore(path)
    async with Runtime(store=store) as runtime:

        async def many(count: int) -> int:
            for x in range(count):
                await double(x)
            await runtime.flush()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        await many(1000)
        tracemalloc.start()
        try:
            first = await many(5000)
            last = await many(15000)
        finally:
            tracemalloc.stop()
        assert last - first < 300_000
        assert not store._recorder._rows


async def test_a_client_in_plain_code_asks_the_same_store(path):
    store = SQLiteStore(path)

    def look() -> int:
        with get_client(sync_client=True) as client:
            return client.count()

    async with Runtime(store=store):
        await double(1)
        assert await anyio.to_thread.run_sync(look) == 1


async def test_journals_come_and_go_while_all_of_them_are_looked_through():
    """A `WeakSet` raises then, and what was taken out of the queue to be written was lost."""
    journals = Journals()
    ids = Ids(random.Random(1))
    some = [Journal(Clock(), ids, lambda trace: None, lambda number, entry: None) for _ in range(100)]
    for journal in some[:50]:
        journals.add(journal)
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            for journal in some[50:]:
                journals.add(journal)
            for journal in some[50:]:
                journals.discard(journal)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=come_and_go)
    try:
        thread.start()
        for _ in range(5_000):
            assert set(journals.all()) >= set(some[:50])
    finally:
        sys.setswitchinterval(interval)
        is_over.set()
        thread.join()
    del some[10:], journal
    assert len(journals.all()) == 10


async def test_what_a_run_waits_for_may_have_a_name_that_no_database_takes(path):
    is_open = anyio.Event()

    @task(task_run_name="caf\udce9")
    async def slow() -> int:
        await is_open.wait()
        return 1

    async with Runtime(store=SQLiteStore(path)) as runtime:
        waiting = double.submit(slow.submit())
        await until(lambda: waiting.run.waiting_on is not None)
        await runtime.flush()
        run = await runtime.store.read_run(waiting.task_run_id)
        is_open.set()
        assert await waiting == 2
    assert run.waiting_on == "upstream caf\\udce9 (Running)"


async def test_a_line_of_a_level_beyond_all_numbers_is_kept(path):
    @task
    async def logs() -> None:
        get_run_logger().log(2**70, "loud")

    async with Runtime(store=SQLiteStore(path)) as runtime, get_client() as client:
        await logs()
        await runtime.flush()
        (run,) = await client.read_task_runs()
        assert [one.message for one in await client.read_logs(run.id)] == ["loud"]


async def test_flush_does_not_wait_for_what_is_logged_meanwhile(path, monkeypatch):
    monkeypatch.setattr(recorder, "BATCH", 10)
    number = Ids(random.Random(1)).new(1.0)

    class Chatty(SQLiteStore):
        batches = 0

        async def _write_batch(self, batch: Batch) -> None:
            self.batches += 1
            await super()._write_batch(batch)
            for _ in range(20 if self.batches < 1_000 else 0):
                self.keep_log(number, LogEntry(1.0, 20, "x", "more"))

    store = Chatty(path)
    async with Runtime(store=store):
        for _ in range(25):
            store.keep_log(number, LogEntry(1.0, 20, "x", "first"))
        await store.flush()
        assert store.batches < 500
        assert ask(path, "SELECT count(*) FROM logs WHERE message = 'first'") == 25
        store.batches = 1_000


async def test_log_lines_that_are_dropped_because_too_many_come_are_told(path, monkeypatch, caplog):
    monkeypatch.setattr(recorder, "MOST_KEPT", 50)
    store = Watched(path)
    store.may.clear()

    @task
    async def logs() -> None:
        await until(lambda: store.is_held)
        for number in range(200):
            get_run_logger().warning("line %d", number)

    async with Runtime(store=store) as runtime:
        await double(1)
        await logs()
        store.may.set()
        await runtime.flush()
    dropped = 200 - ask(path, "SELECT count(*) FROM logs")
    assert dropped >= 100
    assert f"{dropped} of the oldest log lines were dropped" in caplog.text


async def test_texts_of_errors_are_made_before_the_transaction_begins(path, monkeypatch):
    """Other processes wait 10 seconds for its end: 4,000 failed runs with long tracebacks take 4."""

    class Told(SQLiteStore):
        is_writing = False

        async def _write_batch(self, batch: Batch) -> None:
            await super()._write_batch(batch)
            self.is_writing = False

        async def _numbered(self, writer: Any, batch: Batch) -> Any:  # the first thing in the transaction
            self.is_writing = True
            return await super()._numbered(writer, batch)

    store = Told(path)
    is_writing: list[bool] = []

    def noted(failure: Any) -> str:
        is_writing.append(store.is_writing)
        return "a text"

    monkeypatch.setattr(rows, "error_text", noted)

    @task
    async def fails() -> None:
        raise ValueError("no")

    async with Runtime(store=store) as runtime, get_client() as client:
        for _ in range(3):
            assert (await fails(return_state=True)).is_failed()
        await runtime.flush()
        assert {run.error for run in await client.read_task_runs()} == {"a text"}
    assert is_writing == [False] * 3


class Unwritable(Watched):
    """Fails for what it is told to, as a value that no database takes would."""

    def __init__(self, path: Path, unwritable: set[str]) -> None:
        super().__init__(path)
        self.unwritable = unwritable
        self.is_down = False

    async def _write_batch(self, batch: Batch) -> None:
        if self.is_down:
            raise StoreError("down")
        for name in [trace.name for trace in batch.traces] + [entry.message for _, entry in batch.logs]:
            if name in self.unwritable:
                raise OverflowError(name)
        await super()._write_batch(batch)


@task(task_run_name="{name}")
async def named(name: str) -> None:
    get_run_logger().warning("line of %s", name)


async def test_a_record_that_can_never_be_written_is_told_and_holds_up_no_other(path, caplog):
    store = Unwritable(path, {"37", "line of 50"})
    async with Runtime(store=store) as runtime:
        for x in range(100):
            await named(str(x))
        await runtime.flush()
        written = {run.name for run in await store.read_runs(EVERYTHING, 200)}
    assert written == {str(x) for x in range(100)} - {"37"}
    assert ask(path, "SELECT count(*) FROM logs") == 99
    told = [record.message for record in caplog.records if "left out" in record.message]
    assert told == [
        "Run '37' cannot be recorded, and is left out: OverflowError: 37",
        "A log line cannot be recorded, and is left out: OverflowError: line of 50",
    ]


async def test_when_too_much_cannot_be_written_nothing_is_left_out_or_written_twice(path, caplog):
    store = Unwritable(path, {f"line of {x}" for x in range(25, 50)})
    async with Runtime(store=store) as runtime:
        store.is_down = True  # so that all of it goes in one batch
        for x in range(50):
            await named(str(x))
        store.is_down = False
        for _ in range(3):
            with pytest.raises(OverflowError):
                await runtime.flush()
        store.unwritable.clear()
        await runtime.flush()
        assert len(await store.read_runs(EVERYTHING, 200)) == 50
    assert ask(path, "SELECT count(*) FROM logs") == 50
    assert not [record for record in caplog.records if "left out" in record.message]
