"""Payloads of results beside a database file: signed, checked on reading, the large ones in files of their own.

1. A payload leaves here only if this store wrote it, for that key and that serializer: all three are under one HMAC,
   whose key lies beside the database and is readable by its owner alone. Nothing is decoded before.
2. A payload over the limit is a file named by its SHA-256. No other text ever becomes part of a path.
3. A file has its final name only when it is whole and on the disk: it is written under another one, synced and renamed.
4. A file may be shared by results of equal content. Who reuses it touches it first, under a lock shared with the other
   writers; the sweeper looks at its age again and removes it while it holds that lock alone. So what was sealed within
   the hour is never swept, whatever the database does not know yet.
5. Symbolic links, and folders and keys of other users, are refused. What we make is 0600, folders 0700.
6. Any thread, any process; locks are held for a rename, never for a write. The clock is the file system's own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import io
import os
import re
import stat
import sys
from collections.abc import Callable, Container, Generator
from typing import Any

import msgspec

from ..clocks import secret
from ..errors import DamagedResult, MissingResult, StoreError
from ..redact import shown
from .lockfiles import FLAGS, refused

KEY_BYTES = 32
#: Read and compared at once.
CHUNK = 1 << 20

#: Patterns, compiled only where there are large results.
_DIGEST = r"[0-9a-f]{64}"
_TEMPORARY = r"[0-9a-f]{64}\.[0-9a-f]{16}\.new"


class Sealed(msgspec.Struct, frozen=True):
    """A payload as it is kept: in the row itself, or in a file; and what proves that it is ours."""

    inline: bytes | None
    #: The SHA-256 of the content in hexadecimal: the name of its file.
    file: str | None
    size: int
    mac: bytes


class Payloads:
    """The payloads of the database at `database`, whose folder must exist. Touches no disk before it has to."""

    def __init__(self, database: str | os.PathLike[str], *, inline_limit: int = 64 * 1024) -> None:
        # Resolved, as SQLite does with the names of its own files: two paths of one database have one key.
        path = os.path.realpath(database)
        self.key_path = f"{path}.key"
        self.folder = f"{path}.results"
        self.inline_limit = inline_limit
        #: What the key file was like when it was read, and what was in it.
        self._key: tuple[tuple[int, ...], bytes] | None = None

    def seal(self, key: str, serializer: str, payload: bytes) -> Sealed:
        """Sign a payload, and put it into a file, durably, if it is large. Raises `StoreError`."""
        digest = hashlib.sha256(payload).digest()
        with _told("kept"):
            signing_key = self._read_key() or self._make_key()
            file = None
            if len(payload) > self.inline_limit:
                file = digest.hex()
                self._write(file, payload)
        mac = _sign(signing_key, key, serializer, digest)
        return Sealed(payload if file is None else None, file, len(payload), mac)

    def open(self, key: str, serializer: str, sealed: Sealed) -> bytes:
        """The payload, if it is the one that was sealed for this key and serializer.

        Raises `DamagedResult`; `MissingResult` if its file is gone; `StoreError` if a disk cannot be read.
        """
        if not _is_well_formed(serializer, sealed):
            raise _damaged(key, "its record is not one that was ever written")
        file = sealed.file
        digest = hashlib.sha256(sealed.inline or b"").digest() if file is None else bytes.fromhex(file)
        with _told("read"):
            signing_key = self._read_key()
            if signing_key is None:
                raise _damaged(key, f"the key that it was signed with is gone: there is no {self.key_path!r}")
            if not hmac.compare_digest(sealed.mac, _sign(signing_key, key, serializer, digest)):
                raise _damaged(key, f"it was altered, or not signed with the key in {self.key_path!r}")
            payload = sealed.inline if file is None else self._read(key, file, sealed.size)
        if payload is None or len(payload) != sealed.size or (file and hashlib.sha256(payload).digest() != digest):
            raise _damaged(key, f"its content is not what was written{f', in the file {file}' if file else ''}")
        return payload

    def sweep(self, used: Container[str] | Callable[[str], bool], *, age: float = 3600.0) -> int:
        """Remove files that no result refers to, and what killed writers left, if older than `age` seconds.

        `used` has, or says yes to, each `Sealed.file` that is still referred to. Returns how many files are gone.
        """
        is_used = used if callable(used) else used.__contains__
        count = 0
        with _told("swept"):
            if not _is_folder(self.folder):
                return 0
            os.utime(self.folder)
            before = os.lstat(self.folder).st_mtime - age
            for prefix in _names(self.folder, r"[0-9a-f]{2}"):
                folder = os.path.join(self.folder, prefix)
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    continue
                for name in _names(folder, _DIGEST, _TEMPORARY):
                    path = os.path.join(folder, name)
                    if _is_older(path, before) and (len(name) > 64 or not is_used(name)):
                        count += self._remove(path, before)
        return count

    # -- files -------------------------------------------------------------------------------------------------------

    def _write(self, file: str, payload: bytes) -> None:
        folder = os.path.join(self.folder, file[:2])
        path = os.path.join(folder, file)
        _make_folder(self.folder)
        _make_folder(folder)
        if not self._touch(path) or not _holds(path, payload):  # a damaged one is written anew: the cache heals
            temporary = f"{path}.{secret(8).hex()}.new"
            try:
                _write_new(temporary, payload)
                with self._locked(alone=False):
                    os.replace(temporary, path)
            except BaseException:
                _unlink(temporary)
                raise
        _sync_folder(folder)  # also for a file of another writer, who may not have come to that yet

    def _touch(self, path: str) -> bool:
        """Whether there is a file, which from now on is young. Raises `StoreError` if it is anything but a file."""
        with self._locked(alone=False):
            try:
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    raise StoreError(f"{path!r} is to be the file of a result, and is a link or a folder: remove it")
                os.utime(path)
            except FileNotFoundError:
                return False
        return True

    def _read(self, key: str, file: str, size: int) -> bytes:
        folder = os.path.join(self.folder, file[:2])
        path = os.path.join(folder, file)
        if not (_is_folder(self.folder) and _is_folder(folder)):
            raise _missing(key, path)
        try:
            descriptor = os.open(path, os.O_RDONLY | FLAGS)
        except FileNotFoundError as error:
            raise _missing(key, path) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _damaged(key, f"its file {path!r} is a symbolic link, which is not followed") from error
            raise
        with _opened(descriptor, path) as opened:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                raise _damaged(key, f"its file {path!r} is not the {size:,} bytes that were written")
            return opened.readall()

    def _remove(self, path: str, before: float) -> bool:
        with self._locked(alone=True):
            if not _is_older(path, before):  # reused just now
                return False
            _unlink(path)
        return True

    @contextlib.contextmanager
    def _locked(self, *, alone: bool) -> Generator[None, None, None]:
        """Hold the lock of the folder, which waits for nothing but renames of other processes."""
        if sys.platform == "win32":
            yield  # it has no such lock: there, sweep while nobody writes
            return
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | FLAGS)
        try:
            _lock(descriptor, self.folder, alone)
            try:
                yield
            finally:
                # By hand: a child that another thread just forked has the descriptor too, and would keep it locked.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    # -- the key -----------------------------------------------------------------------------------------------------

    def _read_key(self) -> bytes | None:
        """The key, or None if there is none. Read again whenever its file is another one."""
        known = self._key
        try:
            status = os.lstat(self.key_path)
            if known is not None and known[0] == _stamp(status):
                return known[1]
            descriptor = os.open(self.key_path, os.O_RDONLY | FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise StoreError(
                    f"the key file {self.key_path!r} is a symbolic link: put the file itself there"
                ) from error
            raise
        with _opened(descriptor, self.key_path) as opened:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{self.key_path!r} is to be the key file of the store, and is no file: remove it")
            _check_owner(self.key_path, status)
            if sys.platform != "win32" and status.st_mode & 0o077:
                os.fchmod(descriptor, 0o600)  # as a copy or a restored backup often is
                status = os.fstat(descriptor)
            key = opened.read(KEY_BYTES + 1)
        if len(key) != KEY_BYTES or not any(key):
            raise StoreError(
                f"the key file {self.key_path!r} does not hold a key of {KEY_BYTES} bytes: restore it from a backup, or"
                " delete it, after which results signed with it are refused and computed anew"
            )
        self._key = (_stamp(status), key)
        return key

    def _make_key(self) -> bytes:
        _make_folder(self.folder)
        with self._locked(alone=True):
            key = self._read_key()
            if key is not None:
                return key  # another process was first
            temporary = f"{self.key_path}.new"
            _unlink(temporary)  # of a process that was killed just there
            try:
                _write_new(temporary, secret(KEY_BYTES))
                with contextlib.suppress(FileExistsError):  # on Windows, where nothing is locked here
                    os.rename(temporary, self.key_path)
            finally:
                _unlink(temporary)
            _sync_folder(os.path.dirname(self.key_path))
            key = self._read_key()
        if key is None:
            raise StoreError(
                f"the key file {self.key_path!r} was deleted as it was made: find the program that does it"
            )
        return key


def _sign(signing_key: bytes, key: str, serializer: str, digest: bytes) -> bytes:
    """Lengths come first, so that no two of (key, serializer, content) are signed as the same bytes."""
    parts = [b"asynctask result 1"]
    for text in (key, serializer):
        encoded = text.encode("utf-8", "surrogatepass")
        parts += (len(encoded).to_bytes(8, "big"), encoded)
    return hmac.digest(signing_key, b"".join([*parts, digest]), "sha256")


def _is_well_formed(serializer: Any, sealed: Any) -> bool:
    """Whether a row is of the types that it should be: SQLite keeps anything in any column."""
    if not (isinstance(serializer, str) and isinstance(sealed.mac, bytes) and isinstance(sealed.size, int)):
        return False
    if sealed.file is None:
        return isinstance(sealed.inline, bytes)
    return sealed.inline is None and isinstance(sealed.file, str) and re.fullmatch(_DIGEST, sealed.file) is not None


def _damaged(key: str, why: str) -> DamagedResult:
    return DamagedResult(f"the stored result with the key {shown(key, 80)} is refused: {why}; run its task again")


def _missing(key: str, path: str) -> MissingResult:
    return MissingResult(
        f"the stored result with the key {shown(key, 80)} is gone: there is no {path!r}; run its task again"
    )


@contextlib.contextmanager
def _told(what: str) -> Generator[None, None, None]:
    """Say what could not be done to a result, when the operating system says no."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename!r})" if error.filename else ""
        raise StoreError(
            f"results cannot be {what}: {error.strerror or error}{where}; see to the disk and the permissions"
        ) from error


