"""What the runners of clusters have in common: a client on an asyncio loop of its own, and parcels for its workers.

1. The cluster is started, or met, at the first call, on a loop in a thread: no loop of the user's waits for it.
2. A parcel holds all that a worker needs: it may be new, and it may have served somebody else.
3. Whether an attempt is followed by another, the engine decides: what a cluster lost is lost for it.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib
import importlib.util
import marshal
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextvars import Context
from typing import Any, Protocol, cast

from .bodies import begin
from .clocks import secret
from .errors import OptionError, WorkerLostError
from .loop_threads import LoopThread
from .loops import EventLoop, Waker, Work
from .observers import flow_logger, task_logger
from .parcels import FUNCTION, Call, answer_in, call_of, deliver, dumps
from .redact import text_of
from .runs import Run
from .scopes import close_default
from .settings import settings
from .waiting import Services
from .wires import Message, Sealed, packed

#: Seconds that a cluster gets to end.
END_SECONDS = 10.0
#: Bytes up to which each parcel brings its function along: fetching it would cost a worker a message there and back.
LARGE_FUNCTION = 1 << 14
#: The kind of message with what a worker must know of a home.
HOME = 21
_secret = secret(8).hex()


def home() -> str:
    """Tells this process from any other."""
    return f"{os.getpid()}-{_secret}"


class Parcel:
    """A call on its way to a worker that may know nothing of us, nor of the function."""

    __slots__ = ("call", "function", "home", "number", "setup")

    def __init__(self, home: str, setup: Sealed, number: int, function: Sealed | None, call: Sealed) -> None:
        #: Without its function, if that is large: the worker fetches it, unless it knows it already.
        self.home, self.setup, self.number, self.function, self.call = home, setup, number, function, call

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel, (self.home, self.setup, self.number, self.function, self.call)

    @property
    def size(self) -> int:
        """Bytes of the arguments, about."""
        return self.call.size


def flat(parcel: Parcel) -> Any:
    """The same, as bytes if it has no buffers: a tenth of what it takes a carrier to pickle a thing of ours."""
    function, call = parcel.function, parcel.call.message
    if call.buffers or (function is not None and function.message.buffers):
        return parcel
    known = None if function is None else function.message.data
    return marshal.dumps((parcel.home, parcel.setup.message.data, parcel.number, known, call.kind, call.data))


def unflat(thing: Any) -> Parcel:
    """What `flat` was given."""
    if thing.__class__ is not bytes:
        return thing  # type: ignore[no-any-return]
    home, setup, number, function, kind, call = marshal.loads(thing)
    known = None if function is None else Sealed(Message(FUNCTION, function))
    return Parcel(home, Sealed(Message(HOME, setup)), number, known, Sealed(Message(kind, call)))


def no_buffer(_: Any) -> bool:
    """In the pickle, and not beside it."""
    return True


def reply_of(message: Message) -> Any:
    """What a body gave, for a carrier: as bytes if it has no buffers."""
    return Sealed(message) if message.buffers else bytes((message.kind,)) + message.data


def message_in(reply: Any) -> Message:
    """What `reply_of` was given."""
    return Message(reply[0], reply[1:]) if reply.__class__ is bytes else reply.message


class Errand(Future[Any]):
    """The future of a call, whose body begins and ends on a cluster; the client settles it, also if it was stopped."""

    def __init__(self, call: Call, cluster: Cluster) -> None:
        super().__init__()
        self.call = call
        self._cluster = cluster
        #: What takes the call back from where it has got to; called once, on the client's loop.
        self.end: Callable[[], object] = _nothing
        #: For the client: where the body is.
        self.worker: str | None = None
        self._is_stopped = self._is_settled = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Its body begins."""
        with self._lock:
            if self._is_stopped:
                return
            begin(self.call.run)
        if self.call.on_start is not None:
            self.call.on_start()

    def heard(self, values: list[Any]) -> None:
        """Its body has logged something, or has started a run. On the client's loop."""
        if not self._is_stopped:
            deliver(self.call, values)

    def answer(self, reply: Message) -> None:
        """This is what its body gave. From any thread, like the next two."""
        value, _, error = answer_in(reply)
        self._settle(value, error)
        del value, error

    def fail(self, error: BaseException, *, cause: BaseException | None = None) -> None:
        """It gives nothing."""
        if cause is not None:
            error.__cause__ = cause
        self._settle(None, error)
        del self, error, cause  # a frame on the way of an error must not hold who has it

    def lose(self) -> None:
        """It was taken back; if nobody has asked for that, by the end of its cluster."""
        name = self._cluster.name
        self.fail(WorkerLostError(f"the {name} cluster was closed, and run {self.call.run.name!r} was under way"))

    def _settle(self, value: Any, error: BaseException | None) -> None:
        with self._lock:
            if self._is_settled:
                return
            self._is_settled = True
        self.end = _nothing
        if self.call.guests is None:
            self._finish(value, error)
        else:
            self._cluster.carry_out(self._see_off(value, error))
        del self, value, error

    async def _see_off(self, value: Any, error: BaseException | None) -> None:
        assert self.call.guests is not None
        try:
            await self.call.guests.over()
        finally:
            self._finish(value, error)
            del self, value, error

    def _finish(self, value: Any, error: BaseException | None) -> None:
        self._cluster.forget(self)
        if self.set_running_or_notify_cancel():
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        del self, value, error

    def wake_when_done(self, waker: Waker) -> None:
        self.add_done_callback(lambda _: waker.wake())

    def take_back(self) -> None:
        end, self.end = self.end, _nothing
        end()

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
        self.cancel()
        self._cluster.end(self)


