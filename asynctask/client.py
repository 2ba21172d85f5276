"""Looking things up and setting limits: `async with get_client() as client`, or `with get_client(sync_client=True)`.

1. The limit of a tag and a limit with a name are two things to those who use the client, and one to the store, where
   the limit of the tag "db" is named "tag:db". So no name of a global limit begins with "tag:".
2. What a method is given is checked before the store hears of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Literal, Self, TypeVar, Unpack, overload
from uuid import UUID

from .blocking import drive
from .clocks import Clock
from .errors import MissingResult, ObjectNotFound, OptionError
from .filters import Filters, after, how_many, id_of, run_filter
from .late import late
from .limit_records import TAG, ConcurrencyLimit, GlobalConcurrencyLimit, of_name, of_tag
from .limit_views import AWAITING, as_of_now
from .loops import blocking
from .records import LogEntry, TaskRun
from .redact import shown
from .scopes import runtime_here
from .states import State
from .stores.base import CacheEntry, Store, StoreInfo
from .stores.urls import store_at

T = TypeVar("T")

#: The largest limit.
MOST = 2**31 - 1
#: The longest name of a limit: it stands whole in lists and messages, and databases keep it uncut.
LONGEST_NAME = 1000
#: What of a global limit can be changed.
CHANGES = ("limit", "slot_decay_per_second", "active")


class Client:
    """Async access to the store of the current runtime."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def create_concurrency_limit(self, tag: str, concurrency_limit: int) -> ConcurrencyLimit:
        """Let at most `concurrency_limit` runs with `tag` be Running at once (0: none); replaces an earlier one."""
        name = _tag(tag)
        await self._store.write_limit(name, _slots(f"the concurrency limit of tag {tag!r}", concurrency_limit))
        return of_tag(await self._store.read_limit(name))

    async def read_concurrency_limit_by_tag(self, tag: str) -> ConcurrencyLimit:
        """Raises `ObjectNotFound`."""
        return of_tag(await self._store.read_limit(_tag(tag)))

    async def read_concurrency_limits(self) -> list[ConcurrencyLimit]:
        """Every limit of a tag, by tag."""
        return [of_tag(one) for one in await self._store.read_limits() if one.name.startswith(TAG)]

    async def delete_concurrency_limit_by_tag(self, tag: str) -> None:
        """Remove a limit; runs that wait for it start. Raises `ObjectNotFound`."""
        await self._store.delete_limit(_tag(tag))

    async def reset_concurrency_limit_by_tag(self, tag: str) -> None:
        """Free all slots of a tag, whoever holds them. Raises `ObjectNotFound`."""
        await self._store.reset_limit(_tag(tag))

    async def create_global_concurrency_limit(
        self, name: str, limit: int, slot_decay_per_second: float = 0.0, active: bool = True
    ) -> GlobalConcurrencyLimit:
        """Make a limit for `concurrency` and `rate_limit`, of `limit` slots (0: none); replaces an earlier one.

        `slot_decay_per_second`: so many slots come back by themselves each second, as `rate_limit` needs it; with 0
        they come back when they are given back. A limit that is not `active` limits nothing.
        """
        size, decay, is_active = _settings(_name(name), limit, slot_decay_per_second, active)
        await self._store.write_limit(name, size, decay=decay, is_active=is_active)
        return of_name(await self._store.read_limit(name))

    async def read_global_concurrency_limit_by_name(self, name: str) -> GlobalConcurrencyLimit:
        """Raises `ObjectNotFound`."""
        return of_name(await self._store.read_limit(_name(name)))

    async def read_global_concurrency_limits(self) -> list[GlobalConcurrencyLimit]:
        """Every limit that has a name, by name; without those of tags."""
        return [of_name(one) for one in await self._store.read_limits() if not one.name.startswith(TAG)]

    async def update_global_concurrency_limit(
        self,
        name: str,
        *,
        limit: int | None = None,
        slot_decay_per_second: float | None = None,
        active: bool | None = None,
    ) -> GlobalConcurrencyLimit:
        """Change what is given and leave the rest; who waits is served by it at once. Raises `ObjectNotFound`."""
        if limit is None and slot_decay_per_second is None and active is None:
            raise OptionError(f"an update of limit {shown(name)} must say what to change: {', '.join(CHANGES)}")
        now = await self._store.read_limit(_name(name))
        size, decay, is_active = _settings(
            name,
            now.limit if limit is None else limit,
            now.slot_decay_per_second if slot_decay_per_second is None else slot_decay_per_second,
            now.active if active is None else active,
        )
        await self._store.write_limit(name, size, decay=decay, is_active=is_active)
        return of_name(await self._store.read_limit(name))

    async def delete_global_concurrency_limit_by_name(self, name: str) -> None:
        """Remove a limit; who waits for it goes on. Raises `ObjectNotFound`."""
        await self._store.delete_limit(_name(name))

    async def read_task_run(self, task_run_id: UUID | str) -> TaskRun:
        """One run. Raises `ObjectNotFound`."""
        return (await self._as_of_now([await self._store.read_run(id_of(task_run_id))]))[0]

    async def read_task_runs(
        self, *, limit: int = 200, cursor: UUID | str | None = None, **filters: Unpack[Filters]
    ) -> list[TaskRun]:
        """Task runs that fit all filters, the newest first, at most `limit`; after the run `cursor`, if it is given.

        Raises `OptionError` for a filter that could fit nothing.
        """
        which = run_filter("read_task_runs", False, filters)
        found = await self._store.read_runs(which, how_many("read_task_runs", limit), after(cursor))
        return await self._as_of_now(found)

    async def count_task_runs(self, **filters: Unpack[Filters]) -> int:
        """How many task runs fit all filters."""
        return await self._store.count_runs(run_filter("count_task_runs", False, filters))

    async def read_task_run_states(self, task_run_id: UUID | str) -> list[State]:
        """The whole history of a run. Raises `ObjectNotFound`."""
        return list(await self._store.read_run_states(id_of(task_run_id)))

    async def _as_of_now(self, runs: list[TaskRun]) -> list[TaskRun]:
        if not any(run.state_name == AWAITING for run in runs):
            return runs
        return as_of_now(runs, await self._store.read_limits(), Clock().now())

    async def read_flow_run(self, flow_run_id: UUID | str) -> TaskRun:
        """One flow run. Raises `ObjectNotFound`, also for the run of a task."""
        found = await self._store.read_run(id_of(flow_run_id))
        if not found.is_flow:
            raise ObjectNotFound(f"{flow_run_id} is the run of a task, {found.task_name!r}: use read_task_run")
        return found

    async def read_flow_runs(
        self, *, limit: int = 200, cursor: UUID | str | None = None, **filters: Unpack[Filters]
    ) -> list[TaskRun]:
        """Flow runs that fit all filters, the newest first, at most `limit`; after the run `cursor`, if it is given."""
        which = run_filter("read_flow_runs", True, filters)
        return await self._store.read_runs(which, how_many("read_flow_runs", limit), after(cursor))

    async def count_flow_runs(self, **filters: Unpack[Filters]) -> int:
        """How many flow runs fit all filters."""
        return await self._store.count_runs(run_filter("count_flow_runs", True, filters))

    async def count(self, **filters: Unpack[Filters]) -> int:
        """How many runs fit all filters, flow runs included."""
        return await self._store.count_runs(run_filter("count", None, filters))

    async def read_logs(self, run_id: UUID | str) -> list[LogEntry]:
        """What a run logged and printed, in order. Raises `ObjectNotFound`."""
        return await self._store.read_logs(id_of(run_id))

    async def read_result(
        self, task_run_id: UUID | str, *, result_storage: str | os.PathLike[str] | None = None
    ) -> Any:
        """The value of an ended run that kept it, made anew; raises the exception that it kept.

        Of a cached run it is what its key has now. `result_storage`: the folder that its task named, if it did. Raises
        `MissingResult` when nothing is kept, `DamagedResult` when that was altered, and `ObjectNotFound`.
        """
        run = await self._store.read_run(id_of(task_run_id))
        if run.result is None:
            raise MissingResult(
                f"run {run.name!r} ({run.state_name}) has kept no result; give {run.task_name!r} persist_result=True"
            )
        store = self._store if result_storage is None else store_at(result_storage)
        stored = await store.read_result(run.result)
        if stored is None:
            raise MissingResult(
                f"the result of run {run.name!r} is not in {store.url!r} (any more); if its task, or its cache policy, "
                "names a folder for results, give it as result_storage="
            )
        return late("results").value_of(stored)

    async def delete_task_run(self, task_run_id: UUID | str) -> None:
        """Delete an ended run, its logs and its own result. Raises `ObjectNotFound`, and `StoreError` if it runs."""
        await self._store.delete_run(id_of(task_run_id))

    async def prune(self, *, older_than: timedelta | None = None, keep: int | None = None) -> int:
        """Delete ended runs older than that, and all but the newest `keep`; how many it were."""
        if older_than is not None and not (isinstance(older_than, timedelta) and older_than >= timedelta(0)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"prune(older_than=...) must be a timedelta that is not negative, not {older_than!r}")
        return await self._store.prune(older_than, None if keep is None else how_many("prune", keep, "keep"))

    async def read_cache(self, *, task_name: str | None = None, limit: int = 200) -> list[CacheEntry]:
        """Results that are kept, the newest first, at most `limit`; without their values."""
        return await self._store.read_cache(task_name, how_many("read_cache", limit))

    async def clear_cache(self, *, task_name: str | None = None, key: str | None = None, expired: bool = False) -> int:
        """Delete the kept results that fit all that is given, or all; how many it were."""
        return await self._store.clear_cache(task_name, key, expired)

    async def store_info(self) -> StoreInfo:
        """What the store is, and how much is in it."""
        return await self._store.info()


