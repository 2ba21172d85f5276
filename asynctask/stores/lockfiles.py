"""Lock files as the operating system has them: opened safely, locked whole or by the byte. `guard` makes locks of them.

Nothing here waits. Whole files are locked for the open file (`flock`), bytes for the process (`fcntl`); on Windows both
for the open file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys

from ..errors import StoreError

#: Not followed, not handed to programs that we start, and never waited for (a pipe that somebody put there).
FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def open_file(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | FLAGS, 0o600)
    except OSError as error:
        raise cannot_open(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"{path!r} is to be a lock file, and is something else: remove it, if nobody needs it")
    return descriptor


def cannot_open(path: str, error: OSError) -> StoreError:
    if error.errno == errno.ELOOP:
        return StoreError(
            f"the lock file {path!r} is a symbolic link, which is not followed: remove it; where several users write to"
            " its folder, one of them may have put it there"
        )
    return StoreError(
        f"the lock file {path!r} cannot be opened: {error.strerror}; its folder must be there and writable"
    )


def replaced(path: str) -> StoreError:
    return StoreError(f"{path!r} is deleted or replaced again and again: find the program that does it, and stop it")


def make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise StoreError(
                f"{path!r} is to be a folder of lock files, and is a symbolic link or a file: remove it"
            ) from None
    except OSError as error:
        raise StoreError(f"the folder {path!r} cannot be made: {error.strerror}") from error


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def is_at(descriptor: int, path: str) -> bool:
    try:
        return identity(os.lstat(path)) == identity(os.fstat(descriptor))
    except FileNotFoundError:
        return False
    except OSError as error:  # its folder was closed to us, or became something else
        raise cannot_open(path, error) from error


# -- the operating system --------------------------------------------------------------------------------------------

#: What locking says when somebody else has the lock.
TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


def refused(path: str, error: OSError) -> StoreError:
    return StoreError(
        f"{path!r} cannot be locked: {error.strerror}; a store must be on a disk of this machine, not on a network's"
    )


if sys.platform == "win32":
    import msvcrt

    def try_lock(descriptor: int, path: str, is_shared: bool = False) -> bool:
        return try_lock_byte(descriptor, 0, path)

    def unlock(descriptor: int) -> None:
        unlock_byte(descriptor, 0)

    def try_lock_byte(descriptor: int, offset: int, path: str) -> bool:
        os.lseek(descriptor, offset, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            raise refused(path, error) from error
        return True

    def unlock_byte(descriptor: int, offset: int) -> None:
        os.lseek(descriptor, offset, os.SEEK_SET)
        with contextlib.suppress(OSError):  # it was not locked
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def try_lock(descriptor: int, path: str, is_shared: bool = False) -> bool:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            raise refused(path, error) from error
        return True

    def unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def try_lock_byte(descriptor: int, offset: int, path: str) -> bool:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            raise refused(path, error) from error
        return True

    def unlock_byte(descriptor: int, offset: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, offset)