def _nothing() -> None:
    """Nobody is at it yet, or any more."""


class Client(Protocol):
    """What knows a cluster. All of it is called on one asyncio loop, which nobody else uses."""

    async def open(self) -> None: ...

    async def keep(self, number: int, function: Sealed) -> None:
        """Put a large function where each worker that does not know it can fetch it."""
        ...

    def drop(self, number: int) -> None:
        """That function is not called any more."""
        ...

    def start(self, parcel: Parcel, errand: Errand, options: dict[str, Any]) -> None:
        """Have a worker unpack the parcel; tell the errand when it begins, what it gives, and what ends it."""
        ...

    async def close(self) -> None:
        """End all that was taken back, too, as soon as that is possible."""
        ...


def spawn(loop: EventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
    """Start it as a child, on this very loop; whoever starts it keeps it."""
    child: asyncio.Task[Any] = loop.start(cast("Work", work), Context())
    return child


class Cluster:
    """Calls on one cluster, from any thread; see the rules above."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self._client = client
        self._thread = LoopThread(f"asynctask-{name}", "asyncio")
        self._loop = self._thread.loop
        self._opening: asyncio.Task[Any] | None = None
        self._is_open = False
        self._errands: set[Errand] = set()
        self._children: set[asyncio.Task[Any]] = set()
        self._setup: Sealed | None = None
        #: By their numbers: the large functions that the client keeps, or is about to; and those that it does keep.
        self._keepings: dict[int, asyncio.Task[Any]] = {}
        self._kept: set[int] = set()

    def start(self, run: Run, store: str, on_start: Callable[[], None] | None, options: dict[str, Any]) -> Errand:
        errand = Errand(call_of(Call, run, store, on_start), self)
        if on_start is not None:
            errand.add_done_callback(lambda _: on_start())
        if not self._loop.call_soon(functools.partial(self._begin, errand, options)):
            raise RuntimeError(f"this {self.name} cluster is closed")
        return errand

    def end(self, errand: Errand) -> None:
        """Nobody waits for it any more."""
        self._loop.call_soon(errand.take_back)

    def forget(self, errand: Errand) -> None:
        self._errands.discard(errand)

    def carry_out(self, work: Coroutine[Any, Any, None]) -> None:
        """In a child of its own, from any thread."""

        def begin() -> None:
            child = spawn(self._loop, work)
            self._children.add(child)
            child.add_done_callback(self._children.discard)

        if self._loop.is_here():
            begin()
        elif not self._loop.call_soon(begin):
            work.close()

    def _begin(self, errand: Errand, options: dict[str, Any]) -> None:
        self._errands.add(errand)
        function = Sealed(errand.call.function.message)
        if self._is_open and (function.size <= LARGE_FUNCTION or errand.call.function.number in self._kept):
            self._send(errand, function, options)
        else:
            errand.end = spawn(self._loop, self._prepare(errand, function, options)).cancel

    async def _prepare(self, errand: Errand, function: Sealed, options: dict[str, Any]) -> None:
        try:
            await self._opened()
            if function.size > LARGE_FUNCTION:
                await self._keep(errand.call, function)
        except asyncio.CancelledError:
            errand.lose()
            raise
        except Exception as error:
            errand.fail(error)
        else:
            self._send(errand, function, options)
        finally:
            del errand

    def _send(self, errand: Errand, function: Sealed, options: dict[str, Any]) -> None:
        call = errand.call
        sent = None if function.size > LARGE_FUNCTION else function
        parcel = Parcel(home(), self._setting(), call.function.number, sent, Sealed(call.message))
        try:
            self._client.start(parcel, errand, options)
        except Exception as error:
            errand.fail(error)
        finally:
            del errand, call, parcel

    async def _keep(self, call: Call, function: Sealed) -> None:
        """Return once the client keeps the function: the first call sees to that. It is dropped with its task."""
        number = call.function.number
        keeping = self._keepings.get(number)
        if keeping is None:
            keeping = self._keepings[number] = spawn(self._loop, self._client.keep(number, function))
            dropping = functools.partial(self._drop, number)
            weakref.finalize(call.run.spec, self._loop.call_soon, dropping).atexit = False
        try:
            await asyncio.shield(keeping)
        except Exception:
            if self._keepings.get(number) is keeping:
                del self._keepings[number]
            raise
        if number in self._keepings:
            self._kept.add(number)

    def _drop(self, number: int) -> None:
        self._kept.discard(number)
        keeping = self._keepings.pop(number, None)
        if keeping is not None and self._is_open:
            keeping.add_done_callback(lambda _: self._client.drop(number))

    async def _opened(self) -> None:
        """Return once the cluster is there; the first call sees to that."""
        if self._opening is None:
            self._opening = spawn(self._loop, self._open())
        opening: asyncio.Task[Any] = self._opening
        try:
            await asyncio.shield(opening)  # the next call needs it as well, whatever becomes of this one
        except Exception as error:
            if self._opening is opening:
                self._opening = None
            raise WorkerLostError(
                f"the {self.name} cluster did not start, or cannot be reached: {text_of(error)}"
            ) from error

    async def _open(self) -> None:
        await self._client.open()
        # Dask and Ray end what they have started with the process. What is registered last is called first: runs end
        # before that.
        atexit.unregister(close_default)
        atexit.register(close_default)
        self._is_open = True

    def _setting(self) -> Sealed:
        if self._setup is None:
            levels = [task_logger.getEffectiveLevel(), flow_logger.getEffectiveLevel()]
            paths = [os.path.abspath(path) for path in sys.path]
            self._setup = Sealed(packed(HOME, [socket.gethostname(), paths, settings.values, levels], dumps))
        return self._setup

    def close(self, timeout: float) -> None:
        """End what is under way, and the cluster, if it is ours; wait for that, at most `timeout` seconds."""
        done = threading.Event()

        async def ending() -> None:
            try:
                self._is_open = False
                for errand in list(self._errands):
                    errand.take_back()
                await asyncio.gather(*self._keepings.values(), return_exceptions=True)
                if self._opening is not None:
                    await asyncio.gather(self._opening, return_exceptions=True)
                    await self._client.close()
                for errand in list(self._errands):
                    errand.lose()
                await asyncio.gather(*self._children, return_exceptions=True)
            finally:
                done.set()

        kept: list[Any] = []  # asyncio does not keep it
        if self._loop.call_soon(lambda: kept.append(spawn(self._loop, ending()))):
            done.wait(timeout)
        self._thread.stop(timeout)


class Door:
    """Bodies on a cluster, with the options of one runner; see `waiting.Elsewhere`."""

    blocker = "a free worker"

    def __init__(self, cluster: Cluster, options: dict[str, Any]) -> None:
        self._cluster = cluster
        self._options = options

    def start(self, run: Run, store: str, on_start: Callable[[], None] | None) -> Errand:
        return self._cluster.start(run, store, on_start, self._options)


class Site:
    """The cluster of one or several runners, made at first use."""

    def __init__(self, name: str, client: Callable[[], Client]) -> None:
        self._name = name
        self._client = client
        self._cluster: Cluster | None = None
        self._lock = threading.Lock()

    def cluster(self) -> Cluster:
        with self._lock:
            if self._cluster is None:
                self._cluster = Cluster(self._name, self._client())
            return self._cluster

    def close(self, timeout: float) -> None:
        with self._lock:
            cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close(timeout)


class ClusterTaskRunner:
    """What the runners of clusters have in common; not to be used by itself."""

    def __init__(self, site: Site, each: dict[str, Any]) -> None:
        self._site = site
        #: Options of each call.
        self._each = each
        Services.may_be_elsewhere = True

    def executor(self) -> Executor:
        """Only for bodies that run here: there are none."""
        raise OptionError(f"a {type(self).__name__} runs bodies on a cluster: it has no executor for this process")

    def elsewhere(self) -> Any:
        """The way to the cluster, which is started or met by the first call."""
        return Door(self._site.cluster(), self._each)

    def close(self, timeout: float = END_SECONDS) -> None:
        """End the cluster if this runner, or one made from it, has started it; leave it if it was there before.

        It can be used again.
        """
        self._site.close(timeout)


def check_installed(module: str, extra: str) -> None:
    """Raise `OptionError` where a package that is not part of us is not there; without importing it."""
    if importlib.util.find_spec(module) is None:
        raise OptionError(f"{module!r} is not installed: pip install 'asynctask[{extra}]'")


def needed(module: str) -> Any:
    """A package that is not part of us, and takes a second to import."""
    return importlib.import_module(module)
