"""Looking things up and setting limits: `async with get_client() as client`, or `with get_client(sync_client=True)`."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterable
from datetime import datetime, timedelta
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack, overload
from uuid import UUID

from .blocking import drive
from .errors import MissingResult, ObjectNotFound, OptionError
from .late import late
from .limits import ConcurrencyLimit
from .loops import blocking
from .records import LogEntry, TaskRun
from .redact import shown
from .scopes import runtime_here
from .states import State, StateType
from .stores.base import CacheEntry, RunFilter, Store, StoreInfo
from .stores.urls import store_at

T = TypeVar("T")

#: The largest limit, of any kind.
MOST = 2**31 - 1


class Filters(TypedDict, total=False):
    """Which runs to list or count; every filter that is given must hold."""

    state_type: StateType | str | None
    state_name: str | None
    #: All of these tags.
    tags: Iterable[str]
    #: The task's name, or the flow's.
    task_name: str | None
    flow_run_id: UUID | str | None
    #: Text in the run's name.
    name: str | None
    #: Made at this time or later, and before that one; aware.
    since: datetime | None
    before: datetime | None


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
        if not isinstance(tag, str) or not tag:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"a concurrency limit needs a tag, a string that is not empty, not {shown(tag)}")
        if (
            not isinstance(concurrency_limit, int)  # pyright: ignore[reportUnnecessaryIsInstance]
            or isinstance(concurrency_limit, bool)
            or not 0 <= concurrency_limit <= MOST
        ):
            raise OptionError(
                f"the concurrency limit of tag {tag!r} must be a whole number that is not negative, "
                f"and at most {MOST}, not {shown(concurrency_limit)}"
            )
        await self._store.write_limit(tag, concurrency_limit)
        return await self._store.read_limit(tag)

    async def read_concurrency_limit_by_tag(self, tag: str) -> ConcurrencyLimit:
        """Raises `ObjectNotFound`."""
        return await self._store.read_limit(tag)

    async def read_concurrency_limits(self) -> list[ConcurrencyLimit]:
        """Every limit, by tag."""
        return await self._store.read_limits()

    async def delete_concurrency_limit_by_tag(self, tag: str) -> None:
        """Remove a limit; runs that wait for it start. Raises `ObjectNotFound`."""
        await self._store.delete_limit(tag)

    async def reset_concurrency_limit_by_tag(self, tag: str) -> None:
        """Free all slots of a tag, whoever holds them. Raises `ObjectNotFound`."""
        await self._store.reset_limit(tag)

    async def read_task_run(self, task_run_id: UUID | str) -> TaskRun:
        """One run. Raises `ObjectNotFound`."""
        return await self._store.read_run(_uuid(task_run_id))

    async def read_task_runs(
        self, *, limit: int = 200, cursor: UUID | str | None = None, **filters: Unpack[Filters]
    ) -> list[TaskRun]:
        """Task runs that fit all filters, the newest first, at most `limit`; after the run `cursor`, if it is given.

        Raises `OptionError` for a filter that could fit nothing.
        """
        which = _filter("read_task_runs", False, filters)
        return await self._store.read_runs(which, _limit("read_task_runs", limit), _cursor(cursor))

    async def count_task_runs(self, **filters: Unpack[Filters]) -> int:
        """How many task runs fit all filters."""
        return await self._store.count_runs(_filter("count_task_runs", False, filters))

    async def read_task_run_states(self, task_run_id: UUID | str) -> list[State]:
        """The whole history of a run. Raises `ObjectNotFound`."""
        return list(await self._store.read_run_states(_uuid(task_run_id)))

    async def read_flow_run(self, flow_run_id: UUID | str) -> TaskRun:
        """One flow run. Raises `ObjectNotFound`, also for the run of a task."""
        found = await self._store.read_run(_uuid(flow_run_id))
        if not found.is_flow:
            raise ObjectNotFound(f"{flow_run_id} is the run of a task, {found.task_name!r}: use read_task_run")
        return found

    async def read_flow_runs(
        self, *, limit: int = 200, cursor: UUID | str | None = None, **filters: Unpack[Filters]
    ) -> list[TaskRun]:
        """Flow runs that fit all filters, the newest first, at most `limit`; after the run `cursor`, if it is given."""
        which = _filter("read_flow_runs", True, filters)
        return await self._store.read_runs(which, _limit("read_flow_runs", limit), _cursor(cursor))

    async def count_flow_runs(self, **filters: Unpack[Filters]) -> int:
        """How many flow runs fit all filters."""
        return await self._store.count_runs(_filter("count_flow_runs", True, filters))

    async def count(self, **filters: Unpack[Filters]) -> int:
        """How many runs fit all filters, flow runs included."""
        return await self._store.count_runs(_filter("count", None, filters))

    async def read_logs(self, run_id: UUID | str) -> list[LogEntry]:
        """What a run logged and printed, in order. Raises `ObjectNotFound`."""
        return await self._store.read_logs(_uuid(run_id))

    async def read_result(
        self, task_run_id: UUID | str, *, result_storage: str | os.PathLike[str] | None = None
    ) -> Any:
        """The value of an ended run that kept it, made anew; raises the exception that it kept.

        Of a cached run it is what its key has now. `result_storage`: the folder that its task named, if it did. Raises
        `MissingResult` when nothing is kept, `DamagedResult` when that was altered, and `ObjectNotFound`.
        """
        run = await self._store.read_run(_uuid(task_run_id))
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
        await self._store.delete_run(_uuid(task_run_id))

    async def prune(self, *, older_than: timedelta | None = None, keep: int | None = None) -> int:
        """Delete ended runs older than that, and all but the newest `keep`; how many it were."""
        if older_than is not None and older_than.total_seconds() < 0:
            raise OptionError(f"prune(older_than=...) must be a timedelta that is not negative, not {older_than!r}")
        return await self._store.prune(older_than, None if keep is None else _limit("prune", keep, "keep"))

    async def read_cache(self, *, task_name: str | None = None, limit: int = 200) -> list[CacheEntry]:
        """Results that are kept, the newest first, at most `limit`; without their values."""
        return await self._store.read_cache(task_name, _limit("read_cache", limit))

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


def _limit(method: str, limit: object, name: str = "limit") -> int:
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise OptionError(f"{method}({name}=...) must be a whole number that is not negative, not {shown(limit)}")
    return min(limit, MOST)


def _cursor(cursor: UUID | str | None) -> UUID | None:
    return None if cursor is None else _uuid(cursor)


def _filter(method: str, is_flow: bool | None, given: Filters) -> RunFilter:
    for name in given:
        if name not in Filters.__annotations__:
            raise OptionError(f"{method}() has no filter {name!r}; there are: {', '.join(Filters.__annotations__)}")
    tags = given.get("tags") or ()
    if isinstance(tags, str):
        raise OptionError(f"{method}(tags=...) must be a collection of strings (write [{shown(tags)}])")
    for name in ("since", "before"):
        time: object = given.get(name)
        if time is not None and (not isinstance(time, datetime) or time.tzinfo is None):
            raise OptionError(f"{method}({name}=...) must be an aware datetime, not {shown(time)}; give it a tzinfo")
    state_type, flow_run_id = given.get("state_type"), given.get("flow_run_id")
    return RunFilter(
        state_type=None if state_type is None else _state_type(state_type),
        state_name=given.get("state_name"),
        tags=frozenset(tags),
        task_name=given.get("task_name"),
        flow_run_id=None if flow_run_id is None else _uuid(flow_run_id),
        name=given.get("name"),
        is_flow=is_flow,
        since=given.get("since"),
        before=given.get("before"),
    )


def _state_type(value: StateType | str) -> StateType:
    try:
        return StateType(value)
    except ValueError:
        there_are = ", ".join(one.value for one in StateType)
        raise OptionError(f"{shown(value)} is not a state type; there are: {there_are}") from None


def _uuid(value: UUID | str) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):  # the last two for what is no string
        raise OptionError(f"{shown(value)} is not a run id") from None
