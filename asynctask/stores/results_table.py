"""Kept results in a database: written durably and together, signed, and at hand in memory where that is safe.

1. A result is on disk, also if the power fails, when `write` returns. Those that are written at one time share one
   transaction and one wait for the disk.
2. Nothing is given out that was not signed by this store for this very key; see `payloads`.
3. What is at hand in memory is served without a look at the disk. So a number in the database grows whenever results
   were replaced or deleted, and a process that finds it changed, as it writes its runs, forgets what it has at hand.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import aiosqlite

from ..clocks import Clock
from . import sql
from .base import CacheEntry, StoredResult, date_of
from .database import Database, one
from .payloads import Payloads, Sealed
from .shelf import Shelf

#: Bytes of a payload above which it is signed, and checked, in a thread of its own.
LARGE = 100_000

T = TypeVar("T")


class Results:
    """The results of one store, for code at its desk."""

    def __init__(self, database: Database, shelf: Shelf, clock: Clock) -> None:
        self._clock = clock
        self._database = database
        self._shelf = shelf
        self._payloads = Payloads(database.path)
        self._epoch = -1
        self._turn = asyncio.Lock()
        self._to_write: list[tuple[list[tuple[Any, ...]], asyncio.Future[None]]] = []

    async def begin_anew(self, writer: aiosqlite.Connection) -> None:
        """The database is another one than before, or was closed meanwhile."""
        self._shelf.clear()
        # Before anything is read: what others replace from now on is noticed.
        self._epoch = int(await one(writer, sql.READ_EPOCH))

    async def read(self, key: str, *, at_hand: bool) -> StoredResult | None:
        """What is kept under `key`. Raises `DamagedResult` and `MissingResult`."""
        await self._database.opened()
        epoch = self._epoch
        rows = await self._database.read(sql.READ_RESULT, (sql.key_digest(key),))
        if not rows:
            return None
        run_id, task_name, created, expires, serializer, size, mac, file, inline = rows[0]
        sealed = Sealed(inline, file, size, mac)
        if size > LARGE:
            payload = await aside(self._payloads.open, key, serializer, sealed)
        else:
            payload = self._payloads.open(key, serializer, sealed)
        found = StoredResult(
            key=key, payload=payload, serializer=serializer, task_name=task_name,
            run_number=int.from_bytes(run_id, "big"), created=created, expires=expires,
        )  # fmt: skip
        if at_hand and self._epoch == epoch:  # else it may have been replaced since
            self._shelf.put(found)
        return found

    async def write(self, results: Sequence[StoredResult], *, at_hand: bool) -> None:
        await self._database.opened()
        rows: list[tuple[Any, ...]] = []
        for result in results:
            seal = self._payloads.seal
            if len(result.payload) > LARGE:
                sealed = await aside(seal, result.key, result.serializer, result.payload)
            else:
                sealed = seal(result.key, result.serializer, result.payload)
            rows.append(sql.result_row(result, sealed))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._to_write.append((rows, written))
        async with self._turn:
            if not written.done():
                together, self._to_write = self._to_write, []
                await self._write_together(together)
        written.result()
        for result in results:
            if at_hand:
                self._shelf.put(result)
            else:
                self._shelf.drop(result.key)

    async def _write_together(self, together: list[tuple[list[tuple[Any, ...]], asyncio.Future[None]]]) -> None:
        failure: Exception | None = None
        try:
            async with self._database.writing(durable=True) as writer:
                await writer.executemany(sql.WRITE_RESULT, [row for rows, _ in together for row in rows])
                epoch = await self.next_epoch(writer)
            self._epoch = epoch
        except Exception as error:  # deliberate: raised to every one of those who wait
            failure = error
        for _, written in together:
            if failure is None:
                written.set_result(None)
            else:
                written.set_exception(failure)

    async def look_at_epoch(self, writer: aiosqlite.Connection) -> None:
        """Forget what is at hand if another process has replaced or deleted some (rule 3)."""
        if len(self._shelf):
            await self._look(writer)

    async def next_epoch(self, writer: aiosqlite.Connection) -> int:
        """The epoch that begins when this transaction, which replaces or deletes results, is committed.

        Not ours before that: it may fail, and what is read until then is still the old.
        """
        number = await self._look(writer) + 1
        await writer.execute("UPDATE cache_epoch SET number = ?", (number,))
        return number

    async def _look(self, writer: aiosqlite.Connection) -> int:
        number = int(await one(writer, sql.READ_EPOCH))
        if self._epoch != number:
            self._shelf.clear()
            self._epoch = number
        return number

    async def list(self, task_name: str | None, limit: int) -> list[CacheEntry]:
        query = sql.list_results(task_name, limit)
        return [
            CacheEntry(
                key=key, run_id=UUID(bytes=run_id), task_name=task, created=datetime.fromtimestamp(created, UTC),
                expires=None if expires is None else date_of(expires), serializer=serializer, size=size,
            )
            for key, run_id, task, created, expires, serializer, size in await self._database.read(*query)
        ]  # fmt: skip

    async def clear(self, task_name: str | None, key: str | None, expired: bool) -> int:
        query = sql.clear_results(task_name, key, self._clock.now() if expired else None)
        async with self._database.writing() as writer:
            count = (await writer.execute(query.text, query.values)).rowcount
            epoch = await self.next_epoch(writer)
        self._epoch = epoch
        self._shelf.clear()
        await self.sweep_files()
        return count

    async def sweep_files(self) -> None:
        """Delete files of results that no row names any more."""
        used = {row[0] for row in await self._database.read("SELECT file FROM results WHERE file IS NOT NULL")}
        await aside(self._payloads.sweep, used)


async def aside(work: Callable[..., T], *args: Any) -> T:
    """What `work` gives, done in a thread of its own.

    An executor's take no more work once the interpreter is ending; and what is made then is kept as well.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def do(done: asyncio.Future[T]) -> None:
        try:
            value = work(*args)
        except BaseException as error:  # deliberate: raised to who waits for it
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, value)

    thread = threading.Thread(target=do, args=(done,), name="asynctask-store-aside", daemon=True)
    thread.start()
    try:
        return await done
    finally:
        thread.join()
        del done  # its error leads here
