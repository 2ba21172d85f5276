"""One SQLite file, opened and written so that nothing is lost: what every statement of the SQLite store goes through.

1. One connection writes and one reads, both at the desk of the store; each works in a thread of its own.
2. Every write transaction, checkpoint, opening and closing happens under a lock between processes, with the library's
   own checkpoints switched off: from version 3.7.0 to 3.51.2 it can lose acknowledged commits when a checkpoint of one
   process meets a write of another (sqlite.org/wal.html, "the WAL-reset bug"). It is also faster than waiting inside
   the library, whose waiters sleep.
3. A transaction begins IMMEDIATE, so that it never has to be given up halfway for a lock.
4. No file of the database is ever opened by other means: closing that would drop the process's own locks on it.
5. A damaged database is reported, never deleted and never written over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite

from ..errors import StoreBusy, StoreDamaged, StoreError
from .guard import FileLock, taken
from .rest import at_work, connected, leave_open
from .schema import MIGRATIONS, VERSION, name_number
from .sql import Query

logger = logging.getLogger("asynctask")

#: "asta": marks a database file as ours.
APPLICATION = 0x61737461
#: The first version of the library that needs no guard.
SAFE = (3, 51, 3)
#: Seconds to wait for the lock between processes, and for programs that do not know it.
GUARD_SECONDS, FOREIGN_SECONDS = 10.0, 5.0
#: Bytes of log after which it is copied into the database; that it keeps when it is begun anew, for its size to tell
#: how much is in it; and after which we wait for readers to let it be cut off.
CHECKPOINT, KEPT, TRUNCATE = 4 << 20, 1 << 20, 64 << 20
#: Seconds to wait for them, each time.
READER_SECONDS = 0.1

_PRAGMAS = f"""
PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0; PRAGMA mmap_size = 0;
PRAGMA busy_timeout = {int(FOREIGN_SECONDS * 1000)}; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;
PRAGMA journal_size_limit = {KEPT}; PRAGMA cache_size = -16000;
"""


class Database:
    """The file at `path`; opened by the first that reads or writes. Only for code at one desk.

    `prepare` is called once it is open, with the connection that writes, under the lock.
    """

    def __init__(self, path: str, prepare: Callable[[aiosqlite.Connection], Awaitable[None]]) -> None:
        self.path = path
        self._prepare = prepare
        self._guard = FileLock(f"{path}-guard")
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None
        #: Which files are open: the database, and its log.
        self._files: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None)
        self._turn = asyncio.Lock()
        self._opening = asyncio.Lock()

    async def opened(self) -> aiosqlite.Connection:
        """The connection that writes. Raises `StoreError`."""
        if self._writer is not None:
            return self._writer
        async with self._opening:
            if self._writer is None:  # others wait here as well
                try:
                    self._writer = await self._open()
                except sqlite3.Error as error:
                    raise self.told(error) from error
                except OSError as error:
                    where = f" ({error.filename!r})" if error.filename not in (None, self.path) else ""
                    raise StoreError(
                        f"{self.path!r} cannot be opened: {error.strerror or error}{where}; see to its folder, or name "
                        f"another file, with ASYNCTASK_STORE_URL for instance"
                    ) from error
        return self._writer

    async def _open(self) -> aiosqlite.Connection:
        _make_file(self.path)
        async with taken(self._guard, GUARD_SECONDS), at_work():
            writer = await connected(self.path)
            try:
                await self._check_owner(writer)
                await writer.executescript(_PRAGMAS)
                await self._migrate(writer)
                await self._prepare(writer)
            except BaseException:
                await writer.close()
                raise
            self._files = (identity(self.path), identity(f"{self.path}-wal"))
        return writer

    async def _check_owner(self, writer: aiosqlite.Connection) -> None:
        """Raise `StoreError` for somebody else's database."""
        application = await one(writer, "PRAGMA application_id")
        if application == APPLICATION:
            return
        if application or await one(writer, "SELECT count(*) FROM sqlite_master"):
            raise StoreError(f"{self.path!r} is the database of some other program; give this store another path")
        await writer.executescript(f"PRAGMA application_id = {APPLICATION}")

    async def _migrate(self, writer: aiosqlite.Connection) -> None:
        """Bring the schema up to date, each step in a transaction. Raises `StoreError` for one from the future."""
        version = int(await one(writer, "PRAGMA user_version"))
        if version > VERSION:
            raise StoreError(
                f"{self.path!r} was written by a newer asynctask (schema {version}; this one knows {VERSION}): "
                f"upgrade asynctask, or give it another store"
            )
        connection: Any = writer  # whose stubs leave the function's type open
        await connection.create_function("name_number", 1, name_number, deterministic=True)
        for number in range(version, VERSION):
            async with transaction(writer):
                for statement in MIGRATIONS[number]:
                    await writer.execute(statement)
                await writer.execute(f"PRAGMA user_version = {number + 1}")

    @asynccontextmanager
    async def writing(self, *, durable: bool = False) -> AsyncGenerator[aiosqlite.Connection, None]:
        """A transaction; with `durable` it is on disk, also if the power fails, when the block is left.

        Raises `StoreError` for whatever the library raises in it.
        """
        is_written = False
        while not is_written:
            writer = await self.opened()
            try:
                async with self._turn, taken(self._guard, GUARD_SECONDS), at_work():
                    if not await self._is_in_place(writer):
                        continue
                    if durable:
                        await writer.execute("PRAGMA synchronous = FULL")
                    try:
                        async with transaction(writer):
                            yield writer
                    finally:
                        if durable:
                            await writer.execute("PRAGMA synchronous = NORMAL")
                    is_written = True
                    await self._copy_log(writer)
            except sqlite3.Error as error:
                raise self.told(error) from error

    async def read(self, text: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a statement that only reads. Raises `StoreError`."""
        while True:
            await self.opened()
            try:
                if self._reader is None:
                    async with self._turn, taken(self._guard, GUARD_SECONDS), at_work():
                        if self._reader is None:  # others wait here as well
                            self._reader = await _open_reader(self.path)
                async with at_work():
                    reader = self._connection_to_read()
                    if reader is not None:  # else it is opened anew
                        return list(await reader.execute_fetchall(text, values))
            except sqlite3.Error as error:
                raise self.told(error) from error

    def _connection_to_read(self) -> aiosqlite.Connection | None:
        """The one that is open, after whatever was waited for."""
        return self._reader

    async def _copy_log(self, writer: aiosqlite.Connection) -> None:
        """Copy a log that has grown into the database, as far as readers let us."""
        size = size_of(f"{self.path}-wal")
        if size <= CHECKPOINT:
            return
        try:
            rows = list(await writer.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)"))
            if size > TRUNCATE and rows[0][1] == rows[0][2]:  # all of it: no reader is far behind
                await writer.execute(f"PRAGMA busy_timeout = {int(READER_SECONDS * 1000)}")
                try:
                    await writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
                finally:
                    await writer.execute(f"PRAGMA busy_timeout = {int(FOREIGN_SECONDS * 1000)}")
        except sqlite3.Error as error:  # what was committed stays committed, in the log; the next one tries again
            logger.warning("The log of %r was not copied into it: %s", self.path, self.told(error))

    async def _is_in_place(self, writer: aiosqlite.Connection) -> bool:
        """Whether what is open is what is at the path; if not, it is to be opened anew. Raises `StoreReplaced`."""
        if writer is not self._writer:  # somebody else found that out while we waited
            return False
        log = identity(f"{self.path}-wal")
        is_same = identity(self.path) == self._files[0]
        if is_same and log == self._files[1]:
            return True
        if is_same and log is None:
            # Who finds that the log was deleted, before anybody makes a new one, can save what is in it.
            rows = list(await writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)"))
            if rows[0][0]:
                raise StoreBusy(f"the log of {self.path!r} was deleted, and somebody reads what is in it: end that")
            logger.warning("The log of the database %r was deleted while it was open; nothing is lost", self.path)
            connections, self._writer, self._reader = (self._reader, self._writer), None, None
            await _close([one for one in connections if one is not None])
            return False
        # Never closed: the library would delete the log by its name, and that may be the log of another by now.
        leave_open(self._writer, self._reader)
        self._writer = self._reader = None
        if is_same:  # another process found it, and has saved what was in the log
            return False
        raise StoreReplaced(
            f"the database {self.path!r} was deleted or replaced while it was open; what was in it is gone from there, "
            f"and what comes is written to a new one"
        )

    async def close(self) -> None:
        """Close what is open; as the last one in any process, this copies the log into the file."""
        connections = [one for one in (self._reader, self._writer) if one is not None]
        self._writer = self._reader = None
        if connections:
            try:
                async with taken(self._guard, GUARD_SECONDS), at_work():
                    await _close(connections)
            except StoreError:  # the lock is not to be had
                async with at_work():
                    await _close(connections)
        self._guard.close()

    def told(self, error: sqlite3.Error) -> StoreError:
        """What an error of the library means for people."""
        code = getattr(error, "sqlite_errorname", None) or ""
        where = repr(self.path)
        if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return StoreDamaged(
                f"the database {where} is damaged ({error}); nothing in it was changed. Restore a backup, or move it "
                f"away together with its -wal and -shm files; `sqlite3 FILE .recover` may save most of it"
            )
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StoreBusy(f"{where} is locked by a program that is not asynctask ({error}); end its transaction")
        if code.startswith("SQLITE_FULL"):
            return StoreError(f"there is no room to write {where} ({error}); free some")
        if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
            return StoreError(f"{where} cannot be written ({error}); check the permissions of the file and its folder")
        return StoreError(f"{where}: {error}")


class StoreReplaced(StoreError):
    """The file of an open database is not the one at its path any more."""


def _make_file(path: str) -> None:
    """Create the database file for its owner alone, before the library would, for everybody."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.path.islink(path):
        raise StoreError(f"{path!r} is a symbolic link; give the store the path of a file")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if os.path.isdir(path):
            raise StoreError(f"{path!r} is a folder; give the store the path of a file") from None


async def _open_reader(path: str) -> aiosqlite.Connection:
    reader = await connected(path)
    try:
        await reader.executescript(f"{_PRAGMAS} PRAGMA query_only = ON;")
    except BaseException:
        await reader.close()
        raise
    return reader


async def _close(connections: list[aiosqlite.Connection]) -> None:
    for connection in connections:
        with contextlib.suppress(sqlite3.Error):
            await connection.close()


@asynccontextmanager
async def transaction(writer: aiosqlite.Connection) -> AsyncGenerator[None, None]:
    await writer.execute("BEGIN IMMEDIATE")
    try:
        yield
        await writer.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # the library may have rolled back by itself
            await writer.rollback()
        raise


async def execute_all(writer: aiosqlite.Connection, queries: Iterable[Query]) -> None:
    """Execute `queries` in their order, each being made while the library is busy with the one before."""
    running: asyncio.Task[aiosqlite.Cursor] | None = None
    try:
        for text, values in queries:
            if running is not None:
                await running
            running = asyncio.ensure_future(writer.execute(text, values))
            await asyncio.sleep(0)  # it begins
        if running is not None:
            await running
    finally:
        if running is not None:  # not over if making the next one failed
            await asyncio.gather(running, return_exceptions=True)


async def in_one_step(writer: aiosqlite.Connection, work: Callable[[sqlite3.Connection], None]) -> None:
    """Call `work` with the library's own connection, in its thread."""
    library: Any = writer  # the library has no public name for what all its methods do
    await library._execute(work, library._conn)


async def one(connection: aiosqlite.Connection, text: str, values: Sequence[Any] = ()) -> Any:
    """The first value of the first row."""
    rows = list(await connection.execute_fetchall(text, values))
    return rows[0][0]


def identity(path: str) -> tuple[int, int] | None:
    """Which file is at `path`; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def size_of(path: str) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
