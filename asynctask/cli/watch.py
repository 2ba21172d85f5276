"""`asynctask runs watch`: the states of a run as it enters them, in whichever process it runs."""

from __future__ import annotations

import time

from ..clocks import Clock
from ..errors import UsageError
from ..states import COMPLETED, State
from .finding import find_run
from .opened import at, opened
from .records import state_fields
from .show import document, note, out

#: Between two looks: a person sees it as at once, and the store is asked five times a second.
SECONDS = 0.2


def watch(run: str, /, *, timeout: float | None = None, json: bool = False, store: str | None = None) -> int:
    """Follow a run to its end. The exit code is 0 if it completes, else 1.

    Args:
        run: An id, the beginning or end of one, a name, @last or @last-failed.
        timeout: Give up after so many seconds.
        json: Print each state as a JSON document on a line of its own.
        store: The URL of the store.
    """
    if timeout is not None and not timeout >= 0:
        raise UsageError(f"--timeout must not be negative, not {timeout}")
    clock = Clock()
    start = clock.monotonic()
    with opened(store) as client:
        client = at(client, run)
        found = find_run(client, run)
        if not json:
            out(f"{found.name} ({found.id})")
        states = found.states
        seen = 0
        while True:
            for state in states[seen:]:
                _print(state, json)
            seen = len(states)
            if states[-1].is_final():
                return 0 if states[-1].type is COMPLETED else 1
            if timeout is not None and clock.monotonic() - start >= timeout:
                note(f"asynctask: {found.name} is still {states[-1].name} after {timeout:g} s")
                return 1
            time.sleep(SECONDS)
            states = client.read_task_run_states(found.id)


def _print(state: State, json: bool) -> None:
    if json:
        document(state_fields(state))
    else:
        message = f"  {state.message}" if state.message else ""
        out(f"{state.timestamp.astimezone():%H:%M:%S.%f}  {state.name}{message}")
