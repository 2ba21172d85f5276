"""Measuring: each round of each cell in a process of its own, one after the other, by turns.

1. Every cell has its first round before any has its second: what slows the machine down for a while slows all cells.
2. A child is the leader of its own session, so Ctrl-C reaches only this process, which has it tear down, and kills it
   and whatever it has started if that takes too long.
3. What was measured before a measurement is broken off is not lost: `Measurement.report` tells it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from typing import IO, Any, Protocol

import msgspec

from ..clocks import Clock
from ..errors import BenchmarkError, OptionError
from ..pickles import dumps
from ..settings import settings
from ..specs import main_module
from .calls import is_possible, notes_on
from .child import END_SECONDS, Answer, Order, write_order
from .figures import Progress, Round
from .machine import this_machine, versions
from .plans import Cell, Plan
from .reports import Report, cell_report
from .scenarios import Scenario

#: Seconds that a round may take beyond its load: for its teardown, and for a call that cannot be ended.
MORE_SECONDS = 30.0


class View(Protocol):
    """Who is shown how a measurement is doing."""

    def began(self, cell: Cell, number: int) -> None: ...

    def went_on(self, cell: Cell, progress: Progress) -> None: ...

    def ended(self, cell: Cell, number: int, found: Round) -> None: ...

    def tick(self) -> None:
        """Some time has passed."""
        ...


class Quiet:
    """A view that shows nothing."""

    def began(self, cell: Cell, number: int) -> None: ...

    def went_on(self, cell: Cell, progress: Progress) -> None: ...

    def ended(self, cell: Cell, number: int, found: Round) -> None: ...

    def tick(self) -> None: ...


class Measurement:
    """A scenario, the cells that it is measured in, and what has been measured so far."""

    def __init__(
        self,
        scenario: Scenario,
        cells: Sequence[Cell],
        plan: Plan,
        *,
        target: str | None = None,
        args: Sequence[str] = (),
        shown_args: dict[str, str] | None = None,
    ) -> None:
        """`target` is where children find the scenario, with arguments `args`; without one it is pickled for them.

        Raises `OptionError` for cells that cannot be.
        """
        self.cells = [cell for cell in cells if is_possible(cell, scenario)]
        if not self.cells:
            told = f"{scenario.name} is async: its bodies run on the event loop, never on threads"
            raise OptionError(f"{told}; measure it on loop")
        self.plan = plan
        self.notes = notes_on(list(cells), scenario)
        self._scenario = scenario
        self._target, self._args, self._shown_args = target, list(args), shown_args or {}
        self._rounds: dict[Cell, list[Round]] = {cell: [] for cell in self.cells}
        self._machine = this_machine()
        self._began = Clock().now()

    def run(self, view: View) -> None:
        """Measure. Raises `BenchmarkError` for a round that cannot be; Ctrl-C breaks it off."""
        scenario = None if self._target is not None else _pickled(self._scenario)
        for number in range(1, self.plan.repeats + 1):
            for cell in self.cells:
                view.began(cell, number)
                order = Order(
                    cell=cell,
                    plan=self.plan,
                    seed=self.plan.seed + number,
                    settings=msgspec.structs.replace(settings.values, store_url=self.plan.store),
                    path=sys.path,
                    folder=os.getcwd(),
                    main=main_module(),
                    scenario=scenario,
                    target=self._target,
                    args=self._args,
                )
                found = _measured(order, view)
                self._rounds[cell].append(found)
                view.ended(cell, number, found)

    def report(self) -> Report:
        """What has been measured so far."""
        return Report(
            target=self._target or self._scenario.name,
            args=self._shown_args,
            date=datetime.fromtimestamp(self._began, UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=self._machine,
            plan=self.plan,
            cells=[cell_report(cell, rounds) for cell, rounds in self._rounds.items() if rounds],
            notes=self.notes,
            is_whole=all(len(rounds) == self.plan.repeats for rounds in self._rounds.values()),
        )


def _pickled(scenario: Scenario) -> bytes:
    try:
        return dumps(scenario)
    except Exception as error:  # deliberate: whatever a part of it raises as it is pickled
        raise BenchmarkError(
            f"scenario {scenario.name!r} cannot be sent to the processes that measure it: {error}; "
            f"let its setup make what cannot be pickled"
        ) from error


def _measured(order: Order, view: View) -> Round:
    """One round. Raises `BenchmarkError`, with what the child said, if it does not come to its end."""
    plan, cell = order.plan, order.cell
    with tempfile.TemporaryFile() as printed, _child(order, printed) as process:
        deadline: float | None = None
        for line in _lines(process):
            if deadline is not None and time.monotonic() > deadline:
                raise BenchmarkError(f"{cell}: the round did not come to its end in time{_last_lines(printed)}")
            view.tick()
            if line is None:
                continue
            answer = msgspec.json.decode(line, type=Answer)
            if answer.is_ready:
                deadline = time.monotonic() + plan.warmup + plan.duration + plan.grace + MORE_SECONDS
            if answer.progress is not None:
                view.went_on(cell, answer.progress)
            if answer.failed is not None:
                raise BenchmarkError(f"{cell}: the round failed:\n{answer.failed}")
            if answer.round is not None:
                return answer.round
        code = process.wait(END_SECONDS)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise BenchmarkError(f"{cell}: the process that measured it {how}{_last_lines(printed)}")


@contextlib.contextmanager
def _child(order: Order, printed: IO[bytes]) -> Generator[subprocess.Popen[bytes], None, None]:
    """A child with its order; when the block is left, it has ended (rule 2)."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from asynctask.measuring.child import main; main()"
    library: Any = subprocess  # as in `workers`
    command = [sys.executable, *library._args_from_interpreter_flags(), "-c", code]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself, and what it printed says why
            write_order(order, process.stdin)
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS - 0.5)
        finally:  # also after a second Ctrl-C
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stdout.close()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes | None]:
    """What a child answers, line by line, and None whenever a tenth of a second has passed."""
    assert process.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(0.1):
                yield None
                continue
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                return
            *lines, rest = (rest + part).split(b"\n")
            yield from lines


def _last_lines(printed: IO[bytes]) -> str:
    """The end of what a child has printed."""
    printed.seek(0, os.SEEK_END)
    printed.seek(max(0, printed.tell() - 2000))
    text = printed.read().decode(errors="replace").strip()
    return f"; the last that it printed:\n{text}" if text else ""
