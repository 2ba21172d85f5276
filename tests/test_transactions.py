"""Transactions as people use them: what is committed together, what is rolled back together, and what that shows."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asynctask import Runtime, flow, get_client, get_transaction, task, transaction
from asynctask.cache_policies import INPUTS
from asynctask.errors import BlockingWaitError, CancelledRun, OptionError, StoreError, TransactionError
from asynctask.scopes import current_runtime
from asynctask.stores.base import Store, StoredResult
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from asynctask.transactions import CommitMode, IsolationLevel, Transaction, TransactionState
from testkit import fresh, until

STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SQLiteStore(folder / "runs.db"),
}


@pytest.fixture(params=STORES, ids=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path)


@pytest.fixture
def plain(store: Store) -> Iterator[Runtime]:
    """A runtime for code without an event loop."""
    runtime = Runtime(store=store)
    runtime.open()
    token = current_runtime.set(runtime)
    yield runtime
    runtime.close()
    current_runtime.reset(token)


@contextmanager
def left_by(kind: type[BaseException], match: str | None = None) -> Iterator[Any]:
    """`pytest.raises`, for blocks of several statements."""
    with pytest.raises(kind, match=match) as caught:
        yield caught


class Diary:
    """What hooks and bodies did, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def hook(self, line: str) -> Callable[[Transaction], None]:
        def note(txn: Transaction) -> None:
            self.lines.append(line)

        return note

    def async_hook(self, line: str) -> Callable[[Transaction], Any]:
        async def note(txn: Transaction) -> None:
            await anyio.sleep(0)
            self.lines.append(line)

        return note

    def hooks(self, name: str) -> dict[str, Any]:
        return {"on_commit": self.hook(f"{name} committed"), "on_rollback": self.hook(f"{name} undone")}


@pytest.fixture
def diary() -> Diary:
    return Diary()


def named(context: Any, parameters: dict[str, Any]) -> str:
    return str(context.task.name)


def step(diary: Diary, name: str, *, fails: bool = False, **options: Any) -> Any:
    """An async task with hooks that says in the diary what becomes of it."""

    async def work() -> str:
        if fails:
            raise ValueError(name)
        diary.lines.append(name)
        return name

    return task(**{"name": name, **diary.hooks(name), **options})(work)


def sync_step(diary: Diary, name: str, *, fails: bool = False, **options: Any) -> Any:
    def work() -> str:
        if fails:
            raise ValueError(name)
        diary.lines.append(name)
        return name

    return task(**{"name": name, **diary.hooks(name), **options})(work)


# -- both ends, both ways of writing it -------------------------------------------------------------------------------


async def test_commit_hooks_run_at_the_end_of_the_block_in_order_of_completion(store: Store, diary: Diary) -> None:
    async with Runtime(store=store):
        async with transaction() as txn:
            await step(diary, "a")()
            await step(diary, "b")()
            assert diary.lines == ["a", "b"]
            assert txn.is_active()
        assert diary.lines == ["a", "b", "a committed", "b committed"]
        assert txn.is_committed()


async def test_rollback_hooks_run_in_reverse_and_the_error_comes_out_as_it_is(store: Store, diary: Diary) -> None:
    error = KeyError("mine")
    async with Runtime(store=store):
        with left_by(KeyError) as caught:
            async with transaction() as txn:
                await step(diary, "a")()
                await step(diary, "b")()
                raise error
        assert caught.value is error
        assert diary.lines == ["a", "b", "b undone", "a undone"]
        assert txn.is_rolled_back()


def test_plain_code_commits_and_rolls_back(plain: Runtime, diary: Diary) -> None:
    with transaction():
        sync_step(diary, "a")()
    assert diary.lines == ["a", "a committed"]
    with left_by(ValueError, match="c"), transaction():
        sync_step(diary, "b")()
        sync_step(diary, "c", fails=True)()
    assert diary.lines[2:] == ["b", "c undone", "b undone"]


async def test_a_sync_block_on_an_event_loop_does_the_same(store: Store, diary: Diary) -> None:
    async with Runtime(store=store):
        with transaction() as txn:
            sync_step(diary, "a", persist_result=True)()
        assert txn.is_committed()
        with left_by(ValueError, match="c"), transaction():
            sync_step(diary, "b")()
            sync_step(diary, "c", fails=True)()
    assert diary.lines == ["a", "a committed", "b", "c undone", "b undone"]


async def test_a_sync_block_inside_a_flow_and_in_a_thread(store: Store, diary: Diary) -> None:
    @flow
    def nightly() -> None:
        with transaction():
            sync_step(diary, "a")()
            sync_step(diary, "b").submit().result()

    async with Runtime(store=store):
        await anyio.to_thread.run_sync(nightly)
    assert diary.lines == ["a", "b", "a committed", "b committed"]


@pytest.mark.parametrize("block", ["sync", "async"])
async def test_async_hooks_are_awaited_in_both_kinds_of_block(store: Store, diary: Diary, block: str) -> None:
    @task(on_commit=diary.async_hook("committed"), on_rollback=diary.async_hook("undone"))
    def work() -> None:
        pass

    async with Runtime(store=store):
        if block == "sync":
            with transaction():
                work()
            with left_by(OSError, match="x"), transaction():
                work()
                raise OSError("x")
        else:
            async with transaction():
                work()
            with left_by(OSError, match="x"):
                async with transaction():
                    work()
                    raise OSError("x")
    assert diary.lines == ["committed", "undone"]