# -- the disk --------------------------------------------------------------------------------------------------------

if sys.platform != "win32":
    import fcntl

    def _lock(descriptor: int, path: str, alone: bool) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        except OSError as error:
            raise refused(path, error) from error


def _write_new(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holds(path: str, content: bytes) -> bool:
    """Whether the file has that content, and can be read."""
    rest = memoryview(content)
    try:
        descriptor = os.open(path, os.O_RDONLY | FLAGS)
        with _opened(descriptor, path) as opened:
            if os.fstat(descriptor).st_size != len(content):
                return False
            while chunk := opened.read(CHUNK):
                if rest[: len(chunk)] != chunk:
                    return False
                rest = rest[len(chunk) :]
    except OSError:
        return False
    return not rest


def _make_folder(path: str) -> None:
    if not _is_folder(path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            _sync_folder(os.path.dirname(path))
        _is_folder(path)
    if sys.platform != "win32" and os.lstat(path).st_mode & 0o077:
        os.chmod(path, 0o700)


def _is_folder(path: str) -> bool:
    """Whether it is there. Raises `StoreError` if it is no folder of ours."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        raise StoreError(f"{path!r} is to be a folder of results, and is a symbolic link or a file: remove it")
    _check_owner(path, status)
    return True


def _check_owner(path: str, status: os.stat_result) -> None:
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        raise StoreError(
            f"{path!r} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}: who can write"
            " there could make it run any code; give it to this user (chown), or use a store of its own"
        )


def _opened(descriptor: int, path: str) -> io.FileIO:
    try:
        return open(descriptor, "rb", buffering=0)
    except IsADirectoryError as error:  # it does not take the descriptor then
        os.close(descriptor)
        raise IsADirectoryError(error.errno, error.strerror, path) from error


def _sync_folder(path: str) -> None:
    """Make names in the folder as durable as what they stand for."""
    if sys.platform == "win32":
        return  # it cannot open a folder, and writes names by itself
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | FLAGS)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _is_older(path: str, before: float) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return status.st_mtime <= before and not stat.S_ISDIR(status.st_mode)


def _names(folder: str, *patterns: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if any(re.fullmatch(pattern, name) for pattern in patterns))


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode
