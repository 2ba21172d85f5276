"""Worker processes: starting one, the wire to it, ending it.

A worker ends with this process, whatever becomes of it: it holds the other end of a lifeline.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from .parcels import Call
from .wires import Message, Reader, in_bytes, pair, send

#: Seconds that a worker gets to end by itself.
END_SECONDS = 2.0


class Worker:
    """One worker process, and the wire to it. Used by one thread; `kill` by any."""

    def __init__(self, setup: Message) -> None:
        ours, theirs = pair()
        lifeline, held = os.pipe()  # the worker reads; when nobody holds the other end any more, it ends
        self._held = held
        self.wire = ours
        self.reader = Reader(ours)
        self.functions: set[int] = set()
        self.calls = 0
        self._lock = threading.Lock()
        # With our own path from the start: the worker is to find the asynctask that we are, wherever that is, and what
        # lies about in the current folder is not to be taken for a module of the library's.
        code = f"import sys; sys.path[:] = {sys.path!r}; from asynctask.process_worker import main; main()"
        library: Any = subprocess  # which has no public name for what `multiprocessing` uses as well
        flags: list[str] = library._args_from_interpreter_flags()
        command = [sys.executable, *flags, "-c", code]
        try:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(lifeline)], pass_fds=[theirs.fileno(), lifeline]
            )
        except BaseException:
            ours.close()
            os.close(held)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        send(self.wire, setup)

    def put(self, calls: Sequence[Call]) -> None:
        """Send calls, all at once, with the functions that it does not know yet."""
        several: list[bytes] = []
        for call in calls:
            if call.number not in self.functions:
                send(self.wire, call.function)
                self.functions.add(call.number)
            if len(calls) == 1:
                send(self.wire, call.message)
            else:
                several.append(in_bytes(call.message))
        if several:
            self.wire.sendall(b"".join(several))

    def is_gone(self) -> bool:
        """Whether it has ended by itself, or was killed, while it had no call."""
        try:
            return not self.wire.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def kill(self) -> None:
        with self._lock:
            if self.process.returncode is None:
                self.process.kill()

    def close(self) -> str:
        """End it, if it has not; how it ended, for people."""
        self.wire.close()  # it writes down what it has recorded, and ends
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self.process.wait()
        os.close(self._held)
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
