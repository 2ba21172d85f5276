"""Single flight over processes: isolation SERIALIZABLE, by the store or by a lock manager of the user's."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asynctask import Runtime, flights, task
from asynctask.cache_policies import INPUTS, IsolationLevel
from asynctask.errors import BlockingWaitError, StoreError
from asynctask.flights import Flights
from asynctask.scopes import current_runtime
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from testkit import until

SERIALIZABLE = INPUTS.configure(isolation_level="SERIALIZABLE")

#: Runs a cached task after a line on its input, and says on its output what happens.
PROGRAM = """
import sys, time, pathlib
from asynctask import task, Runtime
from asynctask.cache_policies import INPUTS

folder = pathlib.Path(sys.argv[1])

def say(*words):
    print(*words, flush=True)

@task(cache_policy=INPUTS.configure(isolation_level="SERIALIZABLE"))
def work(x):
    with open(folder / "bodies", "a") as file:
        file.write("body\\n")
    say("body")
    while not (folder / "go").exists():
        time.sleep(0.002)
    return [x]

@task(cache_policy=INPUTS.configure(isolation_level="SERIALIZABLE"))
async def async_work(x):
    import anyio
    with open(folder / "bodies", "a") as file:
        file.write("body\\n")
    say("body")
    while not (folder / "go").exists():
        await anyio.sleep(0.002)
    return [x]

def threads():
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        say(*{str(one.result()) for one in [pool.submit(work, 1) for _ in range(4)]})

def call():
    say(work(1))

def loop(backend):
    import anyio
    async def main():
        say(*{str(await one) for one in [async_work.submit(1) for _ in range(4)]})
    anyio.run(main, backend=backend)

def cancelled():
    import anyio
    async def main():
        async with Runtime():
            future = async_work.submit(1)
            while not (folder / "bodies").exists():
                await anyio.sleep(0.002)
            sys.stdin.readline()
            future.cancel()
            say((await future.wait_async()).name)
            sys.stdin.readline()
    anyio.run(main)

if __name__ == "__main__":
    say("ready")
    sys.stdin.readline()
    {"threads": threads, "call": call, "asyncio": lambda: loop("asyncio"), "trio": lambda: loop("trio"),
     "cancelled": cancelled}[sys.argv[2]]()
"""


class Process:
    """One that runs PROGRAM on the store of a folder."""

    def __init__(self, folder: Path, way: str) -> None:
        (folder / "program.py").write_text(PROGRAM)
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "program.py"), str(folder), way],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "ASYNCTASK_STORE_URL": f"sqlite:///{folder}/runs.db"},
        )  # fmt: skip
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    started: list[Process] = []

    def start(way: str) -> Process:
        started.append(Process(tmp_path, way))
        return started[-1]

    yield start
    for process in started:
        process.end()


def bodies(folder: Path) -> int:
    return (folder / "bodies").read_text().count("body")


def test_the_body_runs_once_over_four_processes(start, tmp_path):
    """Two of plain code with threads, one on asyncio and one on trio: sync and async tasks have keys of their own."""
    (tmp_path / "go").touch()
    for ways in (["threads", "call", "threads", "call"], ["asyncio", "trio", "asyncio", "trio"]):
        processes = [start(way) for way in ways]
        for process in processes:
            process.tell()
        said = [process.process.stdout.read().splitlines() for process in processes]  # type: ignore[union-attr]
        assert [lines[-1] for lines in said] == ["[1]"] * 4
        assert sum(lines.count("body") for lines in said) == 1
    assert bodies(tmp_path) == 2


@pytest.mark.parametrize("way", ["call", "asyncio"])
def test_the_key_of_a_killed_process_is_free_at_once_and_another_one_runs(start, tmp_path, way):
    holder, other = start(way), start(way)
    holder.tell()
    assert holder.line() == "body"
    other.tell()
    holder.process.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    assert other.line() == "body"
    assert time.monotonic() - begin < 5
    (tmp_path / "go").touch()
    assert other.line() == "[1]"
    assert bodies(tmp_path) == 2


#: A cached task whose results and locks are in a folder, in a process with a store of its own.
ELSEWHERE = """
import sys, time
from asynctask import task
from asynctask.cache_policies import INPUTS

@task(cache_policy=INPUTS.configure(key_storage=sys.argv[1], isolation_level="SERIALIZABLE"))
def work(x):
    print("body", flush=True)
    time.sleep(0.2)
    return [x]

