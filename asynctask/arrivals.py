"""Several runs that are waited for together, in the order in which they end.

Runs end on their loops, in whatever threads these are; who waits is one. Who waits for all of them is woken once: to be
woken for each takes 12 us a run. Unless others may wait for him: then the end of each may have closed a ring of waits.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import anyio

from . import loops
from .blocking import refuse_to_hang
from .bodies import block_on
from .deadlocks import matters
from .lending import lending
from .runs import Run, current_run
from .states import COMPLETED


class Arrivals:
    """Runs that have `ended`, the first one first, and those that are still to."""

    def __init__(self, runs: Iterable[Run], until: Literal["next", "failed", "all"] = "next") -> None:
        """What is waited for: the next one; all, or the first that did not complete; or all, come what may."""
        self.ended: deque[Run] = deque()
        #: The first that did not complete.
        self.failed: Run | None = None
        self._until = until
        self._is_checked = False
        self._wake: Callable[[], None] | None = None
        #: Those that have not arrived. An OrderedDict, because to find the first one is to take one step in it.
        self._registered = OrderedDict((run, partial(self._arrive, run)) for run in runs)
        self._reader = current_run.get()
        is_of_run = self._reader is not None
        for run, arrive in list(self._registered.items()):
            run.is_awaited = is_of_run or run.is_awaited
            run.when_settled(arrive)

    def _arrive(self, run: Run) -> None:
        if run.states[-1].type is not COMPLETED and self.failed is None:
            self.failed = run
        self.ended.append(run)
        self._registered.pop(run, None)
        wake = self._wake
        if wake is not None and (self.is_enough or (self._reader is not None and matters(self._reader))):
            wake()

    @property
    def is_enough(self) -> bool:
        """Whether what is waited for is there."""
        if self._until == "next" and self.ended:
            return True
        return not self._registered or (self._until == "failed" and self.failed is not None)

    def awaited(self) -> Iterable[Iterable[Run]]:
        """One of these runs is to end; asked by any thread."""
        return () if self.is_enough else (self._runs(),)

    def _runs(self) -> Iterator[Run]:
        try:
            yield from self._registered
        except RuntimeError:  # one of them arrived meanwhile; as a rule who asks wants the first one, and no copy
            yield from list(self._registered)

    def block(self, end: float | None, instead: str) -> bool:
        """Block this thread until there is enough, or the monotonic clock says `end`; False if there is not.

        Raises `BlockingWaitError` on the event loop of one of them, which says what to do `instead`.
        """
        self._check(instead)
        while not self.is_enough:
            ready = threading.Event()
            self._wake = ready.set
            with lending(self.awaited if end is None else None):
                left = None if end is None else max(0.0, end - time.monotonic())
                if not self.is_enough and not block_on(ready, left):
                    break
        return self.is_enough

    async def wait(self, end: float | None) -> bool:
        """The same on an event loop."""
        self._check(None)
        while not self.is_enough:
            waker = loops.here().waker()
            self._wake = waker.wake
            with lending(self.awaited if end is None else None):
                if self.is_enough:
                    break
                if end is None:
                    await waker.wait()
                    continue
                with anyio.move_on_after(max(0.0, end - time.monotonic())) as scope:
                    await waker.wait()
            if scope.cancelled_caught:
                break
        return self.is_enough

    def _check(self, instead: str | None) -> None:
        """Raise `BlockingWaitError` if one of them never ends, or, with `instead`, not while this thread is blocked."""
        if self.is_enough or self._is_checked:
            return
        self._is_checked = True  # once is enough: no run moves to another loop
        home: Any = None
        for run in list(self._registered):
            if run.home is not home:  # as a rule all have the same
                home = run.home
                loops.refuse_left_behind(run)
                if instead is not None:
                    refuse_to_hang(run, instead)

    def forget(self) -> None:
        """Nobody waits any more."""
        for run, arrive in list(self._registered.items()):
            run.forget(arrive)
        self._registered.clear()  # they lead back here: a ring that only the collector would free