def test_async_hooks_are_awaited_in_plain_code(plain: Runtime, diary: Diary) -> None:
    @task(on_commit=diary.async_hook("committed"))
    def work() -> None:
        pass

    with transaction():
        work()
    assert diary.lines == ["committed"]


async def test_hooks_are_given_as_options_as_decorators_and_on_copies(diary: Diary) -> None:
    @task(on_commit=[diary.hook("first"), diary.hook("second")])
    async def work() -> None:
        pass

    @work.on_commit
    def third(txn: Transaction) -> None:
        diary.lines.append("third")

    @work.on_rollback
    def undo(txn: Transaction) -> None:
        diary.lines.append("undone")

    copy = work.with_options(on_commit=diary.hook("copy"))
    async with fresh():
        async with transaction():
            await work()
            await copy()
        assert diary.lines == ["first", "second", "third", "copy"]
        with left_by(OSError, match="x"):
            async with transaction():
                await copy()
                raise OSError("x")
    assert diary.lines[4:] == ["undone"]


async def test_several_rollback_hooks_of_a_task_run_in_reverse(diary: Diary) -> None:
    @task(on_rollback=[diary.hook("made first, undone last"), diary.hook("made last, undone first")])
    async def work() -> None:
        pass

    async with fresh():
        with left_by(OSError, match="x"):
            async with transaction():
                await work()
                raise OSError("x")
    assert diary.lines == ["made last, undone first", "made first, undone last"]


async def test_a_hook_gets_the_transaction_of_its_run(diary: Diary) -> None:
    seen: list[Transaction] = []

    @task(on_commit=seen.append)
    async def work() -> Transaction | None:
        return get_transaction()

    async with fresh(), transaction() as txn:
        own = await work()
    assert seen == [own]
    assert own is not None
    assert own.parent is txn
    assert own.is_committed()


# -- values -----------------------------------------------------------------------------------------------------------


async def test_values_are_copied_out_and_looked_up_in_parents() -> None:
    seen: list[Any] = []

    @task(on_commit=lambda txn: seen.append((txn.get("paths"), txn.get("own"))))
    async def work() -> None:
        txn = get_transaction()
        assert txn is not None
        txn.set("own", 1)

    async with fresh(), transaction() as txn:
        paths = ["a"]
        txn.set("paths", paths)
        copy = txn.get("paths")
        copy.append("b")
        assert txn.get("paths") == ["a"]
        await work()
        with left_by(ValueError, match="own"):
            txn.get("own")
        assert txn.get("own", 7) == 7
        assert txn.get("none", None) is None
    assert seen == [(["a"], 1)]


# -- states -----------------------------------------------------------------------------------------------------------


async def test_completed_runs_become_rolled_back_everywhere(store: Store, diary: Diary) -> None:
    async with Runtime(store=store) as runtime, get_client() as client:
        with left_by(OSError, match="x"):
            async with transaction():
                future = step(diary, "a").submit()
                await future
                await runtime.flush()
                assert (await client.read_task_run(future.task_run_id)).state_name == "Completed"
                raise OSError("x")
        assert future.state.name == "RolledBack"
        assert future.state.is_completed()
        record = await client.read_task_run(future.task_run_id)
        assert [state.name for state in record.states] == ["Pending", "Running", "Completed", "RolledBack"]
        assert record.state_name == "RolledBack"
        states = await client.read_task_run_states(future.task_run_id)
        assert [state.name for state in states][-2:] == ["Completed", "RolledBack"]
        assert await client.count_task_runs() == 1


async def test_the_states_are_still_there_when_the_file_is_opened_again(tmp_path: Path, diary: Diary) -> None:
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
        with left_by(OSError, match="x"):
            async with transaction():
                future = step(diary, "a").submit()
                await future
                raise OSError("x")
    record = await SQLiteStore(tmp_path / "runs.db").read_run(future.task_run_id)
    assert [state.name for state in record.states][-2:] == ["Completed", "RolledBack"]


async def test_a_caught_failure_rolls_back_at_once_and_what_comes_after_it_too(store: Store, diary: Diary) -> None:
    async with Runtime(store=store), transaction() as txn:
        await step(diary, "a")()
        with left_by(ValueError, match="b"):
            await step(diary, "b", fails=True)()
        assert txn.is_rolled_back()
        assert diary.lines == ["a", "b undone", "a undone"]
        state = await step(diary, "c")(return_state=True)
        assert state.name == "RolledBack"
    assert diary.lines == ["a", "b undone", "a undone", "c", "c undone"]


async def test_tasks_without_options_are_part_of_it_too(store: Store) -> None:
    @task
    async def work(x: int) -> int:
        return x

    async with Runtime(store=store):
        with left_by(OSError, match="x"):
            async with transaction():
                futures = work.map([1, 2, 3])
                assert await futures == [1, 2, 3]
                raise OSError("x")
    assert [future.state.name for future in futures] == ["RolledBack"] * 3


