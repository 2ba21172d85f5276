"""Hooks: what is said when one raises, and those that are still under way when their run has been cancelled."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from . import loops
from .options import Hook
from .runs import Run, wake_all
from .states import State

logger = logging.getLogger("asynctask")


class Afterwards:
    """Async hooks of cancelled runs that are still under way; a closing runtime waits for them."""

    def __init__(self) -> None:
        self._count = 0
        self._wakes: list[Callable[[], None]] = []

    def is_empty(self) -> bool:
        return self._count == 0

    def when_empty(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)
        if not self._count:
            wake_all(self._wakes)

    def go_on(self, hook: Hook, made: Awaitable[Any], run: Run, state: State, loop: loops.EventLoop) -> loops.Work:
        """The coroutine of a child that ends a hook."""
        self._count += 1

        async def rest() -> None:
            try:
                if loop.begins_early:
                    await loops.begun()
                await made
            except Exception:
                log_hook(hook, run, state)
            finally:
                if inspect.iscoroutine(made):
                    made.close()
                self.leave()

        return cast("loops.Work", rest())

    def leave(self) -> None:
        self._count -= 1
        if not self._count:
            wake_all(self._wakes)


def log_hook(hook: Hook, run: Run, state: State) -> None:
    name = getattr(hook, "__name__", None) or type(hook).__name__
    logger.exception(
        "Hook %r of run %r raised on entering %s; the run is not changed by it", name, run.name, state.name
    )
