"""What of a run travels to a worker: its function, its arguments, and what its body may ask of its run.

1. A function that a worker can import goes by its name; any other by value (cloudpickle), once to each worker.
2. What cannot be pickled is refused with the name of the argument.
3. Results come back as they are; errors with their type, cause, notes, and the traceback of the worker as a note.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import pickle
import sys
import weakref
from collections.abc import Callable
from typing import Any

import msgspec

from . import pickles
from .errors import SerializationError
from .loops import current_loop, is_cancellation
from .observers import flow_logger, sends_prints, task_logger
from .records import LogEntry
from .redact import shown, text_of
from .runs import Run
from .serializers import decode_error, encode_error
from .settings import settings
from .specs import MAIN, TaskSpec, main_module
from .states import RUNNING
from .wires import Message, packed, unpacked

logger = logging.getLogger("asynctask")

#: Kinds of messages: to a worker, and from one.
SETUP, FUNCTION, CALL = 1, 2, 3
READY, LOG, DONE, FAILED = 11, 12, 13, 14

#: Values of these types need no care to be pickled, and 2 us instead of 15.
_PLAIN: frozenset[type] = frozenset((int, float, bool, type(None), str, bytes))


class Context(msgspec.Struct, array_like=True):
    """What a body may ask of its run, in a worker."""

    number: int
    name: str
    parent_number: int | None
    tags: list[str]
    run_count: int
    start: float
    log_prints: bool
    backend: str
    #: The flow run that owns it: its number and name, and the flow's name.
    flow: tuple[int, str, str] | None
    #: The URL of the store that the run is in.
    store: str
    #: Names of the limits of which it holds slots, which those that it calls may borrow.
    holds: list[str]


class Call(msgspec.Struct, eq=False):
    """One call on its way to a worker."""

    run: Run
    #: The number of its function, and the message that makes the function known to a worker.
    number: int
    function: Message
    message: Message
    on_start: Callable[[], None] | None

    @property
    def size(self) -> float:
        """Bytes of the message, if it has no buffers beside it."""
        return math.inf if self.message.buffers else len(self.message.data)


def setup_of(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> Message:
    """What a worker is told first, so that it is in all that matters as this process is."""
    levels = [task_logger.getEffectiveLevel(), flow_logger.getEffectiveLevel()]
    values = [sys.path, main_module(), os.getcwd(), settings.values, levels, initializer, initargs]
    try:
        return packed(SETUP, values, dumps)
    except Exception as error:
        raise SerializationError(f"the initializer of a process pool cannot be sent: {text_of(error)}") from error


_numbers = itertools.count(1)
_functions: weakref.WeakKeyDictionary[TaskSpec, tuple[int, Message]] = weakref.WeakKeyDictionary()


def dumps(value: Any, beside: Callable[[Any], object]) -> bytes:
    """A pickle of what travels; any value that cloudpickle takes."""
    return pickles.dumps(value, beside)


def plain(value: Any, beside: Callable[[Any], object]) -> bytes:
    return pickle.dumps(value, 5, buffer_callback=beside)


loads = pickles.loads


def call_of(run: Run, store: str, on_start: Callable[[], None] | None) -> Call:
    """What of a run travels. Raises `SerializationError`, naming what cannot."""
    number, function = _function_of(run.spec)
    values = [number, msgspec.to_builtins(_context_of(run, store)), list(run.kwargs), *run.args, *run.kwargs.values()]
    is_plain = all(value.__class__ in _PLAIN for value in (*run.args, *run.kwargs.values()))
    try:
        message = packed(CALL, values, plain if is_plain else dumps)
    except Exception as error:
        raise _refusal(run, error) from error
    return Call(run, number, function, message, on_start)


def _function_of(spec: TaskSpec) -> tuple[int, Message]:
    found = _functions.get(spec)
    if found is None:
        body = spec.body
        name = _importable(body) if body is spec.fn else None
        number = next(_numbers)
        values = [number, name, None if name else body, spec.name, spec.key, spec.is_async, spec.is_generator]
        try:
            message = packed(FUNCTION, values, dumps)
        except Exception as error:
            raise SerializationError(
                f"task {spec.name!r} cannot be sent to a worker process: {text_of(error)}; what its function refers to "
                f"(globals, a closure) must be picklable, or imported inside it"
            ) from error
        found = _functions[spec] = (number, message)
    return found


def _importable(fn: Any) -> tuple[str, str] | None:
    """The module and name by which a worker can import a function, which there may be a task of."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    if module is None or module in MAIN or "<locals>" in name:
        return None
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    return (module, name) if found is fn or getattr(found, "fn", None) is fn else None


