"""What limits look like for people: records of holders and of those who wait."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice

from .limit_records import MOST_SHOWN, LimitRecord, SlotHolder
from .limits import Limits, not_found
from .lines import Slots
from .rates import in_use
from .runs import Run


def shown(limits: Limits, name: str, wall: float) -> LimitRecord:
    """One limit as it is in this process; `wall` is the time now, in seconds since the epoch. Raises
    `ObjectNotFound`."""
    with limits.lock:
        line = limits.lines.get(name)
        if line is None:
            raise not_found(name)
        now = limits.monotonic()
        return LimitRecord(
            name=name, limit=line.size, slot_decay_per_second=line.decay, active=line.is_active,
            in_use=line.used if not line.decay else in_use(line.full, line.size, line.decay, now),
            waiting=len(line.waiting),
            holders=people(line.holders, wall - now),
            line=people(islice(line.waiting, MOST_SHOWN), wall - now),
        )  # fmt: skip


def people(several: Iterable[Slots], offset: float) -> list[SlotHolder]:
    """Holders, or those who wait; `offset` is what makes monotonic seconds seconds since the epoch."""
    return [
        SlotHolder(
            run_id=slots.run.id if isinstance(slots.run, Run) else None,
            name=slots.run.name, slots=slots.count,
            since=datetime.fromtimestamp(offset + (slots.since if slots.granted else slots.came), UTC),
            pid=os.getpid(),
        )
        for slots in several
    ]  # fmt: skip
