"""Limits as people get them: how many slots there are, who holds them, and who stands in line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from .errors import ObjectNotFound

#: What the names of limits of tags begin with: the limit of the tag "db" is the limit named "tag:db".
TAG = "tag:"
#: Holders, and those who wait, that one process tells of at most.
MOST_SHOWN = 100
#: Holders that are named where there is one line of text for them.
NAMED = 3


class SlotHolder(msgspec.Struct, frozen=True, kw_only=True):
    """A run, or other code, that holds slots of a limit or waits for them. Times are aware UTC datetimes."""

    #: None for code outside runs.
    run_id: UUID | None
    #: The run's name, or that of the thread of other code.
    name: str
    #: How many slots it has, or wants.
    slots: int = 1
    #: When it took them, or came into the line.
    since: datetime
    #: Its process.
    pid: int


class LimitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A limit and its line, over all processes of the store; of other processes as of 0.3 s ago at most."""

    name: str
    limit: int
    #: Slots that come back by themselves in a second; 0: they come back when they are given back.
    slot_decay_per_second: float = 0.0
    #: Whether it limits anything at present.
    active: bool = True
    #: Slots in use.
    in_use: int = 0
    #: How many wait in line.
    waiting: int = 0
    #: The first of those who hold slots, and of those who wait, in their order.
    holders: list[SlotHolder] = []
    line: list[SlotHolder] = []


class ConcurrencyLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The limit of a tag; `active_slots` are the ids of the runs that hold its slots, as far as they are told of."""

    tag: str
    concurrency_limit: int
    active_slots: list[str]
    #: Slots in use.
    in_use: int = 0
    waiting: int = 0
    holders: list[SlotHolder] = []
    line: list[SlotHolder] = []


class GlobalConcurrencyLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit with a name, for `concurrency` and `rate_limit`; `active_slots` is how many are in use."""

    name: str
    limit: int
    active: bool
    active_slots: int
    slot_decay_per_second: float
    waiting: int = 0
    holders: list[SlotHolder] = []
    line: list[SlotHolder] = []


def of_tag(record: LimitRecord) -> ConcurrencyLimit:
    return ConcurrencyLimit(
        tag=record.name.removeprefix(TAG),
        concurrency_limit=record.limit,
        active_slots=[str(one.run_id) for one in record.holders if one.run_id is not None],
        in_use=record.in_use,
        waiting=record.waiting,
        holders=record.holders,
        line=record.line,
    )


def of_name(record: LimitRecord) -> GlobalConcurrencyLimit:
    return GlobalConcurrencyLimit(
        name=record.name,
        limit=record.limit,
        active=record.active,
        active_slots=record.in_use,
        slot_decay_per_second=record.slot_decay_per_second,
        waiting=record.waiting,
        holders=record.holders,
        line=record.line,
    )


def shown_name(name: str) -> str:
    """For people: `tag "db"`, or `limit "api"`."""
    return f'tag "{name[len(TAG) :]}"' if name.startswith(TAG) else f'limit "{name}"'


def place_in_line(shown: str, place: int | None, held: Sequence[str], used: int) -> str:
    """`tag "db", third in line, held by Y for 12 s`; `place` is None for those far behind."""
    words = ("first", "second", "third")
    if place is None:
        text = f"{shown}, more than {MOST_SHOWN} are before it in line"
    else:
        text = f"{shown}, {words[place - 1] if place <= len(words) else f'number {place}'} in line"
    if held:
        text += f", held by {', '.join(held)}"
    return text + (f" and {used - len(held)} more" if held and used > len(held) else "")


def not_found(name: str) -> ObjectNotFound:
    if name.startswith(TAG):
        return ObjectNotFound(f"there is no concurrency limit for the tag {name.removeprefix(TAG)!r}")
    return ObjectNotFound(f"there is no global concurrency limit {name!r}")
