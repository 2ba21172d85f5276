"""What of a run travels to a worker: its function, its arguments, and what its body may ask of its run.

1. A function that a worker can import goes by its name; any other by value (cloudpickle), once to each worker.
2. What cannot be pickled is refused with the name of the argument.
3. Results come back as they are; errors with their type, cause, notes, and the traceback of the worker as a note.
"""

from __future__ import annotations

import itertools
import logging
import marshal
import os
import pickle
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from . import pickles
from .errors import SerializationError
from .loops import is_cancellation
from .observers import flow_logger, sends_prints, task_logger
from .records import LogEntry, attempts
from .redact import shown, text_of
from .relays import Guests
from .runs import Run, are_small
from .serializers import decode_error, encode_error
from .settings import settings
from .specs import MAIN, TaskSpec, main_module
from .states import RUNNING
from .wires import Message, packed, unpacked

logger = logging.getLogger("asynctask")

#: Kinds of messages: to a worker, and from one.
SETUP, FUNCTION, CALL, CALLS = 1, 2, 3, 4
READY, LOG, DONE, FAILED, VALUE, SKIPPED = 11, 12, 13, 14, 15, 16

#: What a body tells first where it tells values that it has yielded: no number of a run, nor the name of a logger.
YIELDED = 0

_LENGTH = struct.Struct("!I")
#: Bytes up to which arguments go together with those of other calls, and a result by itself is plain.
SMALL = 4096


class Context(msgspec.Struct, array_like=True):
    """What a body may ask of its run, in a worker, and what runs of one `map` have in common."""

    parent_number: int | None
    tags: list[str]
    log_prints: bool
    backend: str
    #: The flow run that owns it: its number and name, and the flow's name.
    flow: tuple[int, str, str] | None
    #: The URL of the store that the run is in.
    store: str
    #: Names of the limits of which it holds slots, which those that it calls may borrow.
    holds: list[str]


class Setting:
    """The context of calls in a row, made once: each by itself takes 5 us."""

    __slots__ = ("_flow", "_home", "_names", "_parent", "_settings", "_store", "_tags", "names", "told")

    def __init__(self, run: Run, store: str) -> None:
        self._parent, self._flow, self._tags = run.parent_number, run.flow_number, run.tags
        self._home, self._store, self._settings = run.home, store, settings.values
        #: Of the arguments that are given by name.
        self.names = list(run.kwargs)
        self._names = tuple(self.names) or None
        flow = run.flow
        held = [one for one in (run.slots, *(run.guards or ())) if one is not None]
        context = Context(
            parent_number=run.parent_number, tags=sorted(run.tags), log_prints=sends_prints(run), store=store,
            backend=run.home.backend, flow=None if flow is None else (flow.number, flow.name, flow.spec.name),
            holds=[line.name for one in held for line in one.lines],
        )  # fmt: skip
        #: As plain data.
        self.told: list[Any] = msgspec.to_builtins(context)

    def fits(self, run: Run, store: str) -> bool:
        """Whether a call of the same function has the same one."""
        return (
            (run.home is self._home or run.home == self._home)  # of one loop there may be several views
            and run.parent_number == self._parent
            and run.flow_number == self._flow
            and (run.tags is self._tags or run.tags == self._tags)
            and (tuple(run.kwargs) if run.kwargs else None) == self._names
            and store is self._store
            and settings.values is self._settings
        )


class Function:
    """What calls of one function have in common."""

    __slots__ = ("message", "number", "seconds", "setting")

    def __init__(self, number: int, message: Message) -> None:
        self.number = number
        #: Makes it known to a worker.
        self.message = message
        #: The setting of the last call.
        self.setting: Setting | None = None
        #: How long a call takes, as a rule; None before the first one.
        self.seconds: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()  # the task that has it may travel; it is of this process alone

    def took(self, seconds: float) -> None:
        """So long did a call take, of late; less is believed sooner, because a busy machine only makes it more."""
        before = self.seconds
        self.seconds = seconds if before is None else before + (seconds - before) / (2 if seconds < before else 8)


def _nothing() -> None:
    """What becomes of a `Function` in another process."""


class Call(msgspec.Struct, eq=False):
    """One call on its way to a worker."""

    run: Run
    function: Function
    setting: Setting
    #: The arguments: as they are, if nobody can change them, or pickled; None if they are to go by themselves.
    small: tuple[Any, ...] | bytes | None
    #: With arguments that go by themselves.
    alone: Message | None
    on_start: Callable[[], None] | None
    #: The runs that its body has started, if home was told of some.
    guests: Guests | None = None

    @property
    def row(self) -> tuple[Any, ...]:
        """What is this call's own: the run's number and given name, which attempt it is, the arguments."""
        return (*_who(self.run), self.small)

    @property
    def message(self) -> Message:
        return self.alone or together([self])


C = TypeVar("C", bound=Call)


def together(calls: Sequence[Call]) -> Message:
    """Small calls with one setting, as one message."""
    return Message(CALLS, marshal.dumps([*_head(calls[0].function, calls[0].setting), [call.row for call in calls]]))


def by_itself(function: Function, setting: Setting, run: Run, values: Message) -> Message:
    """A call with arguments that are large, or have buffers."""
    head = marshal.dumps([*_head(function, setting), [(*_who(run), None)]])
    data = b"".join((_LENGTH.pack(len(head)), head, values.data))
    return Message(CALL, data, values.beside, values.buffers)


