"""The port of sync code: it waits by blocking the thread it is in; and everything else that blocks for a run.

1. A coroutine that waits through `Blocking` never suspends, so that `drive` can run the whole life of a run with one
   `send`.
2. It refuses (BlockingWaitError) to wait on a thread whose event loop would have to do the work.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import anyio

from . import loops
from .bodies import block_on, call_body, call_within, uninterrupted
from .errors import AsyncTaskError, BlockingWaitError
from .hooks import log_hook
from .limits import Limits
from .lines import Slots
from .options import Hook
from .runs import Run
from .settings import settings
from .states import State
from .waiting import Group, Services, logger

T = TypeVar("T")


class Blocking:
    """Waits by blocking the current thread; its coroutines never suspend."""

    is_async = False

    def __init__(self, services: Services) -> None:
        self.services = services

    def call(self, run: Run) -> Any:
        spec = run.spec
        start = time.monotonic()
        try:
            if spec.options.timeout is not None:
                return call_within(run, spec.options.timeout, partial(call_body, run))
            return call_body(run) if spec.is_generator else spec.body(*run.args, **run.kwargs)
        finally:
            taken = time.monotonic() - start
            if taken > 0.001:
                _warn_of_blocking(run, taken)
            del run  # the traceback of what the body raised leads to this frame; see `execute`

    async def ask(self, question: Awaitable[T]) -> T:
        with loops.blocking():
            return await question

    async def carry_out(self, work: Coroutine[Any, Any, None]) -> None:
        _in_thread(lambda: drive(work), "asynctask-write")

    async def sleep(self, run: Run, seconds: float) -> None:
        clock = run.journal.clock
        if clock.is_virtual:
            clock.advance(seconds)
            return
        block_on(threading.Event(), seconds)
        _warn_of_blocking(run, seconds)

    async def pause(self, seconds: float) -> None:
        if loops.current_loop() is not None:
            raise BlockingWaitError(
                "this would block the event loop to wait for a lock that somebody else holds; "
                "write `await task.submit(...)` or `async with transaction(...)` instead"
            )
        block_on(threading.Event(), seconds)

    async def until_called(self, run: Run, seat: Group) -> None:
        if loops.current_loop() is not None:
            raise BlockingWaitError(
                f"run {run.name!r} would block the event loop to wait for {run.blocker}; "
                f"write `await {run.spec.name}.submit(...)` instead"
            )
        await self.until_empty(seat)

    async def until_settled(self, run: Run) -> None:
        block_until_settled(run, None, f"use `await task.submit(...)`, or await {run.name!r} before this call")

    async def until_empty(self, group: Group, seconds: float | None = None) -> bool:
        end = None if seconds is None else time.monotonic() + seconds
        while not group.is_empty():
            ready = threading.Event()
            group.when_empty(ready.set)
            if not block_on(ready, None if end is None else max(0.0, end - time.monotonic())):
                break
        return group.is_empty()

    async def until_empty_shielded(self, group: Group) -> None:
        await self.until_empty(group)

    async def until_granted(self, slots: Slots) -> None:
        run = slots.run
        if loops.current_loop() is not None:
            await self.ask(self.services.store.ready())  # it may only have to be fetched
            if not slots.is_decided and isinstance(run, Run):
                raise BlockingWaitError(
                    f"run {run.name!r} would block the event loop to wait for a slot ({slots}); "
                    f"write `await {run.spec.name}.submit(...)` instead"
                )
        block_until_granted(self.services.limits, slots)

    async def until_room(self) -> None:
        ready = threading.Event()
        self.services.store.when_room(ready.set)
        # On an event loop only for a moment: that slows who makes runs, and a disk never holds up the loop for long.
        block_on(ready, None if loops.current_loop() is None else 0.01)

    async def call_hooks(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        self.call_hooks_now(hooks, run, state)

    def call_hooks_now(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        for hook in hooks:
            try:
                made = hook(run.spec.task, run, state)
                if inspect.iscoroutine(made):
                    _run_coroutine(made)
            except Exception:
                log_hook(hook, run, state)

    async def call_user(self, function: Callable[..., Any], *args: Any) -> Any:
        made = function(*args)
        return _run_coroutine(made) if inspect.iscoroutine(made) else made

    async def step(self, run: Run, step: Callable[[], Any], left: float | None) -> Any:
        try:
            return step() if left is None else call_within(run, left, step)
        finally:
            del run, step


def _warn_of_blocking(run: Run, seconds: float) -> None:
    """Say so if `run` has kept this thread, and the event loop in it, for long."""
    if seconds > settings.values.blocking_warning_seconds and loops.current_loop() is not None:
        kind, name = run.spec.what.capitalize(), run.spec.name
        advice = "make it async, or call it in a thread" if run.spec.is_flow else f"await {name}.submit(...)"
        logger.warning("%s %r blocked the event loop for %.2f s; %s", kind, name, seconds, advice)


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never suspends: the whole life of a blocking run, in one `send`."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AsyncTaskError("the engine suspended inside a blocking run; this is a defect of asynctask")


def block_until_settled(run: Run, timeout: float | None, instead: str) -> bool:
    """Block this thread until `run` is settled, at most `timeout` seconds. False if it is not.

    Raises `BlockingWaitError` where this thread's event loop is the one that must run it.
    """
    if run.is_settled:
        return True
    loops.refuse_left_behind(run)
    refuse_to_hang(run, instead)
    ready = threading.Event()
    run.when_settled(ready.set)
    try:
        return block_on(ready, timeout)
    finally:
        run.forget(ready.set)


def block_until_granted(limits: Limits, slots: Slots, seconds: float | None = None) -> bool:
    """Block this thread until `slots` are granted or refused, at most `seconds`; False if they are not."""
    end = None if seconds is None else time.monotonic() + seconds
    while not slots.is_decided:
        ready = threading.Event()
        limits.when_granted(slots, ready.set)
        due = limits.seconds_until_due(slots)
        if due is not None and limits.clock.is_virtual:
            limits.clock.advance(due)
        else:
            pauses = [due, None if end is None else max(0.0, end - time.monotonic())]
            block_on(ready, min((one for one in pauses if one is not None), default=None))
        limits.look_again(slots.lines)
        if end is not None and time.monotonic() >= end:
            break
    return slots.is_decided


def refuse_to_hang(run: Run, instead: str) -> None:
    """Raise `BlockingWaitError` if a blocking wait for `run` in this thread could only hang."""
    if run.home is not None and run.home.is_here():
        raise BlockingWaitError(
            f"waiting for run {run.name!r} here would block the event loop that has to run it; {instead}"
        )


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine of the user's from blocking code: on a loop of its own, in a thread if this one has a loop."""
    loop = loops.current_loop()
    if loop is None:
        with uninterrupted():  # half a loop would leave its sockets open
            return anyio.run(_as_coroutine, coroutine)
    return _in_thread(lambda: anyio.run(_as_coroutine, coroutine, backend=loop.backend), "asynctask-hook")


def _in_thread(call: Callable[[], Any], name: str) -> Any:
    """What `call` gives in a thread of its own, to its end: an interrupt meanwhile is raised afterwards."""
    box: list[Any] = []
    context = loops.context_for_thread()

    def work() -> None:
        try:
            box.append((call(), None))
        except BaseException as error:  # deliberate: handed to the thread that waits below
            box.append((None, error))

    thread = threading.Thread(target=context.run, args=(work,), name=name)
    later: BaseException | None = None
    with uninterrupted():
        thread.start()
        while thread.is_alive():
            try:
                thread.join()
            except BaseException as interrupt:  # deliberate: one from the keyboard, raised below
                later = interrupt
    value, error = box[0]
    if later is not None or error is not None:
        raise later or error
    return value


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