# -- nesting ----------------------------------------------------------------------------------------------------------


async def test_a_nested_block_joins_its_parent(diary: Diary) -> None:
    async with fresh():
        async with transaction():
            await step(diary, "a")()
            async with transaction() as inner:
                await step(diary, "b")()
            assert inner.is_staged()
            assert diary.lines == ["a", "b"]
            await step(diary, "c")()
        assert inner.is_committed()
    assert diary.lines[3:] == ["a committed", "b committed", "c committed"]


async def test_a_nested_block_that_fails_rolls_its_parent_back(diary: Diary) -> None:
    async with fresh(), transaction() as txn:
        await step(diary, "a")()
        with left_by(OSError, match="x"):
            async with transaction():
                await step(diary, "b")()
                raise OSError("x")
        assert txn.is_rolled_back()
    assert diary.lines == ["a", "b", "b undone", "a undone"]


async def test_an_eager_block_is_committed_by_itself_and_stays_so(store: Store, diary: Diary) -> None:
    kept = step(diary, "kept", cache_key_fn=named)
    async with Runtime(store=store):
        with left_by(OSError, match="x"):
            async with transaction():
                async with transaction(commit_mode=CommitMode.EAGER) as inner:
                    future = kept.submit()
                    await future
                assert inner.is_committed()
                assert diary.lines == ["kept", "kept committed"]
                raise OSError("x")
        assert inner.is_committed()
        assert future.state.name == "Completed"
        assert (await kept(return_state=True)).name == "Cached"
    assert diary.lines == ["kept", "kept committed"]


@pytest.mark.parametrize("mode", ["EAGER", CommitMode.EAGER, "eager"])
async def test_blocks_inside_an_eager_one_are_eager_too(diary: Diary, mode: Any) -> None:
    async with fresh(), transaction(commit_mode=mode):
        async with transaction() as inner:
            await step(diary, "a")()
        assert inner.is_committed()


async def test_an_off_block_is_rolled_back_unless_it_was_committed(diary: Diary) -> None:
    async with fresh():
        async with transaction(commit_mode="OFF") as txn:
            await step(diary, "a")()
        assert txn.is_rolled_back()
        async with transaction(commit_mode="OFF") as txn:
            await step(diary, "b")()
            async with transaction() as inner:
                await step(diary, "c")()
            assert inner.is_staged()
            assert await txn.commit_async()
            assert diary.lines[2:] == ["b", "c", "b committed", "c committed"]
        assert txn.is_committed()
        async with transaction() as outer:
            async with transaction(commit_mode="OFF"):
                await step(diary, "d")()
            assert outer.is_rolled_back()


def test_commit_and_rollback_by_hand_in_plain_code(plain: Runtime, diary: Diary) -> None:
    with transaction(commit_mode="OFF") as txn:
        sync_step(diary, "a", persist_result=True)()
        assert txn.commit()
        assert txn.commit()
        assert not txn.rollback()
        sync_step(diary, "late")()
        assert diary.lines == ["a", "a committed", "late", "late committed"]
    with transaction() as txn:
        sync_step(diary, "b")()
        assert txn.rollback()
        assert not txn.commit()
    assert diary.lines[4:] == ["b", "b undone"]


async def test_rollback_by_hand_reaches_what_joined_and_what_is_around(diary: Diary) -> None:
    async with fresh():
        async with transaction() as outer:
            await step(diary, "a")()
            async with transaction() as inner:
                await step(diary, "b")()
                assert await inner.rollback_async()
            assert outer.is_rolled_back()
        assert diary.lines == ["a", "b", "b undone", "a undone"]


async def test_commit_by_hand_waits_for_runs_and_is_refused_from_inside_one() -> None:
    async with fresh():
        async with transaction() as txn:

            @task
            async def meddling() -> None:
                await txn.commit_async()

            @task
            async def slow() -> None:
                await anyio.sleep(0.005)

            future = slow.submit()
            assert await txn.commit_async()
            assert future.state.name == "Completed"
        async with transaction() as txn:
            with left_by(TransactionError, match="part of the transaction"):
                await meddling()


async def test_a_run_commits_what_was_done_in_it_by_hand(store: Store, diary: Diary) -> None:
    inner = step(diary, "inner", cache_key_fn=named)

    @task
    async def outer() -> None:
        await inner()
        own = get_transaction()
        assert own is not None
        await own.commit_async()

    async with Runtime(store=store):
        with left_by(OSError, match="x"):
            async with transaction():
                await outer()
                raise OSError("x")
        assert (await inner(return_state=True)).name == "Cached"
    assert diary.lines == ["inner", "inner committed"]


