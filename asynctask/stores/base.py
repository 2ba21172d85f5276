"""The store protocol: what is kept of runs, their logs, results and limits, and how it is asked for.

1. `keep` and `keep_log` are called in any thread, on the path of a run: they note, and never wait.
2. Everything else is asynchronous, on asyncio and on trio, and may be driven from plain code as well (see `desk`).
3. What is read includes all that was kept before, by this process.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import msgspec

from ..flights import Flights
from ..limit_records import LimitRecord
from ..limits import Limits
from ..records import LogEntry, TaskRun
from ..runs import Journal, Trace
from ..states import State, StateType

#: Seconds by which clocks of processes may differ, or be corrected, before a result with an expiry is not trusted.
SKEW = 5.0


class Journals:
    """The journals of a store, for as long as somebody has them. Any thread, and while others are added as well: a
    `WeakSet` cannot be looked through then."""

    __slots__ = ("_lock", "_references")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._references: tuple[weakref.ref[Journal], ...] = ()

    def add(self, journal: Journal) -> None:
        with self._lock:
            self._references = (*self._without(journal), weakref.ref(journal))

    def discard(self, journal: Journal) -> None:
        with self._lock:
            self._references = self._without(journal)

    def all(self) -> list[Journal]:
        return [journal for one in self._references if (journal := one()) is not None]

    def _without(self, journal: Journal) -> tuple[weakref.ref[Journal], ...]:
        return tuple(one for one in self._references if one() not in (None, journal))


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs to list; every field that is set must hold."""

    state_type: StateType | None = None
    state_name: str | None = None
    #: All of these tags.
    tags: frozenset[str] = frozenset()
    task_name: str | None = None
    flow_run_id: UUID | None = None
    #: Text in the run's name, in the same case.
    name: str | None = None
    is_flow: bool | None = None
    #: Made at this time or later, and before that one; aware.
    since: datetime | None = None
    before: datetime | None = None

    def holds(self, trace: Trace) -> bool:
        """Whether a run fits."""
        state = trace.states[-1]
        made = trace.number >> 80
        return (
            (self.state_type is None or state.type is self.state_type)
            and (self.state_name is None or state.name == self.state_name)
            and self.tags <= trace.tags
            and (self.task_name is None or trace.spec.name == self.task_name)
            and (self.flow_run_id is None or trace.flow_run_id == self.flow_run_id)
            and (self.name is None or self.name in trace.name)
            and (self.is_flow is None or trace.spec.is_flow == self.is_flow)
            and (self.since is None or made >= milliseconds(self.since))
            and (self.before is None or made < milliseconds(self.before))
        )


def milliseconds(time: datetime) -> int:
    """Since the epoch, as run ids begin with it."""
    return int(time.timestamp() * 1000)


