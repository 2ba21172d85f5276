"""What several test files use, imported by name (`pythonpath` in pyproject.toml): tests cannot import each other."""

import contextlib
import gc
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import anyio

from asynctask import Runtime, State, get_client, task
from asynctask.limit_records import ConcurrencyLimit, of_tag
from asynctask.limit_views import shown
from asynctask.runs import Run
from asynctask.stores.base import Store
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore

StoreMaker = Callable[..., Store]
#: Every kind of store: each makes an empty one in a folder, that keeps at least the given number of ended runs.
STORES: dict[str, StoreMaker] = {
    "memory": lambda folder, size, **options: MemoryStore(size, **options),
    "sqlite": lambda folder, size, **options: SQLiteStore(Path(folder) / "runs.db", **options),
}


def fresh(**options: Any) -> Runtime:
    """A runtime that shares neither history nor limits with any other."""
    return Runtime(store=MemoryStore(), **options)


async def until(holds: Callable[[], Any]) -> None:
    """Return once `holds()`; fail after 20 seconds."""
    with anyio.fail_after(20):
        while not holds():
            await anyio.sleep(0.001)


@contextlib.contextmanager
def running(*command: Any, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """`subprocess.Popen`, which a test that fails inside does not wait for: a watcher has no end of its own."""
    with subprocess.Popen(*command, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def on_terminal(*command: str | Path, columns: int = 130) -> str:
    """What Python with this command writes to a terminal of 40 lines, without colours, lines ended by \\n."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "LINES": "40", "COLUMNS": str(columns)}
    written = b""
    words = [sys.executable, *map(str, command)]
    with running(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child:
        os.close(theirs)
        try:
            while part := os.read(ours, 65536):
                written += part
        except OSError:  # Linux says so when the last writer is gone
            pass
        finally:
            os.close(ours)
        assert child.wait(timeout=20) == 0, written.decode()
    text = re.sub(r"\x1b\[[0-9;]*m", "", written.decode())
    return text.replace("\r\n", "\n").replace("\r", "")


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Inside, what is freed is freed because nothing refers to it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@task
def fail() -> None:
    """Raises an error with a cause and a note."""
    try:
        raise KeyError("inner")
    except KeyError as error:
        outer = ValueError("outer")
        outer.add_note("a note")
        raise outer from error


async def set_limit(tag: str, limit: int) -> None:
    """Create or change the limit of a tag in the current runtime's store."""
    async with get_client() as client:
        await client.create_concurrency_limit(tag, limit)


def most_at_once(stays: Iterable[tuple[int, int]]) -> int:
    """How many of these stays, each from an entry to an exit, overlap at most; one may begin where another ends."""
    changes = sorted(change for entry, exit in stays for change in ((entry, 1), (exit, -1)))
    return max(accumulate((step for _, step in changes), initial=0))


def limit_of(owner: Runtime | Store, tag: str) -> ConcurrencyLimit:
    """The limit of a tag as it is in this process now."""
    return of_tag(shown(owner.limits, f"tag:{tag}", time.time()))


class Inside:
    """Counts who is inside, by tag: now, and at most."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def enter(self, *names: str) -> None:
        with self.lock:
            self.now.update(names)
            for name in names:
                self.most[name] = max(self.most[name], self.now[name])

    def leave(self, *names: str) -> None:
        with self.lock:
            self.now.subtract(names)


class Runs:
    """Notes the runs of generator tasks, by a hook, so that a test can look at them from outside."""

    def __init__(self) -> None:
        self.all: list[Run] = []
        self.ended: list[str] = []

    def options(self) -> dict[str, Any]:
        def started(task: Any, run: Run, state: State) -> None:
            if state.name == "Running":
                self.all.append(run)

        def ended(task: Any, run: Run, state: State) -> None:
            self.ended.append(state.name)

        ends = ("on_completion", "on_failure", "on_cancellation", "on_crashed")
        return {"on_running": started, **dict.fromkeys(ends, ended)}

    @property
    def names(self) -> list[str]:
        return [state.name for state in self.all[-1].states]

    @property
    def state(self) -> State:
        return self.all[-1].state


def failing(times: int, error: Callable[[], BaseException] = lambda: ValueError("no")) -> Callable[[], int]:
    """A function that raises `times` times, then returns how often it was called."""
    calls = 0

    def body() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error()
        return calls

    return body
