"""One call of a task or flow, and its history.

1. `Run.enter` is the only writer of a run's history; it refuses what `states.MOVES` does not allow.
2. One thread at a time drives a run, so `enter` takes no lock; who waits for the end registers with
   `Run.when_settled`, which any thread may call.
3. A run is settled when its final state is entered and its hooks are done. It is settled once.
4. A settled run lets go of its parent, so that a chain of runs that start each other does not stay in memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from .clocks import Clock, Ids
from .errors import TransitionError
from .records import TaskRun, attempts, began, ended, retry_in, seconds_running
from .redact import shown_parameters
from .specs import TaskSpec
from .states import BITS, COMPLETED, NEXT_BITS, Outcome, State, StateType

Observer = Callable[["Run", State], None]


class Extras(msgspec.Struct, gc=False):
    """What few runs have to remember; apart, so that it costs the others nothing."""

    #: Texts for the arguments, by name, once they were made.
    texts: dict[str, str] | None = None
    #: The key under which the result is kept.
    result: str | None = None
    #: Of the trace of a failed run, for stores that keep it: the exception, and its traceback from the body on;
    #: or the text that was made of them.
    failure: tuple[BaseException, Any] | str | None = None
    #: Of the trace of a run under way: why its body is not running.
    waiting: str | None = None


class Trace(msgspec.Struct, eq=False, gc=False):
    """What is worth keeping of a run. Nothing in it can be part of a reference cycle with it: no value, and of the
    arguments only small atoms, or short texts for them."""

    spec: TaskSpec
    number: int
    #: The history; a tuple of plain data, so that the garbage collector need not visit it.
    states: tuple[State, ...]
    tags: frozenset[str]
    parent_number: int | None = None
    flow_number: int | None = None
    given_name: str | None = None
    upstream: list[int] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    #: What few runs have.
    extras: Extras | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.states[-1].name}>"

    @property
    def id(self) -> UUID:
        return UUID(int=self.number)

    @property
    def name(self) -> str:
        return self.given_name or f"{self.spec.name}-{self.number & 0xFFFFFF:06x}"

    @property
    def task_name(self) -> str:
        return self.spec.name

    @property
    def task_key(self) -> str:
        return self.spec.key

    @property
    def flow_run_id(self) -> UUID | None:
        return None if self.flow_number is None else UUID(int=self.flow_number)

    @property
    def parent_task_run_id(self) -> UUID | None:
        return None if self.parent_number is None else UUID(int=self.parent_number)

    @property
    def upstream_task_run_ids(self) -> list[UUID]:
        return [UUID(int=number) for number in self.upstream or ()]

    @property
    def state(self) -> State:
        return self.states[-1]

    @property
    def state_type(self) -> StateType:
        return self.states[-1].type

    @property
    def state_name(self) -> str:
        return self.states[-1].name

    @property
    def run_count(self) -> int:
        """How many attempts were started."""
        return attempts(self.states)

    @property
    def start_time(self) -> datetime | None:
        """When the first attempt started."""
        return began(self.states)

    @property
    def end_time(self) -> datetime | None:
        return ended(self.states)

    @property
    def total_run_time(self) -> float:
        """Seconds in Running, over all attempts; an attempt under way counts up to its start only."""
        return seconds_running(self.states)

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments by name, defaults included; as far as they are kept."""
        if not self.args and not self.kwargs and not self.spec.has_defaults:
            return {}
        try:
            return self.spec.parameters(self.args, self.kwargs)
        except (TypeError, ValueError):  # they do not fit, or a builtin has no signature: show what was given
            return {**{str(place): value for place, value in enumerate(self.args)}, **self.kwargs}

    def shown_parameters(self) -> dict[str, str]:
        """The arguments by name, as short texts that are safe to show."""
        extras = self.extras
        if extras is not None and extras.texts is not None:
            return extras.texts
        return shown_parameters(self.parameters)

    @property
    def result(self) -> str | None:
        """The key under which its result is kept."""
        return None if self.extras is None else self.extras.result

    @property
    def waiting_on(self) -> str | None:
        return None if self.extras is None else self.extras.waiting

    def record(self) -> TaskRun:
        """This run as plain data, with arguments shown as short text."""
        return TaskRun(
            id=self.id,
            name=self.name,
            task_key=self.spec.key,
            task_name=self.spec.name,
            flow_run_id=self.flow_run_id,
            parent_task_run_id=self.parent_task_run_id,
            upstream_task_run_ids=self.upstream_task_run_ids,
            tags=sorted(self.tags),
            parameters=self.shown_parameters(),
            state=self.states[-1],
            state_type=self.states[-1].type,
            state_name=self.states[-1].name,
            states=list(self.states),
            run_count=self.run_count,
            start_time=self.start_time,
            end_time=self.end_time,
            total_run_time=self.total_run_time,
            waiting_on=self.waiting_on,
            is_flow=self.spec.is_flow,
            result=self.result,
        )


