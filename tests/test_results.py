"""Results that are kept: by which serializer, where, how they are read back, and what happens when that goes wrong."""

import asyncio
import dataclasses
import logging
import os
import pickle
import sqlite3
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from asynctask import Runtime, flow, get_client, states, task
from asynctask.blocking import drive
from asynctask.cache_policies import INPUTS
from asynctask.clocks import Clock
from asynctask.errors import (
    DamagedResult,
    FailedRun,
    MissingResult,
    ObjectNotFound,
    SerializationError,
    StoreError,
)
from asynctask.scopes import current_runtime
from asynctask.stores.base import Store, StoredResult
from asynctask.stores.memory import MemoryStore
from asynctask.stores.payloads import Payloads
from asynctask.stores.results_table import Results
from asynctask.stores.shelf import Shelf
from asynctask.stores.sqlite import SQLiteStore
from asynctask.stores.urls import StoresAt

STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SQLiteStore(folder / "runs.db"),
}


@pytest.fixture(params=STORES, ids=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path)


@pytest.fixture
def bodies() -> Counter[Any]:
    return Counter()


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Reversed:
    """A serializer of the user's own: the text of the value, backwards."""

    name = "backwards"

    def dumps(self, value: Any) -> bytes:
        if not isinstance(value, str):
            raise TypeError("only texts")
        return value[::-1].encode()

    def loads(self, data: bytes) -> Any:
        return data.decode()[::-1]


async def kept_value(t: Any, *args: Any) -> Any:
    """What a run of `t` has kept, read by its id."""
    future = t.submit(*args)
    await future.wait_async()
    async with get_client() as client:
        return await client.read_result(future.task_run_id)


def errors_of(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == level]


# -- keeping and reading --------------------------------------------------------------------------------------------

PLAIN = {"a": [1, 2.5, None, True], "b": "text"}
SERIALIZERS: dict[str, tuple[Any, Any]] = {
    "none": (None, PLAIN),
    "none and no plain data": (None, {"point": Point(1, 2), "set": {1, 2}}),
    "msgpack": ("msgpack", PLAIN | {"bytes": b"b"}),
    "json": ("json", PLAIN),
    "pickle": ("pickle", Point(1, 2)),
    "zlib": ("compressed/json", PLAIN),
    "lzma": ("compressed/lzma/pickle", [Point(1, 2)] * 100),
    "bz2": ("compressed/bz2/msgpack", PLAIN),
    "own": (Reversed(), "live"),
}


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("kind", SERIALIZERS)
async def test_a_result_is_kept_by_its_serializer_and_read_back_by_the_id_of_its_run(store, kind, colour):
    serializer, value = SERIALIZERS[kind]

    def body() -> Any:
        return value

    async def async_body() -> Any:
        return value

    t = task(body if colour == "sync" else async_body, persist_result=True, result_serializer=serializer)
    async with Runtime(store=store), get_client() as client:
        read = [await kept_value(t), await kept_value(t)]
        assert read == [value, value]
        assert type(read[0]) is type(value)
        entries = await client.read_cache()
        assert [entry.key for entry in entries] == [f"run:{entry.run_id}" for entry in entries]
        wanted = {None: "pickle" if "no plain" in kind else "msgpack"}
        assert {entry.serializer for entry in entries} == {
            wanted.get(serializer) or getattr(serializer, "name", serializer)
        }


@pytest.mark.parametrize(
    ("options", "is_kept"),
    [
        ({}, False),
        ({"persist_result": False}, False),
        ({"persist_result": True}, True),
        ({"result_serializer": "json"}, True),
        ({"result_serializer": "json", "persist_result": False}, False),
        ({"on_commit": len}, False),
    ],
    ids=repr,
)
async def test_which_options_keep_a_result(store, options, is_kept):
    t = task(lambda: 5, **{key: (lambda txn: None) if key == "on_commit" else one for key, one in options.items()})
    async with Runtime(store=store), get_client() as client:
        assert await t.submit() == 5
        (run,) = await client.read_task_runs()
        assert (run.result is not None) is is_kept
        if is_kept:
            assert await client.read_result(run.id) == 5
        else:
            with pytest.raises(MissingResult, match=r"kept no result.*persist_result=True"):
                await client.read_result(str(run.id))


