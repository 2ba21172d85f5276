"""What a process and its worker see of each other without a message: the body under way, and bodies not to begin.

1. The worker notes where it is before it looks whether that body is to begin, and the one before was to end; home notes
   that a body is to end before it looks where the worker is. So it kills the worker only in the body that is to end,
   or where nothing begins any more.
2. What home takes back before the worker is there does not begin.
"""

from __future__ import annotations

import mmap
import os
import struct

#: Bodies in one message, at most: a byte for each.
MOST = 4000
#: How many bodies have begun; whether the worker has stopped for good; and from there on what is to become of each.
_BEGUN, _HALTED, _FLAGS = struct.Struct("<I"), 4, 8
SIZE = _FLAGS + MOST + 1
#: What is to become of a body.
_TO_END, _TAKEN_BACK = 1, 2


class Progress:
    """A page of memory that two processes share, by the descriptor of a file of `SIZE` bytes."""

    __slots__ = ("_is_at_work", "_memory")

    def __init__(self, descriptor: int) -> None:
        self._memory: mmap.mmap | bytearray = mmap.mmap(descriptor, SIZE)
        #: In the worker: whether the last body did begin.
        self._is_at_work = False

    # -- at home ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The worker is gone; what it noted last can still be asked for."""
        if isinstance(self._memory, mmap.mmap):
            shared, self._memory = self._memory, bytearray(self._memory)
            shared.close()

    def clear(self, count: int) -> None:
        """So many bodies are about to be sent."""
        self._memory[: _FLAGS + count + 1] = bytes(_FLAGS + count + 1)

    def stop(self, place: int) -> bool:
        """The body is to end; True if it is under way, and the worker must be killed for that."""
        self._memory[_FLAGS + place] = _TO_END
        return self.begun == place + 1

    def take_back(self, first: int, count: int) -> int:
        """Of `count` bodies, those from `first` on are not to begin; the place from which on none will."""
        self._memory[_FLAGS + first : _FLAGS + count] = bytes((_TAKEN_BACK,)) * (count - first)
        return max(first, self.begun)

    @property
    def begun(self) -> int:
        """How many bodies have begun."""
        begun: int = _BEGUN.unpack_from(self._memory)[0]
        return begun

    @property
    def is_halted(self) -> bool:
        """Whether the worker has ended by itself, so as not to be killed in a body that may go on."""
        return self._memory[_HALTED] == 1

    # -- in the worker ------------------------------------------------------------------------------------------------

    def begin(self, place: int) -> bool:
        """The next body begins; or, with the number of bodies, all have ended. False if that body is not to begin.

        Raises `EOFError` if the worker may be killed at any moment.
        """
        memory = self._memory
        _BEGUN.pack_into(memory, 0, place + 1)
        if self._is_at_work and place and memory[_FLAGS + place - 1] == _TO_END:
            memory[_HALTED] = 1
            raise EOFError
        self._is_at_work = not memory[_FLAGS + place]
        return self._is_at_work


def new_page() -> int:
    """The descriptor of a file that has no name, for a `Progress` here and one there."""
    import tempfile  # 5 ms, and only who starts a worker needs it

    descriptor, path = tempfile.mkstemp(prefix="asynctask-")
    os.unlink(path)
    os.ftruncate(descriptor, SIZE)
    return descriptor