class SyncClient:
    """The same from plain code; each method is the one of `Client`, run to its end."""

    def __init__(self, store: Store) -> None:
        self._client = Client(store)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with blocking():
            value: T = drive(work)
        return value

    def create_concurrency_limit(self, tag: str, concurrency_limit: int) -> ConcurrencyLimit:
        return self._run(self._client.create_concurrency_limit(tag, concurrency_limit))

    def read_concurrency_limit_by_tag(self, tag: str) -> ConcurrencyLimit:
        return self._run(self._client.read_concurrency_limit_by_tag(tag))

    def read_concurrency_limits(self) -> list[ConcurrencyLimit]:
        return self._run(self._client.read_concurrency_limits())

    def delete_concurrency_limit_by_tag(self, tag: str) -> None:
        self._run(self._client.delete_concurrency_limit_by_tag(tag))

    def reset_concurrency_limit_by_tag(self, tag: str) -> None:
        self._run(self._client.reset_concurrency_limit_by_tag(tag))

    def create_global_concurrency_limit(
        self, name: str, limit: int, slot_decay_per_second: float = 0.0, active: bool = True
    ) -> GlobalConcurrencyLimit:
        return self._run(self._client.create_global_concurrency_limit(name, limit, slot_decay_per_second, active))

    def read_global_concurrency_limit_by_name(self, name: str) -> GlobalConcurrencyLimit:
        return self._run(self._client.read_global_concurrency_limit_by_name(name))

    def read_global_concurrency_limits(self) -> list[GlobalConcurrencyLimit]:
        return self._run(self._client.read_global_concurrency_limits())

    def update_global_concurrency_limit(
        self,
        name: str,
        *,
        limit: int | None = None,
        slot_decay_per_second: float | None = None,
        active: bool | None = None,
    ) -> GlobalConcurrencyLimit:
        work = self._client.update_global_concurrency_limit(
            name, limit=limit, slot_decay_per_second=slot_decay_per_second, active=active
        )
        return self._run(work)

    def delete_global_concurrency_limit_by_name(self, name: str) -> None:
        self._run(self._client.delete_global_concurrency_limit_by_name(name))

    def read_task_run(self, task_run_id: UUID | str) -> TaskRun:
        return self._run(self._client.read_task_run(task_run_id))

    def read_task_runs(
        self, *, limit: int = 200, cursor: UUID | str | None = None, **filters: Unpack[Filters]
    ) -> list[TaskRun]:
        return self._run(self._client.read_task_runs(limit=limit, cursor=cursor, **filters))

    def read_task_run_states(self, task_run_id: UUID | str) -> list[State]:
        return self._run(self._client.read_task_run_states(task_run_id))

    def read_flow_run(self, flow_run_id: UUID | str) -> TaskRun:
        return self._run(self._client.read_flow_run(flow_run_id))

    def read_flow_runs(
        self, *, limit: int = 200, cursor: UUID | str | None = None, **filters: Unpack[Filters]
    ) -> list[TaskRun]:
        return self._run(self._client.read_flow_runs(limit=limit, cursor=cursor, **filters))

    def count_task_runs(self, **filters: Unpack[Filters]) -> int:
        return self._run(self._client.count_task_runs(**filters))

    def count_flow_runs(self, **filters: Unpack[Filters]) -> int:
        return self._run(self._client.count_flow_runs(**filters))

    def count(self, **filters: Unpack[Filters]) -> int:
        return self._run(self._client.count(**filters))

    def read_logs(self, run_id: UUID | str) -> list[LogEntry]:
        return self._run(self._client.read_logs(run_id))

    def read_result(self, task_run_id: UUID | str, *, result_storage: str | os.PathLike[str] | None = None) -> Any:
        return self._run(self._client.read_result(task_run_id, result_storage=result_storage))

    def delete_task_run(self, task_run_id: UUID | str) -> None:
        self._run(self._client.delete_task_run(task_run_id))

    def prune(self, *, older_than: timedelta | None = None, keep: int | None = None) -> int:
        return self._run(self._client.prune(older_than=older_than, keep=keep))

    def read_cache(self, *, task_name: str | None = None, limit: int = 200) -> list[CacheEntry]:
        return self._run(self._client.read_cache(task_name=task_name, limit=limit))

    def clear_cache(self, *, task_name: str | None = None, key: str | None = None, expired: bool = False) -> int:
        return self._run(self._client.clear_cache(task_name=task_name, key=key, expired=expired))

    def store_info(self) -> StoreInfo:
        return self._run(self._client.store_info())


