"""Random graphs of runs, nested and cancelled at random from another thread: none hangs, is lost or keeps anything.

Each seed makes trees of tasks and flows, sync and async, called, submitted and mapped, with retries, timeouts, hooks,
small pools and small limits that they share. Set ASYNCTASK_LONG_FUZZ=1 for ten times as many seeds.
"""

import gc
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asynctask import TaskFuture, flow, loops, task
from asynctask.errors import DeadlockError
from asynctask.runners import ThreadPoolTaskRunner
from asynctask.runs import Run
from asynctask.scopes import Runtime, Scope
from asynctask.stores.memory import MemoryStore
from testkit import limit_of

SEEDS = 600 if os.environ.get("ASYNCTASK_LONG_FUZZ") else 60
PER_TEST = 10
LIMITS = {"a": 1, "b": 2, "c": 3}
PATIENCE = 20.0  # seconds until a graph counts as hanging; the slowest takes half a second


class Boom(Exception):
    pass


class Node:
    """What one run of a graph does."""

    def __init__(self, dice: random.Random, depth: int, tags: str = "abc") -> None:
        self.is_flow = 0 < depth < 3 and dice.random() < 0.15
        self.is_async = dice.random() < 0.5
        # Inside a run with tags only those: two runs that hold one each and want the other's would wait for ever, which
        # is for `test_random_rings`. Here nobody ever does.
        self.tags = frozenset() if self.is_flow else frozenset(tag for tag in tags if dice.random() < 0.25)
        self.failures = dice.choice([0] * 8 + [1, 2, 9])
        self.timeout = dice.choice([None] * 6 + [0.002, 0.02, 0.5])
        below = "".join(self.tags) or tags
        self.children = [Node(dice, depth - 1, below) for _ in range(dice.choice([0, 1, 1, 2, 3]) if depth else 0)]
        if self.children and not self.is_async:  # interrupted, it keeps its slots until it leaves its thread
            self.tags = frozenset()
        self.delay = dice.choice([0, 0, 0, 0.0005, 0.002])
        self.way = dice.choice(["call", "submit", "gather", "map"])
        self.cancelled_after = dice.choice([None] * 8 + [0, 0.0005, 0.002])
        self.has_hooks = dice.random() < 0.1


class World:
    """One graph as it runs: its futures, and how many bodies without children are under way for each tag."""

    def __init__(self) -> None:
        self.futures: list[TaskFuture[Any]] = []
        self.lock = threading.Lock()
        self.active = dict.fromkeys(LIMITS, 0)
        self.over: list[str] = []
        self.to_cancel: queue.Queue[tuple[float, TaskFuture[Any]] | None] = queue.Queue()

    def cancel_some(self) -> None:
        while (entry := self.to_cancel.get()) is not None:
            time.sleep(entry[0])
            entry[1].cancel("at random")

    def watch(self, node: Node, future: TaskFuture[Any]) -> TaskFuture[Any]:
        self.futures.append(future)
        if node.cancelled_after is not None:
            self.to_cancel.put((node.cancelled_after, future))
        return future

    def count(self, node: Node, step: int) -> None:
        if not node.children:
            with self.lock:
                for tag in node.tags:
                    self.active[tag] += step
                    if self.active[tag] > LIMITS[tag]:
                        self.over.append(tag)

    def start(self, nodes: list[Node], way: str) -> list[TaskFuture[Any]]:
        several = [node for node in nodes if not node.is_flow]
        made = [made_of(node).map([self], [node])[0] if way == "map" else None for node in several]
        return [
            self.watch(node, future or made_of(node).submit(self, node))
            for node, future in zip(several, made, strict=True)
        ]


def fail(node: Node) -> None:
    node.failures -= 1
    if node.failures >= 0:
        raise Boom


async def async_body(world: World, node: Node) -> None:
    world.count(node, 1)
    try:
        await anyio.sleep(node.delay)
        for child in node.children:
            if child.is_flow and child.is_async:
                await made_of(child)(world, child)
            elif child.is_flow:  # in a thread: here it would block a loop on which its siblings may hold slots
                await anyio.to_thread.run_sync(made_of(child), world, child)
            elif node.way == "call" and child.is_async:
                await made_of(child)(world, child)
            elif node.way in ("call", "submit"):
                await world.start([child], node.way)[0]
        if node.way in ("gather", "map"):
            started = world.start(node.children, node.way)
            for future in started:
                await future.wait_async()
            for future in started:
                await future
        fail(node)
    finally:
        world.count(node, -1)


def sync_body(world: World, node: Node) -> None:
    world.count(node, 1)
    try:
        time.sleep(node.delay)
        for child in node.children:
            if child.is_async if child.is_flow else node.way != "call" or child.is_async:
                continue
            made_of(child)(world, child)
        started = world.start([] if node.way == "call" else node.children, node.way)
        for future in started:
            future.wait()
        for future in started:
            future.result()
        fail(node)
    finally:
        world.count(node, -1)


