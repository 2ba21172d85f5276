"""Runs that bodies start in workers which do not share the store: told by `stores/relay` there, recorded here.

1. A run under way there has a guest among the runs under way here; what was told of it is kept, whatever comes.
2. With its body ends what it has started: a guest that is left then was lost with the worker, or given up, and is
   Crashed; or Cancelled, as that was.
3. Results that were kept there are in the store here before the body's own run goes on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from .options import Options
from .redact import text_of
from .runs import NO_KWARGS, Extras, Run, Trace
from .specs import TaskSpec
from .states import CANCELLED, CRASHED, State, StateType
from .stores.base import Store, StoredResult
from .stores.urls import SCHEMES

logger = logging.getLogger("asynctask")


def is_shared(url: str, *, is_far: bool) -> bool:
    """Whether a worker can open the store of its home; `is_far`: from another machine, where files are not the same."""
    scheme = url.partition(":")[0]
    return scheme in SCHEMES and not (is_far and scheme == "sqlite")


class Guests:
    """The runs that the body of one call has started in a worker, as far as was told; used by one thread at a time."""

    __slots__ = ("_body", "_results", "_store", "_under_way")

    def __init__(self, body: Run) -> None:
        self._body = body
        self._store: Store | None = None if body.inside is None else body.inside.runtime.store
        self._under_way: dict[int, Run] = {}
        self._results: list[StoredResult] = []

    def heard(self, rows: Sequence[Any], results: Sequence[Any]) -> None:
        """What `stores.relay.Outbox` tells."""
        journal = self._body.journal
        for row in rows:
            trace, is_over = trace_of(row)
            if is_over:  # among the ended ones before it leaves the others, so that who looks finds it
                journal.keep(trace)
                journal.live.pop(trace.number, None)
                self._under_way.pop(trace.number, None)
            else:
                self._under_way[trace.number] = journal.live[trace.number] = guest_of(trace, self._body)
        self._results += [StoredResult(**dict(zip(_FIELDS, values, strict=True))) for values in results]

    async def over(self) -> None:
        """The body is over, in whatever way."""
        body = self._body
        for guest in list(self._under_way.values()):
            if guest.is_final:
                pass
            elif body.cancel_reason is not None:
                guest.enter(CANCELLED, "Cancelled", body.cancel_reason)
            else:
                guest.enter(CRASHED, "Crashed", f"lost, or given up, with the body of run {body.name!r}")
            guest.settle()
        self._under_way.clear()
        results, self._results = self._results, []
        if not results or self._store is None:
            return
        try:
            await self._store.write_results(results)
        except Exception as error:  # deliberate: what the body gave counts all the same
            logger.error("Results of runs in a worker cannot be kept: %s", text_of(error))


_FIELDS = [field.name for field in msgspec.structs.fields(StoredResult)]


def trace_of(row: Sequence[Any]) -> tuple[Trace, bool]:
    """The run that `stores.relay.row_of` told of, and whether it is over."""
    (number, key, name, is_flow, states, tags, parent, flow, given_name, upstream, texts, result, failure, waiting,
     is_over) = row  # fmt: skip
    extras = None
    if texts or result or failure or waiting:
        extras = Extras(texts or {}, result, failure, waiting)
    history = tuple(State(StateType(type), *rest) for type, *rest in states)
    trace = Trace(
        spec_of(key, name, is_flow), number, history, frozenset(tags), parent, flow, given_name, upstream, (),
        NO_KWARGS, extras,
    )  # fmt: skip
    return trace, is_over


def guest_of(trace: Trace, body: Run) -> Run:
    """For a run that is under way in a worker: made anew whenever more is heard of it."""
    return Run(
        trace.spec, trace.number, trace.states, trace.tags, trace.parent_number, trace.flow_number, trace.given_name,
        trace.upstream, (), NO_KWARGS, trace.extras, journal=body.journal, parent=body, blocker=trace.waiting_on,
    )  # fmt: skip


@functools.lru_cache(1_000)
def spec_of(key: str, name: str, is_flow: bool) -> TaskSpec:
    """What a store asks of the task of a run elsewhere."""
    return TaskSpec(_elsewhere, _elsewhere, Options(name=name), key, False, False, is_flow)


def _elsewhere() -> None:
    """Stands for functions that were called in a worker."""
