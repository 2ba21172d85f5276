"""What runs in a worker process: bodies, one after the other, as they come over the wire.

1. A worker is its parent's alone: it ends when the parent does, for then its lifeline breaks; it ignores Ctrl-C, with
   which the parent deals; and it is killed when a body must end.
2. A body finds the run that it is of: ids, name, tags, logger. What it logs or prints goes home, in order, before its
   result does.
3. Runs that a body starts are recorded in the store that its parent has; see `away`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import threading
import time
from typing import Any

from .away import carry_out, learned, listen
from .late import late
from .parcels import CALL, CALLS, FUNCTION, LOG, READY, dumps, failure, loads
from .progress import Progress
from .runners import begin_in_worker
from .scopes import close_default
from .settings import settings
from .specs import TaskSpec
from .wires import Message, Reader, packed, send, unpacked

#: The bell is rung after so many answers, or seconds, and before one of so many bytes.
MANY, SECONDS, MUCH = 64, 0.005, 1 << 14


def main() -> None:
    """The life of a worker; its arguments are descriptors: the lifeline, the wire, the bell, and the page."""
    descriptors = [int(number) for number in sys.argv[1:]]
    for number in descriptors:
        os.set_inheritable(number, False)  # a program that a body starts would keep the wire open when the worker dies
    _live(*descriptors)


def fork_workers() -> None:
    """The life of a fork server, and then of each worker that it forks; its arguments are the descriptor by which it
    is asked for them, and what to import before."""
    for name in ("cloudpickle", "random", *sys.argv[2:]):
        importlib.import_module(name)
    _live(*late("fork_server").serve(socket.socket(fileno=int(sys.argv[1]))))


def _live(lifeline: int, wire: int, bell: int, page: int) -> None:
    threading.Thread(target=_end_with_parent, args=(lifeline,), name="asynctask-lifeline", daemon=True).start()
    begin_in_worker()
    with socket.socket(fileno=wire) as home:
        worker = _Worker(home, bell, Progress(page))
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
    def __init__(self, wire: socket.socket, bell: int, progress: Progress) -> None:
        self._wire = wire
        self._bell = bell
        self._progress = progress
        #: The thread of a child run may log while the body's does.
        self._sending = threading.Lock()
        self._specs: dict[int, TaskSpec] = {}
        #: Answers since the bell was rung, and when that was.
        self._unheard = 0
        self._rung = 0.0

    def work(self) -> None:
        reader = Reader(self._wire)
        while True:
            message = reader.receive()
            if message.kind in (CALL, CALLS):
                self._unheard, self._rung = 0, time.monotonic()
                carry_out(message, self._specs, self._tell, self._answer, may_begin=self._progress.begin)
            elif message.kind == FUNCTION:
                self._learn(message)
            else:
                self._set_up(unpacked(message, loads))

    def _answer(self, message: Message, left: int) -> None:
        """Send it home, where nobody need know of it before the bell is rung."""
        if message.buffers or len(message.data) > MUCH:
            self._ring()  # it may not fit into the wire unless somebody reads
        self._post(message, left)
        self._unheard += 1
        if not left or self._unheard >= MANY or time.monotonic() - self._rung >= SECONDS:
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full of what nobody has heard yet
            os.write(self._bell, b"!")
        self._unheard, self._rung = 0, time.monotonic()

    def _post(self, message: Message, left: int = 0) -> None:
        with self._sending:
            send(self._wire, message, left)

    def _send(self, kind: int, values: list[Any]) -> None:
        self._post(packed(kind, values, dumps))

    def _tell(self, values: list[Any]) -> None:
        self._send(LOG, values)
        self._ring()

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
