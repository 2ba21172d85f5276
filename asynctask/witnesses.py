"""Bodies that show a test what becomes of them, wherever they are: each holds a connection to it as long as it lasts.

A connection is closed with its body, whether that returns, is interrupted, or dies with its process: so that a body is
there no more is seen, and not guessed from a time. What a test sends over it lets a body go.
"""

from __future__ import annotations

import contextvars
import os
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, NamedTuple, Self

import anyio
import anyio.lowlevel

from .bodies import uninterrupted
from .logging import get_run_logger
from .runtime import flow_run, task_run
from .tasks import task

#: Where the witness and its bodies are.
HOST = "127.0.0.1"
#: Seconds after which a body looks up, so that it can be interrupted; and after which a test looks again.
LOOK_SECONDS, POLL_SECONDS = 0.005, 0.002


class Witness:
    """Knows how many of the bodies that were told its `port` are there."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0), backlog=1024)
        self._listener.setblocking(False)
        self._lines: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        #: How many there have ever been.
        self.seen = 0

    @property
    def there(self) -> int:
        """How many there are now."""
        while True:
            try:
                line, _ = self._listener.accept()
            except BlockingIOError:
                break
            line.setblocking(False)
            self._lines.append(line)
            self.seen += 1
        self._lines = [line for line in self._lines if _is_open(line)]
        return len(self._lines)

    async def until(self, count: int) -> None:
        """Return once so many are there."""
        await until(lambda: self.there == count)

    def let_go(self, most: int | None = None) -> None:
        """Let those end that are there, or so many of them."""
        for line in self._lines[:most]:
            line.send(b".")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for line in (self._listener, *self._lines):
            line.close()


def _is_open(line: socket.socket) -> bool:
    try:
        if line.recv(1):
            return True
    except BlockingIOError:
        return True
    except OSError:  # its process was killed
        pass
    line.close()
    return False


async def until(holds: Callable[[], bool]) -> None:
    """Return once `holds()`."""
    while not holds():  # noqa: ASYNC110 - sockets and other processes set no event
        await anyio.sleep(POLL_SECONDS)


def _attended(port: int, wait: Callable[[socket.socket], str]) -> str:
    """Be there while `wait` waits."""
    line: socket.socket | None = None
    try:
        try:
            with uninterrupted():
                line = socket.create_connection((HOST, port))
            return wait(line)
        finally:
            if line is not None:
                line.close()
    finally:
        if line is not None:  # an interrupt may have landed in the `finally` above; there is no second one
            line.close()


@task
def attend(port: int, most: float) -> str:
    """Be there until it is let go, at most so many seconds; in Python, so that it can be interrupted."""
    end = time.monotonic() + most

    def wait(line: socket.socket) -> str:
        line.settimeout(LOOK_SECONDS)
        while time.monotonic() < end:
            try:
                return "let go" if line.recv(1) else "left alone"
            except TimeoutError:
                continue
        raise TimeoutError(f"nobody let this body go for {most:g} s")

    return _attended(port, wait)


@task
def attend_stuck(port: int, most: float) -> str:
    """The same in a call that cannot be interrupted."""

    def wait(line: socket.socket) -> str:
        line.settimeout(most)
        return "let go" if line.recv(1) else "left alone"

    return _attended(port, wait)


@task
async def attend_async(port: int, most: float) -> str:
    """The same on an event loop, and it can only be cancelled."""
    with socket.create_connection((HOST, port)):
        await anyio.sleep(most)
    raise TimeoutError(f"nobody cancelled this body for {most:g} s")


@task
def give(value: Any) -> Any:
    return value


@task
def dawdle(number: int) -> int:
    """Takes long, now and then."""
    if number % 40 == 20:
        time.sleep(0.03)
    return number


@task
def join(first: str, *others: str, end: str = "", **named: str) -> str:
    return " ".join([first, *others, *(f"{name}={value}" for name, value in named.items())]) + end


class Place(NamedTuple):
    """Where a body is."""

    process: int
    thread: int


@task
def place() -> Place:
    return Place(os.getpid(), threading.get_ident())


@task
async def place_async() -> Place:
    await anyio.lowlevel.checkpoint()
    return Place(os.getpid(), threading.get_ident())


@task
def count(most: int) -> Generator[int, None, None]:
    yield from range(most)


@task
async def count_async(most: int) -> AsyncGenerator[int, None]:
    for number in range(most):
        yield number


@task
def fail(inner: str, outer: str) -> None:
    try:
        raise KeyError(inner)
    except KeyError as error:
        failure = ValueError(outer)
        failure.add_note("a note")
        raise failure from error


@task
def fail_until(attempt: int) -> int:
    """Fails before that attempt."""
    if task_run.run_count < attempt:
        raise ConnectionError(f"attempt {task_run.run_count}")
    return task_run.run_count


@task
def exit_with(code: int) -> None:
    raise SystemExit(code)


@task
def die_until(attempt: int, home: int) -> int:
    """Kills its process, which must not be `home`, before that attempt."""
    if os.getpid() == home:
        raise RuntimeError("this body was to be in a process of its own")
    if task_run.run_count < attempt:
        os._exit(9)
    return task_run.run_count


@task
def look_around() -> list[Any]:
    """What a body may ask of its run."""
    return [
        task_run.id, task_run.name, task_run.tags, task_run.run_count, task_run.task_name, task_run.parameters,
        task_run.flow_run_id, flow_run.id, flow_run.name, flow_run.flow_name,
    ]  # fmt: skip


#: A context variable of the user's.
colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@task
def paint(new: str) -> str:
    """Sets `colour`; what it was before."""
    before = colour.get()
    colour.set(new)
    return before


@task(log_prints=True)
def talk(lines: int) -> None:
    for number in range(lines):
        print("printed", number)
        get_run_logger().warning("logged %s", number)


@task
def spread(depth: int, width: int, seconds: float) -> int:
    """Waits for as many of its like as `width`, at each depth; how many there were at the bottom."""
    if depth == 0:
        return 1
    futures = [spread.submit(depth - 1, width, seconds) for _ in range(width)]
    return sum(future.result(timeout=seconds) for future in futures)


@task
async def spread_async(depth: int, width: int) -> int:
    if depth == 0:
        return 1
    return sum(await spread_async.map([depth - 1] * width, width))


@task
def start_another(value: int, is_submitted: bool, seconds: float) -> int:
    called = started(value)
    return called + (started.submit(value).result(timeout=seconds) if is_submitted else 0)


@task
def started(value: int) -> int:
    return value + 1
