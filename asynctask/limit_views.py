"""What limits look like for people: records of holders and of those who wait."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from uuid import UUID

from msgspec.structs import replace

from .limit_records import MOST_SHOWN, NAMED, TAG, LimitRecord, SlotHolder, not_found, place_in_line
from .limits import Limits
from .lines import Slots
from .rates import in_use
from .records import TaskRun
from .runs import Run

#: The name of the state of a run that waits for slots.
AWAITING = "AwaitingConcurrencySlot"


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


def as_of_now(runs: Sequence[TaskRun], limits: Iterable[LimitRecord], wall: float) -> list[TaskRun]:
    """The runs, those that wait for slots with the places that they have now: what a row says is as old as the row."""
    waiting = {run.id for run in runs if run.state_name == AWAITING}
    told: dict[UUID, list[str]] = {}
    for limit in limits:
        held = [f"{one.name} for {max(0.0, wall - one.since.timestamp()):.0f} s" for one in limit.holders[:NAMED]]
        shown = f'tag "{limit.name.removeprefix(TAG)}"'
        for place, one in enumerate(limit.line, 1):
            if one.run_id is not None and one.run_id in waiting:
                told.setdefault(one.run_id, []).append(place_in_line(shown, place, held, limit.in_use))
    return [replace(run, waiting_on="; ".join(told[run.id])) if run.id in told else run for run in runs]
