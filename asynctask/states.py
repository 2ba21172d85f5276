"""The states of a run and the one table of which may follow which.

1. A run's history is a tuple of `State`s that only grows; `Run.enter` in `runs.py` is its only writer.
2. `MOVES` says which type may follow which. A move that is not in it raises and changes nothing.
3. A final state is never left, with one exception: a transaction that is rolled back turns
   COMPLETED into COMPLETED/RolledBack.
4. The history is pure data. The value or the exception of a run is its outcome, kept beside the history
   by the run and put into `State.data` only in the view that people see.
5. Pending/NotReady is an end too: the run will never start, because something it needs did not complete.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from .errors import CancelledRun, CrashedRun, FailedRun, UnfinishedRun, UpstreamTaskError


class StateType(StrEnum):
    """The nine kinds of state; a state's `name` says more (Running or Retrying, Failed or TimedOut)."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    CANCELLED = "CANCELLED"
    CANCELLING = "CANCELLING"
    PAUSED = "PAUSED"

    # Set below, from MOVES.
    bit: int
    is_final: bool


SCHEDULED = StateType.SCHEDULED
PENDING = StateType.PENDING
RUNNING = StateType.RUNNING
COMPLETED = StateType.COMPLETED
FAILED = StateType.FAILED
CRASHED = StateType.CRASHED
CANCELLED = StateType.CANCELLED
CANCELLING = StateType.CANCELLING
PAUSED = StateType.PAUSED

MOVES: dict[StateType, tuple[StateType, ...]] = {
    #           ... may be followed by ...
    SCHEDULED: (SCHEDULED, PENDING, RUNNING, FAILED, CRASHED, CANCELLED, CANCELLING),
    PENDING: (SCHEDULED, PENDING, RUNNING, COMPLETED, FAILED, CRASHED, CANCELLED, CANCELLING),
    RUNNING: (SCHEDULED, RUNNING, COMPLETED, FAILED, CRASHED, CANCELLED, CANCELLING, PAUSED),
    PAUSED: (RUNNING, FAILED, CRASHED, CANCELLED, CANCELLING),
    CANCELLING: (COMPLETED, FAILED, CRASHED, CANCELLED),
    COMPLETED: (COMPLETED,),  # RolledBack
    FAILED: (),
    CRASHED: (),
    CANCELLED: (),
}

for _position, _type in enumerate(StateType):
    _type.bit = 1 << _position
    _type.is_final = not set(MOVES[_type]) - {COMPLETED}
#: For `Run.enter`: the types as bits, and of each, those that may follow. Tables, because to read an attribute of an
#: enum member takes 0.04 us, and to look one up here a quarter of that.
BITS: dict[StateType, int] = {type: type.bit for type in StateType}
NEXT_BITS: dict[StateType, int] = {type: sum(following.bit for following in MOVES[type]) for type in StateType}


