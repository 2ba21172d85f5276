"""Random runs that wait for each other, crosswise and for slots: some rings close, none hangs, and nothing is left.

Nothing keeps these graphs from rings, as `test_random_graphs` does: runs hold slots of tags and of blocks and want
others, wait for runs that are no relatives of theirs, for themselves and for what has their cache key. So many of them
end in `DeadlockError`; all of them end. Set ASYNCTASK_LONG_FUZZ=1 for twenty times as many seeds.
"""

import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import pytest

from asynctask import TaskFuture, TaskFutureList, as_completed, concurrency, flow, task, wait
from asynctask.errors import BlockingWaitError, DeadlockError
from asynctask.runners import ThreadPoolTaskRunner
from asynctask.runs import Run
from asynctask.scopes import Runtime, Scope
from asynctask.stores.memory import MemoryStore

SEEDS = 2_000 if os.environ.get("ASYNCTASK_LONG_FUZZ") else 100
PER_TEST = 20
#: Of tags and of blocks; "pace" comes back by itself.
TAGS = {"a": 1, "b": 1, "c": 2}
BLOCKS = {"x": 1, "y": 2, "z": 3}
PATIENCE = 20.0  # seconds until a graph counts as hanging; the slowest takes a tenth of one


class Node:
    """What one run does: steps, each a kind and what it needs."""

    def __init__(self, dice: random.Random, tops: int, depth: int) -> None:
        self.is_async = dice.random() < 0.6
        self.is_flow = depth < 2 and dice.random() < 0.1
        self.tags = frozenset() if self.is_flow else frozenset(tag for tag in TAGS if dice.random() < 0.25)
        self.key = dice.choice([None] * 9 + ["key"])
        self.retries = dice.choice([0, 0, 0, 1])
        self.timeout = dice.choice([None] * 12 + [0.01])
        self.upstream = dice.choice([[]] * 3 + [[dice.randrange(tops)]]) if depth == 2 else []
        self.steps = self._steps(dice, tops, depth)

    def _steps(self, dice: random.Random, tops: int, depth: int) -> list[tuple[Any, ...]]:
        return [self._step(dice, tops, depth) for _ in range(dice.choice([1, 1, 2, 3]))]

    def _step(self, dice: random.Random, tops: int, depth: int) -> tuple[Any, ...]:
        kind = dice.choice(["sleep", "wait", "block", "child"] if depth else ["sleep", "sleep", "wait", "block"])
        if kind == "sleep":
            return kind, dice.choice([0, 0, 0.0005, 0.002])
        if kind == "wait":
            several = [dice.randrange(tops) for _ in range(dice.choice([1, 1, 2]))]
            return kind, several, dice.choice(["result", "wait", "list", "first", "each", "shortly"])
        if kind == "child":
            nodes = [Node(dice, tops, depth - 1) for _ in range(dice.choice([1, 1, 2]))]
            return kind, nodes, dice.choice(["call", "submit", "later"])
        names = dice.sample(["x", "y", "z", "pace", *(f"tag:{tag}" for tag in TAGS)], dice.choice([1, 1, 2]))
        return kind, names, dice.choice([1, 1, 1, 2]), self._steps(dice, tops, max(0, depth - 1))


def is_leaf(steps: list[tuple[Any, ...]]) -> bool:
    """Whether these steps wait for nobody: then nobody may borrow."""
    return all(step[0] == "sleep" for step in steps)


class World:
    """One graph as it runs: its futures, and who is inside what nobody may borrow."""

    def __init__(self) -> None:
        self.tops: list[TaskFuture[Any]] = []
        self.all: list[TaskFuture[Any]] = []
        self.lock = threading.Lock()
        self.inside = dict.fromkeys([*(f"tag:{tag}" for tag in TAGS), *BLOCKS], 0)
        self.over: list[str] = []

    def count(self, names: list[str], change: int, steps: list[tuple[Any, ...]]) -> None:
        if not is_leaf(steps):
            return
        with self.lock:
            for name in names:
                if name in self.inside:
                    self.inside[name] += change
                    if self.inside[name] > {**TAGS, **BLOCKS}[name.removeprefix("tag:")]:
                        self.over.append(name)

    def submit(self, node: Node) -> TaskFuture[Any]:
        future: TaskFuture[Any] = task_of(node).submit(self, node, wait_for=[self.tops[one] for one in node.upstream])
        self.all.append(future)
        return future


async def async_body(world: World, node: Node) -> None:
    names = [f"tag:{tag}" for tag in node.tags]
    world.count(names, 1, node.steps)
    try:
        await async_steps(world, node.steps)
    finally:
        world.count(names, -1, node.steps)


async def async_steps(world: World, steps: list[tuple[Any, ...]]) -> None:
    for kind, *rest in steps:
        if kind == "sleep":
            await anyio.sleep(rest[0])
        elif kind == "wait":
            await async_wait([world.tops[one] for one in rest[0]], rest[1])
        elif kind == "child":
            await async_children(world, *rest)
        else:
            names, count, inner = rest
            async with concurrency(names, occupy=count):
                world.count(names, count, inner)
                try:
                    await async_steps(world, inner)
                finally:
                    world.count(names, -count, inner)


async def async_wait(futures: list[TaskFuture[Any]], way: str) -> None:
    if way == "result":
        for future in futures:
            await future
    elif way == "wait":
        await TaskFutureList(futures).wait_async()
    elif way == "list":
        await TaskFutureList(futures)
    elif way == "shortly":
        await futures[0].wait_async(0.001)
    else:
        async for future in as_completed(futures):
            await future.wait_async()
            if way == "first":
                break


