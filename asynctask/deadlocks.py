"""Waits that can never end: found at the moment when the last one begins, and drawn.

1. A run goes on when all its waits can end. A wait for a run ends when that run goes on. A wait for a slot ends when
   one of those who hold the slots goes on, and the first in the line as well. What nobody here can tell, ends.
2. So only the beginning of a wait can close a ring, and who begins it looks, under the lock of the limits.
3. A block's slots are given back by the task or thread that took them: only what that waits for counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from .errors import DeadlockError
from .lines import Guest, Line, Slots, Wait, lender_of
from .runs import Run

#: Runs and slots that one search looks at; with more, nobody can tell.
MOST = 10_000

#: A run; code outside runs; or the slots of a block, which go back before its run ends.
Node: TypeAlias = "Run | Guest | Slots"
Groups: TypeAlias = "Iterable[Iterable[Node]]"


def check(wait: Wait) -> None:
    """Raise `DeadlockError` if this wait, which begins here, can never end."""
    if _can_end(wait, lambda node: not _waits_of(node)):
        return
    reached = _reached_from(wait.run)
    going: set[Node] = set()
    count = -1
    while count < len(going):  # as a rule twice: those that were reached last come first
        count = len(going)
        for node in reversed(reached):
            if node not in going and all(_can_end(one, going.__contains__) for one in _waits_of(node)):
                going.add(node)
    if reached and wait.run not in going:
        raise DeadlockError(_drawn(wait, going))


def _can_end(wait: Wait, goes_on: Callable[[Node], bool]) -> bool:
    return all(_some(group, goes_on) for group in _groups(wait))


def _groups(wait: Wait) -> Groups:
    """Groups of each of which somebody must go on, before this wait can end."""
    target = wait.target
    if target is None:
        return ()
    if isinstance(target, Run):
        return ((target,),)
    return _of_slots(target) if isinstance(target, Slots) else target()


def _some(group: Iterable[Node], goes_on: Callable[[Node], bool]) -> bool:
    """Whether one of the group goes on; or there is none, any more."""
    is_empty = True
    for node in group:
        if goes_on(node):
            return True
        is_empty = False
    return is_empty


def _waits_of(node: Node) -> list[Wait]:
    run = node.run if isinstance(node, Slots) else node
    if isinstance(run, Guest) or run.is_settled or run.cancel_reason is not None:
        return []
    waits: list[Wait] = run.awaits or []
    blocker = run.blocker
    if isinstance(blocker, Slots) and not any(one.target is blocker for one in waits):
        waits = [*waits, Wait(blocker, run)]  # see `Limits.begin_wait_for_slots`
    return [one for one in waits if one.strand == node.strand] if isinstance(node, Slots) else waits


def _reached_from(run: Run) -> list[Node]:
    """All that the end of `run` may depend on, the nearest first; nothing if that is too much to look at."""
    found: dict[Node, None] = {run: None}
    to_look: list[Node] = [run]
    for node in to_look:
        for wait in _waits_of(node):
            for group in _groups(wait):
                for one in group:
                    if one not in found:
                        found[one] = None
                        to_look.append(one)
                        if len(found) > MOST:
                            return []
    return to_look


# -- what waits for what ------------------------------------------------------------------------------------------


def _of_slots(slots: Slots) -> Iterator[Iterator[Node]]:
    """The groups of a wait for slots."""
    for line in slots.lines:
        # What decays comes back by itself; what other processes hold, nobody here can tell.
        if slots not in line.waiting or not line.is_active or line.decay or line.share < line.size:
            continue
        if slots.above and lender_of(slots, line) is not None:
            continue
        first = next(iter(line.waiting))
        if line.used + slots.count > line.size:
            yield _those_in(line, slots)
        if first is not slots and not any(holder.run.number in slots.above for holder in line.holders):
            yield iter([_node_of(first)])


def _those_in(line: Line, slots: Slots) -> Iterator[Node]:
    """Those by whose end there is room in a line: they hold slots of it, or borrow from a run above."""
    for holder in line.holders:
        yield _node_of(holder)
        borrower = None if holder.lent_to is None else holder.lent_to.get(line)
        while borrower is not None and holder.run.number in slots.above:
            yield _node_of(borrower)
            borrower = None if borrower.lent_to is None else borrower.lent_to.get(line)


def _node_of(slots: Slots) -> Node:
    return slots.run if slots.strand is None else slots


# -- drawing ------------------------------------------------------------------------------------------------------


def _drawn(wait: Wait, going: set[Node]) -> str:
    """The ring that begins with this wait, a line for each run in it."""
    path: list[tuple[Node, Wait]] = []
    places: dict[Node, int] = {}
    node: Node = wait.run
    while node not in places:
        places[node] = len(path)
        one = next(one for one in _waits_of(node) if not _can_end(one, going.__contains__))
        path.append((node, one))
        groups = (list(group) for group in _groups(one))
        node = next(group[0] for group in groups if not _some(group, going.__contains__))
    ring = path[places[node] :]
    lines = [f"run {wait.run.name!r} would wait for ever for {_words(wait.run, wait)}:"]
    for depth, (waiter, waits) in enumerate([*ring, ring[0]]):
        run = _run_of(waiter)
        text = f"{run.name}, which {_held_by(run)}, waits for {_words(waiter, waits)}"
        text = text if depth < len(ring) else run.name
        lines.append(f"  {'    ' * (depth - 1)}└─► {text}" if depth else f"  {text}")
    return "\n".join(lines)


def _run_of(node: Node) -> Run:
    run = node.run if isinstance(node, Slots) else node
    assert isinstance(run, Run)
    return run


def _words(node: Node, wait: Wait) -> str:
    target = wait.target
    text = wait.text
    if isinstance(target, Run):
        text = f"the result of {target.name}"
    elif isinstance(target, Slots):
        text = " and ".join(line.text for line in target.lines if target in line.waiting)
    return text if wait.run is _run_of(node) else f"its call of {wait.run.name}, and that for {text}"


def _held_by(run: Run) -> str:
    held = [one for one in (run.slots, *(run.guards or ())) if one is not None and one.granted]
    names = list(dict.fromkeys(line.shown for one in held for line in one.lines))
    return f"holds {', '.join(names)}" if names else "holds nothing"
