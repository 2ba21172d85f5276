"""Runs, states and log lines as JSON documents have them: the fields of the Python API, times in RFC 3339."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from ..records import LogEntry, TaskRun
from ..states import State
from ..stores.base import date_of


def run_fields(run: TaskRun) -> dict[str, Any]:
    """The fields of `TaskRun`. A state is an object here, though stores keep it as an array, which is shorter."""
    fields: dict[str, Any] = msgspec.structs.asdict(run)
    return {**fields, "state": state_fields(run.state), "states": [state_fields(state) for state in run.states]}


def state_fields(state: State) -> dict[str, Any]:
    return {"type": state.type, "name": state.name, "timestamp": state.timestamp, "message": state.message}


def log_fields(entry: LogEntry) -> dict[str, Any]:
    return {
        "timestamp": date_of(entry.time),
        "level": logging.getLevelName(entry.level),
        "logger": entry.logger,
        "message": entry.message,
    }
