"""Single flight in one process: concurrent runs with one key run the body once, whatever becomes of the first."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from asynctask import Runtime, TaskFuture, ThreadPoolTaskRunner, flow, task, transaction
from asynctask.cache_policies import INPUTS, IsolationLevel
from asynctask.errors import BlockingWaitError, CancelledRun
from asynctask.runs import current_transaction
from asynctask.scopes import current_runtime
from asynctask.stores.base import Store
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from testkit import limit_of, set_limit, until

STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SQLiteStore(folder / "runs.db"),
}
POLICIES = {"committed": INPUTS, "serializable": INPUTS.configure(isolation_level=IsolationLevel.SERIALIZABLE)}
MANY = 50


@pytest.fixture(params=STORES, ids=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path):
    made = STORES[request.param](tmp_path)
    yield made
    assert made.flights._flights == {}


class Work:
    """A cached task, sync and async, whose bodies wait until they are let go, and are counted."""

    def __init__(self, policy: Any = INPUTS, *, failures: int = 0, **options: Any) -> None:
        self.begun = 0
        self.ended = 0
        self.failures = failures
        self.go = threading.Event()
        self._lock = threading.Lock()

        def body(x: Any) -> list[Any]:
            self._begin()
            assert self.go.wait(10)
            return self._end(x)

        async def async_body(x: Any) -> list[Any]:
            self._begin()
            while not self.go.is_set():
                await anyio.sleep(0.001)
            return self._end(x)

        options = {"cache_policy": None, "cache_key_fn": lambda c, p: str(p["x"])} if policy is None else options | {
            "cache_policy": policy
        }  # fmt: skip
        self.sync: Any = task(**options)(body)
        self.async_: Any = task(**options)(async_body)

    def _begin(self) -> None:
        with self._lock:
            self.begun += 1

    def _end(self, x: Any) -> list[Any]:
        with self._lock:
            self.ended += 1
            if self.ended <= self.failures:
                raise ValueError(f"failure {self.ended}")
        return [x]


def waiting(store: Store, count: int) -> bool:
    """Whether so many runs wait for another one's flight."""
    return sum(len(flight.waiting) for flight in store.flights._flights.values()) == count


async def gathered(call: Callable[[], Any], count: int) -> list[Any]:
    """What so many coroutines give, run side by side in the caller's own tasks."""
    values: list[Any] = []

    async def one() -> None:
        values.append(await call())

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)
    return values


# -- once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
async def test_fifty_direct_calls_side_by_side_run_the_body_once(store, policy):
    work = Work(POLICIES[policy])
    async with Runtime(store=store), anyio.create_task_group() as group:
        values: list[Any] = []

        async def call() -> None:
            values.append(await work.async_(1))

        for _ in range(MANY):
            group.start_soon(call)
        await until(lambda: waiting(store, MANY - 1))
        work.go.set()
    assert values == [[1]] * MANY
    assert len({id(value) for value in values}) == MANY  # a new object for each
    assert work.begun == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("colour", ["sync", "async_"])
async def test_fifty_submitted_runs_run_the_body_once_and_the_others_are_cached(store, policy, colour):
    work = Work(POLICIES[policy])
    t = getattr(work, colour)
    async with Runtime(store=store):
        futures = [t.submit(1) for _ in range(MANY)]
        await until(lambda: waiting(store, MANY - 1) and work.begun)
        assert {future.run.state_name for future in futures} == {"Running", "Pending"}
        leader = next(future for future in futures if future.run.state_name == "Running")
        shown = {future.run.waiting_on for future in futures if future is not leader}
        assert shown == {f"run {leader.run.name}, which has the same cache key"}
        work.go.set()
        assert [await future for future in futures] == [[1]] * MANY
        assert Counter(future.state.name for future in futures) == {"Completed": 1, "Cached": MANY - 1}
    assert work.begun == 1


