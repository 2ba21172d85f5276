"""A read-only view of the current run, for code that runs inside one: `from asynctask.runtime import task_run`.

Outside a run, every attribute is None, empty or 0, by its type; nothing here raises.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from .runs import Run, current_run


class RunView:
    """What task runs and flow runs show alike."""

    def _run(self) -> Run | None:
        raise NotImplementedError

    @property
    def id(self) -> UUID | None:
        run = self._run()
        return None if run is None else run.id

    @property
    def name(self) -> str | None:
        run = self._run()
        return None if run is None else run.name

    @property
    def tags(self) -> list[str]:
        run = self._run()
        return [] if run is None else sorted(run.tags)

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments by name, defaults included."""
        run = self._run()
        return {} if run is None else run.parameters

    @property
    def run_count(self) -> int:
        """Which attempt this is, from 1."""
        run = self._run()
        return 0 if run is None else run.run_count

    @property
    def start_time(self) -> datetime | None:
        """When the first attempt started; aware, UTC."""
        run = self._run()
        return None if run is None else run.start_time


class TaskRunView(RunView):
    """The task run whose body is executing here."""

    def _run(self) -> Run | None:
        run = current_run.get()
        return None if run is None or run.spec.is_flow else run

    @property
    def task_name(self) -> str | None:
        run = self._run()
        return None if run is None else run.spec.name

    @property
    def flow_run_id(self) -> UUID | None:
        run = self._run()
        return None if run is None else run.flow_run_id


class FlowRunView(RunView):
    """The flow run that owns the code executing here."""

    def _run(self) -> Run | None:
        run = current_run.get()
        return run if run is None or run.spec.is_flow else run.flow

    @property
    def flow_name(self) -> str | None:
        run = self._run()
        return None if run is None else run.spec.name

    @property
    def parent_flow_run_id(self) -> UUID | None:
        run = self._run()
        return None if run is None or run.flow is None else run.flow.id


task_run = TaskRunView()
flow_run = FlowRunView()
