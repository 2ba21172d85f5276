"""`asynctask run`: one run of a flow or task, its result on standard output."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Literal

import anyio

from ..definitions import Definition
from ..errors import OutputClosed, UsageError
from ..observers import flow_logger, task_logger
from ..redact import shown
from ..scopes import Runtime, close_default
from ..stores.urls import missing_file
from .opened import using
from .show import document, note, out
from .targets import bound, find_target

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(
    target: str,
    /,
    *,
    param: list[str] | None = None,
    backend: Literal["asyncio", "trio"] = "asyncio",
    json: bool = False,
    store: str | None = None,
) -> int:
    """Run a flow or task, and print its result.

    The exit code is 0 when the run completes, 1 when it fails, 2 when there is nothing to run or a value does not fit;
    130 after Ctrl-C and 143 after SIGTERM, both of which cancel it.

    Args:
        target: FILE.py, FILE.py:NAME, or module:name. NAME may be left out where there is one flow.
        param: A value for a parameter, as name=value; as often as needed. The value is JSON or text.
        backend: The event loop for what is async.
        json: Print the result as a JSON document; what the run prints goes to standard error.
        store: The URL of the store.
    """
    show = _document if json else _text
    with using(store), contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        try:
            definition = find_target(target)
            args, kwargs = bound(definition, param or [])
        except UsageError:
            raise
        except Exception as error:  # deliberate: the user's module raised as it was loaded
            return failed(error)
        missing_file(None)  # a URL that no store can have is a mistake of who called, and not of the run
        _listen()
        terminated = _terminable()
        try:
            value = _value(definition, args, kwargs, backend, each=None if json else show)
        except KeyboardInterrupt:
            close_default(0)  # what was submitted is cancelled, not waited for
            if terminated:
                note("asynctask: terminated")
                return 128 + signal.SIGTERM
            raise
        except OutputClosed:
            raise
        except Exception as error:  # deliberate: it is the run's own, and shown whole
            return failed(error)
        finally:
            close_default()
    show(value)
    return 0


def _terminable() -> list[int]:
    """From here on SIGTERM ends the run as Ctrl-C does, so that it is recorded and rolled back; noted in the list."""
    noted: list[int] = []

    def end(number: int, _: object) -> None:
        noted.append(number)
        signal.raise_signal(signal.SIGINT)  # each event loop has its own answer to that one

    signal.signal(signal.SIGTERM, end)
    return noted


@contextlib.contextmanager
def _woken_by_signals() -> Generator[None, None, None]:
    """An asyncio loop that is about to sleep as a signal comes sees it only when it wakes; so the signal wakes it."""
    import asyncio  # by now it is there; the command's other runs need none

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, ours.recv, 64)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(ours)


def failed(error: Exception) -> int:
    """Show what the user's code raised, from its own first step on; the exit code."""
    trace = _from_users_code(error.__traceback__)
    if trace is error.__traceback__ and isinstance(error, SyntaxError):  # not one step was the user's: it is in `error`
        trace = None
    lines = traceback.format_exception(type(error), error, trace)
    note("".join(lines).rstrip())
    return 1


def _value(
    definition: Definition[Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    backend: str,
    each: Callable[[Any], None] | None,
) -> Any:
    """The result; of a generator the list of its values, or None where `each` has taken them one by one."""
    call: Any = definition
    spec = definition.spec

    async def on_a_loop() -> Any:
        # trio sees to it by itself, as asyncio does on Windows
        needs_waking = backend == "asyncio" and os.name == "posix"
        with _woken_by_signals() if needs_waking else contextlib.nullcontext():
            async with Runtime():
                return await completed()

    async def completed() -> Any:
        if not spec.is_generator:
            return await call(*args, **kwargs)
        values: list[Any] = []
        async for value in call(*args, **kwargs):
            (each or values.append)(value)
        return None if each else values

    if spec.is_async:
        return anyio.run(on_a_loop, backend=backend)
    value = call(*args, **kwargs)
    if not spec.is_generator:
        return value
    values: list[Any] = []
    for one in value:
        (each or values.append)(one)
    return None if each else values


def _text(value: object) -> None:
    if value is not None:
        out(value if isinstance(value, str) else repr(value))


def _document(value: object) -> None:
    try:
        document(value, unknown=_known)
    except TypeError:  # a key that JSON has no form for
        document(shown(value))


def _known(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # pydantic's
    return dump(mode="json") if callable(dump) and not isinstance(value, type) else shown(value)


def _listen() -> None:
    """Show what runs log, unless the program has set up logging itself: people have started a run to see it."""
    if logging.getLogger().handlers:
        return
    logging.basicConfig(format="%(asctime)s %(levelname)-8s %(message)s", datefmt="%H:%M:%S")
    for logger in (task_logger, flow_logger):
        if logging.getLogger("asynctask").level == logging.NOTSET and logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


def _from_users_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our steps before the first of the user's; all of it, if there is none of theirs."""
    found = trace
    while found is not None:
        file = found.tb_frame.f_code.co_filename
        if not (file.startswith((PACKAGE + os.sep, "<frozen ")) or os.sep + "anyio" + os.sep in file):
            return found
        found = found.tb_next
    return trace
