"""A scenario with limits, retries, flows, threads and children, cancelled at its 1st, 2nd, 3rd ... suspension.

1. `swept` drives a coroutine by hand and calls `fire` just before its k-th suspension; a sweep goes up from 1 until
   there is no k-th suspension any more.
2. The caller is cancelled as its loop cancels: natively on asyncio (once; twice; and `late`, when the result and the
   cancellation come in one tick, which is where results and cancellations get lost), by a cancel scope on trio.
3. Each child in turn is cancelled through its future, at each suspension of its own.
4. After each round every run is over, settled and told of once, no slot is held, no body is at work, no scope has
   children. The last tests plant defects, to show that the sweep finds them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import pytest
import trio

from asynctask import Runtime, as_completed, engine, flow, scopes, task
from asynctask.endings import stop
from asynctask.engine import execute
from asynctask.errors import AsyncTaskError
from asynctask.limits import Limits
from asynctask.runs import Run
from asynctask.runtime import flow_run, task_run
from asynctask.states import RUNNING
from asynctask.stores.memory import MemoryStore
from asynctask.waiting import Loop
from testkit import limit_of

ENOUGH = 20.0  # seconds in which a round that does not hang is over
MOST = 300  # suspensions of one coroutine, beyond which the scenario itself must be wrong
TAG = "one"
HOOKS = ("on_completion", "on_failure", "on_cancellation", "on_crashed")
ENDINGS = {"COMPLETED": 1, "FAILED": 1, "CANCELLED": 1, "CRASHED": 1, "PENDING": 0}  # hooks of each final state


@types.coroutine
def swept(work: Coroutine[Any, Any, Any], k: int, fire: Callable[[Any], object]) -> Generator[Any, Any, Any]:
    """`work`, with `fire(what it waits for)` called just before its k-th suspension."""
    send: Callable[[Any], Any] = work.send
    value: Any = None
    for number in itertools.count(1):
        try:
            awaited = send(value)
        except StopIteration as end:
            return end.value
        if number == k:
            fire(awaited)
        try:
            value = yield awaited
            send = work.send
        except BaseException as error:
            value = error
            send = work.throw
    return None


class Scenario:
    """What is cancelled, and what was seen of it."""

    def __init__(self) -> None:
        self.at_work: Counter[str] = Counter()
        self.told: Counter[Any] = Counter()
        self.flow = self._make()

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        self.at_work[name] += 1
        try:
            yield
        finally:
            self.at_work[name] -= 1

    def _tell(self, task: Any, run: Any, state: Any) -> None:
        self.told[run.id] += 1

    async def _tell_later(self, task: Any, run: Any, state: Any) -> None:
        await anyio.sleep(0)
        self.told[run.id, "later"] += 1

    def _make(self) -> Any:
        told = {option: [self._tell] for option in HOOKS}
        told_later = {option: [self._tell, self._tell_later] for option in HOOKS}

        @task(tags=[TAG], **told_later)
        async def limited(x: int) -> int:
            with self.inside("limited"):
                try:
                    await anyio.sleep(0.0002)
                    return x
                finally:
                    with anyio.CancelScope(shield=True):  # cleaning up takes it a while
                        await anyio.sleep(0.0005)

        @task(retries=1, retry_delay_seconds=0.0002, tags=[TAG], **told)
        async def flaky(x: int) -> int:
            with self.inside("flaky"):
                await anyio.sleep(0)
                if task_run.run_count == 1:
                    raise RuntimeError("the first attempt fails")
                return x

        @task(timeout_seconds=30, **told)
        def in_thread(x: int) -> int:
            with self.inside("in_thread"):
                for _ in range(3):
                    time.sleep(0.0002)
                return x

        @task(timeout_seconds=30, **told)
        async def leaf(x: int) -> int:
            with self.inside("leaf"):
                await anyio.sleep(0)
                return x

        @task(**told)
        async def parent(x: int) -> int:
            with self.inside("parent"):
                return await limited.submit(x) + await leaf(x)

        @task(**told)
        async def numbers() -> Any:
            with self.inside("numbers"):
                for number in range(3):
                    await anyio.sleep(0)
                    yield number

        @flow(retries=1, retry_delay_seconds=0.0002, **told)
        async def inner(x: int) -> int:
            with self.inside("inner"):
                limited.submit(x)  # nobody waits for it but the flow
                if flow_run.run_count == 1:
                    raise RuntimeError("the first attempt fails, and its child is ended")
                return await leaf(x)

        @flow(**told)
        async def outer() -> list[Any]:
            with self.inside("outer"):
                first, second = limited.submit(1), limited.submit(2)
                third = flaky.submit(first)
                fourth = in_thread.submit(second)
                fifth = parent.submit(third)
                total = await limited(3)
                async for number in numbers():
                    total += number
                total += await inner(1) + await flaky(1)
                await leaf.map([1, 2], wait_for=[third])
                async for future in as_completed([first, fourth]):
                    total += await future
                return [total, fifth]

        return outer


async def check(scenario: Scenario, runtime: Runtime) -> None:
    """Everything that must hold once the flow is over, whatever ended it."""
    left = {run.name: str(run.state) for run in runtime.runs}
    assert not left, f"runs that are not over: {left}"
    assert not runtime.root.children
    limit = limit_of(runtime, TAG)
    assert (limit.active_slots, limit.waiting) == ([], 0), "slots are still held or waited for"
    deadline = time.monotonic() + 2
    while +scenario.at_work != Counter({}) and time.monotonic() < deadline and scenario.at_work["in_thread"]:
        await anyio.sleep(0.001)  # a thread is interrupted at its next bytecode
    assert not +scenario.at_work, f"bodies still at work: {+scenario.at_work}"
    for run in runtime.store._history:
        names = [state.name for state in run.states]
        assert [state.is_final() for state in run.states] == [False] * (len(names) - 1) + [True], (run.name, names)
        assert scenario.told[run.id] == ENDINGS[run.state_type], (run.name, names, "hooks were called otherwise")


async def one_round(begin: Callable[[Any], Awaitable[Any]]) -> None:
    """Run the scenario once in a runtime of its own; `begin` runs its flow, and ends when that does."""
    scenario = Scenario()
    async with Runtime(store=MemoryStore(), shutdown_timeout=1) as runtime:
        runtime.limits.set(f"tag:{TAG}", 1)
        outcome = await begin(scenario.flow)
        await check(scenario, runtime)
        (last,) = [run for run in runtime.store._history if run.task_name == "outer"]
        seen = {"Completed": "value", "Cancelled": "cancelled", "Failed": "error"}[last.state_name]
        assert outcome == seen, f"the caller saw {outcome}, the run is {last.state}"
    assert not runtime.services.abandoned


# -- the two loops --------------------------------------------------------------------------------------------------


async def on_asyncio(mode: str, k: int) -> bool:
    """Cancel the caller's asyncio task at suspension `k`; whether there was one."""
    fired: list[int] = []

    async def begin(flow: Any) -> str:
        loop = asyncio.get_running_loop()

        def fire(awaited: Any) -> None:
            fired.append(k)
            if mode == "late" and awaited is not None:
                awaited.add_done_callback(lambda _: caller.cancel())  # called before the caller is woken by the result
                return
            loop.call_soon(caller.cancel)
            if mode == "double":
                loop.call_soon(loop.call_soon, caller.cancel)
                loop.call_soon(loop.call_later, 0.0002, caller.cancel)

        async def call() -> Any:
            return await swept(flow(), k, fire)

        caller = asyncio.create_task(call())
        done, _ = await asyncio.wait({caller}, timeout=ENOUGH)
        assert done, f"hangs after a cancellation at suspension {k}"
        outcome = "cancelled" if caller.cancelled() else "error" if caller.exception() else "value"
        assert not fired or outcome == "cancelled", f"the cancellation was lost: the caller saw {outcome}"
        return outcome

    await one_round(begin)
    return bool(fired)


