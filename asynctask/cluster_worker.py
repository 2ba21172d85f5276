"""What runs in a worker of a cluster: bodies as their parcels come, several at once, also of several homes.

1. What a home says of itself is heeded once, as far as others can be served as well.
2. A function is read once, and remembered; a large one, which no parcel brings along, is fetched when it is not known.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable

from .away import Stop, carried_out, failed, learned, listen
from .clusters import Parcel, home
from .parcels import loads
from .settings import settings
from .specs import TaskSpec
from .stores.relay import Tell
from .wires import Message, Sealed, unpacked

#: How many functions a worker remembers, and how many bytes of them, as they were sent.
MOST_KNOWN, MOST_BYTES = 1_000, 1 << 28

#: The latest last, each with its bytes.
_known: dict[tuple[str, int], tuple[TaskSpec, int]] = {}
#: By home: its host, and what it has said of itself.
_setups: dict[str, tuple[str, bytes]] = {}
_learning = threading.Lock()


def unpack(parcel: Parcel, tell: Tell, fetch: Callable[[], Sealed], stop: Stop | None = None) -> Message:
    """What the body in the parcel gives; `fetch` gets its function, if that is not in it."""
    is_home = parcel.home == home()
    try:
        with _learning:
            setup = parcel.setup.message.data
            if not is_home and _setups.get(parcel.home, ("", b""))[1] != setup:  # new, or its settings are
                _setups[parcel.home] = (_set_up(parcel.setup), setup)
            specs = {parcel.number: _function_of(parcel, fetch)}
            is_far = not is_home and _setups[parcel.home][0] != socket.gethostname()
    except BaseException as error:  # deliberate: raised at home
        return failed(error)
    told = None if is_home else tell
    return carried_out(parcel.call.message, specs, told, stop, home=parcel.home, is_far=is_far)


def _function_of(parcel: Parcel, fetch: Callable[[], Sealed]) -> TaskSpec:
    key = (parcel.home, parcel.number)
    found = _known.pop(key, None)
    if found is None:
        function = fetch() if parcel.function is None else parcel.function
        _, spec = learned(unpacked(function.message, loads))
        found = (spec, function.size)
        _forget_some(found[1])
    _known[key] = found
    return found[0]


def _forget_some(size: int) -> None:
    """Make room for one of so many bytes."""
    size += sum(each for _, each in _known.values())
    while _known and (len(_known) >= MOST_KNOWN or size > MOST_BYTES):
        _, each = _known.pop(next(iter(_known)))
        size -= each


def _set_up(setup: Sealed) -> str:
    """Be in what matters as a home is, so far as others can be served as well; its host."""
    host: str
    host, paths, values, levels = unpacked(setup.message, loads)
    sys.path.extend(path for path in paths if path not in sys.path and os.path.exists(path))
    settings.take_over(values)
    listen(levels)
    return host
