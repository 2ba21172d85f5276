"""Bodies on the workers of a Ray cluster: `asynctask[ray]`.

1. A call is a task of Ray's that is never retried by Ray. A worker is at one body at a time, and is killed to end it.
   A body that is short as a rule is first let end, and interrupted: a kill that comes late meets the next call there.
2. What a body logs, and which runs it starts, comes home with its result. Meanwhile it is put into Ray's own store, ten
   times a second, where home finds it if the worker is lost.
3. A result alone is heard in a thread of Ray's, and no other has to wake for it. Calls are taken back in that thread:
   Ray 2.60 ends the whole program if one is cancelled as its answer arrives.
4. When a body begins is told where a timeout depends on it, for it costs twice the time of a call. Others count as
   running from when Ray has them.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

import anyio

from .cluster_worker import unpack
from .clusters import (
    Client,
    ClusterTaskRunner,
    Errand,
    Parcel,
    Site,
    check_installed,
    flat,
    message_in,
    needed,
    no_buffer,
    reply_of,
    spawn,
    unflat,
)
from .errors import OptionError, WorkerLostError
from .loops import EventLoop, here
from .parcels import YIELDED, deliver, dumps, loads
from .redact import shown, text_of
from .wires import Sealed

logger = logging.getLogger("asynctask")

#: Seconds until what a body tells is put where it outlives its worker; and where that is: 0.3 ms, in Ray's own store.
SAFE_SECONDS, NAMESPACE = 0.1, "asynctask"
_numbers = itertools.count(1)

#: Seconds from call to answer that make a function short; and that such a body gets to end.
SHORT_SECONDS, END_SECONDS = 0.05, 1.0
#: How many short functions are remembered.
MOST_SHORT = 1_000
#: What the engine decides, not Ray.
_OURS = {"max_retries": 0, "retry_exceptions": False}

#: Ray is one for the process: how many of our clients use it, and whether the first of them has started it.
_lock = threading.Lock()
_users = 0
_is_ours = False


class _Sent:
    """A call that Ray has: its handle there, and under which key is kept what its body tells."""

    __slots__ = ("began", "handle", "is_killed", "key")

    def __init__(self, handle: Any, key: str) -> None:
        self.handle, self.key, self.is_killed = handle, key, False
        self.began = time.monotonic()


class RayClient(Client):
    """The client of a Ray cluster, and the cluster itself if it is ours."""

    def __init__(self, address: str | None, init_kwargs: dict[str, Any]) -> None:
        self._init = {**init_kwargs} if address is None else {"address": address, **init_kwargs}
        self._ray: Any = None
        #: Made once: Ray sends each to its workers. The second tells when it begins.
        self._functions: list[Any] = []
        #: The same with names and options, by those.
        self._named: dict[tuple[str, bool, str], Any] = {}
        #: By their numbers, large functions: as long as a reference is held, Ray keeps what it leads to.
        self._kept: dict[int, Any] = {}
        self._children: set[Any] = set()
        #: Calls under way; what rings when one is not any more, for who closes; and the numbers of short functions.
        self._errands: dict[Errand, _Sent] = {}
        self._ended: asyncio.Event | None = None
        self._short: dict[int, None] = {}
        #: Is there at once: who asks for it is called in the thread in which Ray hears answers.
        self._bell: Any = None
        self._loop: EventLoop
        self._is_open = False

    async def open(self) -> None:
        global _users, _is_ours
        self._loop = here()
        ray = self._ray = needed("ray")
        with _lock:
            if not ray.is_initialized():
                ray.init(**self._init)  # seconds, of this loop alone
                _is_ours = True
            _users += 1
            self._is_open = True
        self._functions = [ray.remote(in_worker), ray.remote(in_worker_told)]
        self._bell = ray.put(None)

    async def close(self) -> None:
        global _users, _is_ours
        with anyio.move_on_after(END_SECONDS):  # a kill has no effect before an interrupt has reached its worker
            self._ended = asyncio.Event()
            while not all(sent.is_killed for sent in list(self._errands.values())):
                await self._ended.wait()
                self._ended.clear()
        for child in self._children:
            child.cancel()
        await asyncio.gather(*self._children, return_exceptions=True)
        for errand, sent in list(self._errands.items()):
            self._cancel(errand, force=True)
            hear_what_is_left(sent.key, errand)
        self._kept.clear()
        self._bell = None
        with _lock:
            if not self._is_open:
                return
            self._is_open = False
            _users -= 1
            if _is_ours and not _users:
                _is_ours = False
                self._ray.shutdown()

    async def keep(self, number: int, function: Sealed) -> None:
        self._kept[number] = self._ray.put(function)

    def drop(self, number: int) -> None:
        del self._kept[number]

    def start(self, parcel: Parcel, errand: Errand, options: dict[str, Any]) -> None:
        is_timed = errand.call.on_start is not None
        function = self._function(errand.call.run.spec.name, is_timed, options)
        # In a list: a reference that is an argument itself would be read for each call.
        kept = [] if parcel.function is not None else [[self._kept[parcel.number]]]
        key = f"{parcel.home}/{next(_numbers)}/"
        handle = function.remote(flat(parcel), key, *kept)
        self._errands[errand] = _Sent(handle, key)
        errand.end = functools.partial(self._end, errand)
        if is_timed:
            child = spawn(self._loop, self._listen(handle, errand))
            self._children.add(child)
            child.add_done_callback(self._children.discard)
        else:
            errand.begin()
            handle.future().add_done_callback(functools.partial(self._hear, errand))

    async def _listen(self, handle: Any, errand: Errand) -> None:
        """Hear when the body begins, and what becomes of it."""
        try:
            async for one in handle:
                if (told := await one) is None:
                    errand.begin()
                else:
                    self._settle(errand, told)
        except Exception as error:
            self._fail(errand, error)
        finally:
            del errand

    def _hear(self, errand: Errand, future: Future[Any]) -> None:
        """In a thread of Ray's, in which nothing of the user's should run: no handler of logs."""
        error = future.exception()
        if error is not None:
            self._loop.call_soon(functools.partial(self._fail, errand, error))
        elif future.result().__class__ is tuple:
            self._loop.call_soon(functools.partial(self._settle, errand, future.result()))
        else:
            self._settle(errand, future.result())

    def _settle(self, errand: Errand, given: Any) -> None:
        sent = self._over(errand)
        if sent is not None and time.monotonic() - sent.began < SHORT_SECONDS:
            self._short[errand.call.function.number] = None
            if len(self._short) > MOST_SHORT:
                self._short.pop(next(iter(self._short)), None)
        told, reply = given if given.__class__ is tuple else ((), given)
        try:
            for values in told:
                deliver(errand.call, values)
            errand.answer(message_in(reply))
        except Exception as error:
            errand.fail(error)
        finally:
            del errand

    def _fail(self, errand: Errand, error: BaseException) -> None:
        sent = self._over(errand)
        lost = self._ray.exceptions
        if not isinstance(error, (
            lost.WorkerCrashedError, lost.NodeDiedError, lost.LocalRayletDiedError, lost.OutOfMemoryError,
            lost.ObjectLostError, lost.TaskCancelledError,
        )):  # fmt: skip
            errand.fail(error)
            return
        if sent is not None:
            hear_what_is_left(sent.key, errand)
        said = f"the Ray worker that was at run {errand.call.run.name!r} was lost: {text_of(error)}"
        errand.fail(WorkerLostError(said), cause=error)

    def _over(self, errand: Errand) -> _Sent | None:
        sent = self._errands.pop(errand, None)
        if self._ended is not None:
            self._loop.call_soon(self._ended.set)
        return sent

    def _end(self, errand: Errand) -> None:
        """Take a call back that waits, and end its body where that is under way."""
        is_short = errand.call.function.number in self._short
        self._cancel(errand, force=not is_short)
        if is_short:
            asyncio.get_running_loop().call_later(END_SECONDS, functools.partial(self._cancel, errand, force=True))

    def _cancel(self, errand: Errand, *, force: bool) -> None:
        sent = self._errands.get(errand)
        if sent is None:
            return
        sent.is_killed = force
        handle, bell = sent.handle, self._bell

        def cancel(_: object) -> None:
            nonlocal bell
            bell = None  # until here: without a reference to what is asked for, Ray ends the program
            self._ray.cancel(handle, force=force)

        bell._on_completed(cancel)  # a future's callback would be called here and now, if that is done by then

    def _function(self, name: str, is_timed: bool, options: dict[str, Any]) -> Any:
        key = (name, is_timed, repr(options))
        found = self._named.get(key)
        if found is None:
            wanted = {**options, **_OURS, "name": name}
            if is_timed:
                wanted["num_returns"] = "streaming"
            found = self._named[key] = self._functions[is_timed].options(**wanted)
        return found


class Mail:
    """What a body tells, in its worker."""

    def __init__(self, key: str) -> None:
        self.told: list[list[Any]] = []
        self._key = key
        #: How much of it, in how many pieces, is in Ray's store.
        self._safe = self._pieces = 0
        self._timer: threading.Timer | None = None
        self._is_over = False
        self._lock = threading.Lock()

    def tell(self, values: list[Any]) -> None:
        if values[0] == YIELDED:  # home hears of it no sooner than of the result, which has it too
            return
        with self._lock:
            self.told.append(values)
            if self._timer is None and not self._is_over:
                self._timer = threading.Timer(SAFE_SECONDS, self._put)
                self._timer.daemon = True
                self._timer.start()

    def _put(self) -> None:
        with self._lock:
            self._timer = None
            if self._is_over:
                return
            piece = dumps(self.told[self._safe :], no_buffer)
            self._safe = len(self.told)
            self._pieces += 1
            ask_store("put", f"{self._key}{self._pieces:09}", piece)

    def close(self) -> None:
        """The body is over: what it has told goes home."""
        with self._lock:
            self._is_over = True
            if self._timer is not None:
                self._timer.cancel()
            if self._pieces:
                ask_store("del", self._key, del_by_prefix=True)


def hear_what_is_left(key: str, errand: Errand) -> None:
    """What a body had told that is lost, or was stopped."""
    for name in sorted(ask_store("list", key) or ()):
        piece = ask_store("get", name)
        for values in loads(piece) if piece else ():
            deliver(errand.call, values)
        ask_store("del", name)


def ask_store(what: str, key: Any, *values: Any, **options: Any) -> Any:
    """Of what all processes of a Ray cluster may put something into; None if it is not there any more."""
    try:
        ask = getattr(needed("ray.experimental.internal_kv"), f"_internal_kv_{what}")
        return ask(key, *values, namespace=NAMESPACE, **options)
    except Exception as error:  # deliberate: what else becomes of the body counts more
        logger.debug("What bodies on Ray tell cannot be kept safe, or found again: %s", text_of(error))
        return None


def in_worker(parcel: Any, key: str, kept: Any = None) -> Any:
    """What a worker does: what came of it, and what was told before that, if anything was."""
    mail = Mail(key)
    try:
        reply = reply_of(unpack(unflat(parcel), mail.tell, lambda: needed("ray").get(kept[0])))
    finally:
        mail.close()
    return (mail.told, reply) if mail.told else reply


def in_worker_told(parcel: Any, key: str, kept: Any = None) -> Generator[Any, None, None]:
    """The same; before it begins, that it does."""
    yield None
    yield in_worker(parcel, key, kept)


class RayTaskRunner(ClusterTaskRunner):
    """Runs bodies, sync and async, on the workers of a Ray cluster.

    `address` is that of a cluster ("auto": the one that runs on this machine). Without it, one is started here at first
    use, unless the process has one, and is ended with the runtime. `init_kwargs` are for `ray.init`, `remote_options`
    what each body needs: {"num_cpus": 2, "num_gpus": 1}.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        init_kwargs: dict[str, Any] | None = None,
        remote_options: dict[str, Any] | None = None,
    ) -> None:
        if address is not None and not isinstance(address, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"RayTaskRunner: address must be that of a cluster, as text, not {shown(address)}")
        check_installed("ray", "ray")
        self._made_of = (address, init_kwargs)
        super().__init__(Site("Ray", lambda: RayClient(address, init_kwargs or {})), _checked(remote_options))

    def with_options(self, *, remote_options: dict[str, Any] | None) -> RayTaskRunner:
        """A runner on the same cluster, whose bodies need something else."""
        made = RayTaskRunner.__new__(RayTaskRunner)
        made._made_of = self._made_of
        made._site = self._site
        made._each = _checked(remote_options)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (*self._made_of, self._each)


def _made_again(address: str | None, init_kwargs: Any, remote_options: Any) -> RayTaskRunner:
    return RayTaskRunner(address, init_kwargs=init_kwargs, remote_options=remote_options)


def _checked(remote_options: dict[str, Any] | None) -> dict[str, Any]:
    for name in (*_OURS, "num_returns"):
        if remote_options and name in remote_options:
            raise OptionError(f"RayTaskRunner: {name!r} is not Ray's to decide here; say `retries` to the task")
    return {**(remote_options or {})}
