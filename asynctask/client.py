"""Looking things up and setting limits: `async with get_client() as client`, or `with get_client(sync_client=True)`."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, Literal, Self, TypeVar, overload
from uuid import UUID

from .errors import OptionError
from .limits import ConcurrencyLimit
from .runs import TaskRun
from .scopes import runtime_here
from .states import State, StateType
from .stores.base import RunFilter, Store
from .waiting import drive

T = TypeVar("T")


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
            raise OptionError(f"a concurrency limit needs a tag, a string that is not empty, not {tag!r}")
        if (
            not isinstance(concurrency_limit, int)  # pyright: ignore[reportUnnecessaryIsInstance]
            or isinstance(concurrency_limit, bool)
            or concurrency_limit < 0
        ):
            raise OptionError(
                f"the concurrency limit of tag {tag!r} must be a whole number that is not negative, "
                f"not {concurrency_limit!r}"
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
        self,
        *,
        state_type: StateType | str | None = None,
        state_name: str | None = None,
        tags: Iterable[str] = (),
        task_name: str | None = None,
        flow_run_id: UUID | str | None = None,
        name: str | None = None,
        limit: int = 200,
    ) -> list[TaskRun]:
        """Task runs that fit all filters, the newest first, at most `limit`. `tags` must all be there.

        Raises `OptionError` for a filter that could fit nothing.
        """
        if isinstance(tags, str):
            raise OptionError(f"read_task_runs(tags=...) must be a collection of strings (write [{tags!r}])")
        _check_limit("read_task_runs", limit)
        which = RunFilter(
            state_type=None if state_type is None else _state_type(state_type),
            state_name=state_name,
            tags=frozenset(tags),
            task_name=task_name,
            flow_run_id=None if flow_run_id is None else _uuid(flow_run_id),
            name=name,
            is_flow=False,
        )
        return await self._store.read_runs(which, limit)

    async def read_task_run_states(self, task_run_id: UUID | str) -> list[State]:
        """The whole history of a run. Raises `ObjectNotFound`."""
        return list(await self._store.read_run_states(_uuid(task_run_id)))

    async def read_flow_run(self, flow_run_id: UUID | str) -> TaskRun:
        """One flow run. Raises `ObjectNotFound`."""
        return await self._store.read_run(_uuid(flow_run_id))

    async def read_flow_runs(self, *, name: str | None = None, limit: int = 200) -> list[TaskRun]:
        """Flow runs, the newest first, at most `limit`."""
        _check_limit("read_flow_runs", limit)
        return await self._store.read_runs(RunFilter(name=name, is_flow=True), limit)


class SyncClient:
    """The same from plain code; each method is the one of `Client`, run to its end."""

    def __init__(self, store: Store) -> None:
        self._client = Client(store)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
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

    def read_task_runs(self, **filters: Any) -> list[TaskRun]:
        return self._run(self._client.read_task_runs(**filters))

    def read_task_run_states(self, task_run_id: UUID | str) -> list[State]:
        return self._run(self._client.read_task_run_states(task_run_id))

    def read_flow_run(self, flow_run_id: UUID | str) -> TaskRun:
        return self._run(self._client.read_flow_run(flow_run_id))

    def read_flow_runs(self, **filters: Any) -> list[TaskRun]:
        return self._run(self._client.read_flow_runs(**filters))


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


def _check_limit(method: str, limit: object) -> None:
    if not isinstance(limit, int) or limit < 0:
        raise OptionError(f"{method}(limit=...) must be a whole number that is not negative, not {limit!r}")


def _state_type(value: StateType | str) -> StateType:
    try:
        return StateType(value)
    except ValueError:
        there_are = ", ".join(one.value for one in StateType)
        raise OptionError(f"{value!r} is not a state type; there are: {there_are}") from None


def _uuid(value: UUID | str) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except ValueError:
        raise OptionError(f"{value!r} is not a run id") from None
