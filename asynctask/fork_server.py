"""A small process that forks workers: it has imported what they need, so that one starts in 4 ms, not 130.

1. It is a new interpreter with one thread, which it makes sure of before each fork: what other threads have locked
   stays locked in a forked process. It imports nothing of the program's: that may start threads (numpy does), open
   connections that all workers would share, or seed random numbers that all of them would draw.
2. It belongs to one pool, which starts it with its first worker and ends it after its last one.
3. Between it and its parent there is a leash for each worker. By it the parent is told the worker's pid, and how it
   ended; the server kills the worker when the parent lets go. So only the worker's own parent, which has not reaped it
   yet, ever sends it a signal: a pid is never one that meanwhile is another process's.
4. It ends with its parent, whatever becomes of that, and kills the workers that are left. If it is killed itself, the
   system kills them (Linux), or they end by their lifeline.
5. What a program may change as it runs is sent with each request: environment and standard streams, beside what any
   worker is told. User, limits, umask and priority stay as they were when the server was started.
"""

from __future__ import annotations

import functools
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from .errors import WorkerLostError
from .redact import text_of
from .wires import Message, Reader, send
from .workers import END_SECONDS, START_SECONDS, ending, interpreter

#: Kinds of messages on a leash: to the server, and from it.
ASKED, STARTED, REFUSED, ENDED = 1, 11, 12, 13
#: What bodies need that few programs have imported; the server does so if its parent has.
WANTED = ("asyncio", "anyio._backends._asyncio", "anyio._backends._trio", "asynctask.stores.sqlite")
STREAMS = (0, 1, 2)
#: Descriptors that come with one request, at most.
MOST = 16


class Request(msgspec.Struct, array_like=True):
    """What comes with the descriptors of a worker: leash, what it is to have, and standard streams."""

    environment: dict[bytes, bytes]
    #: Which of the standard streams there are, in the order of their descriptors.
    streams: list[int]


class Forked:
    """A worker process that a fork server has started."""

    def __init__(self, leash: socket.socket) -> None:
        self._leash = leash
        self._reader = Reader(leash)
        self._lock = threading.Lock()
        leash.settimeout(START_SECONDS)
        send(leash, Message(ASKED, msgspec.msgpack.encode(Request(dict(os.environb), inherited()))))
        kind, data, *_ = self._reader.receive()
        if kind == REFUSED:
            raise WorkerLostError(f"a worker process could not start: {data.decode()}")
        self.pid = int(data)

    def kill(self) -> None:
        with self._lock:
            try:
                self._leash.shutdown(socket.SHUT_WR)
            except OSError:  # it has ended, and the server with it perhaps
                pass

    def ended(self, timeout: float | None = None) -> str | None:
        """How it ended, for people; None if it has not, within that many seconds."""
        self._leash.settimeout(timeout)
        try:
            how = ending(int(self._reader.receive().data))
        except TimeoutError:
            return None
        except (EOFError, OSError):
            how = "was lost together with its fork server"
        with self._lock:
            self._leash.close()
        return how

    def begin_in_child(self) -> None:
        self._leash.close()


