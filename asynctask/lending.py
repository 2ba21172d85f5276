"""The current run's body waits for other runs: meanwhile it may lend them its slots, and it must not wait for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .limits import Limits
from .lines import Waiting
from .runs import Run, current_run


class lending:
    """For the length of a `with`: the current run's body waits for other runs, and may lend them its slots.

    `target` is what it waits for; None if the wait ends by itself. Raises `DeadlockError`.
    """

    __slots__ = ("_limits", "_target", "_waiting")

    def __init__(self, target: Run | Callable[[], Iterable[Iterable[Run]]] | None) -> None:
        self._target = target

    def __enter__(self) -> None:
        run = current_run.get()
        self._waiting: Waiting | None = None
        if run is not None and run.inside is not None:
            self._limits: Limits = run.inside.runtime.limits
            self._waiting = self._limits.begin_wait(run, self._target, "the first of several results")

    def __exit__(self, *error: object) -> None:
        if self._waiting is not None:
            self._limits.end_wait(self._waiting)
