"""Messages between a process and its workers: a pickle, and large buffers beside it that nobody copies.

1. A message is a kind, a pickle and any number of buffers; it is sent and received whole, over a stream socket.
2. Arrays, and whatever else speaks protocol 5 of pickle, travel beside the pickle; so do large bytes that are an
   argument or a result, for which the protocol has no words.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

#: Kind, length of the pickle, number of bytes beside it, and of buffers, and of answers that are to follow.
_HEAD = struct.Struct("!BQIII")
#: Bytes from which on a value goes beside the pickle; and up to which a message is put together before it is sent.
LARGE, SMALL = 1 << 16, 1 << 14
#: For a socket's own buffers: fewer switches between the two processes.
ROOM = 1 << 20

#: Makes a pickle of a value, and calls back with what goes beside it.
Dumps: TypeAlias = "Callable[[Any, Callable[[Any], object]], bytes]"
#: Makes the value again, given what went beside it.
Loads: TypeAlias = "Callable[[bytes, Sequence[Any]], Any]"


class Beside(NamedTuple):
    """Stands in a pickle for bytes that travel beside it."""

    place: int


class Message(NamedTuple):
    kind: int
    data: bytes
    #: How many of the buffers are bytes of which the pickle says `Beside`; the others are protocol 5's.
    beside: int = 0
    buffers: Sequence[Any] = ()
    #: Of one that came as an answer: how many are still to come of those that were asked for together.
    left: int = 0


class Sealed:
    """A message in the hands of another carrier, which pickles it: with protocol 5, its buffers are beside that too."""

    __slots__ = ("message",)

    def __init__(self, message: Message) -> None:
        self.message = message

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.message.data) + sum(memoryview(one).nbytes for one in self.message.buffers)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        kind, data, beside, buffers, _ = self.message
        is_mutable = [not memoryview(one).readonly for one in buffers]
        held = [pickle.PickleBuffer(one) if protocol >= 5 else bytes(one) for one in buffers]
        return opened, (kind, data, beside, held, is_mutable)


def opened(kind: int, data: bytes, beside: int, buffers: Sequence[Any], is_mutable: Sequence[bool]) -> Sealed:
    """Each buffer may be written to where it could before: a carrier that shares memory gives none such."""
    several: list[Any] = []
    for place, (one, wanted) in enumerate(zip(buffers, is_mutable, strict=True)):
        view = memoryview(one)
        if wanted and view.readonly:
            several.append(bytearray(view))
        elif place < beside and one.__class__ not in (bytes, bytearray):  # it is an argument or a result, as it is
            several.append(bytearray(view) if wanted else bytes(view))
        else:
            several.append(one)
    return Sealed(Message(kind, data, beside, several))


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a wire."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
    return ends


def packed(kind: int, values: Sequence[Any], dumps: Dumps) -> Message:
    """Values as a message. Raises what `dumps` raises."""
    beside: list[Any] = []
    several: list[Any] = []
    for value in values:
        if value.__class__ in (bytes, bytearray) and len(value) >= LARGE:
            several.append(Beside(len(beside)))
            beside.append(value)
        else:
            several.append(value)
    views: list[Any] = []
    data = dumps(several, views.append)
    return Message(kind, data, len(beside), [*beside, *(view.raw() for view in views)])


def unpacked(message: Message, loads: Loads) -> list[Any]:
    """The values again. Raises what `loads` raises."""
    values = loads(message.data, message.buffers[message.beside :])
    return [message.buffers[one.place] if one.__class__ is Beside else one for one in values]


def send(wire: socket.socket, message: Message, left: int = 0) -> None:
    """Raises `OSError` if nobody is there any more."""
    kind, data, beside, buffers, _ = message
    head = _HEAD.pack(kind, len(data), beside, len(buffers), left)
    if buffers:
        # Whether it may be written to, there as here: an array made of bytes could not.
        sizes = [memoryview(one).nbytes << 1 | (not memoryview(one).readonly) for one in buffers]
        head += struct.pack(f"!{len(sizes)}Q", *sizes)
    if len(data) <= SMALL:
        wire.sendall(head + data)
    else:
        wire.sendall(head)
        wire.sendall(data)
    for one in buffers:
        wire.sendall(one)


def _fill(wire: socket.socket, view: memoryview) -> None:
    while view:
        count = wire.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]


def _exactly(wire: socket.socket, size: int) -> bytes:
    if not size:
        return b""
    data = wire.recv(size, socket.MSG_WAITALL)  # in one piece, as a rule: nothing is copied
    while len(data) < size:
        more = wire.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            raise EOFError
        data += more
    return data


class Reader:
    """Messages as they come, read from the system as many at once as there are.

    Each call of the system's lets other threads have the interpreter, and one that computes gives it back after 5 ms:
    with one message a call, 5,000 short answers took twice as long.
    """

    __slots__ = ("_data", "_place", "_wire")

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._data = b""
        self._place = 0

    def receive(self) -> Message:
        """The next message. Raises `EOFError` if there is none, and `OSError` if the wire is broken."""
        data, start = self._data, self._place + _HEAD.size
        if start <= len(data):  # all of it has come, as a rule
            kind, length, beside, count, left = _HEAD.unpack_from(data, self._place)
            end = start + length
            if not count and end <= len(data):
                self._place = end
                return Message(kind, data[start:end], 0, (), left)
        kind, length, beside, count, left = _HEAD.unpack(self._exactly(_HEAD.size))
        if not count:
            return Message(kind, self._exactly(length), 0, (), left)
        sizes = struct.unpack(f"!{count}Q", self._exactly(8 * count))
        data = self._exactly(length)
        return Message(kind, data, beside, [self._buffer(one >> 1, bool(one & 1)) for one in sizes], left)

    def is_there(self) -> bool:
        """Whether a message has come, or its beginning. Raises `EOFError` if none will."""
        if self._place < len(self._data):
            return True
        try:
            self._data, self._place = self._wire.recv(LARGE, socket.MSG_DONTWAIT), 0
        except BlockingIOError:
            return False
        if not self._data:
            raise EOFError
        return True

    def _exactly(self, size: int) -> bytes:
        left = len(self._data) - self._place
        if left < size <= LARGE:  # more than that is read in one piece
            more = self._wire.recv(LARGE)
            if not more:
                raise EOFError
            self._data, self._place = self._data[self._place :] + more, 0
            left = len(self._data)
        if left >= size:
            data = self._data[self._place : self._place + size]
            self._place += size
            return data
        data = self._data[self._place :]
        self._data, self._place = b"", 0
        return data + _exactly(self._wire, size - len(data)) if data else _exactly(self._wire, size)

    def _buffer(self, size: int, is_mutable: bool) -> Any:
        if not is_mutable:
            return self._exactly(size)
        made = bytearray(size)
        taken = self._data[self._place : self._place + size]
        self._place += len(taken)
        made[: len(taken)] = taken
        _fill(self._wire, memoryview(made)[len(taken) :])
        return made