async def test_what_is_no_run_is_not_found(store):
    async with Runtime(store=store), get_client() as client:
        with pytest.raises(ObjectNotFound):
            await client.read_result(uuid.uuid4())


def test_a_result_is_read_in_plain_code(store):
    runtime = Runtime(store=store)
    token = current_runtime.set(runtime)
    try:
        future = task(lambda: [5], persist_result=True).submit()
        assert future.result() == [5]
        with get_client(sync_client=True) as client:
            assert client.read_result(future.task_run_id) == [5]
            client.delete_task_run(future.task_run_id)
            with pytest.raises(ObjectNotFound):
                client.read_result(future.task_run_id)
    finally:
        runtime.close()
        current_runtime.reset(token)


async def test_a_result_of_a_flow_is_kept_as_well(store):
    @flow(persist_result=True, result_serializer="json")
    async def whole(x: int) -> Any:
        return {"x": x}

    async with Runtime(store=store), get_client() as client:
        await whole(5)
        (run,) = await client.read_flow_runs()
        assert await client.read_result(run.id) == {"x": 5}


async def test_a_cached_run_has_the_result_of_its_key(store):
    t = task(lambda x: [x], cache_policy=INPUTS)
    async with Runtime(store=store), get_client() as client:
        assert [await kept_value(t, 1), await kept_value(t, 1)] == [[1], [1]]
        one, two = await client.read_task_runs()
        assert one.result == two.result
        await client.clear_cache()
        with pytest.raises(MissingResult, match="any more"):
            await client.read_result(one.id)


async def test_a_result_is_there_for_the_next_process(tmp_path):
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
        future = task(lambda: {"point": (1, 2)}, persist_result=True).submit()
        await future
    program = (
        "import sys\nfrom asynctask import get_client\n"
        "with get_client(sync_client=True) as client: print(client.read_result(sys.argv[1]))"
    )
    done = await anyio.run_process(
        [sys.executable, "-c", program, str(future.task_run_id)],
        env={**os.environ, "ASYNCTASK_STORE_URL": f"sqlite:///{tmp_path}/runs.db"},
    )
    assert done.stdout.decode() == "{'point': (1, 2)}\n"


async def test_only_the_result_of_the_last_attempt_is_kept(store):
    calls: list[int] = []

    @task(persist_result=True, retries=2)
    async def work() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("not yet")
        return len(calls)

    async with Runtime(store=store), get_client() as client:
        assert await kept_value(work) == 3
        assert len(await client.read_cache()) == 1


async def test_the_data_of_a_returned_state_is_what_is_kept(store):
    @task(persist_result=True)
    async def work() -> Any:
        return states.Completed(data=[1])

    async with Runtime(store=store):
        assert await kept_value(work) == [1]


# -- exceptions -----------------------------------------------------------------------------------------------------


class Own(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class OfThisProcess(Own):
    def __reduce__(self) -> Any:
        raise TypeError("stays here")


async def test_the_exception_of_a_run_that_kept_failing_is_raised_again(store):
    @task(persist_result=True, retries=1)
    async def fails() -> None:
        raise LookupError("gone", 5)

    async with Runtime(store=store), get_client() as client:
        with pytest.raises(LookupError) as caught:
            await kept_value(fails)
        assert caught.value.args == ("gone", 5)
        assert len(await client.read_cache()) == 1


async def test_an_exception_whose_class_takes_more_than_it_passes_on_is_kept(store):
    @task(persist_result=True)
    async def fails() -> None:
        raise Own(7, "no")

    async with Runtime(store=store):
        with pytest.raises(Own, match=r"7: no") as caught:
            await kept_value(fails)
        assert caught.value.code == 7


async def test_an_exception_that_does_not_pickle_is_described(store):
    @task(persist_result=True)
    async def fails() -> None:
        raise OfThisProcess(7, "no")

    async with Runtime(store=store):
        with pytest.raises(FailedRun, match=r"OfThisProcess: 7: no") as caught:
            await kept_value(fails)
        assert 'raise OfThisProcess(7, "no")' in "".join(caught.value.__notes__)


async def test_a_run_that_kept_no_exception_says_so(store):
    @task
    async def fails() -> None:
        raise ValueError("no")

    async with Runtime(store=store):
        with pytest.raises(MissingResult, match=r"\(Failed\) has kept no result"):
            await kept_value(fails)


# -- values that cannot be kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"persist_result": True}, threading.Lock()),
        ({"persist_result": True, "result_serializer": "json"}, {1, 2}),
        ({"persist_result": True, "result_serializer": "msgpack"}, Point(1, 2)),
        ({"persist_result": True, "result_serializer": Reversed()}, 5),
        ({"cache_policy": INPUTS}, threading.Lock()),
    ],
    ids=["lock", "json", "msgpack", "own", "cached"],
)
async def test_a_value_that_cannot_be_kept_fails_the_run_which_is_not_tried_again(
    store, bodies, options, value, colour
):
    def body(x: int) -> Any:
        bodies[x] += 1
        return value

    async def async_body(x: int) -> Any:
        return body(x)

    t = task(body if colour == "sync" else async_body, name="keeper", retries=3, **options)
    async with Runtime(store=store):
        with pytest.raises(SerializationError, match=r"task 'keeper': its result cannot be kept"):
            await t.submit(1)
        async with get_client() as client:
            (run,) = await client.read_task_runs()
        assert (run.state_name, run.run_count) == ("Failed", 1)
    assert bodies == {1: 1}