print("ready", flush=True)
sys.stdin.readline()
print(work(1))
"""


def test_processes_with_stores_of_their_own_share_the_keys_of_a_folder(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE, str(tmp_path / "keys")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "ASYNCTASK_STORE_URL": url},
        )
        for url in ("memory://", f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/two.db")
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        said = [process.communicate(timeout=20)[0].splitlines() for process in begun(processes)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [lines[-1] for lines in said] == ["[1]"] * 3
    assert sum(lines.count("body") for lines in said) == 1


def begun(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """All of them told to begin, before any is waited for."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def test_the_key_of_a_cancelled_run_is_free_while_its_process_goes_on(start, tmp_path):
    holder, other = start("cancelled"), start("asyncio")
    holder.tell()
    assert holder.line() == "body"
    other.tell()
    holder.tell()
    assert holder.line() == "Cancelled"
    assert other.line() == "body"
    (tmp_path / "go").touch()
    assert other.line() == "[1]"
    holder.tell()
    assert holder.process.wait(10) == 0


# -- one process that holds the lock, and others in it that want it --------------------------------------------------


async def test_who_waits_for_a_lock_shows_it_and_can_be_cancelled(tmp_path):
    store = SQLiteStore(tmp_path / "runs.db")
    t = task(cache_policy=SERIALIZABLE)(one)
    async with Runtime(store=store):
        key = await key_of_a_run(t)
        other = SQLiteStore(tmp_path / "runs.db")
        other.hold()
        try:
            assert await other.try_take_key(key)
            future = t.submit(1)
            await until(lambda: "lock" in (future.run.waiting_on or ""))
            future.cancel()
            state = await future.wait_async()
            assert state is not None
            assert state.name == "Cancelled"
            second = t.submit(1)
            await until(lambda: "lock" in (second.run.waiting_on or ""))
            other.give_key(key)
            assert await second == 1
        finally:
            await other.release()
    assert store.flights._flights == {}


async def one(x: int) -> int:
    return x


async def key_of_a_run(t: Any) -> str:
    """The key that `t(1)` has, from an entry that is then deleted."""
    from asynctask import get_client

    await t(1)
    async with get_client() as client:
        (entry,) = await client.read_cache()
        await client.clear_cache()
    return entry.key


async def test_a_sync_call_on_the_event_loop_does_not_block_it_for_a_lock(tmp_path):
    def body(x: int) -> int:
        return x

    t = task(cache_policy=SERIALIZABLE)(body)
    store = MemoryStore()
    async with Runtime(store=store):
        async with anyio.create_task_group():
            await t.submit(1)
        key = next(iter(store._shelf._results))
        await store.clear_cache(None, None, False)
        assert await store.try_take_key(key)
        with pytest.raises(BlockingWaitError, match="lock"):
            t(1)
        store.give_key(key)
        assert t(1) == 1
    assert store.flights._flights == {}


# -- lock managers ----------------------------------------------------------------------------------------------------