class Journal:
    """What the runs of one runtime are written with: its clock, its ids, and who is told."""

    __slots__ = ("__weakref__", "clock", "is_crowded", "keep", "keep_log", "keeps_errors", "live", "new_id", "now",
                 "observed", "observers", "unsettled")  # fmt: skip

    def __init__(
        self, clock: Clock, ids: Ids, keep: Callable[[Trace], None], keep_log: Callable[[int, Any], None]
    ) -> None:
        self.clock = clock
        #: The wall clock, in seconds since the epoch.
        self.now = clock.now
        self.new_id = ids.new
        #: Who is told of transitions, and of which types (their bits), in the thread that makes them.
        self.observers: tuple[tuple[int, Observer], ...] = ()
        #: The types that anybody is told of.
        self.observed = 0
        #: Runs that are not settled, by number.
        self.live: dict[int, Run] = {}
        #: Where the trace of a settled run goes.
        self.keep = keep
        #: Whether traces carry the exceptions of failed runs there, with their frames, for as long as they are kept.
        self.keeps_errors = False
        #: Where what a run logs goes: its number, and a `LogEntry`.
        self.keep_log = keep_log
        #: Whether so many traces wait to be written that new runs are to wait as well.
        self.is_crowded = False
        #: Runs at the bottom of an endless recursion, with no stack left to settle: (run, the others).
        self.unsettled: tuple[Run, Any] | None = None

    def observe(self, types: int, observer: Observer) -> None:
        """Tell `observer(run, state)` of transitions to these types (bits); it must be quick and must not raise."""
        self.observers = (*self.observers, (types, observer))
        self.observed |= types

    def ignore(self, observer: Observer) -> None:
        """Tell `observer` no more."""
        self.observers = tuple(pair for pair in self.observers if pair[1] is not observer)
        self.observed = 0
        for types, _ in self.observers:
            self.observed |= types

    def tell(self, run: Run, state: State) -> None:
        for types, observer in self.observers:
            if types & state.type.bit:
                observer(run, state)