@overload
def get_client() -> Client: ...
@overload
def get_client(sync_client: Literal[False]) -> Client: ...
@overload
def get_client(sync_client: Literal[True]) -> SyncClient: ...
def get_client(sync_client: bool = False) -> Client | SyncClient:
    """A client of the current runtime's store."""
    store = runtime_here().store
    return SyncClient(store) if sync_client else Client(store)


def _tag(tag: object) -> str:
    """The name that a tag's limit has in the store (rule 1)."""
    if not isinstance(tag, str) or not tag:
        raise OptionError(f"a concurrency limit needs a tag, a string that is not empty, not {shown(tag)}")
    return _kept_whole(TAG + tag)


def _name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise OptionError(f"a global concurrency limit needs a name, a string that is not empty, not {shown(name)}")
    if name.startswith(TAG):
        tag = name.removeprefix(TAG)
        raise OptionError(
            f"a global concurrency limit cannot be named {shown(name)}, which is the limit of the tag {shown(tag)}: "
            f"use create_concurrency_limit({shown(tag)}, ...) and the other methods for tags"
        )
    return _kept_whole(name)


def _kept_whole(name: str) -> str:
    """A name that no database alters: the limit would be another's, and hold for nothing."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"a limit cannot be named {shown(name)}: half of a surrogate pair is no text") from error
    if "\0" in name or len(name) > LONGEST_NAME:
        raise OptionError(f"a limit cannot be named {shown(name)}: at most {LONGEST_NAME} characters, and no NUL")
    return name


def _settings(name: str, limit: object, decay: object, active: object) -> tuple[int, float, bool]:
    size = _slots(f"the limit {shown(name)}", limit)
    if not isinstance(decay, int | float) or isinstance(decay, bool) or not 0 <= decay <= sys.float_info.max:
        raise OptionError(
            f"slot_decay_per_second of limit {shown(name)} must be a number of slots that come back each second, "
            f"finite and not negative, not {shown(decay)}"
        )
    if not isinstance(active, bool):
        raise OptionError(f"active of limit {shown(name)} must be True or False, not {shown(active)}")
    return size, float(decay), active


def _slots(what: str, limit: object) -> int:
    if not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= MOST:
        raise OptionError(f"{what} must be a whole number that is not negative, and at most {MOST}, not {shown(limit)}")
    return limit