async def test_mapped_runs_and_runs_of_both_colours_share_one_flight(store):
    work = Work(None)
    async with Runtime(store=store):
        futures = [*work.sync.map([1] * 10), *work.async_.map([1] * 10), work.sync.submit(1), work.async_.submit(1)]
        await until(lambda: waiting(store, len(futures) - 1))
        work.go.set()
        assert [await future for future in futures] == [[1]] * len(futures)
    assert work.begun == 1


def test_fifty_threads_of_plain_code_run_the_body_once(store):
    work = Work()
    runtime = Runtime(store=store)
    token = current_runtime.set(runtime)
    try:
        with ThreadPoolExecutor(MANY) as pool:
            calls = [pool.submit(copy_context().run, work.sync, 1) for _ in range(MANY)]
            wait_until(lambda: waiting(store, MANY - 1))
            work.go.set()
            assert [call.result(10) for call in calls] == [[1]] * MANY
    finally:
        runtime.close()
        current_runtime.reset(token)
    assert work.begun == 1


def wait_until(holds: Callable[[], bool]) -> None:
    anyio.run(until, holds)


async def test_threads_with_loops_of_their_own_and_two_runtimes_share_the_flights_of_a_store(store):
    """Another runtime on the same store, on another event loop in another thread, waits for the same leader."""
    work = Work(None)
    values: list[Any] = []

    async def elsewhere() -> None:
        async with Runtime(store=store):
            futures = [work.async_.submit(1) for _ in range(5)]
            values.extend([await future for future in futures])

    async with Runtime(store=store):
        first = work.async_.submit(1)
        await until(lambda: work.begun == 1)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, anyio.run, elsewhere)
            await until(lambda: waiting(store, 5))
            work.go.set()
        assert await first == [1]
    assert values == [[1]] * 5
    assert work.begun == 1


async def test_flights_of_different_keys_do_not_wait_for_each_other(store):
    work = Work()
    async with Runtime(store=store):
        futures = [work.async_.submit(x) for x in range(10)]
        await until(lambda: work.begun == 10)
        work.go.set()
        assert [await future for future in futures] == [[x] for x in range(10)]


# -- leaders that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
async def test_when_the_leader_fails_one_of_those_who_wait_tries_next_and_the_others_wait_for_it(store, policy):
    work = Work(POLICIES[policy], failures=1)
    async with Runtime(store=store):
        futures = [work.async_.submit(1) for _ in range(10)]
        await until(lambda: waiting(store, 9))
        work.go.set()
        for future in futures:
            await future.wait_async()
        assert Counter(future.state.name for future in futures) == {"Failed": 1, "Completed": 1, "Cached": 8}
    assert work.begun == 2


async def test_when_all_fail_each_fails_by_a_try_of_its_own(store):
    work = Work(failures=100)
    async with Runtime(store=store):
        futures = [work.async_.submit(1) for _ in range(5)]
        await until(lambda: waiting(store, 4))
        work.go.set()
        for future in futures:
            await future.wait_async()
        errors = [str(future.state.result(raise_on_failure=False)) for future in futures]
        assert sorted(errors) == [f"failure {number}" for number in range(1, 6)]
    assert work.begun == 5


async def test_each_run_follows_its_own_failure_policy(store):
    """The leader has no retries and fails; one with retries leads next, fails once and has it on its second attempt."""
    work = Work(None, failures=2)
    async with Runtime(store=store):
        leader = work.async_.submit(1)
        await until(lambda: work.begun == 1)
        patient = work.async_.with_options(retries=1).submit(1)
        await until(lambda: waiting(store, 1))
        last = work.async_.submit(1)
        await until(lambda: waiting(store, 2))
        work.go.set()
        for future in (leader, patient, last):
            await future.wait_async()
        assert [future.state.name for future in (leader, patient, last)] == ["Failed", "Completed", "Cached"]
        assert [future.run.run_count for future in (leader, patient, last)] == [1, 2, 0]


async def test_while_the_leader_waits_for_its_retry_the_others_wait_for_it(store):
    work = Work(failures=1, retries=1)
    async with Runtime(store=store):
        futures = [work.async_.submit(1) for _ in range(5)]
        await until(lambda: waiting(store, 4))
        work.go.set()
        assert [await future for future in futures] == [[1]] * 5
    assert work.begun == 2


