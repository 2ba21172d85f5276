"""`concurrency` and `rate_limit`: limits with a name round any block of code, in a task or not.

1. Slots of all the names are taken at once, or none; first come, first served, together with every other block and
   process that uses these limits.
2. `concurrency` gives its slots back when the block is left, however it is. What `rate_limit` took comes back by
   itself, so many a second.
3. A block that is cancelled, or whose time is up, while it waits has taken nothing.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Generator, Iterable
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Self

import anyio

from .blocking import block_until_granted, drive
from .errors import (
    AcquireConcurrencySlotTimeoutError,
    BlockingWaitError,
    ConcurrencySlotAcquisitionError,
    OptionError,
)
from .limits import Limits
from .lines import Guest, Slots
from .loops import current_loop, strand_here
from .redact import shown
from .runs import Run, current_run
from .scopes import runtime_here
from .waiting import Port

logger = logging.getLogger("asynctask")


class _Limited:
    """What the two have in common: names, how many slots of each, and waiting for them."""

    def __init__(self, names: str | Iterable[str], occupy: int) -> None:
        what = type(self).__name__
        several: list[Any] = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not several or not all(isinstance(name, str) and name for name in several):
            raise OptionError(f"{what}(names) must be a limit's name, or several, not {shown(names)}")
        if not isinstance(occupy, int) or isinstance(occupy, bool) or occupy < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"{what}(occupy=...) must be a whole number of slots, at least 1, not {shown(occupy)}")
        self._names = list(dict.fromkeys(several))
        self._occupy = occupy
        self._what = f"{what}({', '.join(map(repr, self._names))})"

    async def _taken(self, port: Port, timeout: float | None, is_strict: bool) -> tuple[Limits, Slots | None]:
        """Slots of all the limits there are and that are active; waited for through `port`."""
        limits = port.services.limits
        if not limits.is_known:
            await port.ask(port.services.store.ready())
        self._check(limits)
        run = current_run.get()
        if run is not None and run.is_settled:
            run = None
        holder = run or Guest(threading.current_thread().name)
        slots, missing = limits.take_named(holder, self._names, self._occupy)
        try:
            if missing:
                self._tell_missing(missing, is_strict)
            if slots is not None and not slots.granted:
                await self._granted(slots, limits, port, timeout)
        except BaseException:  # cancelled while waiting, perhaps just as the slots were granted
            if slots is not None:
                limits.give(slots)
            raise
        return limits, slots

    def _check(self, limits: Limits) -> None:
        """Raise for limits that do not fit."""

    def _tell_missing(self, missing: list[str], is_strict: bool) -> None:
        names = ", ".join(map(repr, missing))
        advice = f"create it with `asynctask global-concurrency-limit create {missing[0]} --limit N`"
        if is_strict:
            raise ConcurrencySlotAcquisitionError(f"{self._what}: there is no limit {names}; {advice}")
        logger.warning("%s goes on without a limit: there is none named %s; %s", self._what, names, advice)

    async def _granted(self, slots: Slots, limits: Limits, port: Port, timeout: float | None) -> None:
        """Wait until the slots are granted. Raises what refuses them, and when the time is up."""
        run = slots.run
        waiting = limits.begin_wait(run, slots if timeout is None else None) if isinstance(run, Run) else None
        try:
            if timeout is not None:  # it may be less than it takes to fetch a slot from the store
                await port.ask(port.services.store.ready())
            if port.is_async:
                with anyio.move_on_after(timeout) if timeout is not None else nullcontext():
                    while not slots.is_decided:
                        await port.until_granted(slots)
            else:
                await self._fetched(slots, port, timeout)
                block_until_granted(limits, slots, timeout)
        finally:
            if waiting is not None:
                limits.end_wait(waiting)
        if slots.refused is not None:
            raise slots.refused
        if not slots.granted:
            raise AcquireConcurrencySlotTimeoutError(f"{self._what} waited for {timeout:g} s: {slots}")

    async def _fetched(self, slots: Slots, port: Port, timeout: float | None) -> None:
        if current_loop() is None:
            return
        await port.ask(port.services.store.ready())  # on a loop nobody may wait for long; but perhaps it is there
        if not slots.is_decided and timeout != 0:  # with 0 nobody waits
            raise BlockingWaitError(
                f"`with {self._what}` would block the event loop to wait for a slot ({slots}); write `async with`"
            )


class concurrency(_Limited):
    """At most so many blocks at once: `with concurrency("db"):`, or `async with`.

    `names` is the name of a global concurrency limit, or several, of each of which `occupy` slots are taken, all at
    once. A limit that does not exist is told in the log and limits nothing; with `strict` it raises
    `ConcurrencySlotAcquisitionError`. After `timeout_seconds` of waiting it raises
    `AcquireConcurrencySlotTimeoutError`; a limit smaller than `occupy` refuses with `ConcurrencyLimitAborted`; and
    blocks that could only wait for each other, in runs, raise `DeadlockError`. Slots of a limit with
    `slot_decay_per_second` also come back by themselves. One object may be used again, by several tasks or threads.
    """

    def __init__(
        self,
        names: str | Iterable[str],
        occupy: int = 1,
        timeout_seconds: float | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(names, occupy)
        if timeout_seconds is not None and (
            not isinstance(timeout_seconds, (int, float))  # pyright: ignore[reportUnnecessaryIsInstance]
            or isinstance(timeout_seconds, bool)
            or not timeout_seconds >= 0
        ):
            raise OptionError(
                f"concurrency(timeout_seconds=...) must be a number of seconds that is not negative, "
                f"not {shown(timeout_seconds)}"
            )
        self._timeout = timeout_seconds
        self._strict = strict
        #: What was taken, by the task or thread that did; each changes its own entry alone.
        self._held: dict[object, list[tuple[Limits, Slots | None]]] = {}

    async def _enter(self, port: Port) -> None:
        limits, slots = await self._taken(port, self._timeout, self._strict)
        self._held.setdefault(strand_here(), []).append((limits, slots))

    def _leave(self) -> None:
        strand = strand_here()
        if strand not in self._held:  # left in another task than entered in, as a generator may be
            strand = next(reversed(self._held))
        taken = self._held[strand]
        limits, slots = taken.pop()
        if not taken:
            del self._held[strand]
        if slots is not None:
            limits.give(slots)

    def __enter__(self) -> Self:
        drive(self._enter(runtime_here().blocking_port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    async def __aenter__(self) -> Self:
        await self._enter(runtime_here().loop_port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()


class rate_limit(_Limited):
    """No more than so many a second: `await rate_limit("api")`, or `with` or `async with` before a block.

    `names` is the name of a global concurrency limit with `slot_decay_per_second`, or several; it waits until `occupy`
    slots of each are there, and never gives them back: they come back by themselves. So a limit of 1 that decays at 5
    a second lets one through every 0.2 s, and a limit of 10 a burst of 10 as well. Raises `OptionError` for a limit
    without decay, and `ConcurrencyLimitAborted` for one smaller than `occupy`; one that does not exist is told in the
    log and limits nothing.
    """

    _is_used = True  # until there is something to use: `__init__` may raise

    def __init__(self, names: str | Iterable[str], occupy: int = 1) -> None:
        super().__init__(names, occupy)
        self._is_used = False

    def __del__(self) -> None:
        # Elsewhere this is a function that blocks; a bare call here would let everything through, and say nothing.
        if not self._is_used:
            warnings.warn(
                f"{self._what} was never entered or awaited, so it has limited nothing: write `with rate_limit(...):` "
                f"in plain code, `await rate_limit(...)` in async code",
                RuntimeWarning,
                stacklevel=2,
            )

    def _check(self, limits: Limits) -> None:
        for name in self._names:
            line = limits.lines.get(name)
            if line is not None and not line.decay:
                raise OptionError(
                    f"{self._what}: the limit {name!r} has no slot_decay_per_second, so its slots would never come "
                    f"back: `asynctask global-concurrency-limit update {name} --slot-decay-per-second N` gives it "
                    f"one, or use concurrency()"
                )

    async def _pass(self, port: Port) -> None:
        self._is_used = True
        limits, slots = await self._taken(port, None, False)
        if slots is not None:
            limits.forget(slots)

    def __await__(self) -> Generator[Any, Any, None]:
        return self._pass(runtime_here().loop_port).__await__()

    def __enter__(self) -> Self:
        drive(self._pass(runtime_here().blocking_port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def __aenter__(self) -> Self:
        await self
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
