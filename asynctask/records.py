"""Records of runs, as people get them, and what a history tells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from .states import RUNNING, State, StateType


class TaskRun(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a run, as the client and the command line show it. Times are aware UTC datetimes."""

    id: UUID
    name: str
    task_key: str
    task_name: str
    flow_run_id: UUID | None
    parent_task_run_id: UUID | None
    upstream_task_run_ids: list[UUID]
    tags: list[str]
    parameters: dict[str, str]
    state: State
    state_type: StateType
    state_name: str
    states: list[State]
    run_count: int
    start_time: datetime | None
    end_time: datetime | None
    total_run_time: float
    waiting_on: str | None
    is_flow: bool = False
    #: The traceback of a run that failed, where the store keeps it.
    error: str | None = None
    #: The key under which its result is kept, if it is.
    result: str | None = None


class LogEntry(msgspec.Struct, frozen=True):
    """One line that a run logged or printed. `time` is in seconds since the epoch."""

    time: float
    level: int
    logger: str
    message: str


def own_key(number: int) -> str:
    """The key under which the result of a run is kept that has no other."""
    return f"run:{UUID(int=number)}"


def attempts(states: Sequence[State]) -> int:
    """How many attempts were started."""
    return sum(state.type is RUNNING for state in states)


def began(states: Sequence[State]) -> datetime | None:
    """When the first attempt started."""
    return next((state.timestamp for state in states if state.type is RUNNING), None)


def ended(states: Sequence[State]) -> datetime | None:
    last = states[-1]
    return last.timestamp if last.is_final() else None


def seconds_running(states: Sequence[State]) -> float:
    """Seconds in Running, over all attempts; an attempt under way counts up to its start only."""
    pairs = itertools.pairwise(states)
    return sum(after.time - state.time for state, after in pairs if state.type is RUNNING)


def retry_message(failure: str, attempt: str, delay: float) -> str:
    """What the state of a run that waits for its retry says; `retry_in` reads it."""
    return f"{failure}; {attempt} starts in {delay:g} s"


def retry_in(state: State, now: float) -> str | None:
    """`retry in 4 s`, for a run in this state; None if it does not wait for a retry."""
    if state.name != "AwaitingRetry":
        return None
    try:
        seconds = float(state.message.rpartition(" starts in ")[2].removesuffix(" s"))
    except ValueError:  # of a message as long as that, a store keeps the beginning
        return state.message
    left = max(0.0, state.time + seconds - now)
    return f"retry in {left:.0f} s" if left >= 1 else f"retry in {left:.1g} s"
