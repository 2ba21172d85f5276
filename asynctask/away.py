"""Bodies away from home: a stand-in for the run at home, what it logs on its way there, and what the body gives.

1. A body finds the run that it is of: ids, name, tags, logger. What it logs or prints is told to its home, in order.
2. Runs that a body starts are recorded in the store that its home has: there, or if processes cannot share it, by what
   is told to home.
3. A body is over when the runs that it has submitted are: nothing is left behind where nobody looks after it.
4. Several bodies may be under way at once, also of several homes.
5. The values of a generator are told as they come, a few at a time, and come again with its result, which is complete.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import msgspec

from . import loops
from .blocking import drive
from .bodies import Body, call_body, collect_async
from .errors import Interrupted
from .lines import Line, Slots
from .logging import route_prints
from .observers import flow_logger, task_logger
from .options import Options
from .parcels import SKIPPED, YIELDED, Context, arguments_in, failure, imported, result_of, taken_apart
from .relays import is_shared
from .runs import NO_KWARGS, Run, Yielded, current_run
from .scopes import Runtime, Scope, close_default, current_runtime, runtime_here
from .settings import settings
from .specs import TaskSpec
from .states import PENDING, RUNNING, State
from .stores.relay import Outbox, RelayStore, Tell
from .stores.urls import adopt, forget
from .waiting import Port
from .wires import Message

#: How the body here tells its home; and how threads do that have no part in a body's context.
_tell: ContextVar[Tell | None] = ContextVar("asynctask_tell", default=None)
_strays: list[Tell] = []


#: Seconds that values of a generator gather before they are told.
GATHER = 0.005


class ToldValues(Yielded):
    """The values of a generator, each of which home hears of."""

    __slots__ = ("_count", "_lock", "_tell", "_timer")

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell
        #: How many were told; what tells the others.
        self._count = 0
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def add(self, value: Any) -> None:
        with self._lock:
            super().add(value)
            if self._timer is None:
                self._timer = threading.Timer(GATHER, self.tell)
                self._timer.daemon = True
                self._timer.start()

    def tell(self) -> None:
        """Tell what is new; also once the body is over, so that nothing is left to be told after its result."""
        with self._lock:
            self._timer = None
            place, self._count = self._count, len(self.values)
            if place == self._count:
                return
            try:
                self._tell([YIELDED, place, self.values[place:]])
            except Exception:  # deliberate: nobody is there any more, or one cannot be pickled, as the result will say
                return


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
    call: Message,
    specs: Mapping[int, TaskSpec],
    tell: Tell | None,
    stop: Stop | None = None,
    *,
    home: str = "",
    is_far: bool = False,
) -> Message:
    """Call a body: a message with its result, or with its error. Without `tell`, its home is this process; `home` is
    its name, where there may be several. If that is far, on another machine, files are not shared with it."""
    answers: list[Message] = []
    carry_out(call, specs, tell, lambda answer, _: answers.append(answer), stop=stop, home=home, is_far=is_far)
    return answers[0]


def carry_out(
    message: Message,
    specs: Mapping[int, TaskSpec],
    tell: Tell | None,
    answer: Callable[[Message, int], object],
    *,
    may_begin: Callable[[int], bool] | None = None,
    stop: Stop | None = None,
    home: str = "",
    is_far: bool = False,
) -> None:
    """Call bodies, one after the other; `answer` is given each answer, and how many are left.

    `may_begin` is asked before each, by its place, and once more after the last. Raises what these two raise.
    """
    number, context, names, rows = taken_apart(message)
    with ExitStack() as stack:
        outcome: Callable[..., Message]
        try:
            stack.callback(_tell.reset, _tell.set(tell))
            outbox = stack.enter_context(_in_store(context.store, tell, home, is_far))
            outcome = _Bodies(specs[number], context, names, stop, outbox).outcome
        except BaseException as error:  # deliberate: it is the outcome of each
            same = failed(error)
            outcome = lambda *_: same  # noqa: E731
        left = len(rows)
        for place, row in enumerate(rows):
            left -= 1
            if may_begin is not None and not may_begin(place):
                answer(Message(SKIPPED, b""), left)
            else:
                answer(outcome(*row), left)
        if may_begin is not None:
            may_begin(len(rows))


def failed(error: BaseException, began: float | None = None) -> Message:
    """A message with an error, and where it was raised."""
    import traceback

    return failure(error, "".join(traceback.format_exception(error)), began)


_changing = threading.Lock()
_under_way = 0
#: For bodies whose homes do not share their stores, by the home's name and the URL there. Of more of them than that,
#: what was kept here for further bodies is forgotten.
_relays: dict[tuple[str, str], RelayStore] = {}
MOST_RELAYS = 8
_numbers = itertools.count(1)


@contextmanager
def _in_store(url: str, tell: Tell | None, home: str, is_far: bool) -> Generator[Outbox | None, None, None]:
    """The runs of a body are recorded in the store of that URL, or told home, through what this yields.

    The default runtime here does it; while others need another store, a runtime just for this.
    """
    global _under_way
    if tell is None:
        yield None
        return
    relay = None if is_shared(url, is_far=is_far) else _relay_of(home, url)
    if relay is not None:
        url = relay.url
    with _changing:
        is_other = settings.values.store_url != url
        if is_other and not _under_way:
            close_default()
            settings.take_over(msgspec.structs.replace(settings.values, store_url=url))
            is_other = False
        if not is_other:
            _under_way += 1
    outbox = None if relay is None else relay.begin(tell)
    try:
        if is_other:
            with _visitor(url):
                yield outbox
        else:
            yield outbox
    finally:
        if relay is not None and outbox is not None:
            relay.end(outbox)
        if not is_other:
            with _changing:
                _under_way -= 1


def _relay_of(home: str, url: str) -> RelayStore:
    relay = _relays.get((home, url))
    if relay is not None:
        return relay
    with _changing:
        relay = _relays[home, url] = RelayStore(
            f"memory://relay-{next(_numbers)}", keeps_errors=not url.startswith("memory:")
        )
        adopt(relay.url, relay)
        for other in list(_relays)[:-MOST_RELAYS]:
            if not _relays[other].is_used:
                forget(_relays.pop(other).url)
        return relay


@contextmanager
def _visitor(url: str) -> Generator[None, None, None]:
    runtime = Runtime(store=url, name="asynctask-visitor")
    runtime.open()
    token = current_runtime.set(runtime)
    try:
        yield
    finally:
        current_runtime.reset(token)
        runtime.close()


class _Bodies:
    """Bodies of one function, for runs that have all else in common."""

    def __init__(
        self, spec: TaskSpec, context: Context, names: list[str], stop: Stop | None, outbox: Outbox | None
    ) -> None:
        if spec.options.log_prints != context.log_prints:
            spec.options = msgspec.structs.replace(spec.options, log_prints=context.log_prints)
        self._spec = spec
        self._names = names
        self._stop = stop
        self._outbox = outbox
        self._backend = context.backend
        self._tags = frozenset(context.tags)
        self._parent_number = context.parent_number
        self._runtime = runtime = runtime_here()
        #: One for all: whatever one of them submits is over before the next begins.
        self._scope = Scope(runtime)
        if _tell.get() is not None:
            runtime.journal.keep_log = _keep_log
        self._flow: Run | None = None
        if context.flow is not None:
            number, given_name, name = context.flow
            flow_spec = TaskSpec(_nothing, _nothing, Options(name=name), name, False, False, True)
            self._flow = Run(flow_spec, number, _history(runtime.journal.now(), 1), frozenset(), given_name=given_name)
        self._lines = _lines_of(runtime, context.holds) if context.holds else []

    def outcome(self, number: int, given_name: str | None, attempt: int, given: Any) -> Message:
        """What the body of the run gives, as a message."""
        began = self._runtime.journal.now()
        try:
            value = self._result_of(self._stand_in(number, given_name, attempt, arguments_in(given), began))
        except BaseException as error:  # deliberate: raised at home
            return failed(error, began)
        try:
            return result_of(value, began)
        except Exception as error:
            return failed(TypeError(f"the result, of type {type(value).__name__}, cannot be sent home: {error}"), began)

    def _stand_in(self, number: int, given_name: str | None, attempt: int, values: Sequence[Any], began: float) -> Run:
        """For the run at home: its body's view of it, and the parent of what the body starts."""
        names = self._names
        kwargs = NO_KWARGS
        if names:
            places = len(values) - len(names)
            kwargs = dict(zip(names, values[places:], strict=True))
            values = values[:places]
        runtime, flow = self._runtime, self._flow
        run = Run(
            self._spec, number, _history(began, attempt), self._tags, self._parent_number,
            None if flow is None else flow.number, given_name, None, tuple(values), kwargs,
            journal=runtime.journal, flow=flow, inside=self._scope, is_submitted=True,
        )  # fmt: skip
        tell = _tell.get()
        if tell is not None and self._spec.is_generator:
            run.yielded = ToldValues(tell)
        if self._lines:  # what the run holds at home, it may lend to those that its body calls here
            run.slots = Slots(runtime.limits, run, self._lines, granted=True)
        return run

    def _result_of(self, run: Run) -> Any:
        """What the body gives, in the context of its run."""
        outbox = self._outbox
        if outbox is not None:
            outbox.stand_in = run
        token = current_run.set(run)
        try:
            if run.spec.is_async:
                return anyio.run(_awaited, run, self._stop, backend=self._backend)
            return _called(run, self._stop)
        except BaseException:
            self._scope = Scope(self._runtime)  # of this one nothing may start any more, if it was cancelled
            raise
        finally:
            current_run.reset(token)
            if isinstance(run.yielded, ToldValues):
                run.yielded.tell()
            if outbox is not None:
                outbox.stand_in = None
                outbox.flush()


