"""The memory store: live runs, a bounded history of ended ones, and limits; all gone with the process.

Ended runs are kept as traces, without arguments and values, `settings.history_size` of them, so that a server may
run for a month.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from uuid import UUID

from ..errors import ObjectNotFound
from ..limits import ConcurrencyLimit, Limits
from ..runs import Journal, TaskRun, Trace
from ..settings import settings
from ..states import State
from .base import RunFilter


class MemoryStore:
    """Runs and limits of one process; see `Store` for what the methods promise."""

    def __init__(self, history_size: int | None = None) -> None:
        self.limits = Limits()
        size = settings.values.history_size if history_size is None else history_size
        self._history: deque[Trace] = deque(maxlen=size)
        self._journals: weakref.WeakSet[Journal] = weakref.WeakSet()
        #: Appending to a bounded deque is atomic and costs 50 ns.
        self.keep = self._history.append

    def empty_copy(self) -> MemoryStore:
        """A store of the same size with the same limits, and nobody in them."""
        copy = MemoryStore(self._history.maxlen)
        copy.limits = self.limits.empty_copy()
        return copy

    def attach(self, journal: Journal) -> None:
        self._journals.add(journal)

    async def flush(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def read_run(self, run_id: UUID) -> TaskRun:
        return self._find(run_id).record()

    async def read_runs(self, which: RunFilter, limit: int) -> list[TaskRun]:
        found = (trace.record() for trace in self._newest_first() if which.holds(trace))
        return list(islice(found, limit))

    async def read_run_states(self, run_id: UUID) -> Sequence[State]:
        return list(self._find(run_id).states)

    async def write_limit(self, tag: str, limit: int) -> None:
        self.limits.set(tag, limit)

    async def delete_limit(self, tag: str) -> None:
        self.limits.delete(tag)

    async def reset_limit(self, tag: str) -> None:
        self.limits.reset(tag)

    async def read_limit(self, tag: str) -> ConcurrencyLimit:
        return self.limits.read(tag)

    async def read_limits(self) -> list[ConcurrencyLimit]:
        return self.limits.read_all()

    def _find(self, run_id: UUID) -> Trace:
        number = run_id.int
        for trace in self._traces():
            if trace.number == number:
                return trace
        raise ObjectNotFound(
            f"there is no run {run_id} in the memory store, which keeps the last {self._history.maxlen:,} ended runs"
        )

    def _newest_first(self) -> list[Trace]:
        # By number, because a run that ends during the look is among both the live and the ended ones.
        traces = {trace.number: trace for trace in self._traces()}
        return [traces[number] for number in sorted(traces, reverse=True)]

    def _traces(self) -> Iterator[Trace]:
        live = [run for journal in list(self._journals) for run in list(journal.live.values())]
        return chain(live, list(self._history))
