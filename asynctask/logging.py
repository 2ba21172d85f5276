"""Loggers for the code of runs, and `print` into them."""

from __future__ import annotations

import builtins
import functools
import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from logging import INFO
from typing import Any

from .observers import flow_logger, log_fields, sends_prints, task_logger
from .records import LogEntry
from .redact import shown
from .runs import Run, current_run
from .settings import settings

_plain_logger = logging.getLogger("asynctask")


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that puts a run's ids and names on each record, beside the caller's own `extra`."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, and keep what is logged with the run, whoever else listens: from `logging_keep_level` on."""
        run = current_run.get()
        if run is not None and level >= _kept_level():
            run.journal.keep_log(run.number, _entry(run, level, msg, args, kwargs))
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller is one frame further up than it looks
        super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        own: Mapping[str, object] = self.extra or {}
        kwargs["extra"] = {**own, **(kwargs.get("extra") or {})}
        return msg, kwargs


def _kept_level() -> int:
    return logging.getLevelNamesMapping()[settings.values.logging_keep_level]


def _entry(run: Run, level: int, msg: object, args: tuple[object, ...], kwargs: dict[str, Any]) -> LogEntry:
    """What is kept of one call, formatted as the standard library would."""
    error: Any = kwargs.get("exc_info")
    if error is True:
        error = sys.exc_info()
    elif isinstance(error, BaseException):
        error = (type(error), error, error.__traceback__)
    logger = flow_logger if run.spec.is_flow else task_logger
    record = logging.LogRecord(logger.name, level, "", 0, msg, args, error or None)
    try:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
    except Exception as broken:  # deliberate: the standard library reports it as it logs
        text = f"{shown(msg)} (it cannot be formatted: {shown(broken)})"
    return LogEntry(run.journal.now(), level, logger.name, text)


def get_run_logger(**extra: object) -> RunLogger:
    """The logger of the current run: `asynctask.task_runs` or `asynctask.flow_runs`, with the run's ids on records.

    Outside any run it is the plain logger `asynctask`, so that a function that logs can be called anywhere.
    """
    run = current_run.get()
    if run is None:
        return RunLogger(_plain_logger, extra)
    return RunLogger(flow_logger if run.spec.is_flow else task_logger, {**log_fields(run), **extra})


_print = builtins.print
#: Whether what is printed here comes from a handler of the log that a print is on its way to.
_is_routing: ContextVar[bool] = ContextVar("asynctask_is_routing", default=False)


@functools.wraps(_print)
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
        logger.info("%s", (" " if sep is None else sep).join(map(str, values)), stacklevel=2)  # where `print` is called
    finally:
        _is_routing.reset(token)
    if not (logger.isEnabledFor(INFO) and logger.hasHandlers()):  # nobody listens: a print that vanished would be worse
        _print(*values, **options)


def route_prints() -> None:
    """Put our `print` in place, once for the process: it asks the context at each call, so nothing is ever undone."""
    builtins.print = _routed_print
