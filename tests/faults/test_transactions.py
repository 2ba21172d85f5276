"""Transactions cancelled at each of their suspensions, shared by processes, and killed between two of their steps.

`swept` drives a coroutine by hand and cancels just before its k-th suspension, as in `test_cancellation_sweep.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from asynctask import Runtime, commits, get_transaction, task, transaction
from asynctask.cache_policies import INPUTS
from asynctask.staging import Staging
from asynctask.stores.base import RunFilter, Store, StoredResult
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from asynctask.transactions import Transaction
from asynctask.waiting import Loop

ENOUGH = 20.0
MOST = 200


@types.coroutine
def swept(work: Coroutine[Any, Any, Any], k: int, fire: Callable[[], object]) -> Generator[Any, Any, Any]:
    send: Callable[[Any], Any] = work.send
    value: Any = None
    for number in itertools.count(1):
        try:
            awaited = send(value)
        except StopIteration as end:
            return end.value
        if number == k:
            fire()
        try:
            value = yield awaited
            send = work.send
        except BaseException as error:  # deliberate: the work says what follows
            value = error
            send = work.throw
    return None


class Slow(MemoryStore):
    """A memory store that takes a while, so that it can be cancelled meanwhile."""

    async def read_result(self, key: str, *, at_hand: bool = True) -> StoredResult | None:
        await anyio.lowlevel.checkpoint()
        return await super().read_result(key, at_hand=at_hand)

    async def write_results(self, results: Sequence[StoredResult], *, at_hand: bool = True) -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        await super().write_results(results, at_hand=at_hand)

    async def try_take_key(self, key: str) -> bool:
        taken = await super().try_take_key(key)
        if not taken:
            await anyio.lowlevel.checkpoint()
        return taken


class Scenario:
    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.committed: Counter[str] = Counter()
        self.undone: Counter[str] = Counter()
        self.txn: Transaction | None = None

    def part(self, name: str, **options: Any) -> Any:
        async def on_commit(txn: Transaction) -> None:
            self.committed[name] += 1
            await anyio.sleep(0)

        async def on_rollback(txn: Transaction) -> None:
            self.undone[name] += 1
            await anyio.sleep(0)

        async def work(x: int) -> int:
            await anyio.sleep(0)
            self.done[name] += 1
            return x

        return task(name=name, on_commit=on_commit, on_rollback=on_rollback, **options)(work)

    async def run(self) -> None:
        async with transaction(key="k", isolation_level="SERIALIZABLE") as self.txn:
            self.txn.on_rollback_hooks.append(lambda txn: self.undone.update(["block"]))
            await self.part("a", cache_policy=INPUTS)(1)
            future = self.part("b", cache_policy=INPUTS).submit(1)
            async with transaction(key="inner", isolation_level="SERIALIZABLE"):
                await self.part("c")(1)
                self.part("d", persist_result=True).submit(1)
            await future
            self.part("e").submit(1)

    async def check(self, runtime: Runtime) -> None:
        assert [run.name for run in runtime.runs] == [], "runs that are not over"
        assert get_transaction() is None
        store = runtime.store
        for key in ("transaction:k", "transaction:inner"):
            assert await store.try_take_key(key), f"the lock of {key} is still held"
            store.give_key(key)
        kept = {entry.key for entry in await store.read_cache(None, 100)}
        names = {run.task_name: run.state_name for run in await store.read_runs(RunFilter(), 100)}
        if self.txn is None:
            assert (self.done, kept) == (Counter(), set())
        elif self.txn.is_committed():
            assert {"transaction:k", "transaction:inner"} < kept
            assert self.undone == Counter()
            assert set(self.committed.values()) == {1}
            assert set(names.values()) == {"Completed"}
        else:
            assert self.txn.is_rolled_back()
            assert kept == set(), "results that nobody committed"
            assert set(self.committed.values()) <= {1}
            begun = {name for name, state in names.items() if state == "RolledBack"}
            assert begun == set(self.done), f"states: {names}"
            assert set(self.undone.values()) == {1}, f"undone: {self.undone}"
            assert set(self.undone) >= set(self.done) | {"block"}, f"not undone: {self.undone}"


async def one_round(begin: Callable[[Any], Awaitable[Any]], store: Store) -> None:
    scenario = Scenario()
    async with Runtime(store=store, shutdown_timeout=1) as runtime:
        await begin(scenario.run)
        await scenario.check(runtime)


async def on_asyncio(mode: str, store: Store, k: int) -> bool:
    fired: list[int] = []

    async def begin(run: Any) -> None:
        loop = asyncio.get_running_loop()

        def fire() -> None:
            fired.append(k)
            loop.call_soon(caller.cancel)
            if mode == "double":
                loop.call_soon(loop.call_soon, caller.cancel)

        async def call() -> Any:
            return await swept(run(), k, fire)

        caller = asyncio.create_task(call())
        done, _ = await asyncio.wait({caller}, timeout=ENOUGH)
        assert done, "hangs"
        assert caller.cancelled() == bool(fired), "the cancellation was lost"

    await one_round(begin, store)
    return bool(fired)


async def on_trio(mode: str, store: Store, k: int) -> bool:
    fired: list[int] = []

    async def begin(run: Any) -> None:
        with trio.CancelScope() as scope:

            def fire() -> None:
                fired.append(k)
                scope.cancel()

            with trio.fail_after(ENOUGH):
                await swept(run(), k, fire)

    await one_round(begin, store)
    return bool(fired)


def sweep(backend: str, mode: str, store: Callable[[int], Store] = lambda k: Slow()) -> int:
    one = on_asyncio if backend == "asyncio" else on_trio
    for k in range(1, MOST):
        try:
            if not anyio.run(one, mode, store(k), k, backend=backend):
                return k - 1
        except AssertionError as error:
            error.add_note(f"cancelled on {backend} ({mode}) at suspension {k}")
            raise
    raise AssertionError("the scenario never ends")


@pytest.mark.parametrize(("backend", "mode"), [("asyncio", "once"), ("asyncio", "double"), ("trio", "scope")])
def test_a_block_cancelled_at_any_suspension_is_committed_or_rolled_back(backend: str, mode: str) -> None:
    assert sweep(backend, mode) >= 10


@pytest.mark.parametrize(("backend", "mode"), [("asyncio", "once"), ("trio", "scope")])
def test_the_same_on_disk(backend: str, mode: str, tmp_path: Path) -> None:
    assert sweep(backend, mode, lambda k: SQLiteStore(tmp_path / f"{k}.db")) >= 8


def test_the_sweep_finds_a_write_that_a_cancellation_leaves_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def left_behind(self: Loop, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.ensure_future(_shielded(work))

    async def _shielded(work: Coroutine[Any, Any, None]) -> None:
        await asyncio.shield(work)

    monkeypatch.setattr(Loop, "carry_out", left_behind)
    with pytest.raises(AssertionError):
        sweep("asyncio", "once")


def test_the_sweep_finds_a_lock_that_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    give = Staging.give_key

    def only_committed(self: Any) -> None:
        if self.is_committed():
            give(self)

    monkeypatch.setattr(Staging, "give_key", only_committed)
    with pytest.raises(AssertionError, match="still held"):
        sweep("trio", "scope")


def test_the_sweep_finds_a_rollback_that_a_cancellation_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unshielded(transactions: Sequence[Any], port: Any) -> None:
        for one in transactions:
            for hook in reversed(one.on_rollback_hooks):
                await port.call_user(hook, one)
            one.give_key()

    monkeypatch.setattr(commits, "_call_rollback_hooks", unshielded)
    with pytest.raises(AssertionError):
        sweep("trio", "scope")


# -- several processes ------------------------------------------------------------------------------------------------

PRELUDE = """
import os, sys, time
os.environ["ASYNCTASK_STORE_URL"] = f"sqlite:///{sys.argv[1]}/plain.db"
import anyio
from pathlib import Path
from asynctask import Runtime, task, transaction
from asynctask.stores.sqlite import SQLiteStore

