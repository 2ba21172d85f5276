"""When calls are to start, and waking up at that moment.

The timers of event loops are as coarse as epoll's, a millisecond, which would be the latency of every short call. So
on Linux the loop waits for a timer of the system's instead (timerfd), and is awake some 0.1 ms after the moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import anyio

from .plans import Open

_MONOTONIC, _NONBLOCK, _CLOEXEC, _ABSOLUTE = 1, os.O_NONBLOCK, getattr(os, "O_CLOEXEC", 0), 1


def arrivals(load: Open, *, seed: int) -> Iterator[int]:
    """The starts of the calls of an open loop, without end, in nanoseconds from its own."""
    gap = 1e9 / load.rate
    if load.arrivals == "constant":
        number = 0
        while True:
            yield int(number * gap)
            number += 1
    source = random.Random(seed)
    moment = 0.0
    while True:
        moment += source.expovariate(1.0) * gap
        yield int(moment)


class Pacer:
    """Waits for moments of `time.monotonic_ns`, on whichever loop."""

    def __init__(self, timer: Any) -> None:
        self._timer = timer

    async def until(self, moment: int) -> None:
        """Return at `moment`; at once if it has passed."""
        left = moment - time.monotonic_ns()
        if left <= 0:
            return
        if self._timer is None:
            await anyio.sleep(left / 1e9)
        else:
            self._timer.set(moment)
            await anyio.wait_readable(self._timer.descriptor)
            self._timer.clear()


@contextlib.contextmanager
def pacer() -> Generator[Pacer, None, None]:
    """A pacer with a timer of its own: one for each that waits."""
    timer = _Timer.made() if sys.platform == "linux" else None
    try:
        yield Pacer(timer)
    finally:
        if timer is not None:
            os.close(timer.descriptor)


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Moment), ("value", _Moment))


class _Timer:
    """A timerfd; Python has its own words for it only from 3.13 on."""

    def __init__(self, library: Any, descriptor: int) -> None:
        self._library = library
        self._setting = _Setting()
        self.descriptor = descriptor

    @classmethod
    def made(cls) -> _Timer | None:
        """One, or None where the system has none."""
        try:
            library = ctypes.CDLL(None, use_errno=True)
            descriptor = library.timerfd_create(_MONOTONIC, _NONBLOCK | _CLOEXEC)
        except (OSError, AttributeError):
            return None
        return None if descriptor < 0 else cls(library, descriptor)

    def set(self, moment: int) -> None:
        value: Any = self._setting.value
        value.seconds, value.nanoseconds = divmod(moment, 1_000_000_000)
        self._library.timerfd_settime(self.descriptor, _ABSOLUTE, ctypes.byref(self._setting), None)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the wait was ended by something else
            os.read(self.descriptor, 8)