async def test_transactions_in_tasks_in_transactions(diary: Diary) -> None:
    @task(**diary.hooks("outer"))
    async def outer() -> None:
        await step(diary, "a")()
        async with transaction():
            await step(diary, "b")()

    @flow(name="whole")
    async def whole() -> None:
        await outer()

    async with fresh():
        async with transaction():
            await whole()
        assert diary.lines == ["a", "b", "a committed", "b committed", "outer committed"]
        diary.lines.clear()
        with left_by(OSError, match="x"):
            async with transaction():
                await whole()
                raise OSError("x")
        assert diary.lines == ["a", "b", "outer undone", "b undone", "a undone"]


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_a_key_is_committed_the_second_time_unless_overwritten(store: Store) -> None:
    async with Runtime(store=store):
        for was_done in (False, True):
            async with transaction(key="monthly") as txn:
                assert txn.is_committed() is was_done
        async with transaction(key="monthly", overwrite=True) as txn:
            assert not txn.is_committed()
        async with transaction(key="weekly") as txn:
            assert not txn.is_committed()


def test_a_key_in_plain_code(plain: Runtime) -> None:
    for was_done in (False, True):
        with transaction(key="monthly") as txn:
            assert txn.is_committed() is was_done


async def test_a_key_that_was_rolled_back_is_not_committed(store: Store) -> None:
    async with Runtime(store=store):
        with left_by(OSError, match="x"):
            async with transaction(key="monthly"):
                raise OSError("x")
        async with transaction():
            async with transaction(key="monthly") as txn:
                assert not txn.is_committed()
            async with transaction(key="monthly") as again:
                assert not again.is_committed(), "only staged: its parent is not committed yet"
        async with transaction(key="monthly") as txn:
            assert txn.is_committed()


async def test_a_cache_key_with_the_same_text_is_another(store: Store) -> None:
    @task(cache_key_fn=lambda context, parameters: "same")
    async def work() -> int:
        return 5

    async with Runtime(store=store):
        async with transaction(key="same"):
            assert await work() == 5
        assert await work() == 5


async def test_what_runs_in_a_block_that_was_committed_before_commits_by_itself(diary: Diary) -> None:
    async with fresh():
        for _ in range(2):
            async with transaction(key="k"):
                await step(diary, "a")()
        assert diary.lines == ["a", "a committed", "a", "a committed"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"key": ""}, "key"),
        ({"key": 5}, "key"),
        ({"commit_mode": "SOON"}, "LAZY"),
        ({"commit_mode": 5}, "commit_mode"),
        ({"isolation_level": "HIGH"}, "isolation_level"),
        ({"isolation_level": IsolationLevel.SERIALIZABLE}, "needs a key"),
        ({"key": "k", "overwrite": "yes"}, "overwrite"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options: dict[str, Any], text: str) -> None:
    with left_by(OptionError, match=text):
        transaction(**options)


async def test_a_serializable_key_lets_one_block_in_at_a_time(store: Store) -> None:
    inside = most = done = 0

    async def work() -> None:
        nonlocal inside, most, done
        async with transaction(key="k", isolation_level="SERIALIZABLE") as txn:
            done += txn.is_committed()
            inside += 1
            most = max(most, inside)
            await anyio.sleep(0.002)
            inside -= 1

    async with Runtime(store=store), anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(work)
    assert (most, done) == (1, 3)


async def test_the_lock_of_a_nested_key_is_held_until_the_outermost_commit(store: Store) -> None:
    async with Runtime(store=store):
        async with transaction():
            async with transaction(key="k", isolation_level="SERIALIZABLE"):
                pass
            assert not await store.try_take_key("transaction:k")
        assert await store.try_take_key("transaction:k")
        store.give_key("transaction:k")


async def test_a_block_never_waits_for_a_key_that_it_holds_itself(store: Store) -> None:
    async with Runtime(store=store):
        with left_by(TransactionError, match="held by a transaction around"):
            async with (
                transaction(key="k", isolation_level="SERIALIZABLE"),
                transaction(key="k", isolation_level="SERIALIZABLE"),
            ):
                pass
        assert await store.try_take_key("transaction:k")
        store.give_key("transaction:k")


async def test_a_sync_block_refuses_to_wait_for_a_key_on_an_event_loop(store: Store) -> None:
    async with Runtime(store=store):
        async with transaction(key="k", isolation_level="SERIALIZABLE"):

            async def other() -> None:
                with left_by(BlockingWaitError):
                    transaction(key="k", isolation_level="SERIALIZABLE").__enter__()

            with left_by(TransactionError):
                await other()
        holder = transaction(key="k", isolation_level="SERIALIZABLE")
        assert await store.try_take_key("transaction:k")
        with left_by(BlockingWaitError):
            holder.__enter__()
        store.give_key("transaction:k")


# -- submitted runs ---------------------------------------------------------------------------------------------------


async def test_submitted_runs_are_waited_for_before_the_commit(store: Store, diary: Diary) -> None:
    slow = task(name="slow", **diary.hooks("slow"))(_slow)
    async with Runtime(store=store):
        async with transaction():
            futures = [slow.submit() for _ in range(3)]
        assert [future.state.name for future in futures] == ["Completed"] * 3
    assert diary.lines == ["slow committed"] * 3


async def _slow() -> None:
    await anyio.sleep(0.005)


async def test_a_submitted_failure_that_nobody_asks_for_rolls_back(store: Store, diary: Diary) -> None:
    async with Runtime(store=store):
        async with transaction() as txn:
            done = step(diary, "a").submit()
            failed = step(diary, "b", fails=True).submit()
        assert txn.is_rolled_back()
        assert (done.state.name, failed.state.name) == ("RolledBack", "Failed")