class State(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One moment in a run's life. `time` is in seconds since the epoch; `timestamp` gives it as an aware UTC datetime.

    As JSON it is the list of its fields. It holds plain data only, so the garbage collector need not know of it: with
    100,000 runs alive that is half of what a collection would have to visit.
    """

    type: StateType
    name: str
    time: float
    message: str = ""

    @property
    def data(self) -> Any:
        """The value of a completed run, or the exception of one that did not complete; None before the end."""
        return None

    @property
    def run_number(self) -> int | None:
        return None

    @property
    def timestamp(self) -> datetime:
        return datetime.fromtimestamp(self.time, UTC)

    @property
    def task_run_id(self) -> UUID | None:
        """The run this state is the outcome of; None for a state that a body made itself."""
        number = self.run_number
        return None if number is None else UUID(int=number)

    def is_scheduled(self) -> bool:
        return self.type is SCHEDULED

    def is_pending(self) -> bool:
        return self.type is PENDING

    def is_running(self) -> bool:
        return self.type is RUNNING

    def is_completed(self) -> bool:
        return self.type is COMPLETED

    def is_failed(self) -> bool:
        return self.type is FAILED

    def is_crashed(self) -> bool:
        return self.type is CRASHED

    def is_cancelled(self) -> bool:
        return self.type is CANCELLED

    def is_cancelling(self) -> bool:
        return self.type is CANCELLING

    def is_paused(self) -> bool:
        return self.type is PAUSED

    def is_final(self) -> bool:
        """Whether the run is over (see rule 5: NotReady is an end as well)."""
        return self.type.is_final or self.name == "NotReady"

    def result(self, raise_on_failure: bool = True) -> Any:
        """The run's value; else its exception, raised, or returned with `raise_on_failure=False`.

        Raises `UnfinishedRun` when the state is not final, and `FailedRun`, `CancelledRun` or `CrashedRun`
        where the run left no exception of its own.
        """
        if self.type is COMPLETED:
            return self.data
        error = self.error()
        if raise_on_failure or isinstance(error, UnfinishedRun):
            try:
                raise error
            finally:
                del error, self  # else: the error -> its traceback -> this frame -> the error
        return error

    def error(self) -> Exception:
        """The exception that stands for this state, which must not be a completed one."""
        data = self.data
        if isinstance(data, Exception):
            return data
        text = self.message or (data if isinstance(data, str) else f"the run ended {self.name}")
        if self.type is FAILED:
            return FailedRun(text)
        if self.type is CANCELLED:
            return CancelledRun(text)
        if self.type is CRASHED:
            crash = CrashedRun(text)
            # What ended the run may be an exit or an interrupt; raised as such it would end the reader as well.
            crash.__cause__ = data if isinstance(data, BaseException) else None
            return crash
        if self.name == "NotReady":
            return UpstreamTaskError(text)
        return UnfinishedRun(f"the run is {self.name}: wait for it before asking for its result")

    def __repr__(self) -> str:
        return f"{self.name}({self.message!r})" if self.message else f"{self.name}()"


class Outcome(State, frozen=True, gc=True):
    """The last state of a run as people see it: with what came of the run. Never part of a history, never stored."""

    data: Any = None
    run_number: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]


def Scheduled(message: str = "") -> State:
    """A state for a run that is to start later."""
    return State(SCHEDULED, "Scheduled", time.time(), message)


def Pending(message: str = "") -> State:
    """A state for a run that has not started."""
    return State(PENDING, "Pending", time.time(), message)


def Running(message: str = "") -> State:
    """A state for a run whose body is executing."""
    return State(RUNNING, "Running", time.time(), message)


def Completed(data: Any = None, message: str = "", name: str = "Completed") -> State:
    """Returned by a body: the run completes with the value `data`, and a name of its own if one is given."""
    return Outcome(COMPLETED, name, time.time(), message, data)


def Failed(data: Any = None, message: str = "", name: str = "Failed") -> State:
    """Returned by a body: the run fails (and is retried like any failure); `data` may be the exception."""
    return Outcome(FAILED, name, time.time(), message, data)


def Cancelled(data: Any = None, message: str = "", name: str = "Cancelled") -> State:
    """Returned by a body: the run ends Cancelled."""
    return Outcome(CANCELLED, name, time.time(), message, data)


def Crashed(data: Any = None, message: str = "", name: str = "Crashed") -> State:
    """Returned by a body: the run ends Crashed."""
    return Outcome(CRASHED, name, time.time(), message, data)


def Cancelling(message: str = "") -> State:
    """A state for a run that was asked to stop."""
    return State(CANCELLING, "Cancelling", time.time(), message)


def Paused(message: str = "") -> State:
    """A state for a run that is held."""
    return State(PAUSED, "Paused", time.time(), message)


def Late(message: str = "") -> State:
    """A state for a scheduled run whose time has passed."""
    return State(SCHEDULED, "Late", time.time(), message)


def AwaitingRetry(message: str = "") -> State:
    """A state for a run that waits for its next attempt."""
    return State(SCHEDULED, "AwaitingRetry", time.time(), message)


def AwaitingConcurrencySlot(message: str = "") -> State:
    """A state for a run that waits for a place under a limit."""
    return State(SCHEDULED, "AwaitingConcurrencySlot", time.time(), message)


def Retrying(message: str = "") -> State:
    """A state for the second and later attempts."""
    return State(RUNNING, "Retrying", time.time(), message)


def Cached(data: Any = None, message: str = "") -> State:
    """A state for a run whose value came from the cache."""
    return Outcome(COMPLETED, "Cached", time.time(), message, data)


def TimedOut(data: Any = None, message: str = "") -> State:
    """A state for an attempt that took too long; a kind of Failed."""
    return Outcome(FAILED, "TimedOut", time.time(), message, data)


def NotReady(message: str = "") -> State:
    """A state for a run that never starts, because a run it depends on did not complete."""
    return State(PENDING, "NotReady", time.time(), message)


def RolledBack(message: str = "") -> State:
    """A state for a completed run whose transaction was rolled back."""
    return State(COMPLETED, "RolledBack", time.time(), message)


def aggregate(states: Iterable[State]) -> State:
    """One state for several: COMPLETED when all are; else CANCELLED, PAUSED or FAILED, in that order.

    The `data` of a state that is not completed is the exception of the first one that did not complete.
    """
    several = list(states)
    rest = [state for state in several if state.type is not COMPLETED]
    if not rest:
        return Completed(message="All states completed.")
    chosen = CANCELLED if any(s.type is CANCELLED for s in rest) else FAILED
    chosen = PAUSED if chosen is FAILED and any(s.type is PAUSED for s in rest) else chosen
    first = next((state for state in rest if state.type is chosen), rest[0])
    count = sum(state.type is chosen for state in rest) if chosen is not FAILED else len(rest)
    text = f"{count}/{len(several)} states {chosen.value.lower()}."
    return Outcome(chosen, chosen.value.title(), time.time(), text, first.error())
