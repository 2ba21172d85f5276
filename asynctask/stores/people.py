"""Who holds slots and who waits for some, in every process of a database: told when somebody asks.

Nobody writes it down before: who looks rings the others, and they tell. One that does not in `TELLING` seconds, being
stopped perhaps, is shown as it last told.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from .. import rates
from ..limit_records import MOST_SHOWN, LimitRecord, SlotHolder, not_found
from ..limit_views import people
from ..limits import Limits
from ..lines import Line
from . import bells, sql
from .database import Database
from .guard import is_alive

#: Seconds to wait for what others tell, and between two looks whether they have.
TELLING, PAUSE = 0.5, 0.01


class People(msgspec.Struct, array_like=True):
    """What a process tells of one line."""

    used: int
    waiting: int
    holders: list[SlotHolder]
    line: list[SlotHolder]


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(People).decode


def tell(connection: sqlite3.Connection, limits: Limits, process: str, wall: float) -> None:
    """Write down who is in the lines of this process; `wall` is the time now, in seconds since the epoch."""
    for line in list(limits.lines.values()):
        if line.share or line.waiting:
            with limits.lock:
                text = _encode(_people(line, wall)).decode()
            connection.execute(sql.TELL_PEOPLE, (time.monotonic(), text, sql.clean(line.name), process))


async def read(
    database: Database, limits: Limits, folder: str, process: str | None, names: Sequence[str] | None, wall: float
) -> list[LimitRecord]:
    """These limits (None: all) with their lines, over all processes. Raises `ObjectNotFound`."""
    found = {row[0]: row for row in await database.read(f"{sql.READ_LIMITS} ORDER BY name")}
    for name in names or ():
        if sql.clean(name) not in found:
            raise not_found(name)
    asked = time.monotonic()
    others = {row[0] for row in await database.read(sql.READ_SHARERS)}
    alive = {one for one in others if one != process and is_alive(folder, one)}
    for one in alive:
        bells.ring(folder, one, bells.TELL)
    while True:
        rows = [row for row in await database.read(sql.READ_PEOPLE) if row[1] in alive]
        if all(row[5] >= asked for row in rows) or time.monotonic() > asked + TELLING:
            break
        await asyncio.sleep(PAUSE)
    wanted = list(found) if names is None else [sql.clean(name) for name in names]
    told: dict[str, list[People]] = {}
    for name, _, _, held, more, _, text in rows:
        told.setdefault(name, []).append(_decode(text) if text else People(held, more, [], []))
    if process is not None:
        with limits.lock:
            for line in limits.lines.values():
                told.setdefault(line.name, []).append(_people(line, wall))
    return [_record(found[name], told.get(name, [])) for name in wanted]


def _people(line: Line, wall: float) -> People:
    offset = wall - time.monotonic()
    holders = people(islice(line.holders, MOST_SHOWN), offset)
    return People(line.used, len(line.waiting), holders, people(islice(line.waiting, MOST_SHOWN), offset))


def _record(row: Sequence[Any], told: Iterable[People]) -> LimitRecord:
    name, size, decay, is_active, _, full_at = row
    several = list(told)
    in_use = sum(one.used for one in several)
    return LimitRecord(
        name=name, limit=size, slot_decay_per_second=decay, active=bool(is_active),
        in_use=rates.in_use(full_at, size, decay, time.monotonic()) if decay else in_use,
        waiting=sum(one.waiting for one in several),
        holders=sorted((one for some in several for one in some.holders), key=_since),
        line=sorted((one for some in several for one in some.line), key=_since)[:MOST_SHOWN],
    )  # fmt: skip


def _since(one: SlotHolder) -> Any:
    return one.since
