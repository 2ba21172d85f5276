"""Bodies on the workers of a Dask cluster: `asynctask[dask]`.

1. A call is a task of Dask's that is never retried by Dask. A worker that is lost fails the calls it was at.
2. That a body begins, what it logs, and which runs it starts, comes home as events, which overtake nothing: they are
   there before its result.
3. Dask cannot end what a worker is at: a body is interrupted there, as one in a thread of ours is.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Coroutine
from typing import Any

from .away import Stop
from .clocks import secret
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
from .loops import here
from .parcels import DONE, LOG, READY, dumps, loads, plain
from .redact import shown, text_of
from .wires import Message, Sealed

#: Bytes from which on arguments go to a worker directly: the scheduler is not made for them, and warns from 10 MB on.
LARGE = 1 << 20
#: Bytes up to which a reply comes home as an event, which is there by then: it would take a millisecond to fetch it.
#: The scheduler keeps the last thousand.
SMALL = 1 << 12
#: Bytes from which on what a body tells comes with its reply: the scheduler keeps events.
LARGE_EVENT = 1 << 16
#: How many calls are remembered that were stopped; and seconds that workers get to hear of it, as the client closes.
MOST_UNHEARD, END_SECONDS = 1_000, 3.0
_numbers = itertools.count(1)


class DaskClient(Client):
    """The client of a Dask cluster, and the cluster itself if it is ours."""

    def __init__(
        self, address: str | None, cluster_kwargs: dict[str, Any], adapt_kwargs: dict[str, Any] | None
    ) -> None:
        self._address = address
        self._cluster_kwargs = cluster_kwargs
        self._adapt_kwargs = adapt_kwargs
        self._distributed: Any = None
        self._cluster: Any = None
        self._client: Any = None
        self._topic = f"asynctask-{secret(8).hex()}"
        self._errands: dict[str, tuple[Errand, Any]] = {}
        self._replies: dict[str, Message] = {}
        self._children: set[Any] = set()
        #: Calls that were stopped before it was heard that they had begun: they may have.
        self._unheard: dict[str, None] = {}
        self._has_kept = False

    async def open(self) -> None:
        self._distributed = needed("distributed")
        if self._address is None:
            # One body in a process: one that kills it takes no other along. And none waits at a worker, to be lost
            # with it, while it may as well wait at the scheduler.
            options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": ":0", **self._cluster_kwargs}
            options["scheduler_kwargs"] = {"allowed_failures": 0, **(options.get("scheduler_kwargs") or {})}
            with needed("dask").config.set({"distributed.scheduler.worker-saturation": 1.0}):
                self._cluster = await self._distributed.LocalCluster(**options, asynchronous=True)
            if self._adapt_kwargs is not None:
                self._cluster.adapt(**self._adapt_kwargs)
            else:
                # Of a worker that was lost, and is not there 15 s later (it starts, or was lost once more), a
                # LocalCluster ends what would start it again, and has a worker less for good.
                noting = self._distributed.deploy.cluster.Cluster._update_worker_status
                self._cluster._update_worker_status = functools.partial(noting, self._cluster)
        where = self._cluster if self._address is None else self._address
        self._client = await self._distributed.Client(where, asynchronous=True, set_as_default=False)
        self._client.subscribe_topic(self._topic, self._hear)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            if self._has_kept and self._cluster is None:
                self._soon(client.set_metadata([self._topic], None))
            if self._unheard and self._cluster is None:  # nobody is going to hear that they have begun
                self._soon(client.run(end_in_worker, list(self._unheard), on_error="ignore"))
            if self._children:
                await asyncio.wait(self._children, timeout=END_SECONDS)
            await client.close()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            await cluster.close()

    async def keep(self, number: int, function: Sealed) -> None:
        """With the scheduler, from which each worker gets it once: were it data of Dask's that calls depend on, they
        would be lost with the worker that has it."""
        self._has_kept = True
        await self._client.set_metadata([self._topic, str(number)], plain(function, no_buffer))

    def drop(self, number: int) -> None:
        if self._client is not None:
            self._soon(self._client.set_metadata([self._topic, str(number)], None))

    def start(self, parcel: Parcel, errand: Errand, options: dict[str, Any]) -> None:
        errand.end = self._soon(self._carry(parcel, errand, options)).cancel

    async def _carry(self, parcel: Parcel, errand: Errand, options: dict[str, Any]) -> None:
        run = errand.call.run
        key = f"{run.spec.name}-{run.id}-{next(_numbers)}"
        client, lost = self._client, self._distributed
        future: Any = None
        try:
            sent = flat(parcel)
            if parcel.size > LARGE:
                [sent] = await client.scatter([sent], hash=False)
            future = client.submit(in_worker, self._topic, key, sent, key=key, pure=False, retries=0, **options)
            self._errands[key] = (errand, future)
            error = await future.exception()
            if error is not None:
                raise error
            message = self._replies.pop(key, None)
            if message is None:
                large, reply = await future
                for data in large:
                    errand.heard(loads(data))
                message = message_in(reply)
            errand.answer(message)
        except asyncio.CancelledError:
            try:
                if future is not None:
                    await self._end(client, key, future, errand)
            finally:
                errand.lose()
            raise
        except lost.CancelledError as error:  # deliberate: told to who waits
            errand.fail(
                WorkerLostError(f"run {run.name!r} was lost by the Dask cluster: {text_of(error)}"), cause=error
            )
        except lost.scheduler.KilledWorker as error:
            errand.begin()  # it most likely has: what it told of that died with the worker
            worker = errand.worker or error.last_worker.address
            said = f"the Dask worker {worker} was lost while it was at run {run.name!r}"
            errand.fail(WorkerLostError(said), cause=error)
        except Exception as error:
            errand.fail(error)
        finally:
            self._errands.pop(key, None)
            self._replies.pop(key, None)
            del errand

    async def _end(self, client: Any, key: str, future: Any, errand: Errand) -> None:
        """Take a call back, and interrupt its body if that is with a worker. `client` may be about to be closed."""
        await client.cancel([future])
        worker = errand.worker  # which may have become known just now
        if worker is not None:
            await self._interrupt(client, key, worker)
        else:
            self._unheard[key] = None
            if len(self._unheard) > MOST_UNHEARD:
                del self._unheard[next(iter(self._unheard))]

    async def _interrupt(self, client: Any, key: str, worker: str) -> None:
        await client.run(end_in_worker, [key], workers=[worker], on_error="ignore")

    def _soon(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        """Not awaited where events are heard: nobody would hear any, while a worker does not answer."""
        child = spawn(here(), work)
        self._children.add(child)
        child.add_done_callback(self._children.discard)
        return child

    def _hear(self, event: tuple[float, Any]) -> None:
        _, (key, kind, data) = event
        errand, future = self._errands.get(key, (None, None))
        if errand is None:
            if kind == READY and self._client is not None:  # it was stopped, and had begun, but that was not known here
                self._unheard.pop(key, None)
                self._soon(self._interrupt(self._client, key, data))
        elif kind == LOG:
            errand.heard(loads(data))
        elif kind == DONE:
            self._replies[key] = Message(*data)
        elif errand.worker is None:
            errand.worker = data
            errand.begin()
        else:  # a cluster of somebody else's has lost its worker, and tries again; that is not for it to decide
            errand.worker = data
            self._soon(self._end(self._client, key, future, errand))


_stops: dict[str, Stop] = {}
#: Calls that were ended before they began here, if they do at all; the last so many.
_ended: dict[str, None] = {}


def in_worker(topic: str, key: str, thing: Any) -> tuple[list[bytes], Any] | None:
    """What a worker does: what came of it, unless that is told as an event, and what is too large to be told so."""
    distributed = needed("distributed")
    worker = distributed.get_worker()
    parcel = unflat(thing)
    large: list[bytes] = []

    def tell(values: list[Any]) -> None:
        data = dumps(values, no_buffer)
        if len(data) > LARGE_EVENT:
            large.append(data)
        else:
            worker.log_event(topic, [key, LOG, data])

    def fetch() -> Sealed:
        keys = [topic, str(parcel.number)]
        return loads(distributed.utils.sync(worker.loop, worker.scheduler.get_metadata, keys=keys))  # type: ignore[no-any-return]

    stop = _stops[key] = Stop()
    if key in _ended:
        stop()
    worker.log_event(topic, [key, READY, worker.address])
    try:
        message = unpack(parcel, tell, fetch, stop)
        if large or message.buffers or len(message.data) > SMALL:
            return large, reply_of(message)
        worker.log_event(topic, [key, DONE, [message.kind, message.data]])
        return None
    finally:
        del _stops[key]


def end_in_worker(keys: list[str]) -> None:
    """End the bodies of some calls, as far as they are here."""
    for key in keys:
        _ended[key] = None  # first: it may begin between this line and the next
        stop = _stops.get(key)
        if stop is not None:
            stop()
    for key in list(_ended)[:-MOST_UNHEARD]:
        del _ended[key]


class DaskTaskRunner(ClusterTaskRunner):
    """Runs bodies, sync and async, on the workers of a Dask cluster.

    `address` is that of a scheduler. Without it, a cluster on this machine is started at first use, and closed with
    the runtime: a `distributed.LocalCluster(**cluster_kwargs)`, whose workers come and go as `adapt_kwargs` (minimum,
    maximum) say. `resources` is what each body needs of what workers have: {"GPU": 1}.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cluster_kwargs: dict[str, Any] | None = None,
        adapt_kwargs: dict[str, Any] | None = None,
        resources: dict[str, float] | None = None,
    ) -> None:
        if address is not None and not isinstance(address, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"DaskTaskRunner: address must be that of a scheduler, as text, not {shown(address)}")
        if address is not None and (cluster_kwargs is not None or adapt_kwargs is not None):
            raise OptionError("DaskTaskRunner: cluster_kwargs and adapt_kwargs are for a cluster of its own")
        check_installed("distributed", "dask")
        self._made_of = (address, cluster_kwargs, adapt_kwargs)
        super().__init__(
            Site("Dask", lambda: DaskClient(address, cluster_kwargs or {}, adapt_kwargs)),
            {} if resources is None else {"resources": resources},
        )

    def with_options(self, *, resources: dict[str, float] | None) -> DaskTaskRunner:
        """A runner on the same cluster, whose bodies need other resources."""
        made = DaskTaskRunner.__new__(DaskTaskRunner)
        made._made_of = self._made_of
        made._site = self._site
        made._each = {} if resources is None else {"resources": resources}
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (*self._made_of, self._each.get("resources"))


def _made_again(address: str | None, cluster: Any, adapt: Any, resources: Any) -> DaskTaskRunner:
    return DaskTaskRunner(address, cluster_kwargs=cluster, adapt_kwargs=adapt, resources=resources)
