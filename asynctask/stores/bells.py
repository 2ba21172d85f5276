"""How processes that share a store wake each other: a named pipe for each, beside its sign of life.

1. To ring is to write one byte; nobody waits for anybody, and a bell that rings already is left alone.
2. Who waits for its bell costs nothing: the operating system wakes it. Where there are no named pipes (Windows), who
   has reason to must look every `LOOK_INSTEAD` seconds.
3. A bell is of its owner alone (0600, in a folder that is 0700), and goes with it, or with who finds it dead.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from . import lockfiles

#: What a ring means: look at the slots; and tell those who look what is in your lines.
LOOK, TELL = b".", b"?"
HAS_PIPES = sys.platform != "win32"
LOOK_INSTEAD = 0.04


class Bell:
    """The bell of this process, for its presence `name` in `folder`. Raises `StoreError`."""

    def __init__(self, folder: str, name: str, on_ring: Callable[[bytes], None]) -> None:
        self._path = _path(folder, name)
        self._on_ring = on_ring
        self._reader: int | None = None
        self._writer: int | None = None
        if not HAS_PIPES:
            return
        try:
            os.mkfifo(self._path, 0o600)
            flags = os.O_NONBLOCK | lockfiles.FLAGS
            self._reader = os.open(self._path, os.O_RDONLY | flags)
            self._writer = os.open(self._path, os.O_WRONLY | flags)  # else the pipe would end with each who rings
        except OSError as error:
            self.close()
            raise lockfiles.cannot_open(self._path, error) from error

    def fileno(self) -> int | None:
        """What becomes readable when it rings."""
        return self._reader

    def heard(self) -> None:
        """It became readable."""
        if self._reader is not None:
            with contextlib.suppress(BlockingIOError):
                self._on_ring(os.read(self._reader, 4096))

    def close(self) -> None:
        """Be silent, and take the pipe away."""
        if self._reader is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self.forget()

    def forget(self) -> None:
        """In a forked child: let go of what is the parent's."""
        for descriptor in (self._reader, self._writer):
            if descriptor is not None:
                os.close(descriptor)
        self._reader = self._writer = None


def ring(folder: str, name: str, what: bytes = LOOK) -> bool:
    """Wake the process of that presence; False if it has no bell, or nobody hears it."""
    if not HAS_PIPES:
        return True
    try:
        descriptor = os.open(_path(folder, name), os.O_WRONLY | os.O_NONBLOCK | lockfiles.FLAGS)
    except OSError:  # it is gone; no pipe; or nobody reads it any more
        return False
    try:
        os.write(descriptor, what)
    except BlockingIOError:  # full: it has yet to hear what came before
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove(folder: str, name: str) -> None:
    """Take the bell of a dead process away."""
    with contextlib.suppress(OSError):
        os.unlink(_path(folder, name))


def _path(folder: str, name: str) -> str:
    return os.path.join(folder, f"{name}.bell")
