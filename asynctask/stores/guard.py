"""Locks that the operating system holds and that die with their process: for writing, for being alive, for a key.

1. A lock ends by its owner's hand or with its process, kill -9 included: at once, however busy or stopped others are.
2. A forked child holds none of its parent's locks, and does not keep them when the parent dies.
3. Lock files are 0600, hold nothing, and are not reached through a symbolic link.
4. The file of a `FileLock` or of `KeyLocks` is never deleted here: who deletes it while others wait splits them into
   two crowds that no longer see each other. When somebody else did, the next to take the lock makes a new one.
5. Only `taken` waits, and it holds nothing while it does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from typing import ClassVar

import anyio

from ..clocks import Clock, Ids
from ..errors import StoreBusy
from ..loops import here
from . import lockfiles

#: A pause between two tries, in seconds: the shortest, and where growing ends. A batch is written in 1 to 20 ms.
SHORTEST, LONGEST = 0.0005, 0.01
#: SQLite from 3.7.0 up to here can lose acknowledged commits when a checkpoint and a writer meet (the "WAL-reset bug"),
#: unless each takes a `FileLock` first; `benchmarks/wal_guard.py` shows both. Two older branches were mended as well.
MENDED = (3, 51, 3)
MENDED_BRANCHES = {(3, 44): (3, 44, 6), (3, 50): (3, 50, 7)}
#: How often a lock is tried anew because its file was replaced meanwhile. Twice in a row is already a war.
REPLACED = 20

#: Held by whoever opens, closes, takes or gives, and by a fork: a child finds nothing half done, and no descriptor that
#: no object knows of. Reentrant, because the collector may close a forgotten lock in the middle of another call.
_change = threading.RLock()
_file_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()
_key_locks: weakref.WeakSet[KeyLocks] = weakref.WeakSet()


def loses_commits(version: tuple[int, int, int]) -> bool:
    """Whether this version of SQLite (`sqlite3.sqlite_version_info`) needs the guard to keep what it acknowledged."""
    return (3, 7, 0) <= version < MENDED_BRANCHES.get(version[:2], MENDED)


class FileLock:
    """One lock on one file, between processes and between objects: two of one path exclude each other. Any thread.

    Not reentrant: while it is held, `try_take` says False to its holder as well.
    """

    __slots__ = ("__weakref__", "_descriptor", "is_held", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)  # a program may change its folder
        self.is_held = False
        self._descriptor: int | None = None
        _file_locks.add(self)

    def try_take(self) -> bool:
        """Take the lock if it is free; never waits. Raises `StoreError` if its file cannot be opened or locked."""
        with _change:
            if self.is_held:
                return False
            for _ in range(REPLACED):
                if self._descriptor is None:
                    self._descriptor = lockfiles.open_file(self.path)
                if not lockfiles.try_lock(self._descriptor, self.path):
                    return False
                if lockfiles.is_at(self._descriptor, self.path):
                    self.is_held = True
                    return True
                self.close()
        raise lockfiles.replaced(self.path)

    def give(self) -> None:
        """Release the lock. Nothing happens if it is not held: in a child forked while its parent held it, say."""
        with _change:
            self.is_held = False
            if self._descriptor is not None:
                lockfiles.unlock(self._descriptor)

    def close(self) -> None:
        """Release the lock and its descriptor. It may be taken again, which opens the file anew."""
        with _change:
            descriptor, self._descriptor, self.is_held = self._descriptor, None, False
            if descriptor is not None:
                # By hand: closing alone would leave it locked for as long as a copy of the descriptor is about.
                lockfiles.unlock(descriptor)
                os.close(descriptor)

    def forget(self) -> None:
        """In a forked child: close without unlocking, which would unlock the parent's."""
        descriptor, self._descriptor, self.is_held = self._descriptor, None, False
        if descriptor is not None:
            with contextlib.suppress(OSError):  # somebody closed it: the next ones are still to be forgotten
                os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()