class Run(Trace, eq=False, gc=True, weakref=True):
    """One call, from Pending to its final state. Written by the engine and by what owns it; everybody may read it."""

    #: Always given; a Struct wants defaults after defaults.
    journal: Journal = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    #: The run whose body made this call, until this run is settled.
    parent: Run | None = None
    #: The flow run that owns this one.
    flow: Run | None = None
    #: The scope that owns what is started inside this run.
    inside: Any = None
    #: Whether all its arguments are small (see `are_small`): nothing to search in them, and kept as they are.
    is_small: bool = False
    #: Whether it was submitted, and so runs beside its caller.
    is_submitted: bool = False
    #: Whether the body of another run waits for it, or has.
    is_awaited: bool = False
    #: The event loop that runs it, for a run that was submitted.
    home: Any = None
    wait_for: tuple[Any, ...] = ()
    value: Any = None
    error: BaseException | None = None
    #: The traceback of `error` as it left the body.
    trace: Any = None
    is_settled: bool = False
    waiters: list[Callable[[], None]] | None = None
    #: Its child task on an event loop, for a run that was submitted.
    child: Any = None
    #: The timeout of its own that ended the last attempt; a TaskTimeoutError of anyone else is an ordinary failure.
    timeout_error: BaseException | None = None
    #: Why somebody asked for the end of this run; None while nobody has.
    cancel_reason: str | None = None
    #: The slots of its tags; those that blocks of its body have taken; and what its body waits for. See `lines`.
    slots: Any = None
    guards: Any = None
    awaits: Any = None
    #: While its result is what others wait for: their seats; see `flights`.
    followers: Any = None
    #: What this run waits for before its body can start, for `waiting_on`.
    blocker: Any = None
    #: What a submitted generator has given so far.
    yielded: Yielded | None = None

    def enter(self, type: StateType, name: str, message: str = "", at: float | None = None) -> None:
        """Add a state to the history, as of now or of `at`. Raises `TransitionError`, changing nothing, if it may not
        follow."""
        states = self.states
        last = states[-1]
        bit = BITS[type]
        if not NEXT_BITS[last.type] & bit:
            raise TransitionError(f"run {self.name!r} cannot go from {last.name} to {name}")
        journal = self.journal
        now = journal.now() if at is None else at
        if now < (soonest := last.time + 2e-6):  # the wall clock stood still or was set back; a history only goes
            now = soonest  # forward, by so much that timestamps, which are rounded to a microsecond, do so too
        state = State(type, name, now, message)
        self.states = states + (state,)  # noqa: RUF005  # 10 ns less than unpacking, three times a run
        if journal.observed & bit:
            journal.tell(self, state)

    @property
    def is_final(self) -> bool:
        return self.states[-1].is_final()

    @property
    def state(self) -> State:
        """The current state; a final one carries the run's value or exception as `data`."""
        last = self.states[-1]
        if not last.is_final():
            return last
        data = self.value if last.type is COMPLETED else self.error
        return Outcome(last.type, last.name, last.time, last.message, data, self.number)

    @property
    def waiting_on(self) -> str | None:
        """Why the body is not running, in one line; None when it is, or when the run is over."""
        if self.is_final:
            return None
        blocker = self.blocker
        if isinstance(blocker, Run):
            return f"upstream {blocker.name} ({blocker.state_name})"
        if blocker is not None:
            return str(blocker)
        return retry_in(self.states[-1], self.journal.now())

    def when_settled(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, when the run is settled; at once if it is. From any thread, in whichever settles it."""
        with _registering:
            if self.waiters is None:
                self.waiters = []
            self.waiters.append(wake)
        if self.is_settled:  # it may have settled between the two lines above; exactly one of us takes `wake` out
            self.forget(wake, wake)

    def forget(self, wake: Callable[[], None], instead: Callable[[], None] | None = None) -> None:
        """Take `wake` back, if it has not been called; then call `instead`."""
        try:
            (self.waiters or []).remove(wake)
        except ValueError:
            return
        if instead is not None:
            instead()

    def note(self, **extras: Any) -> None:
        """Remember something of `Extras`."""
        if self.extras is None:
            self.extras = Extras(**extras)
            return
        for name, value in extras.items():
            setattr(self.extras, name, value)

    def traced(self, waiting: str | None = None) -> Trace:
        """A trace of this run as it is now."""
        args, kwargs = self.args, self.kwargs
        extras = self.extras
        texts = None if extras is None else extras.texts
        if texts is None and not (are_small(args) and (not kwargs or are_small(kwargs.values()))):
            texts = shown_parameters(self.parameters)
        if texts is not None:
            args, kwargs = (), NO_KWARGS
        failure = (self.error, self.trace) if self.error is not None and self.journal.keeps_errors else None
        if texts or failure or waiting or extras is not None:
            extras = Extras(texts, None if extras is None else extras.result, failure, waiting)
        return Trace(
            self.spec, self.number, self.states, self.tags, self.parent_number, self.flow_number,
            self.given_name, self.upstream, args, kwargs, extras,
        )  # fmt: skip

    def settle(self, again: bool = False) -> None:
        """The run is over and its hooks are done: keep its trace, let go of its parent, wake who waits."""
        if self.is_settled and not again:
            return
        self.is_settled = True
        journal = self.journal
        number = self.number
        # Before it leaves `live`, so that who looks meanwhile finds it in one of the two.
        if self.is_small and self.extras is None and self.error is None:  # as `traced` does it, in half the time
            journal.keep(
                Trace(
                    self.spec, number, self.states, self.tags, self.parent_number, self.flow_number,
                    self.given_name, self.upstream, self.args, NO_KWARGS, None,
                )
            )  # fmt: skip
        else:
            journal.keep(self.traced())
        journal.live.pop(number, None)
        if self.is_submitted:
            scope = self.inside
            scope.children.pop(number, None)
            if scope.wakes and not scope.children:
                wake_all(scope.wakes)
            if self.child is not None:  # to set a field takes 0.03 us, six times what a look does
                self.child = None
        if self.parent is not None or self.flow is not None:
            self.parent = self.flow = None
        self.inside = None
        waiters = self.waiters
        while waiters:
            try:
                wake = waiters.pop(0)
            except IndexError:  # somebody took it back meanwhile
                break
            wake()


#: Shared by all runs without keyword arguments: nobody writes to it, and 100,000 runs keep no empty dicts.
NO_KWARGS: dict[str, Any] = {}
#: Types whose values may be kept as they are; of texts, the short ones.
SMALL: frozenset[type] = frozenset((int, float, bool, type(None)))


def are_small(values: Iterable[Any]) -> bool:
    """Whether all of `values` are atoms that take little memory and lead to nothing else."""
    for value in values:
        kind = value.__class__
        if kind not in SMALL and not ((kind is str or kind is bytes) and len(value) <= 200):
            return False
    return True


_registering = threading.Lock()
if hasattr(os, "register_at_fork"):  # so that no forked child finds it held by a thread that was left behind
    os.register_at_fork(
        before=_registering.acquire, after_in_parent=_registering.release, after_in_child=_registering.release
    )


class Yielded:
    """The values of a submitted generator, readable from any thread while it runs."""

    __slots__ = ("values", "waiters")

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.waiters: list[Callable[[], None]] = []

    def add(self, value: Any) -> None:
        self.values.append(value)
        wake_all(self.waiters)


def wake_all(wakes: list[Callable[[], None]]) -> None:
    """Take out each of `wakes` and call it; other threads may put some in or take some out meanwhile."""
    while wakes:
        try:
            wake = wakes.pop()
        except IndexError:
            break
        wake()


class Handle(msgspec.Struct, eq=False, weakref=True):
    """Stands for a run in arguments and return values; `TaskFuture` (floor 5) is one."""

    run: Run


#: The run whose body is executing here, or None outside any.
current_run: ContextVar[Run | None] = ContextVar("asynctask_current_run", default=None)
#: Of the task with this spec so many calls are to go to a worker together.
current_batch: ContextVar[tuple[TaskSpec, int] | None] = ContextVar("asynctask_current_batch", default=None)
#: The transaction that this code is in.
current_transaction: ContextVar[Any] = ContextVar("asynctask_current_transaction", default=None)
#: Tags of the enclosing `with tags(...)` blocks.
current_tags: ContextVar[frozenset[str] | None] = ContextVar("asynctask_current_tags", default=None)