# -- cancelling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["sync", "async_"])
@pytest.mark.parametrize("policy", POLICIES)
async def test_cancelling_the_leaders_future_lets_the_next_one_lead(store, policy, colour):
    work = Work(POLICIES[policy])
    t = getattr(work, colour)
    async with Runtime(store=store):
        futures = [t.submit(1)]
        await until(lambda: work.begun == 1)
        futures += [t.submit(1) for _ in range(4)]
        await until(lambda: waiting(store, 4))
        assert futures[0].cancel()
        await until(lambda: work.begun == 2)
        work.go.set()
        assert [await future for future in futures[1:]] == [[1]] * 4
        with pytest.raises(CancelledRun):
            await futures[0]
    assert work.begun == 2


async def test_native_cancellation_of_the_leader_lets_the_next_one_lead(store):
    work = Work()
    values: list[Any] = []
    async with Runtime(store=store), anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def leader() -> None:
            with scope:
                await work.async_(1)

        async def follower() -> None:
            values.append(await work.async_(1))

        group.start_soon(leader)
        await until(lambda: work.begun == 1)
        for _ in range(4):
            group.start_soon(follower)
        await until(lambda: waiting(store, 4))
        scope.cancel()
        await until(lambda: work.begun == 2)
        work.go.set()
    assert values == [[1]] * 4
    assert work.begun == 2


async def test_a_flow_that_is_cancelled_takes_its_leader_with_it_and_nobody_else(store):
    work = Work()

    @flow
    async def whole() -> Any:
        return await work.async_.submit(1)

    async with Runtime(store=store), anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def leading_flow() -> None:
            with scope:
                await whole()

        group.start_soon(leading_flow)
        await until(lambda: work.begun == 1)
        future = work.async_.submit(1)
        await until(lambda: waiting(store, 1))
        scope.cancel()
        await until(lambda: work.begun == 2)
        work.go.set()
        assert await future == [1]


@pytest.mark.parametrize("colour", ["sync", "async_"])
async def test_a_leader_that_times_out_lets_the_next_one_lead(store, colour):
    work = Work(None)
    t = getattr(work, colour)
    async with Runtime(store=store):
        leader = t.with_options(timeout_seconds=0.1).submit(1)
        await until(lambda: work.begun == 1)
        futures = [t.submit(1) for _ in range(3)]
        await until(lambda: waiting(store, 3))
        state = await leader.wait_async()
        assert state is not None
        assert state.name == "TimedOut"
        await until(lambda: work.begun == 2)
        work.go.set()
        assert [await future for future in futures] == [[1]] * 3


@pytest.mark.parametrize("how", ["future", "native"])
async def test_cancelling_one_who_waits_harms_nobody(store, how):
    work = Work()
    async with Runtime(store=store), anyio.create_task_group() as group:
        first = work.async_.submit(1)
        await until(lambda: work.begun == 1)
        rest = [work.async_.submit(1) for _ in range(3)]
        await until(lambda: waiting(store, 3))
        if how == "future":
            waiter = work.async_.submit(1)
            await until(lambda: waiting(store, 4))
            waiter.cancel()
            state = await waiter.wait_async()
            assert state is not None
            assert state.name == "Cancelled"
        else:
            scope = anyio.CancelScope()

            async def call() -> None:
                with scope:
                    await work.async_(1)

            group.start_soon(call)
            await until(lambda: waiting(store, 4))
            scope.cancel()
        await until(lambda: waiting(store, 3))
        work.go.set()
        assert [await future for future in (first, *rest)] == [[1]] * 4
    assert work.begun == 1


async def test_who_waits_with_a_limit_of_time_gives_up_and_the_others_have_the_result(store):
    work = Work()
    async with Runtime(store=store):
        first = work.async_.submit(1)
        await until(lambda: work.begun == 1)
        with anyio.move_on_after(0.05) as scope:
            await work.async_(1)
        assert scope.cancelled_caught
        assert waiting(store, 0)
        work.go.set()
        assert await first == [1]