async def test_a_cancelled_run_rolls_back_and_its_own_hooks_undo_it(store: Store, diary: Diary) -> None:
    @task(**diary.hooks("endless"))
    async def endless() -> None:
        await anyio.sleep_forever()

    async with Runtime(store=store):
        async with transaction() as txn:
            await step(diary, "a")()
            future = endless.submit()
            await until(lambda: future.state.name == "Running")
            future.cancel()
        assert txn.is_rolled_back()
    assert diary.lines == ["a", "endless undone", "a undone"]


async def test_on_error_submitted_runs_are_cancelled_and_waited_for(store: Store, diary: Diary) -> None:
    @task(**diary.hooks("endless"))
    async def endless() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.005)
            diary.lines.append("cleaned up")

    async with Runtime(store=store):
        with left_by(OSError, match="x"):
            async with transaction():
                future = endless.submit()
                await until(lambda: future.state.name == "Running")
                raise OSError("x")
        assert future.state.name == "Cancelled"
    assert diary.lines == ["cleaned up", "endless undone"]


async def test_runs_that_a_run_started_and_left_are_waited_for_too(store: Store, diary: Diary) -> None:
    slow = task(name="slow", **diary.hooks("slow"), cache_key_fn=named)(_slow)

    @task(**diary.hooks("starter"))
    async def starter() -> None:
        slow.submit()

    async with Runtime(store=store):
        async with transaction():
            await starter()
        assert diary.lines == ["starter committed", "slow committed"]
        assert (await slow(return_state=True)).name == "Cached"


async def test_a_sync_block_refuses_to_wait_on_the_loop_of_its_runs_and_rolls_back(diary: Diary) -> None:
    async with fresh():
        with left_by(BlockingWaitError), transaction() as txn:
            future = step(diary, "a").submit()
        assert txn.is_rolled_back()
        with left_by(CancelledRun):
            await future
        with left_by(OSError, match="x"), transaction() as txn:
            sync_step(diary, "b")()
            future = step(diary, "a").submit()
            raise OSError("x")
        assert diary.lines == ["b", "b undone"]
        await future.wait_async()
        assert future.state.name == "Cancelled"


async def test_threads_subflows_and_maps_are_part_of_it(store: Store, diary: Diary) -> None:
    @task(**diary.hooks("leaf"))
    def leaf(x: int) -> int:
        assert get_transaction() is not None
        return x

    @task(**diary.hooks("parent"))
    def parent() -> int:
        return leaf(1) + leaf.submit(2).result()

    @flow
    async def sub() -> None:
        leaf.map([1, 2])

    async with Runtime(store=store):
        with left_by(OSError, match="x"):
            async with transaction():
                first = parent.submit()
                assert await first == 3
                await sub()
                mapped = leaf.map([1, 2, 3])
                await mapped
                raise OSError("x")
    assert Counter(diary.lines) == {"leaf undone": 7, "parent undone": 1}
    assert {first.state.name, *(one.state.name for one in mapped)} == {"RolledBack"}


async def test_a_submitted_generator_is_part_of_it_and_what_an_iterated_one_calls() -> None:
    @task
    async def numbers() -> Any:
        yield 1
        yield 2

    called: list[Any] = []

    @task
    async def leaf() -> None:
        pass

    @task
    async def calling() -> Any:
        called.append(leaf.submit())
        await called[0]
        yield 1

    async with fresh():
        with left_by(OSError, match="x"):
            async with transaction():
                future = numbers.submit()
                assert [one async for one in future] == [1, 2]
                async for _ in calling():
                    pass
                raise OSError("x")
    assert future.state.name == "RolledBack"
    assert called[0].state.name == "RolledBack"


# -- retries ----------------------------------------------------------------------------------------------------------


async def test_a_retried_run_commits_once_and_its_failed_attempt_is_undone(store: Store, diary: Diary) -> None:
    attempts = 0

    @task(retries=1, **diary.hooks("outer"))
    async def outer() -> None:
        nonlocal attempts
        attempts += 1
        await step(diary, f"part {attempts}")()
        if attempts == 1:
            raise OSError("first")

    async with Runtime(store=store):
        async with transaction() as txn:
            await outer()
        assert txn.is_committed()
    assert diary.lines == ["part 1", "part 1 undone", "part 2", "part 2 committed", "outer committed"]


async def test_a_retry_outlives_the_failure_of_a_run_inside(store: Store, diary: Diary) -> None:
    calls = 0

    @task(**diary.hooks("inner"))
    async def inner() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("first")

    @task(retries=1, **diary.hooks("outer"))
    async def outer() -> None:
        await inner()

    async with Runtime(store=store):
        async with transaction() as txn:
            await outer()
        assert txn.is_committed()
        assert diary.lines == ["inner undone", "inner committed", "outer committed"]
        diary.lines.clear()
        calls = 0
        await outer()
    assert diary.lines == ["inner undone", "inner committed", "outer committed"]