def _called(run: Run, stop: Stop | None) -> Any:
    scope: Scope = run.inside
    try:
        if stop is None:
            return call_body(run)
        body = Body(run)
        stop.by(lambda: _end(scope, body))
        return body()
    finally:
        if not scope.is_empty():
            drive(_children_ended(run, scope.runtime.blocking_port))


def _history(began: float, attempt: int) -> tuple[State, ...]:
    return (State(PENDING, "Pending", began), *[State(RUNNING, "Running", began)] * attempt)


def _lines_of(runtime: Runtime, names: list[str]) -> list[Line]:
    """The lines here of the limits with these names."""
    limits = runtime.limits
    if not limits.is_known:
        drive(runtime.blocking_port.ask(runtime.store.ready()))
    return [line for name in names if (line := limits.lines.get(name)) is not None]


def _end(scope: Scope, body: Body) -> None:
    scope.cancel(_STOPPED)
    body.interrupt(_nothing)


async def _awaited(run: Run, stop: Stop | None) -> Any:
    with anyio.CancelScope() as around:
        if stop is not None:
            loop = loops.here()
            stop.by(lambda: loop.call_soon(around.cancel))
        try:
            if run.spec.is_generator:
                return await collect_async(run)
            return await run.spec.body(*run.args, **run.kwargs)
        finally:
            if not run.inside.is_empty():
                await _children_ended(run, run.inside.runtime.loop_port)
    raise Interrupted


_STOPPED = "the run that had submitted it was ended"


async def _children_ended(run: Run, port: Port) -> None:
    """Return when the runs that the body has submitted are over (rule 3)."""
    scope: Scope = run.inside
    limits = scope.runtime.limits
    try:
        lent = limits.begin_wait(run, lambda: [[one] for one in list(scope.children.values())], "its children")
        try:
            await port.until_empty(scope)
        finally:
            limits.end_wait(lent)
    except BaseException:
        scope.cancel(_STOPPED)
        await port.until_empty_shielded(scope)
        raise


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