async def test_one_that_is_cancelled_just_as_it_is_called_to_lead_hands_that_on(store):
    """The leader and the next in line are cancelled in one step, so that the latter is called and cancelled at once."""
    work = Work()
    async with Runtime(store=store):
        futures = [work.async_.submit(1)]
        await until(lambda: work.begun == 1)
        for count in range(1, 5):
            futures.append(work.async_.submit(1))
            await until(lambda count=count: waiting(store, count))
        seat = next(iter(store.flights._flights.values()))
        futures[0].cancel()
        while seat.leader.run is futures[0].run:
            await anyio.lowlevel.checkpoint()
        assert seat.leader.run is futures[1].run  # called, and not begun yet
        futures[1].cancel()
        await until(lambda: work.begun >= 2)
        work.go.set()
        assert [await future for future in futures[2:]] == [[1]] * 3


@pytest.mark.asyncio
async def test_a_leader_that_is_closed_or_whose_loop_ends_lets_the_next_one_lead():
    store = MemoryStore()
    work = Work()
    async with Runtime(store=store):
        leader = work.async_(1)
        own = copy_context()  # as a task of its own would have
        own.run(leader.send, None)
        assert work.begun == 1
        futures = [work.async_.submit(1) for _ in range(2)]
        await until(lambda: waiting(store, 2))
        own.run(leader.close)
        await until(lambda: work.begun == 2)
        work.go.set()
        assert [await future for future in futures] == [[1]] * 2

    async def left_behind() -> None:
        runtime = Runtime(store=store)
        await runtime.__aenter__()
        work.async_.submit(2)
        await until(lambda: work.begun == 3)

    work.go.clear()
    async with Runtime(store=store):
        thread = threading.Thread(target=anyio.run, args=(left_behind,))
        thread.start()
        await until(lambda: work.begun == 3)
        future = work.async_.submit(2)
        await until(lambda: work.begun == 4)
        work.go.set()
        assert await future == [2]
        await anyio.to_thread.run_sync(thread.join)
    assert store.flights._flights == {}


# -- waits that could not end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["call", "submit"])
async def test_a_task_that_calls_itself_with_the_same_arguments_runs(store, way, policy):
    depths: list[int] = []

    @task(cache_policy=POLICIES[policy])
    async def again(x: int) -> int:
        depths.append(len(depths))
        if len(depths) < 4:
            return await (again(x) if way == "call" else again.submit(x))
        return x

    async with Runtime(store=store):
        with anyio.fail_after(20):
            assert await again(1) == 1
        assert depths == [0, 1, 2, 3]
        assert await again(1) == 1
        assert len(depths) == 4


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sync_task_that_calls_or_submits_itself_runs(store, policy):
    depths: list[int] = []

    @task(cache_policy=POLICIES[policy])
    def again(x: int) -> int:
        depths.append(len(depths))
        if len(depths) < 4:
            return again(x) if len(depths) % 2 else again.submit(x).result(20)
        return x

    runtime = Runtime(store=store)
    token = current_runtime.set(runtime)
    try:
        assert again(1) == 1
    finally:
        runtime.close()
        current_runtime.reset(token)
    assert depths == [0, 1, 2, 3]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["call", "submit"])
async def test_two_tasks_that_wait_for_each_others_keys_both_end(store, policy, way):
    """Both lead, and only then each calls the other: the second one to do so would wait for who waits for it."""
    begun = {"left": anyio.Event(), "right": anyio.Event()}
    other = {"left": "right", "right": "left"}

    @task(cache_policy=POLICIES[policy])
    async def side(name: str) -> str:
        inner = depth.get()
        depth.set(inner + 1)
        if inner:
            return name
        begun[name].set()
        await begun[other[name]].wait()
        return name + await (side(other[name]) if way == "call" else side.submit(other[name]))

    depth: ContextVar[int] = ContextVar("depth", default=0)
    async with Runtime(store=store):
        with anyio.fail_after(20):
            left, right = side.submit("left"), side.submit("right")
            values = [await left, await right]
        assert values in (["leftright", "rightleftright"], ["leftrightleft", "rightleft"])


