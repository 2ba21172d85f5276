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
import os
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextvars import Context
from typing import Any, Protocol, cast

from .away import Stop, carried_out, failed, learned, listen
from .bodies import begin
from .clocks import secret
from .errors import OptionError, WorkerLostError
from .loop_threads import LoopThread
from .loops import EventLoop, Work
from .observers import flow_logger, task_logger
from .parcels import Call, answer_in, call_of, deliver, dumps, loads, plain
from .redact import text_of
from .runs import Run
from .scopes import close_default
from .settings import settings
from .specs import TaskSpec
from .stores.relay import Tell
from .waiting import Services
from .wires import Sealed, packed, unpacked

#: Seconds that a cluster gets to end.
END_SECONDS = 10.0
#: How many functions a worker remembers; each parcel brings its own along.
MOST_KNOWN = 1_000
#: The kind of message with what a worker must know of a home.
HOME = 21
_secret = secret(8).hex()


def home() -> str:
    """Tells this process from any other."""
    return f"{os.getpid()}-{_secret}"


class Parcel:
    """A call on its way to a worker that may know nothing of us, nor of the function."""

    __slots__ = ("call", "function", "home", "number", "setup")

    def __init__(self, home: str, setup: Sealed, number: int, function: Sealed, call: Sealed) -> None:
        self.home, self.setup, self.number, self.function, self.call = home, setup, number, function, call

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel, (self.home, self.setup, self.number, self.function, self.call)

    @property
    def size(self) -> int:
        """Bytes of the arguments, about."""
        return self.call.size


def flat(thing: Parcel | Sealed) -> Any:
    """The same, as bytes if it has no buffers: a tenth of what it takes a carrier to pickle a thing of ours."""
    sealed = (thing,) if isinstance(thing, Sealed) else (thing.function, thing.call)
    return thing if any(one.message.buffers for one in sealed) else plain(thing, no_buffer)


def unflat(thing: Any) -> Any:
    """What `flat` was given."""
    return loads(thing) if thing.__class__ is bytes else thing


def no_buffer(_: Any) -> bool:
    """In the pickle, and not beside it."""
    return True


class Errand(Future[Any]):
    """The future of a call, whose body begins and ends on a cluster."""

    def __init__(self, call: Call, end: Callable[[Errand], None]) -> None:
        super().__init__()
        self.call = call
        #: The child of the client's loop that sees to it; and, for the client, where the body is.
        self.child: asyncio.Task[Any] | None = None
        self.worker: str | None = None
        self._end = end
        self._is_stopped = False
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
        """Its body has logged something, or has started a run."""
        if not self._is_stopped:
            deliver(self.call, values)

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
        self.cancel()
        self._end(self)


class Client(Protocol):
    """What knows a cluster. All of it is called on one asyncio loop, which nobody else uses."""

    async def open(self) -> None: ...

    async def call(self, parcel: Parcel, errand: Errand, options: dict[str, Any]) -> Sealed:
        """What the parcel gives; tells the errand when it begins. Being cancelled, it ends the body.

        Raises `WorkerLostError`.
        """
        ...

    async def close(self) -> None: ...


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
        self._errands: set[Errand] = set()
        self._setup: Sealed | None = None

    def start(self, run: Run, store: str, on_start: Callable[[], None] | None, options: dict[str, Any]) -> Errand:
        errand = Errand(call_of(Call, run, store, on_start), self._end)
        if not self._loop.call_soon(functools.partial(self._begin, errand, options)):
            raise RuntimeError(f"this {self.name} cluster is closed")
        return errand

    def _begin(self, errand: Errand, options: dict[str, Any]) -> None:
        self._errands.add(errand)
        errand.child = spawn(self._loop, self._carry(errand, options))

    def _end(self, errand: Errand) -> None:
        def cancel() -> None:
            if errand.child is not None:
                errand.child.cancel()

        self._loop.call_soon(cancel)

    async def _carry(self, errand: Errand, options: dict[str, Any]) -> None:
        outcome: Any = None
        error: BaseException | None = None
        try:
            await self._opened()
            call = errand.call
            function = call.function
            sealed = Sealed(function.message), Sealed(call.message)
            parcel = Parcel(home(), self._setting(), function.number, *sealed)
            reply = await self._client.call(parcel, errand, options)
            outcome, _, error = answer_in(reply.message)
        except asyncio.CancelledError as cancelled:
            error = WorkerLostError(
                f"the {self.name} cluster was closed, and run {errand.call.run.name!r} was under way"
            )
            raise cancelled
        except Exception as raised:
            error = raised
        finally:
            self._errands.discard(errand)
            if errand.call.guests is not None:
                await errand.call.guests.over()
            if errand.set_running_or_notify_cancel():
                if error is None:
                    errand.set_result(outcome)
                else:
                    errand.set_exception(error)
            del outcome, error, errand

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
                children = [one.child for one in self._errands if one.child is not None]
                for child in children:
                    if not child.cancelling():  # a second time would end the ending of its body
                        child.cancel()
                await asyncio.gather(*children, return_exceptions=True)
                if self._opening is not None:
                    await asyncio.gather(self._opening, return_exceptions=True)
                    await self._client.close()
            finally:
                done.set()

        kept: list[Any] = []  # asyncio does not keep it
        if self._loop.call_soon(lambda: kept.append(spawn(self._loop, ending()))):
            done.wait(timeout)
        self._thread.stop(timeout)


class Door:
    """Bodies on a cluster, with the options of one runner; see `waiting.Elsewhere`."""

    def __init__(self, cluster: Cluster, options: dict[str, Any]) -> None:
        self._cluster = cluster
        self._options = options

    def start(self, run: Run, store: str, on_start: Callable[[], None] | None) -> Future[Any]:
        return self._cluster.start(run, store, on_start, self._options)

    def stop(self, future: Future[Any]) -> None:
        assert isinstance(future, Errand)
        future.stop()


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


_known: dict[tuple[str, int], TaskSpec] = {}
#: By home: its host, and what it has said of itself.
_setups: dict[str, tuple[str, bytes]] = {}
_learning = threading.Lock()


def unpack(parcel: Parcel, tell: Tell, stop: Stop | None = None) -> Sealed:
    """In a worker: what the body in the parcel gives. Several at once, also of several homes."""
    is_home = parcel.home == home()
    try:
        with _learning:
            setup = parcel.setup.message.data
            if not is_home and _setups.get(parcel.home, ("", b""))[1] != setup:  # new, or its settings are
                _setups[parcel.home] = (_set_up(parcel.setup), setup)
            key = (parcel.home, parcel.number)
            if key not in _known:
                _, _known[key] = learned(unpacked(parcel.function.message, loads))
                if len(_known) > MOST_KNOWN:
                    del _known[next(iter(_known))]
            specs = {parcel.number: _known[key]}
            is_far = not is_home and _setups[parcel.home][0] != socket.gethostname()
    except BaseException as error:  # deliberate: raised at home
        return Sealed(failed(error))
    told = None if is_home else tell
    return Sealed(carried_out(parcel.call.message, specs, told, stop, home=parcel.home, is_far=is_far))


def _set_up(setup: Sealed) -> str:
    """Be in what matters as a home is, so far as others can be served as well; its host."""
    host: str
    host, paths, values, levels = unpacked(setup.message, loads)
    sys.path.extend(path for path in paths if path not in sys.path and os.path.exists(path))
    settings.take_over(values)
    listen(levels)
    return host