async def hook(*_: object) -> None:
    await anyio.sleep(0)


_made: dict[Any, Any] = {}


def made_of(node: Node) -> Callable[..., Any]:
    key = (node.is_flow, node.is_async, node.tags, node.timeout, node.has_hooks)
    if key not in _made:
        hooks = [hook] if node.has_hooks else []
        common: dict[str, Any] = {"timeout_seconds": node.timeout, "on_completion": hooks, "on_failure": hooks}
        options = common if node.is_flow else {**common, "tags": node.tags, "retries": 2, "on_cancellation": hooks}
        body = async_body if node.is_async else sync_body
        _made[key] = (flow if node.is_flow else task)(**options)(body)  # type: ignore[operator]
    return _made[key]


@pytest.fixture(params=range(0, SEEDS, PER_TEST))
def seeds(request: pytest.FixtureRequest) -> Iterator[range]:
    """And afterwards nothing of ours is left in memory."""
    yield range(request.param, request.param + PER_TEST)
    end = time.monotonic() + PATIENCE
    gc.collect()
    while left := [repr(one) for one in gc.get_objects() if type(one) in (Run, Scope, Runtime)]:
        # Flows in threads whose caller was given up may still be on their way out.
        assert time.monotonic() < end, left
        gc.collect()


async def test_random_graphs_end_keep_their_limits_and_leave_nothing(seeds: range):
    for seed in seeds:
        await run_graph(seed)


async def run_graph(seed: int) -> None:
    dice = random.Random(seed)
    store = MemoryStore(10)
    for tag, limit in LIMITS.items():
        store.limits.set(f"tag:{tag}", limit)
    runner = ThreadPoolTaskRunner(max_workers=dice.choice([1, 2, 4]))
    patience = dice.choice([0.0, 0.01, 30.0, 30.0])
    world = World()
    canceller = threading.Thread(target=world.cancel_some)
    canceller.start()
    try:
        with anyio.fail_after(PATIENCE):
            async with Runtime(store=store, task_runner=runner, shutdown_timeout=patience) as runtime:
                for _ in range(dice.choice([1, 3, 6])):
                    top = Node(dice, 3)
                    world.watch(top, made_of(top).submit(world, top))
                if dice.random() < 0.8:
                    for future in list(world.futures):
                        await future.wait_async()
            # Bodies that were interrupted may still be on their way out of their threads.
            while runtime.journal.live or any(
                limit.active_slots or limit.waiting for limit in (limit_of(store, tag) for tag in LIMITS)
            ):
                await anyio.sleep(0.001)
            while runtime.services.abandoned:
                await anyio.sleep(0.001)
    finally:
        world.to_cancel.put(None)
        canceller.join()
    assert not world.over, f"seed {seed}: more at once than the limit of {world.over}"
    unfinished = [future for future in world.futures if not (future.done() and future.state.is_final())]
    assert not unfinished, f"seed {seed}"
    rings = [future.run.error for future in world.futures if isinstance(future.run.error, DeadlockError)]
    assert not rings, f"seed {seed}"


async def test_a_run_whose_parent_has_ended_still_borrows_the_slot_under_which_its_flow_waits():
    store = MemoryStore()
    store.limits.set("tag:one", 1)
    may_end = anyio.Event()

    @task(tags=["one"])
    async def first() -> None:
        await may_end.wait()

    @task(tags=["one"])
    async def second() -> str:
        return "second"

    @task
    async def middle() -> None:
        left.append(second.submit())

    @flow
    async def inner() -> None:
        left.append(first.submit())
        await middle.submit()
        may_end.set()

    @task(tags=["one"])
    async def outer() -> None:
        await inner()

    left: list[TaskFuture[Any]] = []
    with anyio.fail_after(20):
        async with Runtime(store=store, shutdown_timeout=0.1):
            await outer.submit()
            assert await left[1] == "second"


async def test_a_timed_body_that_its_executor_drops_ends_its_run():
    class Runner:
        def __init__(self) -> None:
            self.pool = ThreadPoolExecutor(1)

        def executor(self) -> ThreadPoolExecutor:
            return self.pool

        def close(self) -> None:
            self.pool.shutdown()

    runner = Runner()
    is_held, may_end = anyio.Event(), threading.Event()
    loop = loops.here()

    @task(task_runner=runner, timeout_seconds=10)
    def body() -> None:
        loop.call_soon(is_held.set)
        may_end.wait(20)

    with anyio.fail_after(20):
        async with Runtime(store=MemoryStore()):
            body.submit()
            await is_held.wait()
            dropped = body.submit()
            await anyio.wait_all_tasks_blocked()
            runner.pool.shutdown(wait=False, cancel_futures=True)
            may_end.set()
            state = await dropped.wait_async()
    assert state is not None
    assert state.is_crashed()