async def on_trio(mode: str, k: int) -> bool:
    """Cancel a scope around the call at suspension `k`; whether there was one."""
    fired: list[int] = []

    async def begin(flow: Any) -> str:
        with trio.CancelScope() as scope:

            def fire(awaited: Any) -> None:
                fired.append(k)
                scope.cancel()

            with anyio.move_on_after(ENOUGH) as limit:
                await swept(flow(), k, fire)
        assert not limit.cancelled_caught, f"hangs after a cancellation at suspension {k}"
        assert scope.cancelled_caught == bool(fired), "the cancellation was lost"
        return "cancelled" if scope.cancelled_caught else "value"

    await one_round(begin)
    return bool(fired)


def run_on(backend: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return anyio.run(function, *args, backend=backend)


def sweep(backend: str, mode: str) -> int:
    """Cancel at every suspension; how many there were."""
    one = on_asyncio if backend == "asyncio" else on_trio
    for k in range(1, MOST):
        try:
            if not run_on(backend, one, mode, k):
                return k - 1
        except AssertionError as error:
            error.add_note(f"cancelled on {backend} ({mode}) at suspension {k}")
            raise
    raise AssertionError("the scenario never ends")


async def cancelling_a_child(monkeypatch: pytest.MonkeyPatch, child: int, k: int, times: int) -> tuple[bool, bool]:
    """Cancel the `child`-th submitted run at its k-th suspension; whether it was there, and had as many."""
    count = itertools.count(1)
    seen: list[Run] = []
    fired: list[Run] = []

    def executed(run: Run, port: Any) -> Any:
        if next(count) != child:
            return execute(run, port)
        seen.append(run)

        def fire(awaited: Any) -> None:
            fired.append(run)
            for _ in range(times):
                # Cancelling from its own step is no case of its own, and the step before the loop has it is nobody's.
                run.home.call_soon(lambda: stop(run, "swept"))

        async def work() -> Any:
            return await swept(execute(run, port), k, fire)

        return work()

    async def begin(flow: Any) -> str:
        with anyio.fail_after(ENOUGH):
            try:
                await flow()
            except AsyncTaskError:
                return "error"
            return "value"

    monkeypatch.setattr(scopes, "execute", executed)
    await one_round_with_a_loss(begin)
    assert not seen or seen[0].is_final
    return bool(seen), bool(fired)


async def one_round_with_a_loss(begin: Callable[[Any], Awaitable[Any]]) -> None:
    """A round in which a child is lost: the flow may complete, fail, or be cancelled with it."""
    scenario = Scenario()
    async with Runtime(store=MemoryStore(), shutdown_timeout=1) as runtime:
        runtime.limits.set(f"tag:{TAG}", 1)
        await begin(scenario.flow)
        await check(scenario, runtime)


def sweep_children(monkeypatch: pytest.MonkeyPatch, backend: str, times: int) -> int:
    """Cancel every child at each of its suspensions; how many rounds that were."""
    rounds = 0
    for child in range(1, MOST):
        for k in range(1, MOST):
            try:
                was_there, had_as_many = run_on(backend, cancelling_a_child, monkeypatch, child, k, times)
            except (AssertionError, TimeoutError) as error:
                error.add_note(f"child {child} cancelled {times} times on {backend} at its suspension {k}")
                raise
            rounds += 1
            if not was_there:
                return rounds
            if not had_as_many:
                break
    raise AssertionError("the scenario never ends")


# -- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "mode"), [("asyncio", "once"), ("asyncio", "late"), ("asyncio", "double"), ("trio", "scope")]
)
def test_a_caller_cancelled_at_any_suspension_leaves_nothing(backend: str, mode: str) -> None:
    assert sweep(backend, mode) >= 12


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_child_cancelled_at_any_of_its_suspensions_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, backend: str, times: int
) -> None:
    assert sweep_children(monkeypatch, backend, times) >= 30