def imported(module: str, name: str) -> Any:
    """The function that `_importable` named."""
    __import__(module)
    found: Any = sys.modules[module]
    for step in name.split("."):
        found = getattr(found, step)
    return getattr(found, "fn", found)


def _context_of(run: Run, store: str) -> Context:
    flow = run.flow
    loop = current_loop()
    held = [one for one in (run.slots, *(run.guards or ())) if one is not None]
    return Context(
        number=run.number, name=run.name, parent_number=run.parent_number, tags=sorted(run.tags),
        run_count=run.run_count + (run.states[-1].type is not RUNNING),
        start=run.states[-1].time, log_prints=sends_prints(run), store=store,
        backend="asyncio" if loop is None else loop.backend,
        flow=None if flow is None else (flow.number, flow.name, flow.spec.name),
        holds=[line.name for one in held for line in one.lines],
    )  # fmt: skip


def failure(error: BaseException, text: str) -> Message:
    """A message with what a body raised, and where it did; see `error_in`."""
    ending: list[Any] | None = None
    if isinstance(error, SystemExit):
        code = error.code
        ending = ["exit", code if code.__class__ in _PLAIN else text_of(error)]
    elif isinstance(error, KeyboardInterrupt):
        ending = ["interrupt", None]
    elif is_cancellation(error):
        ending = ["cancellation", None]
    return packed(FAILED, [*encode_error(error), text, ending], dumps)


def error_in(message: Message) -> BaseException:
    """The error that `failure` was given; what stops a program, or a task, is of the same kind here as there."""
    name, data, text, ending = unpacked(message, loads)
    error: BaseException
    match ending:
        case ["exit", code]:
            error = SystemExit(code)
        case ["interrupt", _]:
            error = KeyboardInterrupt()
        case ["cancellation", _]:
            import asyncio  # 30 ms, where the program is trio's

            error = asyncio.CancelledError()
        case _:
            error = decode_error(name, data)
    error.add_note(f"In the worker process:\n{text}")
    return error


def outcome_in(message: Message) -> tuple[Any, BaseException | None]:
    """What came of a call, of a message of the kind DONE or FAILED: a value, or an error."""
    try:
        return (None, error_in(message)) if message.kind == FAILED else (unpacked(message, loads)[0], None)
    except BaseException as error:  # deliberate: of the result's own making
        return None, error


def deliver(run: Run, values: list[Any]) -> None:
    """What the body of `run` has logged: an entry to be kept with a run, or a record for the loggers here."""
    if len(values) == 2:
        number, entry = values
        run.journal.keep_log(number, msgspec.convert(entry, LogEntry))
        return
    name, level, level_name, text, created, fields = values
    known = {"name": name, "levelno": level, "levelname": level_name, "msg": text, "created": created}
    record = logging.makeLogRecord({**known, **fields})
    try:
        logging.getLogger(name).handle(record)
    except Exception:  # a handler's or filter's own: the body goes on, and its result must find who reads it
        logger.exception("What run %r logged in its worker could not be logged here", run.name)


def _refusal(run: Run, error: Exception) -> SerializationError:
    """Which argument it was."""
    named = {**{str(place): value for place, value in enumerate(run.args)}, **run.kwargs}
    try:
        named = run.spec.parameters(run.args, run.kwargs)
    except Exception:  # deliberate: places will do for names
        pass
    for name, value in named.items():
        try:
            packed(CALL, [value], dumps)
        except Exception as why:
            return SerializationError(
                f"task {run.spec.name!r}: argument {name!r} ({shown(value, 80)}) cannot be sent to a worker process: "
                f"{text_of(why)}"
            )
    return SerializationError(f"run {run.name!r} cannot be sent to a worker process: {text_of(error)}")
