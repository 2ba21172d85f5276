"""What runs in a worker process: bodies, one after the other, as they come over the wire.

1. A worker is its parent's alone: it ends when the parent does, for then its lifeline breaks; it ignores Ctrl-C, with
   which the parent deals; and it is killed when a body must end.
2. A body finds the run that it is of: ids, name, tags, logger. What it logs or prints goes home, in order, before its
   result does.
3. Runs that a body starts are recorded in the store that its parent has, as far as processes can share it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import msgspec

from .blocking import drive
from .bodies import call_body, collect_async
from .lines import Slots
from .logging import route_prints
from .observers import flow_logger, task_logger
from .options import Options
from .parcels import CALL, DONE, FAILED, FUNCTION, LOG, READY, Context, dumps, imported, loads
from .runs import Run, current_run
from .scopes import close_default, runtime_here
from .serializers import encode_error
from .settings import settings
from .specs import TaskSpec
from .states import PENDING, RUNNING, State
from .wires import packed, receive, send, unpacked


def main() -> None:
    """The life of a worker; its arguments are the numbers of two descriptors: the wire, and the lifeline."""
    wire = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[2]),), name="asynctask-lifeline", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = _Worker(wire)
    try:
        worker.work()
    except (EOFError, OSError):  # the parent wants no more of it
        pass
    finally:
        close_default(timeout=1.0)


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # nobody writes: it returns when the parent is gone
    os._exit(1)


class _Worker:
    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        #: The thread of a child run may log while the body's does.
        self._sending = threading.Lock()
        self._specs: dict[int, TaskSpec] = {}

    def work(self) -> None:
        while True:
            message = receive(self._wire)
            if message.kind == CALL:
                self._call(message)
            elif message.kind == FUNCTION:
                self._learn(unpacked(message, loads))
            else:
                self._set_up(unpacked(message, loads))

    def _send(self, kind: int, values: list[Any]) -> None:
        message = packed(kind, values, dumps)
        with self._sending:
            send(self._wire, message)

    def _set_up(self, values: list[Any]) -> None:
        path, main, folder, kept, levels, initializer, initargs = values
        sys.path[:] = path
        os.chdir(folder)
        module = sys.modules["__main__"]
        module.__file__, module.__spec__ = f"{main}.py", None  # what it is called here and there is to be one
        settings.take_over(kept)
        for logger, level in zip((task_logger, flow_logger), levels, strict=True):
            logger.setLevel(level)
            logger.propagate = False
            logger.addHandler(_Home(self._send))
        route_prints()
        try:
            if initializer is not None:
                initializer(*initargs)
        except BaseException as error:  # deliberate: told at home, where every call is going to fail by it
            self._send(FAILED, [*encode_error(error), ""])
            raise EOFError from error
        self._send(READY, [])

    def _learn(self, values: list[Any]) -> None:
        number, name, body, task_name, key, is_async, is_generator = values
        fn = body if name is None else imported(*name)
        options = Options(name=task_name)
        self._specs[number] = TaskSpec(fn, fn, options, key, is_async, is_generator, False)

    def _call(self, message: Any) -> None:
        try:
            number, told, names, *values = unpacked(message, loads)
            context = msgspec.convert(told, Context)
            places = len(values) - len(names)
            kwargs = dict(zip(names, values[places:], strict=True))
            run = self._run_of(number, context, tuple(values[:places]), kwargs)
            value = _result_of(run, context)
        except BaseException as error:  # deliberate: raised at home
            self._fail(error)
            return
        try:
            self._send(DONE, [value])
        except (OSError, EOFError):
            raise
        except Exception as error:
            self._fail(TypeError(f"the result, of type {type(value).__name__}, cannot be sent home: {error}"))

    def _fail(self, error: BaseException) -> None:
        import traceback

        text = "".join(traceback.format_exception(error))
        self._send(FAILED, [*encode_error(error), text])

    def _run_of(self, number: int, context: Context, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        """A stand-in for the run at home: its body's view of it, and the parent of what the body starts."""
        spec = self._specs[number]
        if spec.options.log_prints != context.log_prints:
            spec.options = msgspec.structs.replace(spec.options, log_prints=context.log_prints)
        if settings.values.store_url != context.store:
            close_default()
            settings.take_over(msgspec.structs.replace(settings.values, store_url=context.store))
        runtime = runtime_here()
        journal = runtime.journal
        journal.keep_log = self._keep_log
        pending, running = State(PENDING, "Pending", context.start), State(RUNNING, "Running", context.start)
        flow = None
        if context.flow is not None:
            flow_number, flow_name, name = context.flow
            flow_spec = TaskSpec(_nothing, _nothing, Options(name=name), name, False, False, True)
            flow = Run(flow_spec, flow_number, (pending, running), frozenset(), given_name=flow_name)
        run = Run(
            spec, context.number, (pending, *[running] * context.run_count), frozenset(context.tags),
            context.parent_number, None if flow is None else flow.number, context.name, None, args, kwargs,
            journal=journal, flow=flow, inside=runtime.root, is_submitted=True,
        )  # fmt: skip
        if context.holds:
            _hold(run, context.holds)
        return run

    def _keep_log(self, run_number: int, entry: Any) -> None:
        self._send(LOG, [run_number, msgspec.to_builtins(entry)])


class _Home(logging.Handler):
    """Sends what is logged home."""

    def __init__(self, send_home: Callable[[int, list[Any]], None]) -> None:
        super().__init__()
        self._send_home = send_home

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {name: value for name, value in record.__dict__.items() if name.startswith(("task_", "flow_"))}
            self._send_home(
                LOG, [record.name, record.levelno, record.levelname, record.getMessage(), record.created, fields]
            )
        except (OSError, EOFError):
            return  # nobody is there any more
        except Exception:
            self.handleError(record)


def _hold(run: Run, names: list[str]) -> None:
    """What the run holds at home, it may lend to those that its body calls here."""
    runtime = runtime_here()
    limits = runtime.limits
    if not limits.is_known:
        drive(runtime.blocking_port.ask(runtime.store.ready()))
    lines = [line for name in names if (line := limits.lines.get(name)) is not None]
    if lines:
        run.slots = Slots(limits, run, lines, granted=True)


def _result_of(run: Run, context: Context) -> Any:
    """What the body gives, in the context of its run."""
    token = current_run.set(run)
    try:
        if not run.spec.is_async:
            return call_body(run)
        return anyio.run(_awaited, run, backend=context.backend)
    finally:
        current_run.reset(token)


async def _awaited(run: Run) -> Any:
    if run.spec.is_generator:
        return await collect_async(run)
    return await run.spec.body(*run.args, **run.kwargs)


def _nothing() -> None:
    """Stands for the function of a flow that runs at home."""
