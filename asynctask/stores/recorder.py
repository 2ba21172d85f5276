"""What runs leave behind, on its way to a database: noted in a queue by whoever ends them, written in batches.

1. `keep` and `keep_log` append and return: no run waits for a disk. When very much waits to be written, journals are
   marked as crowded, and who makes new runs waits for room.
2. A run that is under way is written once it is a moment old, and again when its state has changed; so the many that
   are over at once cost one row, and a killed process leaves rows of what it was doing.
3. A write that fails is told in the log, kept and tried again, with growing pauses. Meanwhile nobody waits for room:
   the work goes on, and past a bound the oldest traces are dropped, which is counted and told.
4. What is written is written in the order in which it was kept.
5. A record that no attempt could ever write, which would hold up all others, is found, told and left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ..errors import StoreError
from ..records import LogEntry
from ..runs import Trace, wake_all
from .base import Journals
from .desk import ring_when

logger = logging.getLogger("asynctask")

#: Traces in one transaction.
BATCH = 4_000
#: As many may wait to be written before who makes runs waits as well; 10 MB or so.
MOST_WAITING = 20_000
#: As many are kept while writing fails.
MOST_KEPT = 200_000
#: Seconds between two batches, for more to gather; and between two looks at runs that are under way.
GATHER, LOOK = 0.02, 0.25
#: Seconds after which a run that is not over yet is written for the first time.
YOUNG = 0.1
#: Seconds between attempts after a failure: the first pause, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
#: Records left out of one batch at most: when more cannot be written, it is not for what is in them.
MOST_UNWRITABLE = 10
#: Seconds between two reports of a failure that lasts.
REPORT_AGAIN = 60.0


class Batch(NamedTuple):
    """What one transaction writes."""

    traces: list[Trace]
    logs: list[tuple[int, LogEntry]]
    #: Of the runs under way: how many states they had when they were taken.
    lengths: dict[int, int]
    #: The recorder's: which runs have a row. Looked at as late as can be, for the file may turn out to be a new one.
    rows: dict[int, tuple[int, bool]]

    def halves(self) -> list[Batch]:
        """Two batches of half the records; one alone, of one record."""
        traces, logs = self.traces, self.logs
        if len(traces) + len(logs) < 2:
            return [self]
        if traces and logs:
            return [self._replace(logs=[]), self._replace(traces=[])]
        middle, half = len(traces) // 2, len(logs) // 2
        return [
            self._replace(traces=traces[:middle], logs=logs[:half]),
            self._replace(traces=traces[middle:], logs=logs[half:]),
        ]

    def new(self) -> list[Trace]:
        """The runs of which there is no row yet."""
        return [trace for trace in self.traces if trace.number not in self.rows]

    def named(self) -> list[Trace]:
        """Those whose given name is new."""
        return [
            trace
            for trace in self.traces
            if trace.given_name is not None and ((row := self.rows.get(trace.number)) is None or not row[1])
        ]


class Recorder:
    """The queue of one store and its writer, which runs at the store's desk."""

    def __init__(self, write: Callable[[Batch], Awaitable[None]], now: Callable[[], float]) -> None:
        self._write = write
        self._now = now
        self._queue: deque[Trace] = deque()
        self._logs: deque[tuple[int, LogEntry]] = deque()
        self.journals = Journals()
        #: Runs that have a row and are not over: how much of their history is in it, and whether their given name is.
        self._rows: dict[int, tuple[int, bool]] = {}
        self._is_asleep = False
        self._bell: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writing: asyncio.Lock | None = None
        #: Why the last write failed; None when it did not.
        self.failure: Exception | None = None
        self._reported = 0.0
        self._dropped = 0
        self._room: list[Callable[[], None]] = []

    # -- in any thread ------------------------------------------------------------------------------------------------

    def keep(self, trace: Trace) -> None:
        """Note a settled run; 0.15 us."""
        queue = self._queue
        queue.append(trace)
        if self._is_asleep:
            self._wake()
        elif len(queue) >= MOST_WAITING:
            self._crowd()

    def keep_log(self, run_number: int, entry: LogEntry) -> None:
        self._logs.append((run_number, entry))
        if self._is_asleep:
            self._wake()
        elif len(self._logs) >= MOST_KEPT:
            self._logs.popleft()
            self._dropped += 1

    @property
    def waiting(self) -> int:
        """How many ended runs wait to be written."""
        return len(self._queue)

    def is_full(self) -> bool:
        return len(self._queue) >= MOST_WAITING and self.failure is None

    def when_room(self, wake: Callable[[], None]) -> None:
        self._room.append(wake)
        if not self.is_full():
            wake_all(self._room)

    def _crowd(self) -> None:
        if self.failure is None:
            for journal in self.journals.all():
                journal.is_crowded = True
        elif len(self._queue) > MOST_KEPT:
            self._queue.popleft()
            self._dropped += 1

    def _uncrowd(self) -> None:
        for journal in self.journals.all():
            journal.is_crowded = False
        wake_all(self._room)

    def _wake(self) -> None:
        self._is_asleep = False
        loop, bell = self._loop, self._bell
        if loop is not None and bell is not None:
            try:
                loop.call_soon_threadsafe(bell.set)
            except RuntimeError:  # the desk has closed in this moment; what was kept is written when it opens again
                return

    def begin_anew(self) -> None:
        """The file was opened, and may be another one than before: no run is known to have a row."""
        self._rows.clear()

    def begin_in_child(self) -> None:
        """In a forked child: what waits is its parent's."""
        self._queue.clear()
        self._logs.clear()
        self._rows.clear()
        self._room.clear()
        self.journals = Journals()
        self._bell = self._loop = self._writing = self.failure = None
        self._is_asleep = False
        self._dropped = 0

    # -- at the desk --------------------------------------------------------------------------------------------------

    async def run(self, closing: asyncio.Event) -> None:
        """Write what comes, until `closing` is set."""
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        bell = self._bell = asyncio.Event()
        stopper = asyncio.ensure_future(ring_when(closing, bell))
        pause = GATHER
        try:
            while not closing.is_set():
                self._is_asleep = True
                if not self._queue and not self._logs:
                    alarm = self._loop.call_later(LOOK if self.failure is None else pause, bell.set)
                    await bell.wait()
                    alarm.cancel()
                self._is_asleep = False
                bell.clear()
                pause = GATHER if await self.try_to_write() else min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2))
                is_much = max(len(self._queue), len(self._logs)) >= BATCH
                if not closing.is_set() and (self.failure is not None or not is_much):
                    alarm = self._loop.call_later(pause, bell.set)
                    await bell.wait()
                    alarm.cancel()
                    bell.clear()  # else the next wait ends at once, and an idle process looks 50 times a second
        finally:
            stopper.cancel()
            self._bell = self._loop = self._writing = None

    async def try_to_write(self, *, young: bool = False) -> bool:
        """Write all there is; False, told in the log, if that failed."""
        try:
            await self.write_out(young=young)
        except Exception as error:  # deliberate: told in the log, and tried again
            self._failed(error)
            return False
        return True

    async def write_out(self, *, young: bool = False) -> None:
        """Write all there is now, and with `young` also the runs that have just begun. Raises what the store raises."""
        assert self._writing is not None, "the recorder writes only at its desk"
        async with self._writing:
            left = max(len(self._queue), len(self._logs))  # not what comes meanwhile: somebody may wait for this
            while True:
                batch = self._take(young)
                if not batch.traces and not batch.logs:
                    break
                try:
                    await self._write_what_can_be(batch)
                except BaseException:
                    self._put_back(batch)
                    raise
                self._written(batch)
                left -= BATCH
                if left <= 0:
                    break
            self._succeeded()

    async def _write_what_can_be(self, batch: Batch) -> None:
        """Write a batch; without the few records in it that fail, whatever the disk does, which is told (rule 5)."""
        parts = [batch]
        failed: list[tuple[Batch, Exception]] = []
        while parts:
            part = parts[0]
            try:
                await self._write(part)
            except Exception as error:
                halves = part.halves()
                # Of the database, and not of what is to be written; or of more than what is in some records.
                if isinstance(error, StoreError) or len(failed) == MOST_UNWRITABLE:
                    # Runs may be written twice, lines may not.
                    batch.logs[:] = [line for some in (*parts, *(one for one, _ in failed)) for line in some.logs]
                    raise
                if len(halves) == 1:
                    failed.append((part, error))
                parts[:1] = halves if len(halves) > 1 else []
            else:
                del parts[0]
        for part, reason in failed:
            what = f"Run {part.traces[0].name!r}" if part.traces else "A log line"
            logger.error("%s cannot be recorded, and is left out: %s: %s", what, type(reason).__name__, reason)

    def _take(self, young: bool) -> Batch:
        taken: dict[int, Trace] = {}
        queue = self._queue
        for _ in range(min(len(queue), BATCH)):
            trace = queue.popleft()
            taken[trace.number] = trace  # a later one of the same run has all that an earlier one had
        lengths: dict[int, int] = {}
        rows = self._rows
        now = self._now()
        for journal in self.journals.all():
            for run in list(journal.live.values()):
                row = rows.get(run.number)
                if row is None:
                    if not young and 0 <= now - run.states[0].time < YOUNG:  # less than 0: the clock was set back
                        continue
                elif row[0] == len(run.states):
                    continue
                if run.number not in taken:
                    trace = taken[run.number] = run.traced(run.waiting_on)  # as it is now: it goes on meanwhile
                    lengths[run.number] = len(trace.states)
        logs = [self._logs.popleft() for _ in range(min(len(self._logs), BATCH))]
        return Batch(list(taken.values()), logs, lengths, rows)

    def _put_back(self, batch: Batch) -> None:
        ended = [trace for trace in batch.traces if trace.number not in batch.lengths]
        self._queue.extendleft(reversed(ended))
        self._logs.extendleft(reversed(batch.logs))

    def _written(self, batch: Batch) -> None:
        rows = self._rows
        for trace in batch.traces:
            length = batch.lengths.get(trace.number)
            if length is None:
                rows.pop(trace.number, None)
            else:  # if it has ended meanwhile, its trace is in the queue
                rows[trace.number] = (length, trace.given_name is not None)

    def _failed(self, error: Exception) -> None:
        first = self.failure is None
        self.failure = error
        self._uncrowd()
        now = self._now()
        if first or now - self._reported > REPORT_AGAIN or now < self._reported:
            self._reported = now
            lost = f"; {self._dropped:,} of the oldest records were dropped" if self._dropped else ""
            what = error if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
            logger.error(
                "Runs cannot be recorded: %s. The work goes on, %d records wait in memory; writing is tried again%s",
                what, len(self._queue) + len(self._logs), lost,
            )  # fmt: skip

    def _succeeded(self) -> None:
        if self.failure is not None:
            lost = f"; {self._dropped:,} records were lost" if self._dropped else ""
            logger.warning("Runs are recorded again; what waited is written%s", lost)
            self.failure = None
        elif self._dropped:
            lines = f"{self._dropped:,}"
            logger.warning("%s of the oldest log lines were dropped: more comes than can be written", lines)
        self._dropped = 0
        if len(self._queue) <= MOST_WAITING - BATCH:  # not earlier: each time costs more than a run
            self._uncrowd()
