"""The slots of limits in a database that several processes share: what this process has of them, and how it gets more.

1. A row for each limit and process says how many slots the process has and hands out itself, and how many more it
   wants, since when. What is in use is counted from the rows; a process never uses more than its row says.
2. A process changes only its own rows, in a transaction that reads the others' (`settle`). It gives up before the row
   is written, and takes after: whatever fails between the two, no slot is given twice.
3. Whoever makes room, or comes to want some, rings those whom it concerns (`bells`); nobody looks again and again.
   Only who waits looks, twice a second, whether those who have slots are alive: the operating system tells (`guard`).
4. What a process does not use it gives back at once when another one waits, and else after a second.
5. When the store fails, who waits goes on waiting, which is told: no limit is exceeded. Who has a slot works on.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import aiosqlite
import msgspec

from ..errors import StoreError
from ..gridlocks import Told, drawn, needs_of, refused
from ..limit_records import LimitRecord, not_found
from ..limits import Limits
from ..lines import Line, Slots, charge, due
from ..shares import Other, Share, comes_first, settled
from . import bells, people, sql
from .database import Database, in_one_step
from .desk import ring_when
from .guard import is_alive

logger = logging.getLogger("asynctask")

#: Seconds between two looks at who is alive, for those who wait; of not using slots until they are given back; between
#: two tries after a failure, and between two reports of one that lasts.
LOOK, IDLE, AGAIN, REPORT_AGAIN = 0.5, 1.0, 0.5, 60.0

#: Of so many looks one settles as well, lest anything was missed.
LOOKS = 10
#: What a row would say that is not there; and what one says that we do not know.
NOTHING, UNKNOWN = (0, 0, 0.0), (-1, -1, -1.0)


class _Work:
    """One settling, as it goes on."""

    def __init__(self, name: str, is_asked: bool, is_waiting: bool) -> None:
        self.name = name
        self.is_asked = is_asked
        self.is_waiting = is_waiting
        self.shares: dict[Line, Share] = {}
        #: Of what decays: when it is full again, and what of that was given back since the store was told.
        self.fulls: dict[Line, tuple[float, float]] = {}
        self.paid: list[Slots] = []
        self.others: set[str] = set()
        #: Whom to ring afterwards.
        self.to_tell: dict[str, None] = {}
        self.refused: tuple[str, str] | None = None


_encode = msgspec.json.encode
_decode_needs = msgspec.json.Decoder(list[list[tuple[str, float]]]).decode


class SlotsTable:
    """The rows of this process, and the `Limits` that are filled from them. Only `need` is for other threads.

    `appear` makes this process present and gives its name; `bury` ends what dead processes have left.
    """

    def __init__(
        self,
        limits: Limits,
        folder: str,
        *,
        database: Callable[[], Database],
        appear: Callable[[], Awaitable[str]],
        bury: Callable[[aiosqlite.Connection, Sequence[str]], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._folder = folder
        self._database = database
        self._appear = appear
        self._bury = bury
        self._now = now
        limits.on_need = self.need
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing is shared yet, or any more."""
        self._name: str | None = None
        self._bell: bells.Bell | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung: asyncio.Event | None = None
        #: One at a time: what is planned by one, and written, is handed out before the next one plans.
        self._settling: asyncio.Lock
        self._is_rung = False
        self._is_heard = False
        self._is_asked = False
        #: Processes that had or wanted slots when we looked last.
        self._others: set[str] = set()
        self._wrote: dict[str, tuple[int, int, float]] = {}
        #: When something that decays can be had; when an idle look is due, and how often slots had been taken then.
        self._due: float | None = None
        self._turns: dict[str, int] = {}
        self._idle_at: float | None = None
        self._failed_at: float | None = None

    def begin_in_child(self) -> None:
        """In a forked child: the bell is the parent's."""
        if self._bell is not None:
            self._bell.forget()
        self.begin_anew()

    # -- in any thread ------------------------------------------------------------------------------------------------

    def need(self) -> None:
        """There is something to settle with the other processes."""
        if self._is_rung:
            return
        self._is_rung = True
        loop, rung = self._loop, self._rung
        if loop is not None and rung is not None:
            try:
                loop.call_soon_threadsafe(rung.set)
            except RuntimeError:  # the desk has closed in this moment
                return

    # -- at the desk --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """The desk has opened; before anything is asked of this."""
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self._settling = asyncio.Lock()

    async def run(self, closing: asyncio.Event) -> None:
        """Settle when there is need, until `closing` is set."""
        looks = 0
        rung = self._rung
        loop = self._loop
        assert rung is not None, "it was not opened"
        assert loop is not None, "it was not opened"
        stopper = asyncio.ensure_future(ring_when(closing, rung))
        if self._is_rung:
            rung.set()
        try:
            while not closing.is_set():
                pause = self._pause()
                alarm = None if pause is None else loop.call_later(pause, rung.set)
                await rung.wait()
                if alarm is not None:
                    alarm.cancel()
                rung.clear()
                if closing.is_set():
                    break
                looks += 1
                if not self._has_reason() and looks % LOOKS:
                    continue
                looks = 0
                try:
                    await self.settle()
                except Exception as error:  # deliberate: told, and tried again; who waits goes on waiting
                    self._failed(error)
        finally:
            stopper.cancel()
            self._rung = None

    def show(self, name: str) -> None:
        """This process is present under `name` from now on."""
        self.hide()
        self._name = name
        self._wrote.clear()
        bell = self._bell = bells.Bell(self._folder, name, self._heard)
        descriptor = bell.fileno()
        if descriptor is not None and self._loop is not None:
            self._loop.add_reader(descriptor, bell.heard)

    def hide(self) -> None:
        bell, self._bell = self._bell, None
        if bell is None:
            return
        descriptor = bell.fileno()
        if descriptor is not None and self._loop is not None:
            self._loop.remove_reader(descriptor)
        bell.close()

    async def leave(self, writer: aiosqlite.Connection, name: str) -> list[str]:
        """Give everything back; those who are to be rung afterwards."""
        with self._limits.lock:
            for line in self._limits.lines.values():
                line.share = line.published = 0
                line.foreign = None
        self._limits.is_known = False
        await writer.execute("DELETE FROM slots WHERE process = ?", (name,))
        rows = await writer.execute_fetchall("SELECT DISTINCT process FROM slots WHERE wanted > 0")
        return [row[0] for row in rows]

    def ring(self, names: Iterable[str], what: bytes = bells.LOOK) -> None:
        for name in dict.fromkeys(names):
            if name != self._name:
                bells.ring(self._folder, name, what)

    def _has_reason(self) -> bool:
        """Whether there is something to settle: we were woken for it, or a time has come, or somebody has died."""
        if self._is_rung or self._is_heard or self._failed_at is not None:
            return True
        now = time.monotonic()
        if (self._due is not None and self._due <= now) or (self._idle_at is not None and self._idle_at <= now):
            return True
        lines = list(self._limits.lines.values())
        if any(line.published for line in lines) and any(line.used and not line.decay for line in lines):
            return True  # who holds and waits may be in a gridlock
        return bool(self._dead())

    def _heard(self, what: bytes) -> None:
        self._is_heard = True
        self._is_asked = self._is_asked or bells.TELL in what
        if self._rung is not None:
            self._rung.set()

    def _pause(self) -> float | None:
        """Seconds until there is something to do, if nobody rings; None if there never is."""
        now = time.monotonic()
        pauses: list[float] = []
        if self._failed_at is not None:
            return AGAIN
        lines = list(self._limits.lines.values())
        if any(line.published for line in lines):
            pauses.append(LOOK if bells.HAS_PIPES else bells.LOOK_INSTEAD)
        if any(line.share > line.used for line in lines):
            self._idle_at = self._idle_at or now + IDLE
            pauses.append(max(0.0, self._idle_at - now))
            if not bells.HAS_PIPES:
                pauses.append(bells.LOOK_INSTEAD)
        if self._due is not None:
            pauses.append(max(0.0, self._due - now))
        return min(pauses, default=None)

    async def settle(self) -> None:
        """Give, take and tell, in one transaction."""
        name = await self._appear()
        async with self._settling:
            await self._settle(name)

    async def _settle(self, name: str) -> None:
        self._is_rung = self._is_heard = False
        is_asked, self._is_asked = self._is_asked, False
        is_waiting = any(line.published for line in list(self._limits.lines.values()))
        dead = self._dead() if is_waiting else []
        work = _Work(name, is_asked, is_waiting)
        try:
            async with self._database().writing() as writer:
                if dead:
                    await self._bury(writer, dead)
                # In one step of the library's thread: each is a hop there and back, for which others wait who have
                # to settle as well; where three processes computed all the time, that was a second.
                await in_one_step(writer, partial(self._exchange, work))
        except BaseException:
            for slots in work.paid:
                slots.is_paid = False
            self._wrote = dict.fromkeys(self._limits.lines, UNKNOWN)
            self._is_asked = self._is_asked or is_asked
            raise
        self._others = work.others
        self._failed_at = None
        with self._limits.lock:
            for line, share in work.shares.items():
                line.share, line.published, line.foreign = share.held, share.wanted, share.foreign
                work.to_tell.update(dict.fromkeys(share.to_tell))
            for line, (_, refund) in work.fulls.items():
                line.refund -= refund
        self._limits.look_again(work.shares)
        if work.refused is not None:
            self._limits.refuse(*work.refused)
        self.ring(work.to_tell)

    def _dead(self) -> list[str]:
        return [one for one in self._others if not is_alive(self._folder, one)]

    def _exchange(self, work: _Work, connection: sqlite3.Connection) -> None:
        """Read what others have and want, decide, and write what we have and want; in the library's thread."""
        self._load(connection)
        others: dict[str, list[Other]] = {}
        for limit, process, held, wanted, since in connection.execute(sql.READ_SLOTS):
            if process != work.name:
                others.setdefault(limit, []).append(Other(process, held, wanted, since))
                work.others.add(process)
        with self._limits.lock:
            self._plan(others, work)
        self._write(connection, work)
        if work.is_asked:
            people.tell(connection, self._limits, work.name, self._now())
        if work.is_waiting:
            work.refused = self._gridlocked(connection, work.name)

    def _plan(self, others: dict[str, list[Other]], work: _Work) -> None:
        """What each line is to have. What is to be given up is not handed out from here on."""
        is_idle = self._is_idle()
        self._due = None
        lines = self._limits.lines.values()
        for line in lines:
            if not line.decay:
                is_unused = is_idle and self._turns.get(line.name) == line.turns
                share = settled(line, others.get(line.name, []), work.name, is_idle=is_unused)
                line.share = min(line.share, share.held)
                # Now, not once it is written: a slot that is given back meanwhile would tell nobody, and lie about.
                line.foreign = share.foreign
                work.shares[line] = share
        for line in lines:
            if line.decay:
                there = others.get(line.name, [])
                if comes_first(line, there, work.name):
                    self._pay(line, work.paid)
                left = [slots for slots in islice(line.waiting, line.size) if not slots.is_paid]
                wanted = sum(slots.count for slots in left)
                share = work.shares[line] = Share(0, wanted, left[0].came if left else 0.0, None, [])
                work.fulls[line] = (line.full, line.refund)
                if self._wrote.get(line.name, NOTHING)[1:] != (wanted, share.since):
                    waiting = [one for one in there if one.wanted]
                    work.to_tell.update(dict.fromkeys(one.process for one in sorted(waiting, key=_by_since)[:1]))
        self._turns = {line.name: line.turns for line in lines}

    def _is_idle(self) -> bool:
        """Whether it is time to give back what was not used since the last time."""
        now = time.monotonic()
        if self._idle_at is None or now < self._idle_at:
            return False
        self._idle_at = None
        return True

    def _pay(self, line: Line, paid: list[Slots]) -> None:
        """Take what decays for those of ours whose turn and time it is, in the order of the line."""
        now = time.monotonic()
        for slots in list(islice(line.waiting, 1_000)):
            if slots.is_paid:
                continue
            decaying = [one for one in slots.lines if one.decay]
            if not all(_is_next(slots, one) for one in slots.lines):
                return
            when = due(slots, decaying)
            if when > now:
                self._due = when if self._due is None else min(self._due, when)
                return
            charge(slots, decaying, when, now)
            paid.append(slots)

    def _write(self, connection: sqlite3.Connection, work: _Work) -> None:
        """Our rows, as far as they have changed, and what decays."""
        for line, share in work.shares.items():
            row = (share.held, share.wanted, share.since)
            if self._wrote.get(line.name, NOTHING) != row:
                if row == NOTHING:
                    connection.execute(sql.DELETE_SLOTS, (sql.clean(line.name), work.name))
                else:
                    connection.execute(sql.WRITE_SLOTS, (sql.clean(line.name), work.name, *row))
            self._wrote[line.name] = row
        for line, (full, _) in work.fulls.items():
            connection.execute(sql.WRITE_FULL, (full, sql.clean(line.name)))

    def _load(self, connection: sqlite3.Connection) -> None:
        """The limits as they are now."""
        now = time.monotonic()
        known = dict(self._limits.lines)
        for name, size, decay, is_active, resets, full_at in connection.execute(sql.READ_LIMITS).fetchall():
            line = known.pop(name, None)
            if line is None or (line.size, line.decay, line.is_active) != (size, decay, bool(is_active)):
                self._limits.set(name, size, decay=decay, is_active=bool(is_active))
            elif line.resets != resets:
                line.share = 0
                self._limits.reset(name)
            line = self._limits.lines[name]
            line.resets = resets
            with self._limits.lock:
                # Later than that it cannot be, but for a machine that was started anew.
                line.full = min(full_at, now + size / decay) - line.refund if decay else 0.0
        for name in known:
            self._limits.delete(name)
        self._limits.is_known = True

    async def change(self, changes: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        """Change limits, here and in every other process; no rows changed by the first one: `ObjectNotFound`."""
        await self._appear()
        async with self._database().writing() as writer:
            for place, (text, values) in enumerate(changes):
                cursor = await writer.execute(text, values)
                if place == 0 and not cursor.rowcount:
                    raise not_found(values[-1])
            names = [row[0] for row in await writer.execute_fetchall("SELECT name FROM processes")]
        self.ring(names)
        await self.settle()

    def _gridlocked(self, connection: sqlite3.Connection, name: str) -> tuple[str, str] | None:
        """The line whose first one here is to give up, and why; None if nobody waits for ever, or others give up."""
        now = time.monotonic()
        with self._limits.lock:
            lines = list(self._limits.lines.values())
            needs = {line.name: needs_of(line) for line in lines if line.share}
            sizes = {line.name: line.size for line in lines if line.is_active}
        for one, several in needs.items():
            text = None if several is None else _encode(several).decode()
            connection.execute(sql.TELL_NEEDS, (text, now, text, now, sql.clean(one), name))
        rows = [_told_by(row) for row in connection.execute(sql.READ_NEEDS)]
        line = refused(rows, sizes, name)
        return None if line is None else (line, drawn(rows, sizes))

    async def read(self, names: Sequence[str] | None) -> list[LimitRecord]:
        """These limits (None: all) with their lines, over all processes. Raises `ObjectNotFound`."""
        return await people.read(self._database(), self._limits, self._folder, self._name, names, self._now())

    def _failed(self, error: Exception) -> None:
        now = time.monotonic()
        if self._failed_at is None or now - self._failed_at > REPORT_AGAIN:
            self._failed_at = now
            what = error if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
            logger.error("Slots of limits cannot be shared: %s. Who waits for one goes on waiting", what)


def _told_by(row: Sequence[Any]) -> Told:
    name, process, held, wanted, since, needs, first_told, last_told = row
    several = None if needs is None else _decode_needs(needs)
    return Told(name, process, held, wanted, since, several, first_told, last_told)


def _is_next(slots: Slots, line: Line) -> bool:
    """Whether `slots` is the first in a line, but for those that have paid; and has room there, if it needs some."""
    first = next((one for one in line.waiting if not one.is_paid), None)
    return first is slots and (line.decay > 0 or line.has_room(slots))


def _by_since(one: Other) -> tuple[float, str]:
    return one.since, one.process
