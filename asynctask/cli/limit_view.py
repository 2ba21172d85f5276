"""A limit as people see it: its slots, who holds them and who stands in line; once, or followed while it changes.

1. On a terminal the view is drawn again several times a second, and is never higher than the terminal. Into a pipe, and
   with `--json`, what there is is printed at first and whenever it has changed: how long somebody holds or waits is no
   change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..clocks import Clock
from ..errors import UsageError
from ..limit_records import ConcurrencyLimit, GlobalConcurrencyLimit, SlotHolder
from .show import cleaned, document, drawn, fields, is_terminal, length_of, out, screen, table

Limit = ConcurrencyLimit | GlobalConcurrencyLimit

#: Between two looks: a person sees it as at once, and the store is asked five times a second.
SECONDS = 0.2
HOLDERS = ("HELD BY", "SLOTS", "FOR", "PROCESS", "RUN")
LINE = ("PLACE", "IN LINE", "SLOTS", "FOR", "PROCESS", "RUN")


class Part(NamedTuple):
    """Who holds slots, or who waits: rows under their headings, and how many more there are."""

    columns: Sequence[str]
    rows: list[tuple[str, ...]]
    more: int


def show(limit: Limit, *, json: bool = False) -> int:
    """All about a limit, as lines and tables, or as a document."""
    (document if json else _print)(limit)
    return 0


def _print(limit: Limit) -> None:
    fields(_facts(limit))
    for part in _parts(limit):
        out()
        table(part.columns, part.rows)
        if part.more:
            out(f"and {part.more} more")


def check(watch: bool, timeout: float | None) -> None:
    """Whether the options of `follow` fit. Raises `UsageError`."""
    if timeout is not None and not watch:
        raise UsageError("--timeout goes with --watch")
    if timeout is not None and not timeout >= 0:
        raise UsageError(f"--timeout must not be negative, not {timeout}")


def follow(read: Callable[[], Limit], timeout: float | None, *, json: bool) -> int:
    """Show what `read` gives, again and again, until somebody interrupts, or `timeout` seconds have passed."""
    clock = Clock()
    start = clock.monotonic()
    with _painter(json) as paint:
        while True:
            paint(read())
            left = SECONDS if timeout is None else start + timeout - clock.monotonic()
            if left <= 0:
                return 0
            time.sleep(min(left, SECONDS))


@contextmanager
def _painter(json: bool) -> Generator[Callable[[Limit], None]]:
    """What each look is given to (rule 1)."""
    if json or not is_terminal():
        yield _on_change(document if json else _print)
        return
    console = screen()
    if console.is_dumb_terminal:
        yield _on_change(_print)
        return
    from rich.live import Live  # 15 ms, for this view alone

    with Live(console=console, auto_refresh=False) as live:
        yield lambda limit: live.update(_frame(limit, console.height), refresh=True)


def _on_change(tell: Callable[[Limit], None]) -> Callable[[Limit], None]:
    before: object = None

    def paint(limit: Limit) -> None:
        nonlocal before
        now = _without_times(limit)
        if now == before:
            return
        if before is not None and tell is _print:
            out("\n")
        before = now
        tell(limit)

    return paint


def _without_times(limit: Limit) -> object:
    people = [[(one.run_id, one.name, one.slots, one.pid) for one in some] for some in (limit.holders, limit.line)]
    return _facts(limit), people


def _facts(limit: Limit) -> list[tuple[str, object]]:
    if isinstance(limit, ConcurrencyLimit):
        return [
            ("tag", limit.tag),
            ("limit", limit.concurrency_limit),
            ("in use", limit.in_use),
            ("waiting", limit.waiting),
        ]
    decay = limit.slot_decay_per_second
    facts: list[tuple[str, object]] = [
        ("name", limit.name),
        ("limit", limit.limit),
        ("in use", limit.active_slots),
        ("waiting", limit.waiting),
        ("active", "yes" if limit.active else "no: it limits nothing"),
    ]
    return [*facts, ("come back", f"{decay:g} a second")] if decay else facts


def _parts(limit: Limit, room: int = 2 * 1000) -> list[Part]:
    """Who holds and who waits, where there is somebody, in `room` rows."""
    now = datetime.fromtimestamp(Clock().now(), UTC)
    first = max(1, room - min(len(limit.line), room // 2))
    holders, line = limit.holders[:first], limit.line[: max(1, room - min(len(limit.holders), first))]
    in_use = limit.in_use if isinstance(limit, ConcurrencyLimit) else limit.active_slots
    untold = in_use - sum(one.slots for one in limit.holders)
    if isinstance(limit, GlobalConcurrencyLimit) and limit.slot_decay_per_second:
        untold = 0  # nobody holds these any more: they are on their way back
    parts = [
        Part(HOLDERS, [_row(one, now) for one in holders], len(limit.holders) - len(holders) + max(0, untold)),
        Part(
            LINE,
            [(str(place), *_row(one, now)) for place, one in enumerate(line, 1)],
            max(limit.waiting, len(limit.line)) - len(line),
        ),
    ]
    return [part for part in parts if part.rows]


def _row(one: SlotHolder, now: datetime) -> tuple[str, ...]:
    run_id = str(one.run_id or "")
    age = _age((now - one.since).total_seconds())
    return one.name, str(one.slots), age, str(one.pid), run_id[-12:] if is_terminal() else run_id


def _age(seconds: float) -> str:
    """A time that goes on, in whole units: fractions would only flicker."""
    return f"{max(0, int(seconds))} s" if seconds < 60 else length_of(int(seconds))


def _frame(limit: Limit, height: int) -> Any:
    """The view for a terminal of so many lines (rule 1)."""
    from rich.console import Group
    from rich.text import Text

    first, *facts = _facts(limit)
    title = Text(cleaned(first[1]), style="bold", no_wrap=True, overflow="ellipsis")
    told = Text("  ".join(f"{name} {value}" for name, value in facts), no_wrap=True, overflow="ellipsis")
    lines: list[Any] = [title, told]
    for part in _parts(limit, height - 9):  # two headings with an empty line before each and `more` behind, the title
        rows = [[cleaned(cell) for cell in row] for row in part.rows]
        whole = drawn(part.columns, rows)
        for column in whole.columns:
            column.no_wrap, column.overflow = True, "ellipsis"
        lines += [Text(), whole]
        if part.more:
            lines.append(Text(f"and {part.more} more", style="dim"))
    return Group(*lines)