class ForkServer:
    """Starts workers, from any thread. The server is started when it is needed, and again if somebody killed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_closed = False

    def start(self, descriptors: Sequence[int]) -> Forked:
        """A worker, which gets copies of some descriptors. Raises `WorkerLostError` if there can be none."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._pass([theirs.fileno(), *descriptors, *inherited()])
            return Forked(ours)
        except BaseException as error:
            ours.close()
            if not isinstance(error, (EOFError, OSError)):
                raise
            raise WorkerLostError(f"a worker process could not start: its fork server {self._how(error)}") from error

    def _pass(self, descriptors: list[int]) -> None:
        with self._lock:
            if self._is_closed:
                raise WorkerLostError("a worker process could not start: its pool is closed")
            if self._process is None or self._process.poll() is not None:
                self._begin()
            assert self._control is not None
            socket.send_fds(self._control, [b"+"], descriptors)

    def _begin(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair()
        command = interpreter("fork_workers", str(theirs.fileno()), *(name for name in WANTED if name in sys.modules))
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def _how(self, error: BaseException) -> str:
        process = self._process
        try:
            return f"could not be started: {text_of(error)}" if process is None else ending(process.wait(1.0))
        except subprocess.TimeoutExpired:
            return "did not answer"

    def begin_in_child(self) -> None:
        """In a forked child, which holds it no longer."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.returncode = 0  # it is no child of this process, which is not to be warned of it

    def close(self) -> None:
        """End the server. Workers that are left are killed."""
        with self._lock:
            self._is_closed = True
            process, control = self._process, self._control
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def inherited() -> list[int]:
    """The standard streams that a new process would inherit: where one is closed, any file may have its number."""
    found: list[int] = []
    for number in STREAMS:
        try:
            if os.get_inheritable(number):
                found.append(number)
        except OSError:
            pass
    return found


def serve(control: socket.socket) -> list[int]:
    """Fork a worker for each request. Returns in workers alone, with the lifeline and the descriptors of each."""
    while (number := os.open(os.devnull, os.O_RDWR)) in STREAMS:  # lest a descriptor that comes be taken for one
        pass
    os.close(number)
    gc.collect()
    gc.freeze()  # what all workers have in common is not to be copied because a collection has looked at it
    return _Server(control).serve()


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        #: By the pid of the worker.
        self._leashes: dict[int, socket.socket] = {}
        #: Workers read; nobody writes, and when the server is gone there is nobody left who could.
        self._lifeline, self._held = os.pipe()
        self._die_with = _death_signal()
        self._woken, self._wakes = socket.socketpair()
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        self._before = signal.signal(signal.SIGCHLD, _wake)
        # Programs that wait for their signals in one thread block them in all.
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        self._poll = select.poll()
        for end in (self._control, self._woken):
            self._poll.register(end, select.POLLIN)

    def serve(self) -> list[int]:
        while True:
            ready = {number for number, _ in self._poll.poll()}
            if self._woken.fileno() in ready:
                self._woken.recv(4096)
                self._reap()
            for pid, leash in self._leashes.items():
                if leash.fileno() in ready:
                    self._poll.unregister(leash)
                    os.kill(pid, signal.SIGKILL)
            if self._control.fileno() in ready and (descriptors := self._forked()):
                return [self._lifeline, *descriptors]

    def _reap(self) -> None:
        while self._leashes:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            leash = self._leashes.pop(pid, None)
            if leash is None:  # of something that the interpreter's own start has started
                continue
            try:
                self._poll.unregister(leash)
            except KeyError:  # it was killed
                pass
            _tell(leash, ENDED, str(os.waitstatus_to_exitcode(status)))
            leash.close()

    def _forked(self) -> list[int]:
        """What the next request asks for: in the worker the descriptors that it is to have, in the server none."""
        data, descriptors = self._received()
        if not data:
            self._end()
        if not descriptors:  # the system gives no more: the parent sees its leash torn
            return []
        for number in descriptors:  # a program that a body starts would keep the wire open when the worker dies
            os.set_inheritable(number, False)
        leash, others = socket.socket(fileno=descriptors[0]), descriptors[1:]
        try:
            request = msgspec.msgpack.decode(Reader(leash).receive().data, type=Request)
            if refusal := _threads():
                raise OSError(refusal)
            server = os.getpid()
            pid = os.fork()
        except (EOFError, OSError) as error:
            _tell(leash, REFUSED, str(error))
            leash.close()
        else:
            if not pid:
                leash.close()
                count = len(others) - len(request.streams)
                self._become_worker(request, others[count:], server)
                return others[:count]
            self._leashes[pid] = leash
            self._poll.register(leash, select.POLLIN)
            _tell(leash, STARTED, str(pid))
        for number in others:
            os.close(number)
        return []

    def _received(self) -> tuple[bytes, list[int]]:
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._control, 1, MOST)
        except OSError:
            return b"", []
        if flags & socket.MSG_CTRUNC:
            for number in descriptors:
                os.close(number)
            descriptors = []
        return data, descriptors

    def _become_worker(self, request: Request, streams: list[int], server: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, self._before)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for end in (self._control, self._woken, self._wakes, *self._leashes.values()):
            end.close()
        os.close(self._held)
        if self._die_with is not None:
            self._die_with(int(signal.SIGKILL))
        if os.getppid() != server:
            os._exit(1)
        for number, stream in zip(streams, request.streams, strict=True):
            os.dup2(number, stream)
            os.close(number)
        if request.environment != dict(os.environb):
            os.environb.clear()
            os.environb.update(request.environment)
            time.tzset()

    def _end(self) -> NoReturn:
        """The parent is gone, or wants no more."""
        for pid in self._leashes:
            os.kill(pid, signal.SIGKILL)
        for pid in self._leashes:
            os.waitpid(pid, 0)
        os._exit(0)


def _tell(leash: socket.socket, kind: int, text: str) -> None:
    try:
        send(leash, Message(kind, text.encode()))
    except OSError:  # the parent is gone, as will be noticed
        pass


def _wake(*_: Any) -> None:
    """That there is a handler is enough for the system's call to end."""


def _threads() -> str:
    """Why nothing is forked here, if there is more than one thread; also such as Python does not know of."""
    try:
        count = len(os.listdir("/proc/self/task"))
    except OSError:
        count = threading.active_count()
    if count == 1:
        return ""
    return (
        f"its fork server has {count} threads, so that what is forked may find a lock that nobody gives back; "
        f"each interpreter starts them here (a sitecustomize or .pth file, a profiler): use start_method='spawn'"
    )


def _death_signal() -> Callable[[int], object] | None:
    """A function that names the signal which a process gets when its parent dies, where there is such a thing."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes  # 5 ms, in the server alone
    except ImportError:
        return None
    prctl: Any = ctypes.CDLL(None).prctl
    return functools.partial(prctl, 1)  # PR_SET_PDEATHSIG