async def test_a_serialization_error_of_the_users_own_code_is_a_failure_like_any_other(store, bodies):
    @task(retries=2)
    async def work() -> None:
        bodies["work"] += 1
        raise SerializationError("mine")

    async with Runtime(store=store):
        with pytest.raises(SerializationError, match="mine"):
            await work()
    assert bodies == {"work": 3}


# -- large ones -----------------------------------------------------------------------------------------------------

LARGE = bytes(range(256)) * 40_000  # 10 MB


def files_of(folder: Path) -> list[Path]:
    return [path for path in (folder / "runs.db.results").rglob("*") if path.is_file()]


async def test_a_large_value_is_a_file_beside_the_database_and_equal_ones_share_it(tmp_path, bodies):
    @task(cache_policy=INPUTS)
    async def load(x: int) -> bytes:
        bodies[x] += 1
        return LARGE

    for _ in range(2):
        async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
            assert [await load(1), await load(2), await load(1)] == [LARGE] * 3
    assert bodies == {1: 1, 2: 1}
    (file,) = files_of(tmp_path)
    assert file.stat().st_size >= len(LARGE)
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "runs.db").stat().st_size < 1 << 20


# -- what is gone, altered or foreign -------------------------------------------------------------------------------


def delete_file(folder: Path) -> None:
    for file in files_of(folder):
        file.unlink()


def flip_file(folder: Path) -> None:
    for file in files_of(folder):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def cut_file(folder: Path) -> None:
    for file in files_of(folder):
        file.write_bytes(file.read_bytes()[:-1])


def change(folder: Path, statement: str, *values: Any) -> None:
    connection = sqlite3.connect(folder / "runs.db")
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def foreign_key(folder: Path) -> None:
    (folder / "runs.db.key").write_bytes(os.urandom(32))


HARM: dict[str, tuple[Callable[[Path], None], bool, type[Exception]]] = {
    "file deleted": (delete_file, True, MissingResult),
    "file flipped": (flip_file, True, DamagedResult),
    "file cut": (cut_file, True, DamagedResult),
    "row altered": (lambda folder: change(folder, "UPDATE results SET payload = x'81a161'"), False, DamagedResult),
    "row with another serializer": (
        lambda folder: change(folder, "UPDATE results SET serializer = 'pickle'"), False, DamagedResult
    ),
    "row of another type": (lambda folder: change(folder, "UPDATE results SET payload = 5"), False, DamagedResult),
    "row of no text": (
        lambda folder: change(folder, "UPDATE results SET payload = CAST(x'ff' AS TEXT)"), False, StoreError
    ),
    "signature altered": (
        lambda folder: change(folder, "UPDATE results SET mac = randomblob(32)"), False, DamagedResult
    ),
    "another key": (foreign_key, False, DamagedResult),
    "key gone": (lambda folder: (folder / "runs.db.key").unlink(), False, DamagedResult),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
async def test_what_was_harmed_is_a_warning_and_a_miss_for_a_cache_and_an_error_for_who_reads_it(
    tmp_path, bodies, caplog, harm
):
    do_harm, is_large, error = HARM[harm]

    @task(cache_policy=INPUTS)
    async def load(x: int) -> Any:
        bodies[x] += 1
        return LARGE[:200_000] if is_large else {"a": 5}

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
        first = await load(1)
        async with get_client() as client:
            (run,) = await client.read_task_runs()
    do_harm(tmp_path)
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")), get_client() as client:
        with pytest.raises(error):
            await client.read_result(run.id)
        caplog.clear()
        assert await load(1) == first
        (warning,) = errors_of(caplog)
        assert "is not taken from the cache, and runs" in warning
        assert bodies == {1: 2}
    caplog.clear()
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):  # it has healed
        assert await load(1) == first
    assert bodies == {1: 2}
    assert errors_of(caplog) == []


