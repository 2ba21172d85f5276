"""Bodies away from home: a stand-in for the run at home, what it logs on its way there, and what the body gives.

1. A body finds the run that it is of: ids, name, tags, logger. What it logs or prints is told to its home, in order.
2. Runs that a body starts are recorded in the store that its home has, as far as processes can share it.
3. Several bodies may be under way at once, also of several homes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import anyio
import msgspec

from . import loops
from .blocking import drive
from .bodies import Body, call_body, collect_async
from .errors import Interrupted
from .lines import Slots
from .logging import route_prints
from .observers import flow_logger, task_logger
from .options import Options
from .parcels import DONE, Context, dumps, failure, imported, loads
from .runs import Run, current_run
from .scopes import Runtime, close_default, current_runtime, runtime_here
from .settings import settings
from .specs import TaskSpec
from .states import PENDING, RUNNING, State
from .wires import Message, packed, unpacked

#: Tells a home what a body has logged: the values that `parcels.deliver` takes. Raises `OSError` if nobody listens.
Tell: TypeAlias = Callable[[list[Any]], None]

#: How the body here tells its home; and how threads do that have no part in a body's context.
_tell: ContextVar[Tell | None] = ContextVar("asynctask_tell", default=None)
_strays: list[Tell] = []


class Stop:
    """Ends a body from another thread, now or when it has begun, as far as that is possible."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_asked = False
        self._end: Callable[[], object] | None = None

    def __call__(self) -> None:
        with self._lock:
            self._is_asked, end = True, self._end
        if end is not None:
            end()

    def by(self, end: Callable[[], object]) -> None:
        """The body has begun, and is ended so."""
        with self._lock:
            self._end, is_asked = end, self._is_asked
        if is_asked:
            end()


def listen(levels: list[int], strays: Tell | None = None) -> None:
    """Send home what is logged here for runs, from these levels on; what is of no body goes by `strays`."""
    for logger, level in zip((task_logger, flow_logger), levels, strict=True):
        logger.setLevel(level)
        logger.propagate = False
        if not any(isinstance(one, _Home) for one in logger.handlers):
            logger.addHandler(_Home())
    _strays[:] = [] if strays is None else [strays]
    route_prints()


def learned(values: list[Any]) -> tuple[int, TaskSpec]:
    """What a message of the kind FUNCTION says: its number, and what is called by it."""
    number, name, body, task_name, key, is_async, is_generator = values
    fn = body if name is None else imported(*name)
    return number, TaskSpec(fn, fn, Options(name=task_name), key, is_async, is_generator, False)


def carried_out(
    call: Message, specs: Mapping[int, TaskSpec], tell: Tell | None, stop: Stop | None = None, *, is_far: bool = False
) -> Message:
    """Call a body: a message with its result, or with its error. Without `tell`, its home is this process; if that is
    far, on another machine, files are not shared with it."""
    try:
        number, told, names, *values = unpacked(call, loads)
        context = msgspec.convert(told, Context)
        places = len(values) - len(names)
        kwargs = dict(zip(names, values[places:], strict=True))
        token = _tell.set(tell)
        try:
            with _in_store("memory://" if is_far and context.store.startswith("sqlite:") else context.store, tell):
                run = _stand_in(specs[number], context, tuple(values[:places]), kwargs)
                value = _result_of(run, context, stop)
        finally:
            _tell.reset(token)
    except BaseException as error:  # deliberate: raised at home
        return failed(error)
    try:
        return packed(DONE, [value], dumps)
    except Exception as error:
        return failed(TypeError(f"the result, of type {type(value).__name__}, cannot be sent home: {error}"))


def failed(error: BaseException) -> Message:
    """A message with an error, and where it was raised."""
    import traceback

    return failure(error, "".join(traceback.format_exception(error)))


_changing = threading.Lock()
_under_way = 0


@contextmanager
def _in_store(url: str, tell: Tell | None) -> Generator[None, None, None]:
    """The default runtime here records in that store; while others need another one, a runtime just for this does."""
    global _under_way
    if tell is None:
        yield
        return
    with _changing:
        is_other = settings.values.store_url != url
        if is_other and not _under_way:
            close_default()
            settings.take_over(msgspec.structs.replace(settings.values, store_url=url))
            is_other = False
        if not is_other:
            _under_way += 1
    if not is_other:
        try:
            yield
        finally:
            with _changing:
                _under_way -= 1
        return
    runtime = Runtime(store=url, name="asynctask-visitor")
    runtime.open()
    token = current_runtime.set(runtime)
    try:
        yield
    finally:
        current_runtime.reset(token)
        runtime.close()


def _stand_in(spec: TaskSpec, context: Context, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    """For the run at home: its body's view of it, and the parent of what the body starts."""
    if spec.options.log_prints != context.log_prints:
        spec.options = msgspec.structs.replace(spec.options, log_prints=context.log_prints)
    runtime = runtime_here()
    journal = runtime.journal
    if _tell.get() is not None:
        journal.keep_log = _keep_log
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
        _hold(run, runtime, context.holds)
    return run


def _hold(run: Run, runtime: Runtime, names: list[str]) -> None:
    """What the run holds at home, it may lend to those that its body calls here."""
    limits = runtime.limits
    if not limits.is_known:
        drive(runtime.blocking_port.ask(runtime.store.ready()))
    lines = [line for name in names if (line := limits.lines.get(name)) is not None]
    if lines:
        run.slots = Slots(limits, run, lines, granted=True)


def _result_of(run: Run, context: Context, stop: Stop | None) -> Any:
    """What the body gives, in the context of its run."""
    token = current_run.set(run)
    try:
        if run.spec.is_async:
            return anyio.run(_awaited, run, stop, backend=context.backend)
        if stop is None:
            return call_body(run)
        body = Body(run)
        stop.by(lambda: body.interrupt(_nothing))
        return body()
    finally:
        current_run.reset(token)


async def _awaited(run: Run, stop: Stop | None) -> Any:
    with anyio.CancelScope() as scope:
        if stop is not None:
            loop = loops.here()
            stop.by(lambda: loop.call_soon(scope.cancel))
        if run.spec.is_generator:
            return await collect_async(run)
        return await run.spec.body(*run.args, **run.kwargs)
    raise Interrupted


class _Home(logging.Handler):
    """Sends home what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        tell = _tell.get() or (_strays[0] if _strays else None)
        if tell is None:
            return
        try:
            fields = {name: value for name, value in record.__dict__.items() if name.startswith(("task_", "flow_"))}
            tell([record.name, record.levelno, record.levelname, record.getMessage(), record.created, fields])
        except (OSError, EOFError):
            return  # nobody is there any more
        except Exception:
            self.handleError(record)


def _keep_log(run_number: int, entry: Any) -> None:
    tell = _tell.get() or (_strays[0] if _strays else None)
    if tell is not None:
        tell([run_number, msgspec.to_builtins(entry)])


def _nothing() -> None:
    """Stands for the function of a flow that runs at home."""