class taken:
    """Hold `lock` for a block of `async with`, on asyncio or trio. Raises `StoreBusy` after `timeout` seconds.

    The lock does not queue: of several that wait, the one that looks at the right moment has it.
    """

    __slots__ = ("_lock", "_timeout")

    def __init__(self, lock: FileLock, timeout: float | None = None) -> None:
        self._lock = lock
        self._timeout = timeout

    async def __aenter__(self) -> None:
        if not self._lock.try_take():
            await _poll(self._lock, self._timeout)

    async def __aexit__(self, *error: object) -> None:
        self._lock.give()


async def _poll(lock: FileLock, timeout: float | None) -> None:
    began = time.monotonic()
    longest = SHORTEST
    # anyio imports its half of asyncio when it first sleeps; a process forked meanwhile, by another thread, would wait
    # for ever for that import to end (2 of 8 under load).
    sleep = sys.modules["asyncio"].sleep if here().backend == "asyncio" else anyio.sleep
    while True:
        # The clock's nanoseconds are random enough to keep those who began at one instant from staying in step.
        pause = max(SHORTEST, longest * (time.monotonic_ns() % 1000) / 1000)
        if timeout is not None:
            left = began + timeout - time.monotonic()
            if left <= 0:
                raise StoreBusy(
                    f"{lock.path!r} has been locked by others for {timeout:g} s, so a process that uses this store is"
                    f" stopped, or its disk hangs: find it (`fuser -v {lock.path}`), then continue or end it"
                )
            pause = min(pause, left)
        await sleep(pause)
        if lock.try_take():
            return
        longest = min(longest * 2, LONGEST)


class Presence:
    """A process's sign of life: a file with a name that never comes again, locked for as long as this object is.

    Whoever finds the name later, with a run say, asks `is_alive`. No clock and no pid is asked: neither a jump of the
    time, nor a pid that is used again, nor a process that is merely slow or stopped can be mistaken for anything.
    """

    __slots__ = ("_lock", "name")

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        import random  # 1 ms, once for a store

        lockfiles.make_folder(os.fspath(folder))
        ids = Ids(random.Random())
        for _ in range(REPLACED):
            # The pid is for people who look into the folder.
            self.name = f"{os.getpid()}-{ids.new(Clock().now()):032x}"
            self._lock = FileLock(os.path.join(folder, self.name))
            if self._lock.try_take():  # not while a sweeper looks at the new file, which it takes for a dead one's
                return
            self._lock.close()
        raise lockfiles.replaced(os.fspath(folder))

    def close(self) -> None:
        """Be dead, for those who ask, and take the file away. Nothing happens in a forked child."""
        with _change:
            if self._lock.is_held:
                if sys.platform == "win32":  # it does not delete what is open
                    self._lock.close()
                with contextlib.suppress(OSError):  # it is gone, or its folder closed to us: others find us dead
                    os.unlink(self._lock.path)
                self._lock.close()


def is_alive(folder: str | os.PathLike[str], name: str) -> bool:
    """Whether the `Presence` of that name still stands, in any process, this one included."""
    with _change:
        return _look_at(folder, name, remove=False)


def remove(folder: str | os.PathLike[str], name: str) -> None:
    """Take the file of a dead `Presence` away. Nothing happens if it is alive, or not there."""
    with _change:
        _look_at(folder, name, remove=True)


