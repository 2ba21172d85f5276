"""Bodies on the workers of a Ray cluster: `asynctask[ray]`.

1. A call is a task of Ray's that is never retried by Ray. A worker is at one body at a time, and is killed to end it.
2. What a body logs, and which runs it starts, comes home with its result. Meanwhile it is put into Ray's own store, ten
   times a second, where home finds it if the worker is lost.
3. When a body begins is told where a timeout depends on it, for it costs twice the time of a call. Others count as
   running from when Ray has them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Generator
from typing import Any

from .clusters import (
    Client,
    ClusterTaskRunner,
    Errand,
    Parcel,
    Site,
    check_installed,
    flat,
    needed,
    no_buffer,
    unflat,
    unpack,
)
from .errors import OptionError, WorkerLostError
from .parcels import deliver, dumps, loads
from .redact import shown, text_of
from .wires import Sealed

logger = logging.getLogger("asynctask")

#: Seconds until what a body tells is put where it outlives its worker; and where that is: 0.3 ms, in Ray's own store.
SAFE_SECONDS, NAMESPACE = 0.1, "asynctask"
_numbers = itertools.count(1)

#: What the engine decides, not Ray.
_OURS = {"max_retries": 0, "retry_exceptions": False}

#: Ray is one for the process: how many of our clients use it, and whether the first of them has started it.
_lock = threading.Lock()
_users = 0
_is_ours = False


class RayClient(Client):
    """The client of a Ray cluster, and the cluster itself if it is ours."""

    def __init__(self, address: str | None, init_kwargs: dict[str, Any]) -> None:
        self._init = {**init_kwargs} if address is None else {"address": address, **init_kwargs}
        self._ray: Any = None
        #: Made once: Ray sends each to its workers. The second tells when it begins.
        self._functions: list[Any] = []
        #: The same with names and options, by those.
        self._named: dict[tuple[str, bool, str], Any] = {}
        self._is_open = False

    async def open(self) -> None:
        global _users, _is_ours
        ray = self._ray = needed("ray")
        with _lock:
            if not ray.is_initialized():
                ray.init(**self._init)  # seconds, of this loop alone
                _is_ours = True
            _users += 1
            self._is_open = True
        self._functions = [ray.remote(in_worker), ray.remote(in_worker_told)]

    async def close(self) -> None:
        global _users, _is_ours
        with _lock:
            if not self._is_open:
                return
            self._is_open = False
            _users -= 1
            if _is_ours and not _users:
                _is_ours = False
                self._ray.shutdown()

    async def call(self, parcel: Parcel, errand: Errand, options: dict[str, Any]) -> Sealed:
        is_timed = errand.call.on_start is not None
        function = self._function(errand.call.run.spec.name, is_timed, options)
        lost = self._ray.exceptions
        key = f"{parcel.home}/{next(_numbers)}/"
        handle: Any = None
        told: list[list[Any]] = []
        reply: Any = None
        try:
            handle = function.remote(flat(parcel), key)
            if not is_timed:
                errand.begin()
                told, reply = await handle
            else:
                async for one in handle:
                    if (given := await one) is None:
                        errand.begin()
                    else:
                        told, reply = given
        except asyncio.CancelledError:
            if handle is not None:
                self._ray.cancel(handle, force=True)
                hear_what_is_left(key, errand)
            raise
        except (
            lost.WorkerCrashedError, lost.NodeDiedError, lost.LocalRayletDiedError, lost.OutOfMemoryError,
            lost.ObjectLostError, lost.TaskCancelledError,
        ) as error:  # fmt: skip
            name = errand.call.run.name
            hear_what_is_left(key, errand)
            raise WorkerLostError(f"the Ray worker that was at run {name!r} was lost: {text_of(error)}") from error
        for values in told:
            errand.heard(values)
        sealed: Sealed = unflat(reply)
        return sealed

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


def in_worker(parcel: Any, key: str) -> tuple[list[list[Any]], Any]:
    """What a worker does: what was told, and what came of it."""
    mail = Mail(key)
    try:
        reply = flat(unpack(unflat(parcel), mail.tell))
    finally:
        mail.close()
    return mail.told, reply


def in_worker_told(parcel: Any, key: str) -> Generator[Any, None, None]:
    """The same; before it begins, that it does."""
    yield None
    yield in_worker(parcel, key)


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