async def test_a_body_that_submits_and_awaits_one_that_needs_its_own_key_goes_on(store):
    """leader -> child -> the leader's key: the child is below the leader, and is told so."""

    @task(cache_policy=INPUTS)
    async def outer(x: int) -> int:
        return await middle.submit(x) + 1

    @task
    async def middle(x: int) -> int:
        return await (outer(x) if x == 100 else leaf(x))

    @task(cache_policy=INPUTS)
    async def leaf(x: int) -> int:
        return x if x > 100 else await looped(x)

    @task
    async def looped(x: int) -> int:
        return x

    async with Runtime(store=store):
        with anyio.fail_after(20):
            assert await outer(1) == 2


async def test_a_sync_call_on_the_event_loop_that_would_have_to_wait_is_refused(store):
    work = Work(None)
    async with Runtime(store=store):
        leader = work.async_.submit(1)
        await until(lambda: work.begun == 1)
        with pytest.raises(BlockingWaitError, match="same cache key"):
            work.sync(1)
        assert waiting(store, 0)
        work.go.set()
        assert await leader == [1]
        assert work.sync(1) == [1]


async def test_a_sync_call_in_a_worker_thread_waits_there(store):
    work = Work(None)

    @task
    def caller() -> Any:
        return work.sync(1)

    async with Runtime(store=store):
        leader = work.async_.submit(1)
        await until(lambda: work.begun == 1)
        callers = [caller.submit() for _ in range(5)]
        await until(lambda: waiting(store, 5))
        work.go.set()
        assert [await one for one in (leader, *callers)] == [[1]] * 6
    assert work.begun == 1


async def test_those_who_wait_in_threads_lend_their_places_to_the_leader(store):
    """A pool of two, both of whose workers wait for a leader that needs one of them."""
    runner = ThreadPoolTaskRunner(max_workers=2)
    gate = anyio.Event()

    @task(task_runner=runner, cache_policy=INPUTS)
    def slow(x: int) -> int:
        return x

    @task(cache_key_fn=lambda c, p: "shared")
    async def leader() -> int:
        await gate.wait()
        return await slow.submit(5)

    @task(cache_key_fn=lambda c, p: "shared")
    def sync_leader() -> int:
        raise AssertionError("the result of the leader serves")

    @task(task_runner=runner)
    def caller() -> int:
        return sync_leader()

    try:
        async with Runtime(store=store):
            first = leader.submit()
            await until(lambda: store.flights._flights)
            callers = [caller.submit() for _ in range(4)]
            await until(lambda: waiting(store, 4))
            gate.set()
            with anyio.fail_after(20):
                assert [await one for one in (first, *callers)] == [5] * 5
    finally:
        runner.close(5)


@pytest.mark.parametrize("inline", [True, False], ids=["called", "submitted"])
async def test_who_waits_for_a_flight_lends_its_parents_slot_to_the_leader(store, inline):
    """A limit of one: the parent holds the slot and waits, through its child, for a leader that needs the slot."""
    begun, go = anyio.Event(), anyio.Event()

    @task(tags=["one"], cache_policy=INPUTS)
    async def load(x: int) -> int:
        return x

    @task(tags=["one"])
    async def parent() -> int:
        begun.set()
        await go.wait()
        return await (load(1) if inline else load.submit(1))

    async with Runtime(store=store) as runtime:
        await set_limit("one", 1)
        outer = parent.submit()
        await begun.wait()
        leader = load.submit(1)  # it leads, and waits for the slot that the parent has
        await until(lambda: leader.run.state_name == "AwaitingConcurrencySlot")
        go.set()
        with anyio.fail_after(20):
            assert [await outer, await leader] == [1, 1]
        assert limit_of(runtime, "one").active_slots == []


