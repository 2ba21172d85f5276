"""Waits that can never end: found at the moment when the last one begins, and drawn.

1. A run goes on when all its waits can end. A wait for a run ends when that run goes on. A wait for a slot ends when
   one of those who hold the slots goes on, and the first in the line as well. What nobody here can tell, ends.
2. So the beginning of a wait can close a ring, and who begins it looks, under the lock of the limits. So can the end
   of a holder, where who is first in line needs more than it gives back: `limits` looks then.
3. A block's slots are given back by the task or thread that took them: only what that waits for counts.
4. Nobody looks for a run for whose end nobody waits; and at most looks it is plain in a few steps that all goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from .errors import DeadlockError
from .lines import Guest, Line, Slots, Wait
from .loans import lender_of
from .runs import Run

#: Runs and slots that one search looks at; with more, nobody can tell. And those that a first look stops at.
MOST, FEW = 10_000, 50

#: A run; code outside runs; or the slots of a block, which go back before its run ends.
Node: TypeAlias = "Run | Guest | Slots"
Groups: TypeAlias = "Iterable[Iterable[Node]]"


def matters(run: Run) -> bool:
    """Whether anybody may wait for the end of `run`, or of a block in it.

    Read without the lock it is as good: who begins to wait says so first, and then looks whether others wait.
    """
    one: Run | None = run
    while one is not None:
        if one.is_awaited or one.followers or one.slots is not None or one.guards is not None:
            return True
        flow = one.flow  # which waits for what was submitted in it, at its end
        one = one.parent if not one.is_submitted else flow if flow is not None and flow.awaits else None
    return False


def check(wait: Wait, cuts: int) -> None:
    """Raise `DeadlockError` if this wait, which begins here, can never end; for `cuts` see `Wait`."""
    end = _end_of_chain(wait, cuts)
    if _is_plain(end, {}):
        return
    reached = _reached_from(end)
    going: set[Node] = set()
    count = -1
    while count < len(going):  # as a rule twice: those that were reached last come first
        count = len(going)
        for node in reversed(reached):
            if node not in going and all(_can_end(one, going.__contains__) for one in waits_of(node)):
                going.add(node)
    text = _drawn(wait, going) if reached and end not in going else None
    if text is not None:
        raise DeadlockError(text)


def found(slots: Slots) -> DeadlockError | None:
    """Why who waits for these slots waits for ever, now that others have given back what they had."""
    run = slots.run
    wait = None if isinstance(run, Guest) else next((one for one in waits_of(run) if one.target is slots), None)
    if wait is None:
        return None
    try:
        check(wait, 0)  # also if nobody waits for the run: those behind it in line do
    except DeadlockError as error:
        return error.with_traceback(None)
    return None


def _end_of_chain(wait: Wait, cuts: int) -> Run:
    """The last of those that wait for one run each: whether they go on is whether that one does.

    It is noted in the waits on the way, else a chain of 5,000 runs would be walked along 5,000 times (29 s).
    """
    passed: list[Wait] = []
    run = wait.run
    while isinstance(wait.target, Run) and len(passed) < MOST:
        beyond = wait.beyond
        run = wait.target if beyond is None or beyond.is_settled or wait.cuts != cuts else beyond
        passed.append(wait)
        waits = waits_of(run)
        if len(waits) != 1 or waits[0] is passed[0]:
            break
        wait = waits[0]
    for one in passed:
        one.beyond, one.cuts = run, cuts
    return run


def _is_plain(node: Node, asked: dict[Node, bool]) -> bool:
    """Whether it is plain that `node` goes on: found out in a few steps."""
    known = asked.get(node)
    if known is not None:
        return known
    if len(asked) >= FEW:
        return False
    asked[node] = False  # so far: who asks for it on the way to its own answer has none
    asked[node] = all(_can_end(wait, lambda one: _is_plain(one, asked)) for wait in waits_of(node))
    return asked[node]


def _can_end(wait: Wait, goes_on: Callable[[Node], bool]) -> bool:
    return all(_some(group, goes_on) for group in groups_of(wait))


def groups_of(wait: Wait) -> Groups:
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


def waits_of(node: Node) -> list[Wait]:
    """What must end before `node` goes on."""
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
        for wait in waits_of(node):
            for group in groups_of(wait):
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
        if slots not in line.waiting or not line.is_active:
            continue
        if slots.above and lender_of(slots, line) is not None:
            continue
        first = next(iter(line.waiting))
        # What decays comes back by itself; what other processes hold, nobody here can tell.
        if line.used + slots.count > line.size <= line.share and not line.decay:
            yield (one for holder in line.holders for one in _using(holder, line, slots))
        if first is not slots:
            mine = (one for one in line.holders if one.run.number in slots.above) if slots.above else ()
            yield iter([*(one for holder in mine for one in _using(holder, line, slots)), node_of(first)])


def _using(holder: Slots, line: Line, slots: Slots) -> Iterator[Node]:
    """A holder, and those to whom it has lent if `slots` may borrow of it after them.

    The last one comes first: it is at work; those that lend wait for it, and perhaps for many more.
    """
    using = [holder]
    if holder.lent_to is not None and holder.run.number in slots.above:
        while using[-1].lent_to is not None and (borrower := using[-1].lent_to.get(line)) is not None:
            using.append(borrower)
    return map(node_of, reversed(using))


def node_of(slots: Slots) -> Node:
    return slots.run if slots.strand is None else slots


# -- generators that are paused -----------------------------------------------------------------------------------


def pause(slots: Slots, strand: object) -> None:
    """A generator that holds `slots` has given a value to the code of `strand`; None: it goes on."""
    slots.paused_in = strand
    slots.table.has_paused = True


def check_paused(slots: Slots, strand: object) -> None:
    """Raise `DeadlockError` if all slots of a line are held by generators that go on only when the code of `strand`
    does, which is about to wait for one."""
    with slots.table.lock:
        for line in slots.lines:
            if slots.granted or slots not in line.waiting or line.share < line.size or not line.holders:
                continue
            if all(one.paused_in == strand for one in line.holders):
                names = ", ".join(one.run.name for one in line.holders)
                raise DeadlockError(
                    f"run {slots.run.name!r} would wait for ever for {line.text}: {names} holds it, a generator that "
                    f"is paused until the code that wants this slot goes on; take the values into a list first, or "
                    f"raise the limit"
                )


# -- drawing ------------------------------------------------------------------------------------------------------


def _drawn(wait: Wait, going: set[Node]) -> str | None:
    """The ring that begins with this wait, a line for each run in it; None if somebody in it has just been stopped."""
    path: list[tuple[Node, Wait]] = []
    places: dict[Node, int] = {}
    node: Node = wait.run
    while node not in places:
        places[node] = len(path)
        one = next((one for one in waits_of(node) if not _can_end(one, going.__contains__)), None)
        if one is None:
            return None
        path.append((node, one))
        groups = (list(group) for group in groups_of(one))
        stuck = next((group for group in groups if not _some(group, going.__contains__)), None)
        if stuck is None:
            return None
        node = stuck[0]
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
