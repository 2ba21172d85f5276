"""The store of bodies whose home has one that this process does not share: what they leave behind is told home.

1. It is a memory store: what is looked up here is what was recorded here, and limits hold in this process alone.
2. Ended runs, runs under way that are a moment old, and results that are kept are told home, many in one message, every
   10 ms while there are some; and all that is left before the body that they are of gives its own result.
3. No run waits for home. When very much waits to be told, journals are marked as crowded, and who makes new runs waits.
4. Home may be gone: then nobody is told, and the work goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from typing import Any, TypeAlias

import msgspec

from ..late import late
from ..redact import text_of
from ..runs import Journal, Run, Trace, wake_all
from ..states import PENDING, RUNNING, SCHEDULED, State
from .base import StoredResult
from .memory import MemoryStore

logger = logging.getLogger("asynctask")

#: Tells a home of something: the values that `parcels.deliver` takes. Raises `OSError` if nobody listens.
Tell: TypeAlias = Callable[[list[Any]], None]

#: Seconds between two messages, for more to gather; and between two looks at runs that are under way.
GATHER, LOOK = 0.01, 0.1
#: Seconds after which a run that is not over yet is told of for the first time: most are over by then.
YOUNG = 0.1
#: Runs in one message; and as many of one body may wait to be told of before who makes runs waits as well.
BATCH, MOST_WAITING = 100, 10_000
#: How many runs of no body, but of threads that one has left behind, wait for the next body.
MOST_LEFT = 1_000


class Outbox:
    """What is to be told of the runs of one body."""

    __slots__ = ("_has_failed", "_lock", "_store", "_tell", "_told", "before", "ended", "results", "stand_in")

    def __init__(self, tell: Tell, store: RelayStore) -> None:
        self._tell = tell
        self._store = store
        self._has_failed = False
        #: One message after the other: of a run that has ended, nothing is told afterwards.
        self._lock = threading.Lock()
        #: How much of the history of each run under way home has heard.
        self._told: dict[int, int] = {}
        self.ended: deque[Trace] = deque()
        self.results: deque[StoredResult] = deque()
        #: The run in whose body the others were started.
        self.stand_in: Run | None = None
        #: What the outbox of this context was before.
        self.before: Token[Outbox | None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be told, as far as is known without a look at runs under way."""
        return not self.ended and not self.results

    def flush(self) -> None:
        """Tell all that has ended: a body is over."""
        if not self.is_empty:
            self._store.tell(self)

    def send(self, journals: Sequence[Journal], now: float) -> None:
        """Tell all there is."""
        with self._lock:
            try:
                self._send(journals, now)
            except (OSError, EOFError):  # nobody is there any more
                self._forget()
            except Exception as error:  # deliberate: the work goes on without its record
                self._forget()
                if not self._has_failed:
                    logger.error("Runs cannot be told home, and are not recorded there: %s", text_of(error))
                self._has_failed = True

    def _send(self, journals: Sequence[Journal], now: float) -> None:
        while self.results:  # each by itself: they may be large
            self._tell([None, [], [msgspec.structs.astuple(self.results.popleft())]])
        rows = [
            row_of(run.traced(run.waiting_on if run.blocker is not None else None), is_over=False)
            for journal in journals
            for run in list(journal.live.values())
            if self._is_news(run, now)
        ]
        ended = self.ended
        while rows or ended:
            while ended and len(rows) < BATCH:
                trace = ended.popleft()
                self._told.pop(trace.number, None)
                rows.append(row_of(trace, is_over=True))
            self._tell([None, rows[:BATCH], []])
            del rows[:BATCH]

    def _is_news(self, run: Run, now: float) -> bool:
        """Whether home is to hear of a run under way. A run is settled first, and then among those that have ended."""
        told = self._told.get(run.number)
        length = len(run.states)
        if told == length or (told is None and 0 <= now - run.states[0].time < YOUNG) or run.is_settled:
            return False
        if self.stand_in is None or not is_inside(run, self.stand_in):
            return False
        self._told[run.number] = length
        return True

    def _forget(self) -> None:
        self.ended.clear()
        self.results.clear()


def is_inside(run: Run, outer: Run) -> bool:
    """Whether `run`, which is not over, was started inside `outer`, at whatever depth."""
    one: Run | None = run
    while one is not None:
        if one is outer:
            return True
        one = one.parent
    return False


def row_of(trace: Trace, *, is_over: bool) -> tuple[Any, ...]:
    """A run as plain values, which any carrier takes; see `relays.trace_of`."""
    extras = trace.extras
    failure = None if extras is None else extras.failure
    if extras is not None and isinstance(failure, tuple):  # in the history here as well, which then keeps no frames
        failure = extras.failure = late("stores.rows").error_text(failure)
    spec = trace.spec
    return (
        trace.number, spec.key, spec.name, spec.is_flow,
        [(state.type.value, state.name, state.time, state.message) for state in trace.states],
        sorted(trace.tags), trace.parent_number, trace.flow_number, trace.given_name, trace.upstream,
        trace.shown_parameters() or None, trace.result, failure, trace.waiting_on, is_over,
    )  # fmt: skip