class Canary:
    """Whose unpickling leaves a trace."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


async def test_a_pickle_that_this_store_did_not_write_is_refused_before_it_is_loaded(tmp_path, bodies, caplog):
    canary = tmp_path / "canary"
    evil = pickle.dumps(Canary(str(canary)))
    with pickle.loads(evil):  # it would sing
        assert canary.exists()
    canary.unlink()

    @task(cache_policy=INPUTS, result_serializer="pickle")
    async def load(x: int) -> Any:
        bodies[x] += 1
        return [x]

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
        await load(1)
    change(tmp_path, "UPDATE results SET payload = ?, size = ?", evil, len(evil))
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")), get_client() as client:
        (run,) = await client.read_task_runs()
        with pytest.raises(DamagedResult):
            await client.read_result(run.id)
        assert await load(1) == [1]
    assert bodies == {1: 2}
    assert not canary.exists()
    assert len(errors_of(caplog)) == 1


async def test_a_serializer_that_this_process_does_not_know_or_that_fails_is_a_miss(tmp_path, bodies, caplog):
    class Moody(Reversed):
        name = f"moody-{uuid.uuid4()}"
        is_broken = False

        def loads(self, data: bytes) -> Any:
            if Moody.is_broken:
                raise OSError("not today")
            return super().loads(data)

    @task(cache_policy=INPUTS, result_serializer=Moody())
    async def load(x: int) -> str:
        bodies[x] += 1
        return "value"

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
        assert [await load(1), await load(1)] == ["value", "value"]
        assert bodies == {1: 1}
        Moody.is_broken = True
        assert await load(1) == "value"
        assert bodies == {1: 2}
        assert "not today" in errors_of(caplog)[0]


# -- a disk that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"persist_result": True}, {"cache_policy": INPUTS}], ids=["kept", "cached"])
async def test_a_result_that_the_disk_does_not_take_is_reported_and_the_run_completes(
    tmp_path, bodies, caplog, options
):
    (tmp_path / "runs.db.results").write_text("in the place of the folder")

    @task(**options)
    async def load(x: int) -> bytes:
        bodies[x] += 1
        return LARGE[:200_000]

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")), get_client() as client:
        assert await load(1) == LARGE[:200_000]
        (run,) = await client.read_task_runs()
        assert (run.state_name, run.result) == ("Completed", None)
        (message,) = errors_of(caplog, logging.ERROR)
        assert f"The result of run {run.name!r} is not kept" in message
        with pytest.raises(MissingResult):
            await client.read_result(run.id)
        await load(1)
    assert bodies == {1: 2}


async def test_an_exception_that_the_disk_does_not_take_is_reported_and_the_run_fails_by_it(tmp_path, caplog):
    (tmp_path / "runs.db.key").mkdir()

    @task(persist_result=True)
    async def fails() -> None:
        raise ValueError("the task's own")

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
        with pytest.raises(ValueError, match="the task's own"):
            await fails()
    assert any("is not kept" in message and "runs.db.key" in message for message in errors_of(caplog, logging.ERROR))


# -- other places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["result_storage", "key_storage"])
async def test_results_in_a_folder_of_their_own_serve_every_store(tmp_path, bodies, kind):
    folder = tmp_path / "elsewhere"
    options: dict[str, Any] = (
        {"result_storage": folder, "cache_policy": INPUTS}
        if kind == "result_storage"
        else {"cache_policy": INPUTS.configure(key_storage=folder)}
    )

    @task(**options)
    async def load(x: int) -> Any:
        bodies[x] += 1
        return {"x": x}

    for store in (MemoryStore(), SQLiteStore(tmp_path / "runs.db"), MemoryStore()):
        async with Runtime(store=store), get_client() as client:
            assert [await load(1), await load(1)] == [{"x": 1}] * 2
            assert await client.read_cache() == []
            run, _ = await client.read_task_runs()
            with pytest.raises(MissingResult, match="result_storage="):
                await client.read_result(run.id)
            assert await client.read_result(run.id, result_storage=folder) == {"x": 1}
    assert bodies == {1: 1}
    assert (folder / "results.db").stat().st_mode & 0o777 == 0o600


async def test_result_storage_alone_keeps_each_result_by_its_run(tmp_path):
    t = task(lambda x: [x], result_storage=str(tmp_path / "kept"))
    async with Runtime(store=MemoryStore()), get_client() as client:
        futures = [t.submit(x) for x in range(3)]
        assert [await future for future in futures] == [[0], [1], [2]]
        read = [await client.read_result(one.task_run_id, result_storage=tmp_path / "kept") for one in futures]
        assert read == [[0], [1], [2]]


async def test_a_folder_that_cannot_be_made_is_reported_and_the_run_completes(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    t = task(lambda x: [x], result_storage=tmp_path / "file" / "below", cache_policy=INPUTS)
    async with Runtime(store=MemoryStore()):
        assert await t.submit(1) == [1]
    assert any("is not kept" in message for message in errors_of(caplog, logging.ERROR))


# -- in memory ------------------------------------------------------------------------------------------------------


def entry(key: str, size: int) -> StoredResult:
    return StoredResult(
        key=key, payload=b"x" * size, serializer="msgpack", task_name="t", run_number=1, created=0.0, expires=None
    )


def test_what_is_at_hand_is_bounded_by_count_and_size_and_the_oldest_goes_first():
    shelf = Shelf(3, 100)
    for key in "abcd":
        shelf.put(entry(key, 10))
    assert [one.key for one in shelf.all()] == ["b", "c", "d"]
    shelf.put(entry("b", 45))  # anew: now the youngest
    shelf.put(entry("e", 45))
    assert [one.key for one in shelf.all()] == ["d", "b", "e"]
    shelf.put(entry("d", 51))  # more than half the room: not kept, nor what was there before
    assert [one.key for one in shelf.all()] == ["b", "e"]
    shelf.put(entry("f", 20))
    assert [one.key for one in shelf.all()] == ["e", "f"]
    shelf.drop("e")
    shelf.drop("e")
    shelf.clear()
    assert (len(shelf), shelf.get("f")) == (0, None)


def test_threads_that_put_the_same_keys_leave_all_the_room_there_is():
    shelf = Shelf(1000, 1000)

    def put(seed: int) -> None:
        for number in range(2000):
            shelf.put(entry(f"k{(seed + number) % 3}", 10))

    threads = [threading.Thread(target=put, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(97):
        shelf.put(entry(f"more{number}", 10))
    assert len(shelf) == 100


# -- other processes ------------------------------------------------------------------------------------------------


async def test_what_another_process_clears_is_forgotten_with_the_next_runs_recorded(tmp_path, bodies):
    @task(cache_policy=INPUTS)
    async def load(x: int) -> Any:
        bodies[x] += 1
        return [x]

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")) as runtime:
        await load(1)
        await runtime.flush()
        await anyio.run_process(
            [sys.executable, "-m", "asynctask", "cache", "clear", "--yes"],
            env={**os.environ, "ASYNCTASK_STORE_URL": f"sqlite:///{tmp_path}/runs.db"},
        )
        assert await load(1) == [1]  # at hand still
        await runtime.flush()
        assert await load(1) == [1]
    assert bodies == {1: 2}


async def test_what_another_process_wrote_anew_is_seen_with_the_next_runs_recorded(tmp_path):
    """Two stores on one file, as two processes have them: one refreshes what the other one has at hand."""
    number = 0

    @task(cache_policy=INPUTS)
    async def load(x: int) -> int:
        return number

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")) as runtime:
        assert await load(1) == 0
        number = 1
        async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
            assert await load.with_options(refresh_cache=True)(1) == 1
        await load(2)
        await runtime.flush()
        assert await load(1) == 1


@task
async def nothing() -> None:
    pass


def made(payload: bytes, key: str = "k") -> StoredResult:
    return StoredResult(
        key=key, payload=payload, serializer="json", task_name="t", run_number=1, created=Clock().now()
    )  # fmt: skip


async def test_what_was_read_before_this_process_wrote_anything_is_forgotten_when_another_one_replaces_it(tmp_path):
    first, second = SQLiteStore(tmp_path / "runs.db"), SQLiteStore(tmp_path / "runs.db")
    async with Runtime(store=second):
        await second.write_results([made(b"1")])
        async with Runtime(store=first):
            await first.read_result("k")
            assert first.result_at_hand("k") is not None
            await second.write_results([made(b"2")])
            await nothing()
            await first.flush()
            assert first.result_at_hand("k") is None


@pytest.mark.parametrize("how", ["write", "clear"])
async def test_what_is_read_while_it_is_replaced_or_deleted_is_not_at_hand_afterwards(tmp_path, monkeypatch, how):
    """A read of the old that begins before the commit, and ends long after it, because its payload is large."""
    store = SQLiteStore(tmp_path / "runs.db")
    opens, may_open = threading.Event(), threading.Event()
    next_epoch, opened = Results.next_epoch, Payloads.open
    reads: list[asyncio.Task[Any]] = []

    async def read_begins(self: Results, writer: Any) -> int:
        number = await next_epoch(self, writer)
        if not reads:
            reads.append(asyncio.ensure_future(self.read("k", at_hand=True)))
            await asyncio.to_thread(opens.wait, 5)
        return number

    def open_slowly(self: Payloads, *args: Any) -> bytes:
        opens.set()
        may_open.wait(20)
        return opened(self, *args)

    async def change() -> None:
        if how == "write":
            await store._results.write([made(b"2" * 200_000)], at_hand=True)
        else:
            await store._results.clear(None, None, False)
        may_open.set()
        await reads[0]

    async with Runtime(store=store):
        await store.write_results([made(b"1" * 200_000)], at_hand=False)
        await store.read_result("k", at_hand=False)
        monkeypatch.setattr(Results, "next_epoch", read_begins)
        monkeypatch.setattr(Payloads, "open", open_slowly)
        await store._desk.ask(change)
        found = store.result_at_hand("k")
    assert (None if found is None else found.payload[:1]) == (None if how == "clear" else b"2")


async def test_a_write_that_fails_does_not_hide_what_another_process_replaces_next(tmp_path, monkeypatch):
    first, second = SQLiteStore(tmp_path / "runs.db"), SQLiteStore(tmp_path / "runs.db")
    next_epoch = Results.next_epoch

    async def fails(self: Results, writer: Any) -> int:
        await next_epoch(self, writer)
        raise sqlite3.OperationalError("database or disk is full")

    async with Runtime(store=second), Runtime(store=first):
        await first.write_results([made(b"1")])
        with monkeypatch.context() as patched:
            patched.setattr(Results, "next_epoch", fails)
            with pytest.raises(StoreError, match="disk is full"):
                await first.write_results([made(b"1", "another")])
        await second.write_results([made(b"2")])
        await nothing()
        await first.flush()
        assert first.result_at_hand("k") is None


async def test_a_storage_key_that_is_no_unicode_leaves_the_run_uncached_and_recorded(tmp_path, caplog):
    @task(result_storage_key="{name}")
    async def load(name: str) -> int:
        return 1

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")) as runtime, get_client() as client:
        assert await load(os.fsdecode(b"caf\xe9")) == 1
        await runtime.flush()
        assert await client.count_task_runs(state_name="Completed") == 1
    assert "is not cached: its result_storage_key" in caplog.text


def test_threads_that_need_a_folder_of_results_at_one_moment_leave_its_store_closed(tmp_path):
    stores_at = StoresAt()
    for number in range(50):
        together = threading.Barrier(4)

        def find(folder: str, together: threading.Barrier = together) -> None:
            together.wait()
            stores_at.find(folder)

        folder = tmp_path / str(number)
        threads = [threading.Thread(target=find, args=(str(folder),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    drive(stores_at.release())
    assert not [thread for thread in threading.enumerate() if thread.name == "asynctask-store"]
