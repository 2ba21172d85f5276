"""How a work is called, by runner.

1. `loop`: what is async is awaited; what is sync is called inline, and holds up the loop as it would in any program.
2. `threads` and `processes`: it is submitted, and its future awaited. A plain function is made a task for that, without
   retries. A flow is called, and what it submits goes to the runner.
3. Async bodies run on the loop whatever threads there are, so they have no line for `threads`.
4. A generator is read to its end.
"""

from __future__ import annotations

import inspect
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, cast

import anyio

from ..definitions import Definition, TaskDefinition
from ..options import TaskRunner
from ..runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from ..tasks import make_task
from .plans import Cell
from .scenarios import Scenario, Work

#: How long each worker is held while the others start.
START_SECONDS = 0.05
#: How long first calls in worker processes may take.
FIRST_SECONDS = 5.0

#: What gives one call to be awaited.
Call = Callable[[], Awaitable[Any]]


def runner_of(name: str, workers: int | None) -> TaskRunner | None:
    """The runner that a name means; None for the event loop itself."""
    if name == "threads":
        return ThreadPoolTaskRunner(workers)
    return ProcessPoolTaskRunner(workers) if name == "processes" else None


def is_possible(cell: Cell, scenario: Scenario) -> bool:
    """Whether the cell would show what its name says (rule 3)."""
    return cell.runner != "threads" or any(not work.is_async or work.is_flow for work in scenario.works)


def notes_on(cells: list[Cell], scenario: Scenario) -> list[str]:
    """What people must know to read the lines of these cells."""
    notes: list[str] = []
    runners = {cell.runner for cell in cells}
    several = any(getattr(cell.load, "clients", 2) > 1 for cell in cells if cell.runner == "loop")
    for work in scenario.works:
        if work.is_async and not work.is_flow and "threads" in runners:
            notes.append(f"{work.name} is async: its body runs on the event loop, not on threads")
        if not work.is_async and not work.is_flow and "loop" in runners and several:
            notes.append(f"{work.name} is sync: on the runner loop it is called inline, one call at a time")
        if work.is_flow and runners & {"threads", "processes"}:
            notes.append(f"{work.name} is a flow: it is called on the event loop; what it submits goes to the runner")
    return notes


def call_of(work: Work, given: tuple[Any, ...], runner: TaskRunner | None) -> Call:
    """What calls `work` once; `given` are the arguments that come from the setup."""
    args = (*given, *work.args)
    if work.each is None:
        return _call(work, args, runner)
    calls = itertools.cycle([_call(work, (*args, value), runner) for value in work.each])
    return lambda: next(calls)()


def _call(work: Work, args: tuple[Any, ...], runner: TaskRunner | None) -> Call:
    kwargs = work.kwargs
    if runner is not None and not work.is_flow:
        return partial(_as_task(work, runner).submit, *args, **kwargs)
    call: Any = work.call
    if runner is not None:
        call = call.with_options(task_runner=runner)
    prepared: Any = partial(call, *args, **kwargs)
    if work.is_generator:
        return partial(_read_async if work.is_async else _read, prepared)
    if work.is_async:
        return cast("Call", prepared)
    return partial(_inline if isinstance(call, Definition) else _inline_or_awaited, prepared)


def _as_task(work: Work, runner: TaskRunner) -> TaskDefinition[Any, Any]:
    call: Any = work.call
    if isinstance(call, Definition):
        task: TaskDefinition[Any, Any] = cast("Any", call).with_options(task_runner=runner)
        return task
    return make_task(call, {"name": work.name, "retries": 0, "task_runner": runner})


async def _inline(call: Callable[[], Any]) -> None:
    call()


async def _inline_or_awaited(call: Callable[[], Any]) -> None:
    value = call()
    if inspect.isawaitable(value):  # `lambda: session.get(url)`; or a future
        await value


async def _read(call: Callable[[], Iterator[Any]]) -> None:
    for _ in call():
        pass


async def _read_async(call: Callable[[], AsyncIterator[Any]]) -> None:
    async for _ in call():
        pass


async def start_workers(runner: TaskRunner | None, workers: int | None) -> None:
    """Have all worker processes started, which takes longer than a warm-up may."""
    if isinstance(runner, ProcessPoolTaskRunner):
        sleep = make_task(time.sleep, {"name": "start", "retries": 0, "task_runner": runner})
        await sleep.map([START_SECONDS] * (workers or os.cpu_count() or 1))


async def call_first(calls: Iterable[Call], runner: TaskRunner | None, workers: int | None) -> None:
    """Call each work in each worker process, which only then imports what it needs; for a while, and whatever comes."""
    if isinstance(runner, ProcessPoolTaskRunner):
        with anyio.move_on_after(FIRST_SECONDS):
            async with anyio.create_task_group() as group:
                for call in calls:
                    for _ in range(workers or os.cpu_count() or 1):
                        group.start_soon(_ignoring, call)


async def _ignoring(call: Call) -> None:
    try:
        await call()
    except Exception:  # deliberate: those that count come later
        pass


async def nothing() -> None:
    """The call that does nothing, which shows what measuring itself takes."""
