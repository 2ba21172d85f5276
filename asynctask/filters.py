"""Which runs a list or a count asks for, how many, and after which: checked, and told what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TypedDict
from uuid import UUID

from .errors import OptionError
from .redact import shown
from .states import StateType
from .stores.base import RunFilter

#: Longer than any list can be, and a number that every database takes.
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


def run_filter(method: str, is_flow: bool | None, given: Filters) -> RunFilter:
    """The filters that a method of the client was given. Raises `OptionError` for one that could fit nothing."""
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
        flow_run_id=None if flow_run_id is None else id_of(flow_run_id),
        name=given.get("name"),
        is_flow=is_flow,
        since=given.get("since"),
        before=given.get("before"),
    )


def how_many(method: str, limit: object, name: str = "limit") -> int:
    """The length of a list. Raises `OptionError`."""
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise OptionError(f"{method}({name}=...) must be a whole number that is not negative, not {shown(limit)}")
    return min(limit, MOST)


def after(cursor: UUID | str | None) -> UUID | None:
    """The run after which a page begins."""
    return None if cursor is None else id_of(cursor)


def id_of(value: UUID | str) -> UUID:
    """The id of a run, from its text as well. Raises `OptionError`."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):  # the last two for what is no string
        raise OptionError(f"{shown(value)} is not a run id") from None


def _state_type(value: StateType | str) -> StateType:
    try:
        return StateType(value)
    except ValueError:
        there_are = ", ".join(one.value for one in StateType)
        raise OptionError(f"{shown(value)} is not a state type; there are: {there_are}") from None
