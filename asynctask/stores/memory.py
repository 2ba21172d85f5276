"""The memory store: live runs, a bounded history of ended ones, results and limits; all gone with the process.

Ended runs are kept as traces, without values and large arguments, `settings.history_size` of them, and what they
logged, so that a server may run for a month.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from uuid import UUID

from ..clocks import Clock
from ..errors import ObjectNotFound, StoreError
from ..flights import Flights
from ..limit_records import LimitRecord
from ..limit_views import shown
from ..limits import Limits
from ..loops import strand_here
from ..records import LogEntry, TaskRun, own_key
from ..runs import Journal, Run, Trace
from ..settings import settings
from ..states import State
from .base import CacheEntry, Journals, RunFilter, StoredResult, StoreInfo, date_of
from .shelf import Shelf

#: Results, and bytes of them, that the store keeps; it has no disk to put more on.
MOST_RESULTS, MOST_BYTES = 10_000, 512 * 1024 * 1024


class MemoryStore:
    """Runs, results and limits of one process; see `Store` for what the methods promise."""

    url = "memory://"

    def __init__(self, history_size: int | None = None, *, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self.limits = Limits(strand_here, clock=self._clock)
        size = settings.values.history_size if history_size is None else history_size
        self._history: deque[Trace] = deque(maxlen=size)
        self._logs: deque[tuple[int, LogEntry]] = deque(maxlen=size)
        self._journals = Journals()
        self.flights = Flights()
        self._shelf = Shelf(MOST_RESULTS, MOST_BYTES)
        self._keys: set[str] = set()
        self._lock = threading.Lock()
        #: Appending to a bounded deque is atomic and costs 50 ns.
        self.keep = self._history.append
        self.result_at_hand = self._shelf.get

    def empty_copy(self) -> MemoryStore:
        """A store of the same size with the same limits, and nobody in them."""
        copy = MemoryStore(self._history.maxlen, clock=self._clock)
        copy.limits = self.limits.empty_copy()
        return copy

    def hold(self) -> None:
        pass

    async def release(self) -> None:
        pass

    def attach(self, journal: Journal) -> None:
        self._journals.add(journal)

    async def detach(self, journal: Journal) -> None:
        pass

    def keep_log(self, run_number: int, entry: LogEntry, /) -> None:
        self._logs.append((run_number, entry))

    def is_full(self) -> bool:
        return False

    def when_room(self, wake: Callable[[], None]) -> None:
        wake()

    async def ready(self) -> None:
        pass

    async def flush(self) -> None:
        pass

    # -- runs ---------------------------------------------------------------------------------------------------------

    async def read_run(self, run_id: UUID) -> TaskRun:
        return self._find(run_id).record()

    async def read_runs(self, which: RunFilter, limit: int, cursor: UUID | None = None) -> list[TaskRun]:
        found = (
            trace.record()
            for trace in self._newest_first()
            if (cursor is None or trace.number < cursor.int) and which.holds(trace)
        )
        return list(islice(found, limit))

    async def count_runs(self, which: RunFilter) -> int:
        return sum(which.holds(trace) for trace in self._newest_first())

    async def read_run_states(self, run_id: UUID) -> Sequence[State]:
        return list(self._find(run_id).states)

    async def read_logs(self, run_id: UUID) -> list[LogEntry]:
        self._find(run_id)
        return [entry for number, entry in list(self._logs) if number == run_id.int]

    async def delete_run(self, run_id: UUID) -> None:
        trace = self._find(run_id)
        if isinstance(trace, Run):
            raise StoreError(f"run {run_id} is still under way: only ended runs can be deleted")
        self._delete({trace.number})

    async def prune(self, older_than: timedelta | None, keep: int | None) -> int:
        oldest = None if older_than is None else self._clock.now() - older_than.total_seconds()
        newest = self._newest_first()
        gone = {
            trace.number
            for place, trace in enumerate(newest)
            if not isinstance(trace, Run)
            and ((oldest is not None and trace.states[-1].time < oldest) or (keep is not None and place >= keep))
        }
        self._delete(gone)
        return len(gone)

    def _delete(self, numbers: set[int]) -> None:
        with self._lock:
            for trace in [one for one in list(self._history) if one.number in numbers]:
                self._history.remove(trace)
            for pair in [one for one in list(self._logs) if one[0] in numbers]:
                self._logs.remove(pair)
        for number in numbers:
            self._shelf.drop(own_key(number))

    def _find(self, run_id: UUID) -> Trace:
        number = run_id.int
        for trace in reversed(list(self._traces())):  # the last one of a run that was rolled back
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
        live = [run for journal in self._journals.all() for run in list(journal.live.values())]
        return chain(live, list(self._history))

    # -- results ------------------------------------------------------------------------------------------------------

    async def read_result(self, key: str, *, at_hand: bool = True) -> StoredResult | None:
        return self._shelf.get(key)

    async def write_results(self, results: Sequence[StoredResult], *, at_hand: bool = True) -> None:
        for result in results:
            self._shelf.put(result)

    async def try_take_key(self, key: str) -> bool:
        with self._lock:
            if key in self._keys:
                return False
            self._keys.add(key)
            return True

    def give_key(self, key: str) -> None:
        self._keys.discard(key)

    async def read_cache(self, task_name: str | None, limit: int) -> list[CacheEntry]:
        found = [one for one in reversed(self._shelf.all()) if task_name is None or one.task_name == task_name]
        return [
            CacheEntry(
                key=one.key, run_id=UUID(int=one.run_number), task_name=one.task_name,
                created=datetime.fromtimestamp(one.created, UTC),
                expires=None if one.expires is None else date_of(one.expires),
                serializer=one.serializer, size=len(one.payload),
            )
            for one in found[:limit]
        ]  # fmt: skip

    async def clear_cache(self, task_name: str | None, key: str | None, expired: bool) -> int:
        now = self._clock.now()
        gone = [
            one
            for one in self._shelf.all()
            if (task_name is None or one.task_name == task_name)
            and (key is None or one.key == key)
            and (not expired or not one.is_fresh(now))
        ]
        for one in gone:
            self._shelf.drop(one.key)
        return len(gone)

    async def info(self) -> StoreInfo:
        return StoreInfo(url=self.url, runs=len(self._newest_first()), results=len(self._shelf), logs=len(self._logs))

    # -- limits -------------------------------------------------------------------------------------------------------

    async def write_limit(self, name: str, size: int, *, decay: float = 0.0, is_active: bool = True) -> None:
        self.limits.set(name, size, decay=decay, is_active=is_active)

    async def delete_limit(self, name: str) -> None:
        self.limits.delete(name)

    async def reset_limit(self, name: str) -> None:
        self.limits.reset(name)

    async def read_limit(self, name: str) -> LimitRecord:
        return shown(self.limits, name, self._clock.now())

    async def read_limits(self) -> list[LimitRecord]:
        return [shown(self.limits, name, self._clock.now()) for name in sorted(self.limits.lines)]
