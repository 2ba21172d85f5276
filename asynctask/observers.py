"""Who is told of transitions: the log here, live views elsewhere.

An observer is a function of a run and the state it entered. It is called in the thread that made the transition,
must be quick, and must not raise.
"""

from __future__ import annotations

import logging

from .runs import Run
from .settings import settings
from .states import COMPLETED, CRASHED, FAILED, State, StateType

task_logger = logging.getLogger("asynctask.task_runs")
flow_logger = logging.getLogger("asynctask.flow_runs")


def log_fields(run: Run) -> dict[str, object]:
    """The fields that a log record of a run carries."""
    flow = run if run.spec.is_flow else run.flow
    return {
        "task_run_id": str(run.id),
        "task_run_name": run.name,
        "task_name": run.spec.name,
        "flow_run_id": None if flow is None else str(flow.id),
        "flow_run_name": None if flow is None else flow.name,
        "flow_name": None if flow is None else flow.spec.name,
    }


def sends_prints(run: Run) -> bool:
    """Whether what `run` prints goes to its log: its own option, else its flow's, else the setting."""
    asked: Run | None = run
    while asked is not None:
        if asked.spec.options.log_prints is not None:
            return asked.spec.options.log_prints
        asked = asked.flow
    return settings.values.logging_log_prints


def bits_to_log() -> int:
    """The types of state that the log is told of: all if it wants DEBUG, else those that can be told louder.

    Asked when a runtime is made: a call that finds out it is not wanted costs 0.15 us, at each transition. The level
    that the settings name, if they do, is in force from then on.
    """
    if settings.values.logging_level is not None:
        logging.getLogger("asynctask").setLevel(settings.values.logging_level)
    wants_all = task_logger.isEnabledFor(logging.DEBUG) or flow_logger.isEnabledFor(logging.DEBUG)
    return sum(type.bit for type in StateType if wants_all or type in (FAILED, CRASHED))


def log_transition(run: Run, state: State) -> None:
    """Failures and crashes at ERROR, everything else at DEBUG; but retries, see `log_retry`."""
    if state.name != "AwaitingRetry":
        _log(run, state, logging.ERROR if state.type is FAILED or state.type is CRASHED else logging.DEBUG)


def log_retry(run: Run) -> None:
    """A retry, at WARNING. Called where it is decided: to be told of its state means to be told of each run that waits
    for a slot as well."""
    _log(run, run.states[-1], logging.WARNING)


def _log(run: Run, state: State, level: int) -> None:
    logger = flow_logger if run.spec.is_flow else task_logger
    if not logger.isEnabledFor(level):
        return
    kind = f"{run.spec.what.capitalize()} run"
    text = "finished in state" if state.type in (COMPLETED, FAILED, CRASHED) else "is"
    logger.log(level, "%s %r %s %s", kind, run.name, text, state, extra=log_fields(run))