def date_of(seconds: float) -> datetime:
    """The aware time of `seconds` since the epoch; as far as dates go."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError):
        return datetime.max.replace(tzinfo=UTC)


class StoredResult(msgspec.Struct, frozen=True, kw_only=True):
    """A result as it is kept: bytes, and what turns them into a value again. Times are in seconds since the epoch."""

    key: str
    payload: bytes
    serializer: str
    task_name: str
    #: The run that gave it.
    run_number: int
    created: float
    expires: float | None = None

    def is_fresh(self, now: float) -> bool:
        """Whether it may be served: not past its expiry, nor from the future, as one is when the clock was set back.

        How old it then is, nobody can tell.
        """
        return self.expires is None or self.created - SKEW <= now < self.expires


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A kept result as the client and the command line show it: all but its value. Times are aware UTC datetimes."""

    key: str
    task_name: str
    run_id: UUID
    created: datetime
    expires: datetime | None
    serializer: str
    size: int


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a store says of itself. `is_guarded`: whether its library needs our lock to be safe, and has it."""

    url: str
    path: str | None = None
    schema_version: int | None = None
    library: str | None = None
    is_guarded: bool = False
    size_bytes: int = 0
    runs: int = 0
    results: int = 0
    logs: int = 0


class Store(Protocol):
    """Where the runs, results and limits of one or several runtimes are kept."""

    url: str
    #: The limits in force in this process.
    limits: Limits

    #: Who runs the body for which cache key, in this process.
    flights: Flights

    def hold(self) -> None:
        """Stay open until `release` is called as often."""
        ...

    async def release(self) -> None: ...

    def attach(self, journal: Journal) -> None:
        """The runs of `journal` are to be seen through this store from now on."""
        ...

    async def detach(self, journal: Journal) -> None:
        """`journal` writes no more: flush, and when it was the last one, let go of files and threads."""
        ...

    def keep(self, trace: Trace, /) -> None:
        """Take the trace of a settled run; called in any thread, must not wait."""
        ...

    def keep_log(self, run_number: int, entry: LogEntry, /) -> None:
        """Take what a run logged; called in any thread, must not wait."""
        ...

    def is_full(self) -> bool:
        """Whether so much waits to be written that those who make runs should wait; see `when_room`."""
        ...

    def when_room(self, wake: Callable[[], None], /) -> None:
        """Call `wake` once, from any thread, when it is not full any more; at once if it is not."""
        ...

    async def ready(self) -> None:
        """Return when the limits are known."""
        ...

    async def flush(self) -> None:
        """Return when everything kept so far is as durable as this store makes it. Raises `StoreError`."""
        ...

    async def read_run(self, run_id: UUID) -> TaskRun:
        """One run. Raises `ObjectNotFound`."""
        ...

    async def read_runs(self, which: RunFilter, limit: int, cursor: UUID | None = None) -> list[TaskRun]:
        """At most `limit` runs, the newest first; only those older than the run `cursor`, if one is given."""
        ...

    async def count_runs(self, which: RunFilter) -> int: ...

    async def read_run_states(self, run_id: UUID) -> Sequence[State]:
        """The whole history of a run. Raises `ObjectNotFound`."""
        ...

    async def read_logs(self, run_id: UUID) -> list[LogEntry]:
        """What a run logged, in order. Raises `ObjectNotFound`."""
        ...

    async def delete_run(self, run_id: UUID) -> None:
        """An ended run, with its logs and its own result. Raises `ObjectNotFound`, and `StoreError` if it runs."""
        ...

    async def prune(self, older_than: timedelta | None, keep: int | None) -> int:
        """Delete ended runs that ended longer ago than that, and all but the newest `keep`; how many it were."""
        ...

    async def read_result(self, key: str, *, at_hand: bool = True) -> StoredResult | None:
        """What was kept under `key`; None if nothing was. `at_hand`: from now on in memory as well.

        Raises `DamagedResult` rather than give a wrong one.
        """
        ...

    def result_at_hand(self, key: str, /) -> StoredResult | None:
        """The same without waiting: only what this process keeps in memory."""
        ...

    async def write_results(self, results: Sequence[StoredResult], *, at_hand: bool = True) -> None:
        """Keep all of them, or none; on disk when this returns. `at_hand`: in memory as well."""
        ...

    async def try_take_key(self, key: str) -> bool:
        """Take the lock of a key, over all processes of this store; False if somebody has it. Never waits for it.

        It is free again when it is given back, and when the process that has it dies.
        """
        ...

    def give_key(self, key: str) -> None: ...

    async def read_cache(self, task_name: str | None, limit: int) -> list[CacheEntry]:
        """The newest first."""
        ...

    async def clear_cache(self, task_name: str | None, key: str | None, expired: bool) -> int:
        """Delete kept results that fit all that is given; how many it were."""
        ...

    async def info(self) -> StoreInfo: ...

    async def write_limit(self, name: str, size: int, *, decay: float = 0.0, is_active: bool = True) -> None:
        """Create a limit, or change it, for every process of this store."""
        ...

    async def delete_limit(self, name: str) -> None:
        """Raises `ObjectNotFound`."""
        ...

    async def reset_limit(self, name: str) -> None:
        """Free its slots, whoever has them. Raises `ObjectNotFound`."""
        ...

    async def read_limit(self, name: str) -> LimitRecord:
        """A limit with its line. Raises `ObjectNotFound`."""
        ...

    async def read_limits(self) -> list[LimitRecord]:
        """All limits, by name."""
        ...
