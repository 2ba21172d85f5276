"""Streams with inputs, bodies and readers that do anything at any time, from seeds: what must hold, holds.

1. A result comes at most once, and if the stream is read to its end, exactly once; ordered, in the order of the input.
2. Of input that was pulled and not yet taken there is never more than the stream may have in flight.
3. When the reader is gone, every run is over, none is live, the input is closed, and no child is left (see conftest).

Set ASYNCTASK_LONG_FUZZ=1 for more seeds.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asynctask import task
from asynctask.errors import TaskTimeoutError
from asynctask.states import State
from testkit import fresh, until

SEEDS = range(2_000 if os.environ.get("ASYNCTASK_LONG_FUZZ") else 60)


class Odd(Exception):
    """What bodies, inputs and readers of these tests raise."""


class Load:
    """One stream and who reads it, as a seed has it."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.size = dice.choice([1, 1, 2, 3, 8])
        self.count = dice.choice([0, 1, 5, 30])
        self.ordered = dice.random() < 0.5
        self.is_async = dice.random() < 0.5
        self.fails = dice.random() < 0.5
        self.breaks_at = dice.randrange(1, 60) if dice.random() < 0.2 else None
        self.leaves_after = dice.randrange(30) if dice.random() < 0.4 else None
        self.cancelled_after = dice.randrange(60) if dice.random() < 0.3 else None
        self.pauses = dice.choice([0.0, 0.0, 0.3])
        self.pulled = 0
        self.is_open = False
        self.taken: list[int] = []
        self.ended: list[State] = []
        self.begun = 0
        told = [lambda task, run, state: self.ended.append(state)]
        ends = ("on_completion", "on_failure", "on_cancellation", "on_crashed")
        self.task = task(timeout_seconds=0.05 if dice.random() < 0.2 else None, **dict.fromkeys(ends, told))(self.body)

    async def body(self, number: int) -> int:
        self.begun += 1
        steps = random.Random(number * 7919 + self.size)  # the same whatever came before it
        for _ in range(steps.choice([0, 0, 1, 2, 5])):
            await anyio.lowlevel.checkpoint()
        what = steps.random()
        if what < 0.1:
            with anyio.move_on_after(0):
                await anyio.sleep(1)
        elif what < 0.2 and self.task.timeout_seconds is not None:
            await anyio.sleep_forever()
        elif what < 0.25:
            with contextlib.suppress(Odd):
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.lowlevel.checkpoint)
        if self.fails and steps.random() < 0.1:
            raise Odd(number)
        return number

    def plain(self) -> Generator[int, None, None]:
        self.is_open = True
        try:
            for number in range(self.count):
                if number == self.breaks_at:
                    raise Odd("the input")
                self.pulled += 1
                yield number
        finally:
            self.is_open = False

    async def asynchronous(self) -> AsyncIterator[int]:
        with contextlib.closing(self.plain()) as source:
            for number in source:
                if self.dice.random() < 0.3:
                    await anyio.lowlevel.checkpoint()
                yield number

    async def read(self) -> bool:
        """Whether it came to its end."""
        source: Any = self.asynchronous() if self.is_async else self.plain()
        options: Any = {"concurrency": self.size, "ordered": self.ordered, "return_exceptions": True}
        got = 0
        async for one in self.task.stream(source, **options):  # in no variable, which a traceback could keep alive
            assert self.pulled - got <= self.size
            got += 1
            assert isinstance(one, (int, Odd, TaskTimeoutError)), one
            if isinstance(one, int):
                self.taken.append(one)
            if got == self.leaves_after:
                return False
            if self.dice.random() < self.pauses:
                await anyio.lowlevel.checkpoint()
        assert got == self.pulled == self.count
        return True


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_a_stream_meets_nothing_is_lost_doubled_or_left(seed: int) -> None:
    load = Load(seed)
    is_whole = False
    async with fresh() as runtime:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:

                async def use() -> None:
                    nonlocal is_whole
                    with contextlib.suppress(Odd):
                        is_whole = await load.read()

                group.start_soon(use)
                if load.cancelled_after is not None:
                    for _ in range(load.cancelled_after):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
            await until(lambda: not runtime.runs and not load.is_open)
        assert not runtime.root.children
    assert len(load.ended) >= load.begun
    assert all(state.is_final() for state in load.ended)
    assert len(set(load.taken)) == len(load.taken)
    if load.ordered:
        assert load.taken == sorted(load.taken)
    if is_whole:
        assert len(load.ended) == load.count
        assert not any(state.is_cancelled() or state.is_crashed() for state in load.ended)
