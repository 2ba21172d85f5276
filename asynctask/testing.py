"""What users' own tests need: virtual time, seeded randomness, a runtime that shares nothing; the contract of runners.

In `with virtual_time() as clock: download(...)`, a task with five retries and delays of 1, 2, 4, 8 and 16 seconds is
through at once, and `clock.elapsed` is 31.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextvars import Token
from types import TracebackType

from .blocking import drive
from .clocks import Clock
from .errors import OptionError
from .runner_contract import TaskRunnerContract as TaskRunnerContract
from .scopes import Runtime, current_runtime
from .stores.memory import MemoryStore

#: 2026-01-01 00:00 UTC, so that what a test shows is the same each time.
START = 1_767_225_600.0


class VirtualClock(Clock):
    """A clock that stands still until it is moved. A run that waits for a retry moves it by its delay, and goes on.

    So delays of runs side by side add up; and who waits for the slots of a `rate_limit` moves it as well, if the
    store has it: `MemoryStore(clock=clock)`. Timeouts are not virtual: they bound real code. Usable from any thread.
    """

    is_virtual = True

    def __init__(self, start: float = START) -> None:
        self._start = start
        self._lock = threading.Lock()
        #: Seconds that the clock was moved since it was made.
        self.elapsed = 0.0
        self.now: Callable[[], float] = lambda: self._start + self.elapsed
        self.monotonic: Callable[[], float] = lambda: self.elapsed

    def advance(self, seconds: float) -> None:
        """Move the clock. Raises `OptionError` for a negative number: time does not go back."""
        if not seconds >= 0:
            raise OptionError(f"a clock is moved by 0 seconds or more, not {seconds!r}")
        with self._lock:
            self.elapsed += seconds


class virtual_time:  # in lower case, as it is read: `with virtual_time() as clock`
    """A block whose runs take no time to wait for retries, repeat their jitter by `seed`, and share nothing.

    `with` or `async with`; gives the `VirtualClock`. Tasks called inside, also by threads started inside, run in a
    runtime of their own with its own limits and history. Entered with `with` where an event loop runs, it must be
    left with nothing under way; `async with` waits for that.
    """

    def __init__(self, *, seed: int = 0, start: float = START) -> None:
        self._seed = seed
        self._start = start

    def _open(self) -> tuple[Runtime, VirtualClock]:
        clock = VirtualClock(self._start)
        source = random.Random(self._seed)
        self._runtime = Runtime(name="virtual", store=MemoryStore(clock=clock), clock=clock, source=source)
        return self._runtime, clock

    def __enter__(self) -> VirtualClock:
        runtime, clock = self._open()
        self._token: Token[Runtime | None] = current_runtime.set(None)
        drive(runtime.__aenter__())
        return clock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._runtime.close()
        finally:
            current_runtime.reset(self._token)

    async def __aenter__(self) -> VirtualClock:
        runtime, clock = self._open()
        await runtime.__aenter__()
        return clock

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runtime.__aexit__(kind, error, trace)