folder = Path(sys.argv[1])
store = SQLiteStore(folder / "runs.db")

def say(word):
    print(word, flush=True)
"""


def start(folder: Path, program: str, *args: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-W", "error", "-c", PRELUDE + program, str(folder), *args]
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code
    return out


ONCE = """
async def main():
    async with Runtime(store=store):
        async with transaction(key="monthly") as txn:
            say(txn.is_committed())
anyio.run(main, backend=sys.argv[2])
"""


def test_the_next_process_finds_the_key_committed(tmp_path: Path) -> None:
    assert ended(start(tmp_path, ONCE, "asyncio")) == "False\n"
    assert ended(start(tmp_path, ONCE, "trio")) == "True\n"


PLAIN = """
@task
def work():
    return 1

with transaction(key="monthly") as txn:
    say(txn.is_committed())
    work()
"""


def test_the_next_process_finds_the_key_committed_by_plain_code(tmp_path: Path) -> None:
    assert ended(start(tmp_path, PLAIN)) == "False\n"
    assert ended(start(tmp_path, PLAIN)) == "True\n"


TURNS = """
async def main():
    async with Runtime(store=store):
        for turn in range(20):
            async with transaction(key="turn", isolation_level="SERIALIZABLE", overwrite=True):
                mark = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # fails if the other one is inside
                os.close(mark)
                count = int((folder / "count").read_text())
                await anyio.sleep(0.001)
                (folder / "count").write_text(str(count + 1))
                os.unlink(folder / "inside")
anyio.run(main)
"""


def test_a_serializable_key_lets_one_process_in_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    several = [start(tmp_path, TURNS) for _ in range(2)]
    for process in several:
        ended(process)
    assert (tmp_path / "count").read_text() == "40"


HOLDING = """
async def main():
    async with Runtime(store=store):
        async with transaction(key="k", isolation_level="SERIALIZABLE"):
            say("inside")
            await anyio.sleep(600)
anyio.run(main)
"""


async def test_a_killed_holder_frees_its_key_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, HOLDING)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")) as runtime:
        assert not await runtime.store.try_take_key("transaction:k")
        os.kill(process.pid, signal.SIGKILL)
        ended(process, -signal.SIGKILL)
        with anyio.fail_after(10):
            async with transaction(key="k", isolation_level="SERIALIZABLE") as txn:
                assert not txn.is_committed()


KILLED = """
import signal

def on_commit(txn):
    say("hook")
    os.kill(os.getpid(), signal.SIGKILL)

@task(cache_key_fn=lambda context, parameters: "value", on_commit=on_commit)
async def work():
    return 5

async def main():
    async with Runtime(store=store):
        async with transaction(key="k"):
            await work()
anyio.run(main)
"""


async def test_killed_between_its_hooks_and_its_write_it_is_not_committed(tmp_path: Path) -> None:
    assert ended(start(tmp_path, KILLED), -signal.SIGKILL) == "hook\n"
    store = SQLiteStore(tmp_path / "runs.db")
    async with Runtime(store=store):
        assert await store.read_result("value") is None
        async with transaction(key="k") as txn:
            assert not txn.is_committed()