async def test_a_run_that_catches_the_failure_of_one_inside_is_rolled_back_as_it_ends(diary: Diary) -> None:
    @task(**diary.hooks("outer"))
    async def outer() -> None:
        with left_by(ValueError):
            await step(diary, "inner", fails=True)()
        diary.lines.append("outer goes on")

    async with fresh(), transaction() as txn:
        await outer()
        assert txn.is_rolled_back()
    assert diary.lines == ["inner undone", "outer goes on", "outer undone"]


# -- results ----------------------------------------------------------------------------------------------------------


def cached(bodies: Counter[str], **options: Any) -> Any:
    async def work(x: str) -> list[str]:
        bodies[x] += 1
        await anyio.sleep(0)
        return [x]

    return task(**({"cache_policy": INPUTS} | options))(work)


async def test_cached_results_are_seen_inside_and_not_outside_until_the_commit(store: Store) -> None:
    bodies: Counter[str] = Counter()
    work = cached(bodies)
    ready, go_on = anyio.Event(), anyio.Event()

    async def inside() -> None:
        async with transaction():
            await work("a")
            assert (await work("a", return_state=True)).name == "Cached"
            ready.set()
            await go_on.wait()

    async with Runtime(store=store):
        async with anyio.create_task_group() as group:
            group.start_soon(inside)
            await ready.wait()
            assert bodies["a"] == 1
            assert await store.read_cache(None, 10) == []
            state = await work("a", return_state=True)
            assert (state.name, bodies["a"]) == ("Completed", 2)
            go_on.set()
        assert (await work("a", return_state=True)).name == "Cached"


async def test_cached_results_are_gone_after_a_rollback(store: Store) -> None:
    bodies: Counter[str] = Counter()
    work = cached(bodies)
    async with Runtime(store=store):
        with left_by(OSError, match="x"):
            async with transaction():
                await work("a")
                assert (await work("a", return_state=True)).name == "Cached"
                raise OSError("x")
        assert (await work("a", return_state=True)).name == "Completed"
        assert bodies["a"] == 2


async def test_concurrent_runs_in_one_transaction_share_a_staged_result(store: Store) -> None:
    bodies: Counter[str] = Counter()
    work = cached(bodies)
    async with Runtime(store=store), transaction():
        assert await work.map(["a"] * 10) == [["a"]] * 10
    assert bodies["a"] == 1


async def test_those_who_wait_outside_for_a_staged_result_run_by_themselves(store: Store) -> None:
    bodies: Counter[str] = Counter()
    gate, may_wait = anyio.Event(), anyio.Event()
    states: list[Any] = []

    @task(cache_policy=INPUTS)
    async def work(x: str) -> list[str]:
        bodies[x] += 1
        await gate.wait()
        return [x]

    async def outside() -> None:
        await may_wait.wait()
        future = work.submit("a")
        await until(lambda: waiting_in(runtime))
        gate.set()
        await future
        states.append(future.state.name)

    async with Runtime(store=store) as runtime, anyio.create_task_group() as group:
        group.start_soon(outside)  # here, before the block: so it is in none
        with left_by(KeyError):
            async with transaction():
                future = work.submit("a")
                await until(lambda: future.state.name == "Running")
                may_wait.set()
                await future
                raise KeyError
    assert states == ["Completed"]
    assert bodies["a"] == 2


def waiting_in(runtime: Runtime) -> bool:
    return any("same cache key" in (run.waiting_on or "") for run in runtime.runs)


async def test_a_plain_task_inside_a_cached_one_never_gets_its_result(store: Store) -> None:
    @task
    async def inner(x: str) -> str:
        return f"inner {x}"

    @task(cache_policy=INPUTS)
    async def outer(x: str) -> str:
        return "outer " + await inner(x)

    async with Runtime(store=store), transaction():
        assert await outer("a") == "outer inner a"
        assert await outer("b") == "outer inner b"


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_persisted_result_is_kept_only_by_a_commit(store: Store, is_committed: bool) -> None:
    async with Runtime(store=store), get_client() as client:
        future = None
        try:
            async with transaction():
                future = task(persist_result=True)(_slow).submit()
                await future
                if not is_committed:
                    raise OSError("x")
        except OSError:
            pass
        assert future is not None
        record = await client.read_task_run(future.task_run_id)
        assert (record.result is not None) is is_committed
        assert (await store.read_result(f"run:{future.task_run_id}") is not None) is is_committed


async def test_results_with_a_place_of_their_own_are_written_there(tmp_path: Path) -> None:
    bodies: Counter[str] = Counter()
    work = cached(bodies, result_storage=tmp_path / "other")
    async with Runtime(store=MemoryStore()):
        async with transaction():
            await work("a")
        assert (await work("a", return_state=True)).name == "Cached"
    async with Runtime(store=MemoryStore()):
        assert (await work("a", return_state=True)).name == "Cached"


# -- hooks that fail, stores that fail --------------------------------------------------------------------------------


def failing(txn: Transaction) -> None:
    raise RuntimeError("the hook")


