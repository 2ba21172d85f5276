"""What runs in a worker process: bodies, one after the other, as they come over the wire.

1. A worker is its parent's alone: it ends when the parent does, for then its lifeline breaks; it ignores Ctrl-C, with
   which the parent deals; and it is killed when a body must end.
2. A body finds the run that it is of: ids, name, tags, logger. What it logs or prints goes home, in order, before its
   result does.
3. Runs that a body starts are recorded in the store that its parent has, as far as processes can share it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from typing import Any

from .away import carried_out, learned, listen
from .parcels import CALL, FUNCTION, LOG, READY, dumps, failure, loads
from .scopes import close_default
from .settings import settings
from .specs import TaskSpec
from .wires import Message, Reader, packed, send, unpacked


def main() -> None:
    """The life of a worker; its arguments are the numbers of two descriptors: the wire, and the lifeline."""
    wire = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[2]),), name="asynctask-lifeline", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = _Worker(wire)
    try:
        worker.work()
    except (EOFError, OSError):  # the parent wants no more of it
        pass
    finally:
        close_default(timeout=1.0)


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # nobody writes: it returns when the parent is gone
    os._exit(1)


class _Worker:
    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        #: The thread of a child run may log while the body's does.
        self._sending = threading.Lock()
        self._specs: dict[int, TaskSpec] = {}

    def work(self) -> None:
        reader = Reader(self._wire)
        while True:
            message = reader.receive()
            if message.kind == CALL:
                self._post(carried_out(message, self._specs, self._tell))
            elif message.kind == FUNCTION:
                self._learn(message)
            else:
                self._set_up(unpacked(message, loads))

    def _post(self, message: Message) -> None:
        with self._sending:
            send(self._wire, message)

    def _send(self, kind: int, values: list[Any]) -> None:
        self._post(packed(kind, values, dumps))

    def _tell(self, values: list[Any]) -> None:
        self._send(LOG, values)

    def _set_up(self, values: list[Any]) -> None:
        path, main, folder, kept, levels, initializer, initargs = values
        sys.path[:] = path
        os.chdir(folder)
        module = sys.modules["__main__"]
        module.__file__, module.__spec__ = f"{main}.py", None  # what it is called here and there is to be one
        settings.take_over(kept)
        listen(levels, strays=self._tell)
        try:
            if initializer is not None:
                initializer(*initargs)
        except BaseException as error:  # deliberate: told at home, where every call is going to fail by it
            self._post(failure(error, ""))
            raise EOFError from error
        self._send(READY, [])

    def _learn(self, message: Message) -> None:
        number, spec = learned(unpacked(message, loads))
        self._specs[number] = spec
