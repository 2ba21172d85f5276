"""Worker processes: starting one, the wire to it, ending it.

A worker ends with this process, whatever becomes of it: it has a lifeline, the other end of which is held here, or by
what starts workers for this process and ends with it (`fork_server`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .parcels import Call, together
from .progress import Progress, new_page
from .wires import Message, Reader, pair, send

#: Seconds that a worker gets to start, and to end by itself. Where bodies have started runs, it writes those down as it
#: ends, for which 2 s were too few on a machine with five times more to do than it can.
START_SECONDS, END_SECONDS = 60.0, 10.0


class Process(Protocol):
    """A process of a worker's, however it was started."""

    pid: int

    def kill(self) -> None:
        """At once, also if it is stuck. From any thread; nothing happens if it has ended."""

    def ended(self, timeout: float | None = None) -> str | None:
        """How it ended, for people, asked until it is told; None if it has not, within that many seconds."""

    def begin_in_child(self) -> None:
        """In a forked child, which holds it no longer."""


class Spawned:
    """A new interpreter, which gets copies of some descriptors."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        lifeline, held = os.pipe()  # the worker reads; when nobody holds the other end any more, it ends
        self._held = held
        self._lock = threading.Lock()
        passed = [lifeline, *descriptors]
        try:
            self._process = subprocess.Popen(interpreter("main", *map(str, passed)), pass_fds=passed)
        except BaseException:
            os.close(held)
            raise
        finally:
            os.close(lifeline)
        self.pid = self._process.pid

    def kill(self) -> None:
        with self._lock:
            if self._process.returncode is None:
                self._process.kill()

    def ended(self, timeout: float | None = None) -> str | None:
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        os.close(self._held)
        return ending(code)

    def begin_in_child(self) -> None:
        os.close(self._held)
        self._process.returncode = 0  # it is no child of this process, which is not to be warned of it


class Worker:
    """One worker process, and the wire to it. Used by one thread; `kill` by any.

    Answers to calls that were sent together lie on the wire until a bell is rung, so that this process wakes up once
    for many of them, and none is lost with the worker.
    """

    def __init__(self, setup: Message, process: Callable[[Sequence[int]], Process] = Spawned) -> None:
        ours, theirs = pair()
        bell, ringing = os.pipe()
        os.set_blocking(ringing, False)  # one that nobody hears is as good as a hundred
        page = new_page()
        self.wire = ours
        self.reader = Reader(ours)
        self.progress = Progress(page)
        self._bell = bell
        self._heard = select.poll()
        self._heard.register(bell, select.POLLIN)
        self._anything = select.poll()
        self._anything.register(bell, select.POLLIN)
        self._anything.register(ours, select.POLLIN)
        self.functions: set[int] = set()
        self.calls = 0
        self.is_killed = False
        try:
            self.process = process([theirs.fileno(), ringing, page])
        except BaseException:
            ours.close()
            os.close(bell)
            raise
        finally:
            theirs.close()
            os.close(ringing)
            os.close(page)
        try:
            send(self.wire, setup)
        except OSError:  # it has ended: who waits for its answer will see
            pass

    def put(self, calls: Sequence[Call]) -> None:
        """Send calls of one function, all at once, and the function if it is new."""
        first = calls[0]
        if first.function.number not in self.functions:
            send(self.wire, first.function.message)
            self.functions.add(first.function.number)
        send(self.wire, first.message if len(calls) == 1 else together(calls))

    def wait(self, seconds: float | None) -> None:
        """Wait until the bell is rung, or the worker is gone, at most so long; without end, until anything comes.

        What does not fit into the wire is sent on when somebody reads, and the bell is rung after that.
        """
        if seconds is None:
            self._anything.poll()
            seconds = 0.0
        if self._heard.poll(seconds * 1000):
            os.read(self._bell, 4096)

    def is_gone(self) -> bool:
        """Whether it has ended by itself, or was killed, while it had no call."""
        try:
            return not self.wire.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def kill(self) -> None:
        self.is_killed = True
        self.process.kill()

    def close(self) -> str:
        """End it, if it has not; how it ended, for people."""
        os.close(self._bell)
        self.wire.close()  # it writes down what it has recorded, and ends
        while (how := self.process.ended(END_SECONDS)) is None:
            self.kill()
        self.progress.close()
        return how

    def begin_in_child(self) -> None:
        """In a forked child: what is held of it here would keep it from ending with its own process."""
        os.close(self._bell)
        self.wire.close()
        self.process.begin_in_child()


def interpreter(entry: str, *arguments: str) -> list[str]:
    """The command of a new interpreter that calls a function of `process_worker`."""
    # With our own path from the start: the worker is to find the asynctask that we are, wherever that is, and what
    # lies about in the current folder is not to be taken for a module of the library's. With Ctrl-C the parent deals.
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"from asynctask.process_worker import {entry} as main; main()"
    )
    library: Any = subprocess  # which has no public name for what `multiprocessing` uses as well
    flags: list[str] = library._args_from_interpreter_flags()
    return [sys.executable, *flags, "-c", code, *arguments]


def ending(code: int) -> str:
    """How a process ended, for people, by its exit code as `subprocess` has it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
