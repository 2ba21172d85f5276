"""Worker processes: starting one, the wire to it, ending it.

A worker ends with this process, whatever becomes of it: it holds the other end of a lifeline.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from .parcels import Call, together
from .progress import Progress, new_page
from .wires import Message, Reader, pair, send

#: Seconds that a worker gets to end by itself.
END_SECONDS = 2.0


class Worker:
    """One worker process, and the wire to it. Used by one thread; `kill` by any.

    Answers to calls that were sent together lie on the wire until a bell is rung, so that this process wakes up once
    for many of them, and none is lost with the worker.
    """

    def __init__(self, setup: Message) -> None:
        ours, theirs = pair()
        lifeline, held = os.pipe()  # the worker reads; when nobody holds the other end any more, it ends
        self._held = held
        bell, ringing = os.pipe()
        os.set_blocking(ringing, False)  # one that nobody hears is as good as a hundred
        page = new_page()
        self.wire = ours
        self.reader = Reader(ours)
        self.progress = Progress(page)
        self._bell = bell
        self._heard = select.poll()
        self._heard.register(bell, select.POLLIN)
        self.functions: set[int] = set()
        self.calls = 0
        #: How many of the answers that come next, and then, are for calls that were taken back.
        self.idle_answers = 0
        self.later_idle_answers = 0
        self.is_killed = False
        self._lock = threading.Lock()
        # With our own path from the start: the worker is to find the asynctask that we are, wherever that is, and what
        # lies about in the current folder is not to be taken for a module of the library's.
        code = f"import sys; sys.path[:] = {sys.path!r}; from asynctask.process_worker import main; main()"
        library: Any = subprocess  # which has no public name for what `multiprocessing` uses as well
        flags: list[str] = library._args_from_interpreter_flags()
        command = [sys.executable, *flags, "-c", code]
        passed = [theirs.fileno(), lifeline, ringing, page]
        try:
            self.process = subprocess.Popen([*command, *map(str, passed)], pass_fds=passed)
        except BaseException:
            ours.close()
            os.close(held)
            os.close(bell)
            raise
        finally:
            theirs.close()
            for descriptor in passed[1:]:
                os.close(descriptor)
        send(self.wire, setup)

    def put(self, calls: Sequence[Call]) -> None:
        """Send calls of one function, all at once, and the function if it is new."""
        first = calls[0]
        if first.function.number not in self.functions:
            send(self.wire, first.function.message)
            self.functions.add(first.function.number)
        send(self.wire, first.message if len(calls) == 1 else together(calls))

    def wait(self, seconds: float | None) -> None:
        """Wait until the bell is rung, or the worker is gone, at most so long."""
        if self._heard.poll(None if seconds is None else seconds * 1000):
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
        with self._lock:
            if self.process.returncode is None:
                self.process.kill()

    def close(self) -> str:
        """End it, if it has not; how it ended, for people."""
        os.close(self._bell)
        self.wire.close()  # it writes down what it has recorded, and ends
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self.process.wait()
        os.close(self._held)
        self.progress.close()
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
