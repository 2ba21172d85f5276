"""Storms of cached runs: random trees of tasks that share keys, fail, are cancelled and call themselves.

Over threads and event loops. Every run ends, no flight is left, and where nothing failed a body ran once for its key.

Set ASYNCTASK_LONG_FUZZ=1 for ten times as many seeds.
"""

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asynctask import Runtime, TaskFuture, task
from asynctask.cache_policies import CachePolicy
from asynctask.scopes import current_runtime
from asynctask.stores.base import Store
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore

SEEDS = 200 if os.environ.get("ASYNCTASK_LONG_FUZZ") else 20
PATIENCE = 20.0  # seconds until a storm counts as hanging; the slowest takes one
LIMITS = {"a": 1, "b": 2}


class Boom(Exception):
    pass


class Storm:
    """Tasks that find out by their key what they do: the same for each run with that key.

    A key's runs call those of other keys, of any: so there are rings. `calm` ones have neither failures nor
    cancellations, and call only keys greater than their own: no rings, and each body runs once.
    """

    def __init__(self, seed: int, *, is_calm: bool) -> None:
        self.seed = seed
        self.is_calm = is_calm
        self.keys = 12
        self.bodies: Counter[int] = Counter()
        self.lock = threading.Lock()
        self.futures: list[TaskFuture[Any]] = []
        policy = CachePolicy.from_cache_key_fn(lambda context, parameters: f"key-{parameters['key']}")
        if seed % 3 == 0:
            policy = policy.configure(isolation_level="SERIALIZABLE")
        self.sync = task(cache_policy=policy, name="sync")(self.body)
        self.async_ = task(cache_policy=policy, name="async")(self.async_body)

    def plan(self, key: int, depth: int) -> tuple[random.Random, list[int]]:
        with self.lock:
            self.bodies[key] += 1
            attempt = self.bodies[key]
        dice = random.Random(f"{self.seed} {key} {attempt}")
        if depth >= 4:
            return dice, []
        below = range(key + 1, self.keys) if self.is_calm else range(self.keys)
        return dice, [dice.choice(below) for _ in range(dice.choice([0, 1, 1, 2])) if below]

    def fate(self, dice: random.Random) -> None:
        if not self.is_calm and dice.random() < 0.3:
            raise Boom

    def options(self, dice: random.Random) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if dice.random() < 0.2:
            # Inside a slot nobody asks for another one; who has one calls nobody, so that none waits for ever, rightly.
            options["retries"] = 1
        if not self.is_calm and dice.random() < 0.15:
            options["timeout_seconds"] = dice.choice([0.002, 0.02])
        return options

    def body(self, key: int, depth: int) -> int:
        dice, below = self.plan(key, depth)
        for other in below:
            way = dice.choice(["sync", "submit sync", "submit async"])
            try:
                if way == "sync":
                    self.sync.with_options(**self.options(dice))(other, depth + 1)
                else:
                    self.start(dice, way, other, depth + 1).result(PATIENCE)
            except Exception:
                if self.is_calm:
                    raise
        self.fate(dice)
        return key

    async def async_body(self, key: int, depth: int) -> int:
        dice, below = self.plan(key, depth)
        for other in below:
            way = dice.choice(["async", "submit sync", "submit async", "gather"])
            try:
                if way == "async":
                    await self.async_.with_options(**self.options(dice))(other, depth + 1)
                elif way == "gather":
                    async with anyio.create_task_group() as group:
                        for one in (other, other):
                            group.start_soon(self.quietly, one, depth + 1)
                else:
                    await self.start(dice, way, other, depth + 1)
            except Exception:
                if self.is_calm:
                    raise
            if dice.random() < 0.3:
                await anyio.lowlevel.checkpoint()
        self.fate(dice)
        return key

    async def quietly(self, key: int, depth: int) -> None:
        try:
            await self.async_(key, depth)
        except Exception:
            if self.is_calm:
                raise

    def start(self, dice: random.Random, way: str, key: int, depth: int) -> TaskFuture[Any]:
        t: Any = self.sync if way == "submit sync" else self.async_
        future = t.with_options(**self.options(dice)).submit(key, depth)
        self.futures.append(future)
        if not self.is_calm and dice.random() < 0.2:
            threading.Timer(dice.choice([0, 0.001, 0.004]), future.cancel, ["at random"]).start()
        return future


async def on_this_loop(storm: Storm, dice: random.Random, count: int) -> None:
    """So many runs side by side, called and submitted; their values are what their keys say, or they fail rightly."""

    async def call(key: int) -> None:
        try:
            assert await storm.async_(key, 0) == key
        except Boom:
            assert not storm.is_calm

    async with anyio.create_task_group() as group:
        for _ in range(count):
            key = dice.randrange(storm.keys)
            if dice.random() < 0.4:
                group.start_soon(call, key)
            else:
                storm.start(dice, dice.choice(["submit sync", "submit async"]), key, 0)


def in_this_thread(storm: Storm, dice: random.Random, count: int) -> None:
    for _ in range(count):
        key = dice.randrange(storm.keys)
        try:
            assert storm.sync(key, 0) == key
        except Boom:
            assert not storm.is_calm


def check(storm: Storm, store: Store) -> None:
    assert store.flights._flights == {}
    assert all(future.run.is_settled for future in storm.futures)
    for future in storm.futures:
        if future.state.is_completed():
            assert future.state.result() == future.run.args[0]
        else:
            assert not storm.is_calm, future.state
    if storm.is_calm:
        assert set(storm.bodies.values()) == {1}, storm.bodies


STORES: dict[str, Callable[[Path, int], Store]] = {
    "memory": lambda folder, seed: MemoryStore(),
    "sqlite": lambda folder, seed: SQLiteStore(folder / f"{seed}.db"),
}


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("is_calm", [True, False], ids=["calm", "wild"])
async def test_storms_on_an_event_loop_beside_threads_and_another_loop(tmp_path, kind, is_calm):
    for seed in range(SEEDS):
        storm = Storm(seed, is_calm=is_calm)
        dice = random.Random(seed)
        store = STORES[kind](tmp_path, seed)
        with anyio.fail_after(PATIENCE):
            async with Runtime(store=store) as runtime:

                async def elsewhere(storm: Storm = storm, store: Store = store, seed: int = seed) -> None:
                    async with Runtime(store=store):
                        await on_this_loop(storm, random.Random(-seed), 8)

                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.to_thread.run_sync, anyio.run, elsewhere)
                    group.start_soon(on_this_loop, storm, dice, 12)
                    for number in range(2):
                        group.start_soon(
                            anyio.to_thread.run_sync, in_this_thread, storm, random.Random(seed + number / 2), 6
                        )
            assert runtime.runs == []
        check(storm, store)


@pytest.mark.parametrize("is_calm", [True, False], ids=["calm", "wild"])
def test_storms_of_plain_threads(is_calm):
    for seed in range(SEEDS):
        storm = Storm(seed, is_calm=is_calm)
        store = MemoryStore()
        runtime = Runtime(store=store)
        token = current_runtime.set(runtime)
        try:
            with ThreadPoolExecutor(6) as pool:
                calls = [
                    pool.submit(copy_context().run, in_this_thread, storm, random.Random(seed * 10 + number), 10)
                    for number in range(6)
                ]
                for call in calls:
                    call.result(PATIENCE)
        finally:
            runtime.close()
            current_runtime.reset(token)
        check(storm, store)
