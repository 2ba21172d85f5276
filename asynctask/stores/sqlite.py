"""The SQLite store: one file for every process of this machine that is given its path.

1. Everything that touches the file happens at the store's desk, and through `database`.
2. A process that writes runs is present: a lock file of its own, which dies with it. The next process that opens the
   store ends the runs of those that are gone as Crashed.
3. Whoever reads, reads all that this process has kept so far: it is written first.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import sqlite3
import time
import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import aiosqlite

from ..clocks import Clock
from ..errors import ObjectNotFound, StoreBusy, StoreError
from ..flights import Flights
from ..limit_records import LimitRecord
from ..limits import Limits
from ..loops import strand_here
from ..records import LogEntry, TaskRun
from ..runs import Journal
from ..settings import settings
from ..states import State
from . import bells, lists, sql
from .base import CacheEntry, RunFilter, StoredResult, StoreInfo
from .database import SAFE, Database, execute_all, one, size_of, transaction
from .desk import Desk
from .guard import KeyLocks, Presence, is_alive, remove
from .recorder import Batch, Recorder
from .results_table import Results
from .rows import Numbers, crashed, insert_runs, put_into_words, record_of
from .schema import name_number
from .shelf import Shelf
from .slots_table import SlotsTable

logger = logging.getLogger("asynctask")

#: Seconds that a closing store goes on trying to write what waits: where others have locked it, and where the reason is
#: none that passes by itself, such as a folder that is not there.
LAST_SECONDS, HOPELESS_SECONDS = 10.0, 0.5
#: Seconds between two looks at what is to be pruned.
PRUNE_EVERY = 600.0
#: Runs that are pruned between two batches, in 0.1 s, and seconds until the next so many: a million at once would
#: hold up for 25 s what is to be recorded.
PRUNED_AT_ONCE, PRUNE_AGAIN = 5_000, 1.0


class SQLiteStore:
    """Runs, logs, results and limits in the file `path`; see `Store` for what the methods promise."""

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self.path: str = os.path.abspath(os.path.expanduser(os.fspath(path)))
        self.url = f"sqlite:///{self.path}"
        self.limits = Limits(strand_here, share_at_first=0)
        self.limits.is_known = False
        self._folder = f"{self.path}-processes"
        self._slots = SlotsTable(
            self.limits, self._folder, database=lambda: self._database, appear=self._appear, bury=self._bury,
            now=self._clock.now,
        )  # fmt: skip
        self.flights = Flights()
        self._desk = Desk("asynctask-store", self._at_desk)
        self._recorder = Recorder(self._write_batch, self._clock.now)
        self.keep = self._recorder.keep
        self.keep_log = self._recorder.keep_log
        self.is_full = self._recorder.is_full
        self.when_room = self._recorder.when_room
        values = settings.values
        self._shelf = Shelf(values.cache_entries_in_memory, values.cache_bytes_in_memory)
        self.result_at_hand = self._shelf.get
        self._keys = KeyLocks(f"{self.path}-keys")
        #: These belong to one opening of the desk.
        self._database: Database
        self._presence: Presence | None = None
        self._results: Results
        self._appearing: asyncio.Lock
        self._numbers = Numbers()
        self._pruned = 0.0
        _stores.add(self)

    def begin_anew(self) -> None:
        """In a forked child: nothing is open, and nothing of what the parent has is to be written here."""
        for journal in self._recorder.journals.all():
            journal.keep = journal.keep_log = _ignore
        self._recorder.begin_in_child()
        self._desk = Desk("asynctask-store", self._at_desk)
        self._presence = None
        self._slots.begin_in_child()
        self._shelf.begin_anew()
        self.limits.begin_anew()  # the same object: runtimes that were made before the fork have it
        self.limits.is_known = False
        self.flights = Flights()

    # -- the desk -----------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        self._desk.use()

    async def release(self) -> None:
        await self._desk.leave()

    def attach(self, journal: Journal) -> None:
        journal.keeps_errors = True
        self._recorder.journals.add(journal)
        self._desk.use()

    async def detach(self, journal: Journal) -> None:
        try:
            await self._desk.ask(self._write_the_rest)
        finally:
            self._recorder.journals.discard(journal)
            await self._desk.leave()

    async def _at_desk(self, closing: asyncio.Event) -> None:
        self._database = Database(self.path, self._prepare)
        self._results = Results(self._database, self._shelf, self._clock)
        self._keys.is_resting = False
        self._appearing = asyncio.Lock()
        self._slots.open()
        try:
            slots = asyncio.ensure_future(self._slots.run(closing))
            await self._recorder.run(closing)  # begun in this step, not in a task: the first question may write
            await slots
        finally:
            try:
                await self._disappear()
            finally:
                await self._database.close()
                self._keys.rest()  # keys stay held: by who has opened the desk again meanwhile, or goes without

    async def _prepare(self, writer: aiosqlite.Connection) -> None:
        """The file was opened: for the first time, or anew because it was replaced."""
        self._numbers = Numbers()
        await self._results.begin_anew(writer)
        self._recorder.begin_anew()
        presence = self._presence
        if presence is not None and not await one(writer, sql.IS_PRESENT, (presence.name,)):  # it is another file
            self._presence = None
            self._slots.hide()
            presence.close()
        names = [row[0] for row in await writer.execute_fetchall("SELECT name FROM processes")]
        async with transaction(writer):
            await self._bury(writer, [name for name in names if not is_alive(self._folder, name)])

    async def _appear(self) -> str:
        """Become present, if we are not yet, so that others know whether our runs go on; the name we have."""
        await self._database.opened()
        async with self._appearing:
            if self._presence is None:
                presence = Presence(self._folder)
                values = (presence.name, os.getpid(), socket.gethostname(), self._clock.now())
                try:
                    self._slots.show(presence.name)
                    async with self._database.writing() as writer:
                        await writer.execute(sql.APPEAR, values)
                except BaseException:
                    self._slots.hide()
                    presence.close()
                    raise
                self._presence = presence
                self._slots.need()  # and learn of the limits
        return self._presence.name

    async def _disappear(self) -> None:
        presence, self._presence = self._presence, None
        if presence is None:
            return
        try:
            if self._recorder.failure is None:  # else it would only take longer
                async with self._database.writing() as writer:
                    waiting = await self._slots.leave(writer, presence.name)
                    await writer.execute(sql.DISAPPEAR, (presence.name, presence.name))
                self._slots.ring(waiting)
        except StoreError as error:  # the next one who opens the store finds us gone
            logger.debug("the store %r was left without taking leave: %s", self.path, error)
        finally:
            self._slots.hide()
            presence.close()

    async def _bury(self, writer: aiosqlite.Connection, names: Sequence[str]) -> None:
        """End the runs of processes that are gone as Crashed, and free their slots; in a transaction."""
        for name in names:
            await writer.execute("DELETE FROM slots WHERE process = ?", (name,))
            rows = list(await writer.execute_fetchall("SELECT pid FROM processes WHERE name = ?", (name,)))
            if not rows:  # another process was here before us
                continue
            pid = rows[0][0]
            text = f"its process (pid {pid}) ended without ending it"
            found = list(await writer.execute_fetchall("SELECT id, states FROM runs WHERE owner = ?", (name,)))
            for is_flow in (0, 1):
                await writer.execute(sql.NEW_KIND, (*sql.CRASHED, is_flow))
            ends = [(*crashed(states, text, self._clock.now()), *sql.CRASHED, run_id) for run_id, states in found]
            await writer.executemany(sql.END_RUN, ends)
            await writer.execute("DELETE FROM processes WHERE name = ?", (name,))
            remove(self._folder, name)
            bells.remove(self._folder, name)
            if found:
                logger.warning("%d runs of a process that is gone (pid %d) are marked Crashed", len(found), pid)

    # -- runs: writing ------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        await self._desk.ask(lambda: self._recorder.write_out(young=True))

    async def ready(self) -> None:
        try:
            await self._desk.ask(self._slots.settle)
        except StoreError:  # the recorder reports it; the work goes on, without the limits that nobody can read
            self.limits.is_known = True

    async def _write_the_rest(self) -> None:
        began = time.monotonic()  # real seconds: a virtual clock stands still
        pause = 0.05
        while not await self._recorder.try_to_write(young=True):
            is_locked = isinstance(self._recorder.failure, StoreBusy)
            if time.monotonic() + pause > began + (LAST_SECONDS if is_locked else HOPELESS_SECONDS):
                break
            await asyncio.sleep(pause)
            pause *= 2
        if self._recorder.failure is not None:
            logger.error(
                "%d runs of this process could not be recorded in %s: %s",
                self._recorder.waiting, self.path, self._recorder.failure,
            )  # fmt: skip

    async def _write_batch(self, batch: Batch) -> None:
        owner = await self._appear()
        for _ in put_into_words(batch.traces):
            await asyncio.sleep(0)  # others ask here as well
        async with self._database.writing() as writer:
            numbers = await self._numbered(writer, batch)
            await execute_all(writer, insert_runs(batch.traces, numbers, owner))
            await self._insert_details(writer, batch)
            await self._results.look_at_epoch(writer)
        self._numbers = numbers
        if not 0 <= self._clock.now() - self._pruned <= PRUNE_EVERY:  # less than 0: the clock was set back
            self._pruned = self._clock.now()
            await self._prune_by_settings()

    async def _numbered(self, writer: aiosqlite.Connection, batch: Batch) -> Numbers:
        """The numbers of tasks and kinds of states, with new ones for those that have none."""
        tasks, kinds = self._numbers.missing(batch.traces)
        if not tasks and not kinds:
            return self._numbers
        known = self._numbers.copy()  # the transaction may fail
        for key, name, is_flow in tasks:
            values = (sql.clean(key), sql.clean(name), int(is_flow))
            await writer.execute(sql.NEW_TASK, values)
            known.tasks[key, name, is_flow] = await one(writer, sql.FIND_TASK, values)
        for type, name, is_flow in kinds:
            values = (type, sql.clean(name), int(is_flow))
            await writer.execute(sql.NEW_KIND, values)
            known.kinds[type, name, is_flow] = await one(writer, sql.FIND_KIND, values)
        return known

    async def _insert_details(self, writer: aiosqlite.Connection, batch: Batch) -> None:
        """Tags, given names and logs, for the few runs that have them."""
        await execute_all(writer, sql.new_tags(batch.new()))
        names = [lists.name_row(trace) for trace in batch.named()]
        if names:
            await writer.executemany(lists.INSERT_NAME, names)
        if batch.logs:
            await writer.executemany(sql.INSERT_LOG, [sql.log_row(number, entry) for number, entry in batch.logs])

    # -- runs: reading ------------------------------------------------------------------------------------------------

    async def _read(self, text: str, values: Sequence[Any] = ()) -> list[Any]:
        async def question() -> list[Any]:
            await self._recorder.try_to_write(young=True)
            return await self._database.read(text, values)

        return await self._desk.ask(question)

    async def read_run(self, run_id: UUID) -> TaskRun:
        rows = await self._read(sql.READ_RUN, (run_id.bytes,))
        if not rows:
            raise ObjectNotFound(f"there is no run {run_id} in {self.path!r}")
        return record_of(rows[0], self._clock.now())

    async def read_runs(self, which: RunFilter, limit: int, cursor: UUID | None = None) -> list[TaskRun]:
        async def question() -> list[Any]:
            await self._recorder.try_to_write(young=True)
            query = lists.list_runs(which, await self._known(which), limit, cursor)
            return await self._database.read(query.text, query.values)

        return [record_of(row, self._clock.now()) for row in await self._desk.ask(question)]

    async def count_runs(self, which: RunFilter) -> int:
        async def question() -> int:
            await self._recorder.try_to_write(young=True)
            query = lists.count_runs(which, await self._known(which))
            return int((await self._database.read(query.text, query.values))[0][0])

        return await self._desk.ask(question)

    async def _known(self, which: RunFilter) -> lists.Known:
        """What the filters mean in the numbers of tasks and kinds of states."""
        read = self._database.read
        kinds = tasks = None
        if which.state_type is not None or which.state_name is not None:
            type = None if which.state_type is None else which.state_type.value
            name = None if which.state_name is None else sql.clean(which.state_name)
            kinds = [row[0] for row in await read(lists.FIND_KINDS, (type, name, which.is_flow))]
        if which.task_name is not None:
            tasks = [row[0] for row in await read(lists.FIND_TASKS, (sql.clean(which.task_name), which.is_flow))]
        every = [] if which.name is None else await read(lists.ALL_TASKS, (which.is_flow,))
        return lists.Known(kinds, tasks, *lists.tasks_named(sql.readable(which.name or ""), every))

    async def read_run_states(self, run_id: UUID) -> Sequence[State]:
        return (await self.read_run(run_id)).states

    async def read_logs(self, run_id: UUID) -> list[LogEntry]:
        rows = await self._read(sql.READ_LOGS, (run_id.bytes,))
        if not rows:
            await self.read_run(run_id)  # raises, if there is no such run
        return [LogEntry(*row) for row in rows]

    # -- runs: deleting -----------------------------------------------------------------------------------------------

    async def delete_run(self, run_id: UUID) -> None:
        rows = await self._read("SELECT owner FROM runs WHERE id = ?", (run_id.bytes,))
        if not rows:
            raise ObjectNotFound(f"there is no run {run_id} in {self.path!r}")
        if rows[0][0] is not None:
            raise StoreError(f"run {run_id} is still under way: only ended runs can be deleted")
        await self._desk.ask(lambda: self._delete([run_id.bytes]))

    async def prune(self, older_than: timedelta | None, keep: int | None) -> int:
        async def question() -> int:
            await self._recorder.write_out(young=True)
            return await self._prune(None if older_than is None else older_than.total_seconds(), keep)

        return await self._desk.ask(question)

    async def _prune_by_settings(self) -> None:
        days, keep = settings.values.store_keep_days, settings.values.store_keep_runs
        if days is None and keep is None:
            return
        try:
            count = await self._prune(None if days is None else days * 86400, keep, most=PRUNED_AT_ONCE)
        except Exception as error:  # deliberate: told; the batch before it is written, and must not be once more
            logger.error("Old runs could not be deleted: %s", error)
        else:
            if count >= PRUNED_AT_ONCE:
                self._pruned -= PRUNE_EVERY - PRUNE_AGAIN

    async def _prune(self, seconds: float | None, keep: int | None, *, most: float = math.inf) -> int:
        count = 0
        for query in sql.prunable(self._clock.now(), seconds, keep):
            while count < most and (ids := [row[0] for row in await self._database.read(query.text, query.values)]):
                await self._delete(ids)
                count += len(ids)
        return count

    async def _delete(self, ids: list[bytes]) -> None:
        """Delete runs with all that belongs to them, in one transaction."""
        async with self._database.writing() as writer:
            tags = await writer.execute_fetchall(*sql.tags_of(ids))
            for text, values in sql.deletions(ids, tags):
                await writer.executemany(text, values)
            await writer.executemany(lists.DELETE_NAME, [(name_number(one), one) for one in ids])
            await self._results.next_epoch(writer)
        await self._results.sweep_files()

    # -- results ------------------------------------------------------------------------------------------------------

    async def read_result(self, key: str, *, at_hand: bool = True) -> StoredResult | None:
        return await self._desk.ask(lambda: self._results.read(key, at_hand=at_hand))

    async def write_results(self, results: Sequence[StoredResult], *, at_hand: bool = True) -> None:
        await self._desk.ask(lambda: self._results.write(results, at_hand=at_hand))

    async def try_take_key(self, key: str) -> bool:
        return self._keys.try_take(key)

    def give_key(self, key: str) -> None:
        self._keys.give(key)

    async def read_cache(self, task_name: str | None, limit: int) -> list[CacheEntry]:
        return await self._desk.ask(lambda: self._results.list(task_name, limit))

    async def clear_cache(self, task_name: str | None, key: str | None, expired: bool) -> int:
        return await self._desk.ask(lambda: self._results.clear(task_name, key, expired))

    # -- the rest -----------------------------------------------------------------------------------------------------

    async def info(self) -> StoreInfo:
        runs, results, logs = (await self._read(sql.COUNTS))[0]
        version = (await self._read("PRAGMA user_version"))[0][0]
        return StoreInfo(
            url=self.url, path=self.path, schema_version=version, library=f"SQLite {sqlite3.sqlite_version}",
            is_guarded=sqlite3.sqlite_version_info < SAFE,
            size_bytes=sum(size_of(self.path + end) for end in ("", "-wal")), runs=runs, results=results, logs=logs,
        )  # fmt: skip

    async def write_limit(self, name: str, size: int, *, decay: float = 0.0, is_active: bool = True) -> None:
        values = (sql.clean(name), size, decay, int(is_active))
        await self._desk.ask(lambda: self._slots.change([(sql.WRITE_LIMIT, values)]))

    async def delete_limit(self, name: str) -> None:
        values = (sql.clean(name),)
        changes = [("DELETE FROM limits WHERE name = ?", values), ("DELETE FROM slots WHERE name = ?", values)]
        await self._desk.ask(lambda: self._slots.change(changes))

    async def reset_limit(self, name: str) -> None:
        values = (sql.clean(name),)
        await self._desk.ask(lambda: self._slots.change([(sql.RESET_LIMIT, values), (sql.RESET_SLOTS, values)]))

    async def read_limit(self, name: str) -> LimitRecord:
        return (await self._desk.ask(lambda: self._slots.read([name])))[0]

    async def read_limits(self) -> list[LimitRecord]:
        return await self._desk.ask(lambda: self._slots.read(None))


_stores: weakref.WeakSet[SQLiteStore] = weakref.WeakSet()


def _ignore(*_: object) -> None:
    """A forked child's part in the recording of its parent's runs."""


def _begin_anew() -> None:
    for store in list(_stores):
        store.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
