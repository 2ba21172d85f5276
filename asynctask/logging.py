"""Loggers for the code of runs, and `print` into them."""

from __future__ import annotations

import builtins
import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from logging import INFO
from typing import Any

from .observers import flow_logger, log_fields, task_logger
from .runs import Run, current_run
from .settings import settings

_plain_logger = logging.getLogger("asynctask")


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that puts a run's ids and names on each record, beside the caller's own `extra`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        own: Mapping[str, object] = self.extra or {}
        kwargs["extra"] = {**own, **(kwargs.get("extra") or {})}
        return msg, kwargs


def get_run_logger(**extra: object) -> RunLogger:
    """The logger of the current run: `asynctask.task_runs` or `asynctask.flow_runs`, with the run's ids on records.

    Outside any run it is the plain logger `asynctask`, so that a function that logs can be called anywhere.
    """
    run = current_run.get()
    if run is None:
        return RunLogger(_plain_logger, extra)
    return RunLogger(flow_logger if run.spec.is_flow else task_logger, {**log_fields(run), **extra})


def sends_prints(run: Run) -> bool:
    """Whether what `run` prints goes to its log: its own option, else its flow's, else the setting."""
    asked: Run | None = run
    while asked is not None:
        if asked.spec.options.log_prints is not None:
            return asked.spec.options.log_prints
        asked = asked.flow
    return settings.values.logging_log_prints


_print = builtins.print
#: Whether what is printed here comes from a handler of the log that a print is on its way to.
_is_routing: ContextVar[bool] = ContextVar("asynctask_is_routing", default=False)


def _routed_print(*values: object, **options: Any) -> None:
    """`print`, as Python has it; but inside a run with `log_prints`, to the run's log."""
    run = current_run.get()
    is_ours = run is not None and options.get("file") in (None, sys.stdout, sys.stderr) and not _is_routing.get()
    if run is None or not is_ours or not sends_prints(run):
        _print(*values, **options)
        return
    logger = get_run_logger()
    sep = options.get("sep")
    token = _is_routing.set(True)
    try:
        logger.info("%s", (" " if sep is None else sep).join(map(str, values)))
    finally:
        _is_routing.reset(token)
    if not (logger.isEnabledFor(INFO) and logger.hasHandlers()):  # nobody listens: a print that vanished would be worse
        _print(*values, **options)


def route_prints() -> None:
    """Put our `print` in place, once for the process: it asks the context at each call, so nothing is ever undone."""
    builtins.print = _routed_print