# -- the proof that it would find a defect ----------------------------------------------------------------------------


def test_the_sweep_finds_slots_that_only_success_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    give = Limits.give

    def leaky(self: Limits, slots: Any) -> None:
        if slots.run.states[-1].type is not RUNNING:
            give(self, slots)

    monkeypatch.setattr(Limits, "give", leaky)
    with pytest.raises(AssertionError, match="slots are still held"):
        sweep("asyncio", "once")


def test_the_sweep_finds_a_place_in_line_that_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    give = Limits.give

    def leaky(self: Limits, slots: Any) -> None:
        if slots.granted:
            give(self, slots)

    monkeypatch.setattr(Limits, "give", leaky)
    with pytest.raises(AssertionError, match=r"slots are still held or waited for|hangs"):
        sweep("trio", "scope")


def test_the_sweep_finds_children_that_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def not_at_all(self: Loop, group: Any) -> None:
        pass

    monkeypatch.setattr(Loop, "until_empty_shielded", not_at_all)
    with pytest.raises(AssertionError, match="runs that are not over"):
        sweep("asyncio", "once")


def test_the_sweep_finds_a_shield_that_a_second_cancellation_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    async def once(self: Loop, group: Any) -> None:
        with anyio.CancelScope(shield=True):
            await self.until_empty(group)

    monkeypatch.setattr(Loop, "until_empty_shielded", once)
    sweep("asyncio", "once")
    with pytest.raises(AssertionError, match="runs that are not over"):
        sweep("asyncio", "double")


def test_the_sweep_finds_a_run_without_a_final_state(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(engine, "end_early", nothing)
    with pytest.raises(AssertionError, match="Running"):
        sweep("asyncio", "once")


def test_the_sweep_finds_a_cancellation_that_gets_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def swallowing(self: Loop, group: Any) -> None:
        while not group.is_empty():
            with suppress(asyncio.CancelledError), anyio.CancelScope(shield=True):
                await self.until_empty(group)

    monkeypatch.setattr(Loop, "until_empty_shielded", swallowing)
    with pytest.raises(AssertionError, match="the cancellation was lost"):
        sweep("asyncio", "once")