def taken_apart(message: Message) -> tuple[int, Context, list[str], list[Any]]:
    """The number of the function, the context, the names of arguments, and for each call what `Call.row` is."""
    data = message.data
    if message.kind == CALLS:
        number, told, names, rows = marshal.loads(data)
    else:
        start = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        number, told, names, (row,) = marshal.loads(data[_LENGTH.size : start])
        rows = [(*row[:-1], Message(CALL, data[start:], message.beside, message.buffers))]
    return number, msgspec.convert(told, Context), names, rows


def arguments_in(given: Any) -> Sequence[Any]:
    """The arguments of a row. Raises what unpickling raises."""
    if given.__class__ is tuple:
        return given
    return unpacked(Message(CALL, given) if given.__class__ is bytes else given, loads)


def result_of(value: Any, began: float) -> Message:
    """What a body has given, and when it began. Raises what pickling raises."""
    if are_small((value,)):
        return Message(VALUE, marshal.dumps((value, began)))
    return packed(DONE, [value, began], dumps)


def failure(error: BaseException, text: str, began: float | None = None) -> Message:
    """A message with what a body raised, and where it did; see `answer_in`."""
    ending: list[Any] | None = None
    if isinstance(error, SystemExit):
        code = error.code
        ending = ["exit", code if are_small((code,)) else text_of(error)]
    elif isinstance(error, KeyboardInterrupt):
        ending = ["interrupt", None]
    elif is_cancellation(error):
        ending = ["cancellation", None]
    return packed(FAILED, [*encode_error(error), text, ending, began], dumps)


def answer_in(message: Message) -> tuple[Any, float | None, BaseException | None]:
    """What a body has given, when it began, and its error, if it gave one instead."""
    try:
        if message.kind == VALUE:
            return (*marshal.loads(message.data), None)
        if message.kind == DONE:
            return (*unpacked(message, loads), None)
        return None, *_error_in(*unpacked(message, loads))
    except BaseException as error:  # deliberate: of the result's own making
        return None, None, error


def _error_in(
    name: str, data: bytes, text: str, ending: list[Any] | None, began: float | None
) -> tuple[float | None, BaseException]:
    """What stops a program, or a task, is of the same kind here as there."""
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
    return began, error


def _head(function: Function, setting: Setting) -> list[Any]:
    return [function.number, setting.told, setting.names]


def _who(run: Run) -> tuple[Any, ...]:
    """Its number and given name, and which attempt this is: Running is entered by the body, unless its hooks were."""
    states = run.states
    attempt = 1 if len(states) == 1 else attempts(states) + (states[-1].type is not RUNNING)
    return run.number, run.given_name, attempt


def setup_of(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> Message:
    """What a worker is told first, so that it is in all that matters as this process is."""
    levels = [task_logger.getEffectiveLevel(), flow_logger.getEffectiveLevel()]
    values = [sys.path, main_module(), os.getcwd(), settings.values, levels, initializer, initargs]
    try:
        return packed(SETUP, values, dumps)
    except Exception as error:
        raise SerializationError(f"the initializer of a process pool cannot be sent: {text_of(error)}") from error


_numbers = itertools.count(1)


def dumps(value: Any, beside: Callable[[Any], object]) -> bytes:
    """A pickle of what travels; any value that cloudpickle takes."""
    return pickles.dumps(value, beside)


def plain(value: Any, beside: Callable[[Any], object]) -> bytes:
    return pickle.dumps(value, 5, buffer_callback=beside)


loads = pickles.loads


def call_of(kind: type[C], run: Run, store: str, on_start: Callable[[], None] | None) -> C:
    """What of a run travels. Raises `SerializationError`, naming what cannot."""
    function: Function = run.spec.sent or _function_of(run.spec)
    setting = function.setting
    if run.slots is not None or run.guards:  # its own
        setting = Setting(run, store)
    elif setting is None or not setting.fits(run, store):
        setting = function.setting = Setting(run, store)
    if run.is_small:  # nothing in them needs care to be pickled, which is 2 us instead of 15
        return kind(run, function, setting, run.args, None, on_start)
    try:
        message = packed(CALL, (*run.args, *run.kwargs.values()), dumps)
        if not message.buffers and len(message.data) <= SMALL:
            return kind(run, function, setting, message.data, None, on_start)
        return kind(run, function, setting, None, by_itself(function, setting, run, message), on_start)
    except Exception as error:
        raise _refusal(run, error) from error


def _function_of(spec: TaskSpec) -> Function:
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
    function = spec.sent = Function(number, message)
    return function


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


def deliver(call: Call, values: list[Any]) -> None:
    """What a body tells: an entry to be kept with a run, or a record for the loggers here; or which runs it starts, or
    values that it has yielded."""
    run = call.run
    if values[0] is None:
        if call.guests is None:
            call.guests = Guests(run)
        call.guests.heard(values[1], values[2])
        return
    if values[0] == YIELDED:
        _, place, given = values
        yielded = run.yielded
        if yielded is not None and len(yielded.values) == place:  # what comes out of turn comes with the result
            for value in given:
                yielded.add(value)
        return
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