async def test_a_leader_below_which_a_slot_is_needed_has_it_lent_by_those_who_wait(store):
    """The leader has a slot's tag not itself, but in a run inside it, and asks only when others wait for it already."""
    go = anyio.Event()

    @task(tags=["one"])
    async def inner() -> int:
        return 5

    @task(cache_key_fn=lambda c, p: "shared")
    async def leader() -> int:
        await go.wait()
        return await inner()

    @task(tags=["one"])
    async def parent() -> int:
        return await leader()

    async with Runtime(store=store) as runtime:
        await set_limit("one", 1)
        first = leader.submit()
        await until(lambda: store.flights._flights)
        outer = parent.submit()
        await until(lambda: waiting(store, 1))
        go.set()
        with anyio.fail_after(20):
            assert [await outer, await first] == [5, 5]
        assert limit_of(runtime, "one").active_slots == []


async def test_the_next_leader_borrows_as_the_first_did(store):
    """The first leader is cancelled in line for a slot that the parents of all who wait hold."""
    begun = Counter[str]()
    go = anyio.Event()

    @task(tags=["slot"], cache_policy=INPUTS)
    async def load(x: int) -> int:
        begun["load"] += 1
        return x

    @task(tags=["slot"])
    async def parent() -> int:
        begun["parent"] += 1
        await go.wait()
        return await load(1)

    async with Runtime(store=store) as runtime:
        await set_limit("slot", 3)
        outers = [parent.submit() for _ in range(3)]
        await until(lambda: begun["parent"] == 3)
        leader = load.submit(1)
        await until(lambda: leader.run.state_name == "AwaitingConcurrencySlot")
        leader.cancel()
        go.set()
        with anyio.fail_after(20):
            assert [await outer for outer in outers] == [1] * 3
        assert begun["load"] == 1
        assert limit_of(runtime, "slot").active_slots == []


# -- in transactions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["call", "submit"])
async def test_runs_in_one_transaction_share_what_is_staged_in_it(store, way):
    work = Work()
    async with Runtime(store=store):
        async with transaction(), anyio.create_task_group() as group:
            values: list[Any] = []

            async def call() -> None:
                values.append(await (work.async_(1) if way == "call" else work.async_.submit(1)))

            for _ in range(10):
                group.start_soon(call)
            await until(lambda: waiting(store, 9))
            work.go.set()
        assert values == [[1]] * 10
        assert await work.async_(1) == [1]
    assert work.begun == 1


async def test_runs_outside_a_transaction_do_not_get_what_is_not_committed(store):
    """The one who waited leads next; the transaction is rolled back, and nobody has seen its result."""
    work = Work()
    futures: list[TaskFuture[Any]] = []

    async def rolled_back() -> None:
        async with transaction():
            futures.append(work.async_.submit(1))
            await until(lambda: work.begun == 1)
            token = current_transaction.set(None)
            futures.append(work.async_.submit(1))
            current_transaction.reset(token)
            await until(lambda: waiting(store, 1))
            work.go.set()
            assert [await future for future in futures] == [[1], [1]]
            raise LookupError

    async with Runtime(store=store):
        with pytest.raises(LookupError):
            await rolled_back()
        assert [future.state.name for future in futures] == ["RolledBack", "Completed"]
    assert work.begun == 2


# -- refreshing -----------------------------------------------------------------------------------------------------


async def test_runs_that_refresh_wait_for_nobody_and_nobody_for_them(store):
    work = Work(refresh_cache=True)
    async with Runtime(store=store):
        futures = [work.async_.submit(1) for _ in range(5)]
        await until(lambda: work.begun == 5)
        work.go.set()
        assert [await future for future in futures] == [[1]] * 5


async def test_what_the_leader_brings_serves_those_who_waited_though_it_expires_at_once(store):
    work = Work(cache_expiration=0)
    async with Runtime(store=store):
        futures: list[TaskFuture[Any]] = [work.async_.submit(1) for _ in range(5)]
        await until(lambda: waiting(store, 4))
        work.go.set()
        assert [await future for future in futures] == [[1]] * 5
        assert work.begun == 1
        await work.async_(1)
    assert work.begun == 2
