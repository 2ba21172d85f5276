"""What the runs of tasks and flows tell of a round: retries, cache hits, what they waited for.

The journal tells of each final state; the history of the run has the rest. It is read at once, because to hold a
million runs until the end would be what the round measures. A run costs 0.5 us so.
"""

from __future__ import annotations

import itertools
import threading

from ..runs import Journal, Run
from ..states import CANCELLED, COMPLETED, CRASHED, FAILED, RUNNING, State
from .figures import RunFigures

#: The types that end a run whose body was to be called.
ENDS = COMPLETED.bit | FAILED.bit | CRASHED.bit | CANCELLED.bit


class RunCounter:
    """Counts the runs of a journal that begin within a window; runs end in any thread."""

    def __init__(self, journal: Journal, begin: float, end: float) -> None:
        """The window is in seconds of the journal's wall clock."""
        self._begin, self._end = begin, end
        self._here = threading.local()
        #: Those of each thread, so that none waits for another's.
        self._all: list[RunFigures] = []
        journal.observe(ENDS, self._told)

    def _told(self, run: Run, state: State) -> None:
        states = run.states
        if not self._begin <= states[0].time < self._end or state.name == "RolledBack":  # which was counted once
            return
        try:
            figures: RunFigures = self._here.figures
        except AttributeError:
            figures = self._here.figures = RunFigures()
            self._all.append(figures)
        figures.runs += 1
        if len(states) == 3 and states[1].type is RUNNING:  # as nearly all
            figures.seconds_pending += states[1].time - states[0].time
            figures.seconds_running += state.time - states[1].time
        else:
            _count(figures, states)

    def figures(self) -> RunFigures:
        """Those of all threads together."""
        names = RunFigures.__struct_fields__
        return RunFigures(**{name: sum(getattr(one, name) for one in list(self._all)) for name in names})


def _count(figures: RunFigures, states: tuple[State, ...]) -> None:
    attempts = 0
    for state, after in itertools.pairwise(states):
        seconds = after.time - state.time
        if state.type is RUNNING:
            attempts += 1
            figures.seconds_running += seconds
        elif state.name == "AwaitingConcurrencySlot":
            figures.seconds_waiting_for_limits += seconds
        elif state.name == "AwaitingRetry":
            figures.seconds_waiting_for_retries += seconds
        else:
            figures.seconds_pending += seconds
    figures.retries += max(0, attempts - 1)
    figures.cached += states[-1].name == "Cached"