def _look_at(folder: str | os.PathLike[str], name: str, remove: bool) -> bool:
    # Names are read from a database that may have been tampered with; these must not lead out of the folder.
    if not name.isascii() or not name.replace("-", "").isalnum():
        return False
    path = os.path.join(folder, name)
    try:
        descriptor = os.open(path, os.O_RDWR | lockfiles.FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise lockfiles.cannot_open(path, error) from error
    try:
        # Shared, so that two who look at one moment do not take each other for the living.
        if not lockfiles.try_lock(descriptor, path, is_shared=True):
            return True
        if remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        lockfiles.unlock(descriptor)
        return False
    finally:
        os.close(descriptor)


class KeyLocks:
    """A lock for each of any number of keys, between processes and objects, in one file that stays empty. Any thread.

    A key is one byte of the file, at an offset of 62 bits made from the key's digest: beyond its end, where locks may
    well be. Should two keys meet there (one in 9 million, with a million held at once), one waits for the other.
    """

    __slots__ = ("__weakref__", "_file", "_held", "is_resting", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        #: Whether the file is closed as soon as no key is held.
        self.is_resting = False
        self._file: _KeyFile | None = None
        #: Where each was taken: the file may have been replaced since.
        self._held: dict[int, _KeyFile] = {}
        _key_locks.add(self)

    def try_take(self, key: str) -> bool:
        """Take the lock of `key` if it is free; never waits. Raises `StoreError` if the file is not to be locked."""
        offset = _offset(key)
        with _change:
            if offset in self._held:  # perhaps on a file that is no longer there
                return False
            if self._file is None or not self._file.is_at(self.path):
                self._use(_KeyFile.of(self.path))
            assert self._file is not None
            if not self._file.try_take(offset):
                return False
            self._held[offset] = self._file
            self._file.users += 1
            return True

    def give(self, key: str) -> None:
        """Release the lock of `key`. Nothing happens if it is not held by this object."""
        with _change:
            self._give(_offset(key))
            self._close_if_resting()

    def close(self) -> None:
        """Release every key. Keys may be taken again, which opens the file anew."""
        with _change:
            for offset in list(self._held):
                self._give(offset)
            self._use(None)

    def rest(self) -> None:
        """Close the file when no key is held, now or later."""
        with _change:
            self.is_resting = True
            self._close_if_resting()

    def _close_if_resting(self) -> None:
        if self.is_resting and not self._held:
            self._use(None)

    def forget(self) -> None:
        """In a forked child, which holds nothing."""
        self._file = None
        self._held.clear()

    def _give(self, offset: int) -> None:
        file = self._held.pop(offset, None)
        if file is not None:
            file.give(offset)
            file.leave()

    def _use(self, file: _KeyFile | None) -> None:
        old, self._file = self._file, file
        if old is not None:
            old.leave()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()


class _KeyFile:
    """The one descriptor of a file of keys in this process, for all `KeyLocks` of it; changed only under `_change`.

    Record locks belong to the process, which has two sides: the system refuses nothing to a second taker in the same
    process, so `taken` does; and closing any descriptor of the file drops all of them, so that there is only one.
    """

    #: By device and inode: of two paths to one file, two descriptors would do as much harm as of one path.
    known: ClassVar[dict[tuple[int, int], _KeyFile]] = {}

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor = descriptor
        self.path = path
        self.users = 0
        self.taken: set[int] = set()
        self.identity = lockfiles.identity(os.fstat(descriptor))

    @classmethod
    def of(cls, path: str) -> _KeyFile:
        """The file at `path`, for one user more."""
        with contextlib.suppress(FileNotFoundError):
            file = cls.known.get(lockfiles.identity(os.lstat(path)))
            if file is not None:
                file.users += 1
                return file
        file = cls(lockfiles.open_file(path), path)
        cls.known[file.identity] = file
        file.users += 1
        return file

    def is_at(self, path: str) -> bool:
        try:
            return lockfiles.identity(os.lstat(path)) == self.identity
        except FileNotFoundError:
            return False

    def try_take(self, offset: int) -> bool:
        if offset in self.taken or not lockfiles.try_lock_byte(self.descriptor, offset, self.path):
            return False
        self.taken.add(offset)
        return True

    def give(self, offset: int) -> None:
        self.taken.discard(offset)
        lockfiles.unlock_byte(self.descriptor, offset)

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            del self.known[self.identity]
            self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


def _offset(key: str) -> int:
    import hashlib  # 12 ms where OpenSSL is loaded for it, and keys are few

    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def _forget_all() -> None:
    """In a forked child. The parent's locks stay: closing a copy of a descriptor unlocks nothing."""
    try:
        for lock in list(_file_locks):
            lock.forget()
        for keys in list(_key_locks):
            keys.forget()
        for file in _KeyFile.known.values():
            file.close()
        _KeyFile.known.clear()
    finally:
        _change.release()


if sys.platform != "win32":
    os.register_at_fork(before=_change.acquire, after_in_parent=_change.release, after_in_child=_forget_all)