async def async_children(world: World, nodes: list[Node], way: str) -> None:
    for node in nodes:
        if node.is_flow and node.is_async:
            await flow_of(node)(world, node)
        elif way == "call" and node.is_async:
            await task_of(node)(world, node)
        elif way != "later":
            await world.submit(node)
    if way == "later":
        await TaskFutureList([world.submit(node) for node in nodes])


def sync_body(world: World, node: Node) -> None:
    names = [f"tag:{tag}" for tag in node.tags]
    world.count(names, 1, node.steps)
    try:
        sync_steps(world, node.steps)
    finally:
        world.count(names, -1, node.steps)


def sync_steps(world: World, steps: list[tuple[Any, ...]]) -> None:
    for kind, *rest in steps:
        if kind == "sleep":
            time.sleep(rest[0])
        elif kind == "wait":
            sync_wait([world.tops[one] for one in rest[0]], rest[1])
        elif kind == "child":
            sync_children(world, *rest)
        else:
            names, count, inner = rest
            with concurrency(names, occupy=count), ExitStack() as stack:
                world.count(names, count, inner)
                stack.callback(world.count, names, -count, inner)
                sync_steps(world, inner)


def sync_wait(futures: list[TaskFuture[Any]], way: str) -> None:
    if way == "result":
        for future in futures:
            future.result()
    elif way == "wait":
        wait(futures)
    elif way == "list":
        TaskFutureList(futures).result()
    elif way == "shortly":
        futures[0].wait(0.001)
    else:
        for future in as_completed(futures):
            future.wait()
            if way == "first":
                break


def sync_children(world: World, nodes: list[Node], way: str) -> None:
    for node in nodes:
        if node.is_flow and not node.is_async:
            flow_of(node)(world, node)
        elif way == "call" and not node.is_async:
            task_of(node)(world, node)
        elif way != "later":
            world.submit(node).result()
    if way == "later":
        TaskFutureList([world.submit(node) for node in nodes]).result()


_made: dict[Any, Any] = {}


def task_of(node: Node) -> Any:
    what = (node.is_async, node.tags, node.key, node.retries, node.timeout)
    if what not in _made:
        body: Callable[..., Any] = async_body if node.is_async else sync_body
        key = node.key
        options: dict[str, Any] = {} if key is None else {"cache_key_fn": lambda context, parameters: key}
        _made[what] = task(tags=node.tags, retries=node.retries, timeout_seconds=node.timeout, **options)(body)
    return _made[what]


def flow_of(node: Node) -> Any:
    if node.is_async not in _made:
        _made[node.is_async] = flow(async_body if node.is_async else sync_body)
    return _made[node.is_async]


@pytest.fixture(params=range(0, SEEDS, PER_TEST))
def seeds(request: pytest.FixtureRequest) -> Iterator[range]:
    """And afterwards nothing of ours is left in memory."""
    yield range(request.param, request.param + PER_TEST)
    end = time.monotonic() + PATIENCE
    gc.collect()
    while left := [repr(one) for one in gc.get_objects() if type(one) in (Run, Scope, Runtime)]:
        assert time.monotonic() < end, left
        gc.collect()


async def test_random_rings_are_found_and_nothing_is_left(seeds: range):
    found = 0
    for seed in seeds:
        found += await run_graph(seed)
    assert found > 5  # of twenty graphs; else there is nothing to be seen here


async def run_graph(seed: int) -> bool:
    """Whether a ring was found in it."""
    dice = random.Random(seed)
    store = MemoryStore(10)
    for tag, size in TAGS.items():
        store.limits.set(f"tag:{tag}", size)
    for name, size in BLOCKS.items():
        store.limits.set(name, size)
    store.limits.set("pace", 2, decay=2_000.0)
    world = World()
    tops = dice.choice([2, 3, 5, 8])
    nodes = [Node(dice, tops, 2) for _ in range(tops)]
    for place, node in enumerate(nodes):
        node.upstream = [one for one in node.upstream if one < place]
    runner = ThreadPoolTaskRunner(max_workers=dice.choice([1, 2, 4]))
    doomed = dice.choice([None, None, dice.randrange(tops)])
    with anyio.fail_after(PATIENCE):
        async with Runtime(store=store, task_runner=runner) as runtime:
            for node in nodes:
                world.tops.append(world.submit(node))
            if doomed is not None:
                await anyio.sleep(dice.random() * 0.005)
                world.tops[doomed].cancel()
            for future in list(world.all):
                await future.wait_async()
        while runtime.services.abandoned or runtime.journal.live:
            await anyio.sleep(0.001)
    for line in store.limits.lines.values():
        state = (line.used, len(line.holders), len(line.waiting), len(line.near))
        assert state == (0, 0, 0, 0), f"seed {seed}: {line.name} is left {state}"
    assert not world.over, f"seed {seed}: more at once than the limit of {world.over}"
    assert all(future.done() and future.state.is_final() for future in world.all), f"seed {seed}"
    errors = [future.run.error for future in world.all]
    odd = [one for one in errors if isinstance(one, (AssertionError, KeyError, RuntimeError, BlockingWaitError))]
    assert not odd, f"seed {seed}"
    return any(isinstance(one, DeadlockError) for one in errors)