@pytest.mark.parametrize("block", ["sync", "async"])
async def test_a_commit_hook_that_raises_rolls_back_in_silence_but_for_the_log(
    store: Store, diary: Diary, caplog: pytest.LogCaptureFixture, block: str
) -> None:
    bodies: Counter[str] = Counter()
    work = cached(bodies, on_commit=failing)
    async with Runtime(store=store):
        async with transaction() as txn:
            await step(diary, "a")()
            await work("a")
            await step(diary, "b")()
        assert txn.is_rolled_back()
        assert "on_commit hook 'failing' raised" in caplog.text
        assert diary.lines == ["a", "b", "a committed", "b undone", "a undone"]
        await work("a")
        assert bodies["a"] == 2


async def test_a_rollback_hook_that_raises_is_logged_and_the_others_run(
    diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    async with fresh():
        with left_by(OSError, match="x"):
            async with transaction():
                await step(diary, "a")()
                await step(diary, "b", on_rollback=[diary.hook("b undone"), failing])()
                await step(diary, "c")()
                raise OSError("x")
    assert diary.lines == ["a", "b", "c", "c undone", "b undone", "a undone"]
    assert "on_rollback hook 'failing' raised" in caplog.text


class Broken(MemoryStore):
    """A memory store that cannot write results any more."""

    is_broken = True

    async def write_results(self, results: Sequence[StoredResult], *, at_hand: bool = True) -> None:
        await anyio.lowlevel.checkpoint()
        if self.is_broken:
            raise StoreError("the disk is full")
        await super().write_results(results, at_hand=at_hand)


class BrokenInPlainCode(MemoryStore):
    async def write_results(self, results: Sequence[StoredResult], *, at_hand: bool = True) -> None:
        raise StoreError("the disk is full")


async def test_a_store_that_cannot_write_rolls_back_and_says_so(diary: Diary) -> None:
    async with Runtime(store=Broken()):
        with left_by(StoreError, match="the disk is full"):
            async with transaction(key="k") as txn:
                await step(diary, "a")()
        assert txn.is_rolled_back()
        assert diary.lines == ["a", "a committed", "a undone"]
        async with transaction(key="k") as txn:
            assert not txn.is_committed()
            txn.stage(1)
            await txn.rollback_async()


async def test_a_store_that_cannot_write_in_a_sync_block(diary: Diary) -> None:
    async with Runtime(store=BrokenInPlainCode()):
        with left_by(StoreError, match="the disk is full"), transaction(key="k") as txn:
            sync_step(diary, "a")()
        assert txn.is_rolled_back()


async def test_a_staged_value_that_cannot_be_kept_is_refused_and_rolled_back(store: Store, diary: Diary) -> None:
    async with Runtime(store=store):
        with left_by(TypeError, match="cannot"):
            async with transaction(key="k") as txn:
                await step(diary, "a")()
                txn.stage(threading.Lock())
        assert txn.is_rolled_back()
        assert diary.lines == ["a", "a undone"]


async def test_what_a_hook_calls_is_no_part_of_what_is_ending(store: Store) -> None:
    @task
    async def cleaning() -> None:
        pass

    futures: list[Any] = []

    async def undo(txn: Transaction) -> None:
        assert get_transaction() is None
        futures.append(cleaning.submit())
        await futures[-1]

    @task(on_rollback=undo, on_commit=undo)
    async def work(fails: bool) -> None:
        if fails:
            raise ValueError("no")

    async with Runtime(store=store):
        async with transaction():
            await work(False)
            with left_by(ValueError, match="no"):
                await work(True)
        async with transaction():
            await work(False)
    assert [future.state.name for future in futures] == ["Completed"] * 3


async def test_a_hook_may_roll_back_what_is_being_committed(diary: Diary) -> None:
    async def regret(txn: Transaction) -> None:
        assert await txn.rollback_async()

    async with fresh():
        async with transaction() as txn:
            await step(diary, "a")()
            await step(diary, "b", on_commit=regret)()
        assert txn.is_rolled_back()
    assert diary.lines == ["a", "b", "a committed", "b undone", "a undone"]


# -- where one is -----------------------------------------------------------------------------------------------------


async def test_after_the_block_there_is_no_transaction_here_nor_in_threads() -> None:
    async with fresh():
        assert get_transaction() is None
        async with transaction() as outer:
            assert get_transaction() is outer
            async with transaction() as inner:
                assert get_transaction() is inner
                assert await anyio.to_thread.run_sync(get_transaction) is inner
            assert get_transaction() is outer
        assert get_transaction() is None
        with left_by(OSError, match="x"):
            async with transaction():
                raise OSError("x")
        assert get_transaction() is None


async def test_a_block_left_in_another_context_is_over_in_both() -> None:
    block = transaction()
    seen: list[Any] = []

    async def leave() -> None:
        await block.__aexit__(None, None, None)
        seen.append(get_transaction())

    async with fresh():
        txn = await block.__aenter__()
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
        assert txn.is_committed()
        assert get_transaction() is None
        assert seen == [None]


async def test_one_object_may_be_entered_again_inside_itself_and_at_once(diary: Diary) -> None:
    block = transaction()
    entered: list[Any] = []

    async def enter(first: anyio.Event, then: anyio.Event) -> None:
        async with block as txn:
            entered.append(txn)
            first.set()
            await then.wait()
            assert get_transaction() is txn
        assert txn.is_committed()

    async with fresh():
        async with block as txn:
            async with block as inner:
                assert inner is not txn
            assert inner.is_staged()
        assert txn.is_committed()
        one, two = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as group:  # the first in is the first out
            group.start_soon(enter, anyio.Event(), one)
            await until(lambda: len(entered) == 1)
            group.start_soon(enter, one, two)
            await until(lambda: len(entered) == 2)
            two.set()
    assert len(set(map(id, entered))) == 2


async def test_runs_of_a_task_left_behind_by_a_block_are_no_part_of_it(diary: Diary) -> None:
    go_on = anyio.Event()

    async def later() -> None:
        await go_on.wait()
        assert get_transaction() is None
        await step(diary, "late")()

    async with fresh(), anyio.create_task_group() as group:
        with left_by(OSError, match="x"):
            async with transaction():
                group.start_soon(later)
                raise OSError("x")
        go_on.set()
    assert diary.lines == ["late", "late committed"]


# -- alone ------------------------------------------------------------------------------------------------------------


async def test_a_task_alone_commits_when_it_completes_and_is_undone_when_it_fails(store: Store, diary: Diary) -> None:
    async with Runtime(store=store):
        await step(diary, "a")()
        future = step(diary, "b", fails=True, retries=2).submit()
        await future.wait_async()
    assert diary.lines == ["a", "a committed", "b undone"]


def test_a_task_alone_in_plain_code(plain: Runtime, diary: Diary) -> None:
    sync_step(diary, "a")()
    with left_by(ValueError, match="b"):
        sync_step(diary, "b", fails=True)()
    assert diary.lines == ["a", "a committed", "b undone"]


async def test_a_task_alone_is_a_transaction_for_what_it_calls(store: Store, diary: Diary) -> None:
    inner = step(diary, "inner", cache_key_fn=named)

    @task(**diary.hooks("outer"))
    async def outer(fails: bool) -> None:
        await inner()
        if fails:
            raise OSError("x")

    async with Runtime(store=store):
        with left_by(OSError, match="x"):
            await outer(True)
        assert diary.lines == ["inner", "outer undone", "inner undone"]
        diary.lines.clear()
        await outer(False)
        assert diary.lines == ["inner", "inner committed", "outer committed"]
        assert (await inner(return_state=True)).name == "Cached"


async def test_a_task_alone_whose_commit_hook_raises_keeps_nothing(
    store: Store, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    bodies: Counter[str] = Counter()
    work = cached(bodies, on_commit=failing, on_rollback=diary.hook("undone"))
    async with Runtime(store=store):
        future = work.submit("a")
        assert await future == ["a"]
        assert future.state.name == "RolledBack"
        await work("a")
    assert bodies["a"] == 2
    assert diary.lines == ["undone", "undone"]
    assert "on_commit hook" in caplog.text


async def test_a_cancelled_task_alone_undoes_also_what_it_called(store: Store, diary: Diary) -> None:
    @task(**diary.hooks("outer"))
    async def outer() -> None:
        await step(diary, "inner")()
        await anyio.sleep_forever()

    async with Runtime(store=store):
        future = outer.submit()
        await until(lambda: "inner" in diary.lines)
        future.cancel()
        await future.wait_async()
    assert diary.lines == ["inner", "outer undone", "inner undone"]


# -- the rest ---------------------------------------------------------------------------------------------------------


async def test_stage_adds_hooks_and_is_refused_after_the_end(diary: Diary) -> None:
    async with fresh():
        async with transaction(key="k") as txn:
            txn.stage({"rows": 5}, on_commit_hooks=[diary.hook("staged")])
            assert txn.is_staged()
            assert txn.staged_value == {"rows": 5}
        assert diary.lines == ["staged"]
        with left_by(TransactionError, match="COMMITTED"):
            txn.stage(1)
    assert txn.state is TransactionState.COMMITTED
    assert repr(txn) == "<Transaction 'k' COMMITTED>"


async def test_many_failures_at_once_in_threads_undo_everything_once(diary: Diary) -> None:
    @task(**diary.hooks("work"))
    def work(x: int) -> None:
        if x % 2:
            raise ValueError("no")

    async with fresh():
        async with transaction() as txn:
            txn.on_rollback_hooks.append(diary.hook("block undone"))
            work.map(range(40))
        assert txn.is_rolled_back()
    assert Counter(diary.lines) == {"work undone": 40, "block undone": 1}


async def test_nothing_of_a_transaction_stays_in_memory(diary: Diary) -> None:
    import gc
    import weakref

    class Value:
        pass

    seen: list[weakref.ref[Value]] = []

    @task
    async def work() -> Value:
        value = Value()
        seen.append(weakref.ref(value))
        return value

    async with fresh():
        gc.collect()
        gc.disable()
        try:
            async with transaction():
                await work()
            with left_by(OSError, match="x"):
                async with transaction():
                    await work()
                    raise OSError("x")
        finally:
            gc.enable()
        gc.collect()
        assert [one() for one in seen] == [None, None]


def test_the_log_says_nothing_of_a_transaction_that_goes_well(
    plain: Runtime, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), transaction(key="k"):
        sync_step(diary, "a", cache_key_fn=named)()
    assert caplog.text == ""
