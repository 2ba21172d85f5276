"""The store protocol: what is kept of runs and limits, and how it is asked for.

The protocol is async, so that a database fits behind it; nothing on the path of a run waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import msgspec

from ..limits import ConcurrencyLimit, Limits
from ..runs import Journal, TaskRun, Trace
from ..states import State, StateType


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs to list; every field that is set must hold."""

    state_type: StateType | None = None
    state_name: str | None = None
    #: All of these tags.
    tags: frozenset[str] = frozenset()
    task_name: str | None = None
    flow_run_id: UUID | None = None
    #: Text in the run's name.
    name: str | None = None
    is_flow: bool | None = None

    def holds(self, trace: Trace) -> bool:
        """Whether a run fits."""
        state = trace.states[-1]
        return (
            (self.state_type is None or state.type is self.state_type)
            and (self.state_name is None or state.name == self.state_name)
            and self.tags <= trace.tags
            and (self.task_name is None or trace.spec.name == self.task_name)
            and (self.flow_run_id is None or trace.flow_run_id == self.flow_run_id)
            and (self.name is None or self.name in trace.name)
            and (self.is_flow is None or trace.spec.is_flow == self.is_flow)
        )


class Store(Protocol):
    """Where the runs and limits of one or several runtimes are kept."""

    #: The limits in force in this process.
    limits: Limits

    def attach(self, journal: Journal) -> None:
        """The runs of `journal` are to be seen through this store from now on."""
        ...

    def keep(self, trace: Trace, /) -> None:
        """Take the trace of a settled run; called in any thread, must not wait."""
        ...

    async def flush(self) -> None:
        """Return when everything kept so far is as durable as this store makes it."""
        ...

    async def close(self) -> None: ...

    async def read_run(self, run_id: UUID) -> TaskRun:
        """One run. Raises `ObjectNotFound`."""
        ...

    async def read_runs(self, which: RunFilter, limit: int) -> list[TaskRun]:
        """At most `limit` runs, the newest first."""
        ...

    async def read_run_states(self, run_id: UUID) -> Sequence[State]:
        """The whole history of a run. Raises `ObjectNotFound`."""
        ...

    async def write_limit(self, tag: str, limit: int) -> None: ...

    async def delete_limit(self, tag: str) -> None:
        """Raises `ObjectNotFound`."""
        ...

    async def reset_limit(self, tag: str) -> None:
        """Raises `ObjectNotFound`."""
        ...

    async def read_limit(self, tag: str) -> ConcurrencyLimit:
        """Raises `ObjectNotFound`."""
        ...

    async def read_limits(self) -> list[ConcurrencyLimit]: ...