class Locks:
    """What a user's lock manager needs to have; it notes who held what."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.held: dict[str, str] = {}
        self.said: list[str] = []

    def acquire_lock(self, key: str, holder: str) -> bool:
        with self.lock:
            assert self.lock.wait_for(lambda: key not in self.held, 10)
            self.held[key] = holder
            self.said.append("acquired")
        return True

    def release_lock(self, key: str, holder: str) -> None:
        with self.lock:
            assert self.held.pop(key) == holder
            self.said.append("released")
            self.lock.notify_all()


class AsyncLocks(Locks):
    async def aacquire_lock(self, key: str, holder: str) -> bool:
        while key in self.held:
            await anyio.sleep(0.001)
        self.held[key] = holder
        self.said.append("acquired async")
        return True


class Refusing(Locks):
    def acquire_lock(self, key: str, holder: str) -> bool:
        return False


class Silent(Locks):
    def acquire_lock(self, key: str, holder: str) -> None:  # type: ignore[override]
        super().acquire_lock(key, holder)


def locked(locks: Any, body: Callable[..., Any]) -> Any:
    return task(cache_policy=INPUTS.configure(isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=locks))(body)


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize(("kind", "word"), [(Locks, "acquired"), (AsyncLocks, "acquired async"), (Silent, "acquired")])
async def test_the_lock_of_a_lock_manager_is_held_around_the_body_and_given_back(colour, kind, word):
    locks = kind()
    held: list[int] = []

    def body(x: int) -> int:
        held.append(len(locks.held))
        if x < 0:
            raise ValueError("no")
        return x

    async def async_body(x: int) -> int:
        return body(x)

    t = locked(locks, body if colour == "sync" else async_body)
    async with Runtime(store=MemoryStore()):
        assert [await t.submit(1), await t.submit(1)] == [1, 1]
        assert (await t.submit(-1).wait_async()).name == "Failed"
    assert held == [1, 1]
    assert locks.held == {}
    assert locks.said == [word, "released"] * 2


def test_a_lock_manager_in_plain_code():
    locks = AsyncLocks()
    t = locked(locks, lambda x: len(locks.held))
    runtime = Runtime(store=MemoryStore())
    token = current_runtime.set(runtime)
    try:
        assert [t(1), t(1), t(2)] == [1, 1, 1]
    finally:
        runtime.close()
        current_runtime.reset(token)
    assert locks.said == ["acquired", "released"] * 2


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_lock_manager_that_refuses_fails_the_run_and_says_which(colour):
    async def body(x: int) -> int:
        raise AssertionError("it has no lock")

    t = locked(Refusing(), body if colour == "async" else lambda x: 1 / 0)
    store = MemoryStore()
    async with Runtime(store=store):
        with pytest.raises(StoreError, match="did not give the lock of run"):
            await t.submit(1)
    assert store.flights._flights == {}


async def test_a_lock_manager_that_blocks_does_not_block_the_event_loop():
    """Two stores, as two processes would have, and one lock: the second run waits in a thread, the first goes on."""
    locks = Locks()
    bodies: Counter[str] = Counter()
    go = anyio.Event()

    async def body(x: int) -> int:
        bodies["begun"] += 1
        await go.wait()
        return x

    t = locked(locks, body)
    async with Runtime(store=MemoryStore()):
        first = t.submit(1)
        await until(lambda: bodies["begun"] == 1)
        async with Runtime(store=MemoryStore()):
            second = t.submit(1)
            await until(lambda: "lock" in (second.run.waiting_on or ""))
            for _ in range(20):  # the loop goes on
                await anyio.lowlevel.checkpoint()
            assert bodies["begun"] == 1
            go.set()
            assert [await first, await second] == [1, 1]
    assert locks.held == {}


async def test_a_lock_that_comes_when_its_run_was_cancelled_is_given_back():
    locks = Locks()
    t = locked(locks, one)
    store = MemoryStore()
    async with Runtime(store=store):
        key = await key_of_a_run(t)
        assert locks.acquire_lock(key, "somebody")
        future = t.submit(1)
        await until(lambda: "lock" in (future.run.waiting_on or ""))
        future.cancel()
        state = await future.wait_async()
        assert state is not None
        assert state.name == "Cancelled"
        count = len(locks.said)
        locks.release_lock(key, "somebody")
        await until(lambda: locks.said[count:] in (["released"], ["released", "acquired", "released"]))
        assert await t(1) == 1
    assert locks.held == {}
    assert store.flights._flights == {}


# -- the table of flights itself --------------------------------------------------------------------------------------


def test_landing_twice_or_late_changes_nothing_for_those_who_fly_now():
    flights = Flights()
    runtime = Runtime(store=MemoryStore())
    runs = [task(one)._new_run((1,), {}) for _ in range(3)]
    first = flights.board("k", runs[0])
    assert first is not None
    flights.land(first, "result")
    flights.land(first, None)
    second = flights.board("k", runs[1])
    assert second is not None
    assert second.leads
    flights.land(first, "late")
    third = flights.board("k", runs[2])
    assert third is not None
    assert not third.leads
    flights.leave(second)
    assert third.leads
    assert third.is_called
    assert third.result is None
    flights.leave(third)
    flights.leave(third)
    assert flights._flights == {}
    runtime.close()


def test_of_many_runs_that_wait_nobody_asks_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[str]()

    def counted(run: Any) -> Iterator[Any]:
        asked["runs"] += 1
        return iter([run])

    monkeypatch.setattr(flights, "_with_ancestors", counted)
    board = Flights()
    runs: list[Any] = [SimpleNamespace(number=number, parent=None, followers=None) for number in range(400)]
    seats = [board.board(f"key-{run.number % 4}", run) for run in runs]
    assert asked["runs"] <= 400
    for seat in seats[4:]:
        assert seat is not None
        board.leave(seat)
    for seat in seats[:4]:
        assert seat is not None
        board.land(seat, "result")
    assert board._awaited == {}


def test_who_is_called_and_leaves_at_once_is_forgotten_once() -> None:
    board = Flights()
    runs: list[Any] = [SimpleNamespace(number=number, parent=None, followers=None) for number in range(3)]
    leader, *waiting = [board.board("key", run) for run in runs]
    assert leader is not None
    board.land(leader, "result")
    for seat in waiting:
        assert seat is not None
        assert seat.result == "result"
        board.leave(seat)
    assert board._awaited == {}