#: The outbox of the body that is under way here.
_outbox: ContextVar[Outbox | None] = ContextVar("asynctask_outbox", default=None)


class RelayStore(MemoryStore):
    """What bodies of one home record in this process."""

    def __init__(self, url: str, *, keeps_errors: bool) -> None:
        super().__init__()
        self.url = url
        self._keeps_errors = keeps_errors
        #: Of the bodies that are under way.
        self._outboxes: dict[Outbox, None] = {}
        self._left: deque[Trace] = deque(maxlen=MOST_LEFT)
        self._room: list[Callable[[], None]] = []
        self._starting = threading.Lock()
        self._bell = threading.Event()
        self._is_asleep = True
        self._uses = 0
        self._thread: threading.Thread | None = None
        self.keep = self._keep
        self._observer = self._moved  # one object, by which it is found again

    @property
    def is_used(self) -> bool:
        """Whether any body is under way that has its runs here."""
        return bool(self._outboxes)

    def begin(self, tell: Tell) -> Outbox:
        """A body begins, and in its context all that is recorded here is told home by `tell`; until `end`."""
        outbox = Outbox(tell, self)
        outbox.before = _outbox.set(outbox)
        self._outboxes[outbox] = None
        while self._left:
            outbox.ended.append(self._left.popleft())
        return outbox

    def end(self, outbox: Outbox) -> None:
        """Tell all that is left; nothing is told by this outbox any more."""
        assert outbox.before is not None
        _outbox.reset(outbox.before)
        del self._outboxes[outbox]
        outbox.flush()

    def _keep(self, trace: Trace) -> None:
        self._history.append(trace)
        outbox = self._here()
        if outbox is None:
            self._left.append(trace)
            return
        outbox.ended.append(trace)
        if len(outbox.ended) >= MOST_WAITING:
            for journal in self._journals.all():
                journal.is_crowded = True
        if self._is_asleep:
            self._ring()

    def _here(self) -> Outbox | None:
        """Where what is recorded here and now goes: with the body that it is of, else with any."""
        outbox = _outbox.get()
        return outbox if outbox in self._outboxes else next(iter(list(self._outboxes)), None)

    def attach(self, journal: Journal) -> None:
        super().attach(journal)
        with self._starting:
            self._uses += 1
            self._is_asleep = self._is_asleep or self._thread is None
        journal.keeps_errors = self._keeps_errors
        journal.observe(PENDING.bit | SCHEDULED.bit | RUNNING.bit, self._observer)

    async def detach(self, journal: Journal) -> None:
        self._journals.discard(journal)
        journal.ignore(self._observer)
        with self._starting:
            self._uses -= 1
            thread, self._thread = (self._thread, None) if not self._uses else (None, self._thread)
        if thread is not None:
            self._bell.set()
            thread.join()

    def _moved(self, run: Run, state: State) -> None:
        if self._is_asleep:
            self._ring()

    def _ring(self) -> None:
        self._is_asleep = False
        self._bell.set()
        if self._thread is None:
            with self._starting:
                if self._thread is None and self._uses:
                    self._thread = threading.Thread(target=self._work, name="asynctask-relay", daemon=True)
                    self._thread.start()

    def _work(self) -> None:
        """The thread that tells home, from the first run on."""
        thread = threading.current_thread()
        while self._thread is thread:
            self._is_asleep = True  # before the look: what comes after it rings
            if all(one.is_empty for one in list(self._outboxes)):
                is_idle = not any(journal.live for journal in self._journals.all())
                self._bell.wait(None if is_idle else LOOK)
            self._is_asleep = False
            self._bell.clear()
            for outbox in list(self._outboxes):
                self.tell(outbox)
            time.sleep(GATHER)

    def tell(self, outbox: Outbox) -> None:
        """Tell what is in it, and of what is under way; then there is room."""
        journals = self._journals.all()
        outbox.send(journals, self._clock.now())
        if not self.is_full() and (self._room or any(journal.is_crowded for journal in journals)):
            for journal in journals:
                journal.is_crowded = False
            wake_all(self._room)

    def is_full(self) -> bool:
        return any(len(one.ended) >= MOST_WAITING for one in list(self._outboxes))

    def when_room(self, wake: Callable[[], None]) -> None:
        self._room.append(wake)
        if not self.is_full():
            wake_all(self._room)

    async def flush(self) -> None:
        for outbox in list(self._outboxes):
            self.tell(outbox)

    async def write_results(self, results: Sequence[StoredResult], *, at_hand: bool = True) -> None:
        await super().write_results(results, at_hand=at_hand)
        outbox = self._here()
        if outbox is not None:
            outbox.results.extend(results)
