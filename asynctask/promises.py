"""Promises judged by tests: on each event loop, within a time, and with words for what was not kept."""

from __future__ import annotations

import importlib.util
import linecache
import logging
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import anyio

from .blocking import drive
from .futures import TaskFuture
from .observers import task_logger
from .scopes import Runtime, current_runtime

#: The event loops that are installed.
BACKENDS = ["asyncio", "trio"] if importlib.util.find_spec("trio") else ["asyncio"]


class Contract(Protocol):
    """Whose promises they are."""

    patience: float


#: Given the contract, and a folder.
Promise: TypeAlias = Callable[[Any, Path], Awaitable[None]]


def kept(promise: Promise) -> Callable[[Contract, str, Path], None]:
    """A test, with pytest's own fixtures, of a promise: on the loop of `backend`, within the contract's `patience`."""

    def judge(self: Contract, backend: str, tmp_path: Path) -> None:
        anyio.run(_in_time, promise, self, tmp_path, backend=backend)

    judge.__name__, judge.__qualname__, judge.__doc__ = promise.__name__, promise.__qualname__, promise.__doc__
    return judge


async def _in_time(promise: Promise, contract: Contract, folder: Path) -> None:
    line = 0
    with anyio.move_on_after(contract.patience) as scope:
        try:
            await promise(contract, folder)
        except BaseException as error:
            trace = error.__traceback__
            line = 0 if trace is None or trace.tb_next is None else trace.tb_next.tb_lineno
            raise
    if scope.cancelled_caught:
        waited = linecache.getline(promise.__code__.co_filename, line).strip()
        raise AssertionError(f"not within {contract.patience:g} s; it waited in line {line} of this file: {waited}")


def expect(seen: object, wanted: object, what: str) -> None:
    """Fail, saying so, unless the two are equal. (`assert` says nothing where pytest has not rewritten it.)"""
    if seen != wanted:
        raise AssertionError(f"{what}: {seen!r}, and not {wanted!r}")


async def error_of(future: TaskFuture[Any]) -> BaseException:
    """What a run raised."""
    try:
        value = await future
    except Exception as error:
        return error
    raise AssertionError(f"run {future.name!r} raised nothing, and gave {value!r}")


def names_of(future: TaskFuture[Any]) -> list[str]:
    """The states that a run was in."""
    return [state.name for state in future.run.states]


@contextmanager
def plainly(runtime: Runtime) -> Generator[None, None, None]:
    """For code that runs no event loop."""
    token = current_runtime.set(None)
    try:
        drive(runtime.__aenter__())
        try:
            yield
        finally:
            runtime.close()
    finally:
        current_runtime.reset(token)


def in_threads(calls: Sequence[Callable[[], Any]], patience: float) -> list[Any]:
    """What they give or raise, each in a thread of its own; None of one that is not done within `patience` seconds."""
    found: list[Any] = [None] * len(calls)

    def carry_out(place: int) -> None:
        try:
            found[place] = calls[place]()
        except BaseException as error:  # deliberate: the test shows it
            found[place] = error

    threads = [threading.Thread(target=carry_out, args=(place,), daemon=True) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience)
    return found


class _Records(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def heard() -> Generator[list[logging.LogRecord], None, None]:
    """What reaches the logger of task runs, from INFO on."""
    handler = _Records(logging.INFO)
    level = task_logger.level
    task_logger.setLevel(logging.INFO)
    task_logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        task_logger.removeHandler(handler)
        task_logger.setLevel(level)
