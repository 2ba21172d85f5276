"""Slots: how many runs with a tag, or blocks under a name, may be at work at once, and who is next.

1. A run takes the slots of all its limited tags at once, or none; a block, those of all its names.
2. First come, first served: a run waits behind every earlier run in the line of any limit that both need, even if
   there is room for it elsewhere. So a run that needs several slots is never starved, and since a run enters all
   its lines in one step, two runs never wait for each other.
3. A slot is handed over by the release itself: whoever gives it back wakes the next in line before returning.
4. A limit of 0 refuses. A changed or deleted limit takes effect for those waiting at once.
5. Borrowing, so that nested runs cannot block each other: see `loans`. A wait that can never end: see `deadlocks`.
6. Where processes share a store, a process hands out its share of the slots; see `shares` and the store.
7. Nothing here waits or calls user code: `take` says yes or gives a place in line, and `when_granted` calls back.
   One lock guards it all, for every thread and loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import deadlocks, loans
from .clocks import Clock
from .errors import DeadlockError
from .limit_records import TAG, not_found
from .lines import ALL, Guest, Holder, Line, Slots, Wait, Waiting, aborted, charge, due, leave_run, turn_away
from .runs import Run


class Limits:
    """The limits of one process. Every method may be called from any thread.

    `strand` tells the task or thread that calls it. A store that several processes share sets `share_at_first` to 0,
    fills `Line.share`, and is called when that does not do (`on_need`), or when something is to be given back.
    """

    def __init__(self, strand: Callable[[], object], *, clock: Clock | None = None, share_at_first: int = ALL) -> None:
        #: One that tells whether this thread has it: the garbage collector may close a generator task anywhere.
        self.lock: Any = threading.RLock()
        self.lines: dict[str, Line] = {}
        #: The same, by tag.
        self._by_tag: dict[str, Line] = {}
        self._strand = strand
        self._share_at_first = share_at_first
        self.on_need: Callable[[], None] | None = None
        #: See `Wait.cuts`; and whether a generator was ever paused that holds slots.
        self._cuts, self.has_paused = 0, False
        #: Whether the limits that a store keeps are in here yet; see `Store.ready`.
        self.is_known = True
        self.clock = clock or Clock()
        self.monotonic = self.clock.monotonic

    def empty_copy(self) -> Limits:
        """The same limits with nobody in them. Takes no lock, which a thread that a fork left behind may hold."""
        copy = Limits(self._strand, clock=self.clock)
        for line in list(self.lines.values()):
            copy._add(Line(line.name, line.size, decay=line.decay, is_active=line.is_active))
        return copy

    def begin_anew(self) -> None:
        """In a forked child: no limits. Takes no lock either."""
        self.lock = threading.RLock()
        self.lines = {}
        self._by_tag = {}

    # -- the limits ---------------------------------------------------------------------------------------------------

    def set(self, name: str, size: int, *, decay: float = 0.0, is_active: bool = True) -> None:
        """Create a limit, or change it; who waits and now has room starts, and who never will have is refused."""
        with self.lock:
            line = self.lines.get(name)
            if line is None:
                line = self._add(Line(name, size, share=self._share_at_first))
            line.size, line.decay, line.is_active = size, decay, is_active
            refused = [slots for slots in line.waiting if slots.count > size] if is_active else []
            changed = {line: None}
            for slots in refused:
                turn_away(slots, aborted(slots, line))
                changed.update(dict.fromkeys(slots.lines))
            granted = self._grant_waiting(changed)
        _wake([*refused, *granted])

    def delete(self, name: str) -> None:
        """Remove a limit; who waits for it alone starts. Raises `ObjectNotFound`."""
        with self.lock:
            line = self._line(name)
            del self.lines[name]
            if name.startswith(TAG):
                del self._by_tag[name.removeprefix(TAG)]
            line.is_active = False  # for those in its line, who may wait for others as well
            granted = self._grant_waiting([line])
        _wake(granted)

    def reset(self, name: str) -> None:
        """Free every slot of a limit, whoever holds it. Raises `ObjectNotFound`."""
        with self.lock:
            line = self._line(name)
            line.holders.clear()
            line.used, line.full = 0, 0.0
            granted = self._grant_waiting([line])
        _wake(granted)

    def _add(self, line: Line) -> Line:
        self.lines[line.name] = line
        if line.name.startswith(TAG):
            self._by_tag[line.name.removeprefix(TAG)] = line
        return line

    def _line(self, name: str) -> Line:
        line = self.lines.get(name)
        if line is None:
            raise not_found(name)
        return line

    # -- taking and giving --------------------------------------------------------------------------------------------

    def take(self, run: Run) -> Slots | None:
        """Slots for all limited tags of `run`, or places in their lines; `granted` tells which.

        None when none of its tags is limited. Raises `ConcurrencyLimitAborted` for a limit of 0.
        """
        by_tag = self._by_tag
        if not by_tag:
            return None
        with self.lock:
            lines = [line for tag in run.tags if (line := by_tag.get(tag)) is not None]
            if not lines:
                return None
            slots = Slots(self, run, lines)
            is_in_need = self._enter(slots)
            if not slots.granted:
                run.blocker = slots  # in one step with its place: whoever comes behind it may depend on it
        if is_in_need and self.on_need is not None:
            self.on_need()
        return slots

    def take_named(self, holder: Holder, names: Iterable[str], count: int) -> tuple[Slots | None, list[str]]:
        """The same for a block: `count` slots of each of these limits; and the names of those that do not exist.

        Raises `ConcurrencyLimitAborted` when a limit is less than `count`.
        """
        with self.lock:
            missing = [name for name in names if name not in self.lines]
            lines = [line for name in names if (line := self.lines.get(name)) is not None and line.is_active]
            if not lines:
                return None, missing
            slots = Slots(self, holder, lines, count, strand=self._strand())
            is_in_need = self._enter(slots)
            if isinstance(holder, Run):
                holder.guards = [*(holder.guards or ()), slots]
        if is_in_need and self.on_need is not None:
            self.on_need()
        return slots, missing

    def _enter(self, slots: Slots) -> bool:
        """Grant `slots`, or put it into its lines; whether the store is needed for more."""
        slots.came = slots.since = self.monotonic()
        has_room = True
        for line in slots.lines:
            if slots.count > line.size and line.is_active:
                raise aborted(slots, line)
            has_room = has_room and not line.waiting and line.has_room(slots)
        if has_room:
            for line in slots.lines:
                line.hold(slots)
            slots.granted = True
            return False
        if slots.run.parent is not None or slots.run.followers:
            slots.above = list(dict.fromkeys(one.number for one, _, _ in loans.above(slots.run)))
        may_pay = False
        for line in slots.lines:
            line.enter(slots)
            may_pay = may_pay or line.decay > 0
        if (slots.above or may_pay) and self._grant(slots):
            return False
        return self.on_need is not None and any(line.is_short() for line in slots.lines)

    def when_granted(self, slots: Slots, wake: Callable[[], None]) -> None:
        """Call `wake` once the slots are granted or refused, in the thread that does it; at once if they are.

        Or when it is another time at which they can be had; see `seconds_until_due`.
        """
        slots.wake = wake  # without the lock: who grants them does so before it looks whom to wake
        if slots.granted or slots.refused is not None:
            wake()

    def seconds_until_due(self, slots: Slots) -> float | None:
        """In how many seconds it is time to `look_again`; None while nobody can tell."""
        if slots.due is None or slots.is_decided:
            return None
        return max(0.0, slots.due - self.monotonic())

    def give(self, slots: Slots) -> None:
        """Give back what was taken, or leave the line; the next in line is woken before this returns."""
        if self.lock._is_owned():
            _afterwards(self.give, slots)
            return
        is_in_need = False
        with self.lock:
            line = slots.lines[0]
            is_plain = len(slots.lines) == 1 and line.foreign is None and slots.strand is None
            is_plain = is_plain and slots.lender is None and slots.lent_to is None
            if is_plain and line.drop(slots):  # a slot of a tag that nobody lent or waits for elsewhere, as a rule
                slots.granted = False
                granted = self._grant_waiting(slots.lines) if line.waiting else []
            else:
                granted, is_in_need = self._give_all(slots)
        if granted:
            _wake(granted)
        if is_in_need and self.on_need is not None:
            self.on_need()

    def _give_all(self, slots: Slots) -> tuple[list[Slots], bool]:
        """The same; and whether other processes are to be told."""
        is_in_need = False
        came_back: list[Holder] = []
        for line in slots.lines:
            was_waiting = line.leave(slots)
            if line.decay and slots.is_paid:  # what has not come back by itself
                line.full -= slots.count / line.decay
                line.refund += slots.count / line.decay
                is_in_need = True
            if was_waiting:
                continue
            lender = None if slots.lender is None else slots.lender.get(line)
            if slots.lender is None and slots.lent_to is None:
                line.drop(slots)
            elif loans.give_up(slots, line):  # only that can make room for a borrower further back in a line
                came_back.append(slots.run if lender is None else lender.run)
            is_in_need = line.sets_aside() or is_in_need
        slots.granted = slots.is_paid = False
        leave_run(slots)
        granted = self._grant_waiting(slots.lines)
        for lent_by in came_back:  # who borrowed may be settled, and have let go of those above it
            for one in (lent_by, *(ancestor for ancestor, _, _ in loans.above(lent_by))):
                self._lend_from(one, granted)
        return granted, is_in_need

    # -- waiting ------------------------------------------------------------------------------------------------------

    def begin_wait(
        self, run: Run, target: Run | Slots | Callable[[], Iterable[Iterable[Any]]] | None, text: str = ""
    ) -> Waiting:
        """`run` waits from here on, and so do those who called it: their slots may be lent. For `target` see `Wait`.

        Raises `DeadlockError` if that would never end.
        """
        waiting: list[Run] = []
        granted: list[Slots] = []
        wait = Wait(target, run, None, text)
        with self.lock:
            if isinstance(target, Run):
                target.is_awaited = True
            holds = False
            one: Run | None = run
            while one is not None:
                if one.awaits is None:
                    one.awaits = [wait]
                else:
                    one.awaits.append(wait)
                    self._cuts += 1
                waiting.append(one)
                if one.guards is not None and wait.strand is None:
                    wait.strand = self._strand()
                holds = holds or one.slots is not None or one.guards is not None
                one = None if one.is_submitted else one.parent
            if target is not None and deadlocks.matters(run):
                try:
                    deadlocks.check(wait, self._cuts)
                except BaseException:
                    self._ended(wait, waiting)
                    raise
            if holds:
                for one in waiting:
                    self._lend_from(one, granted)
        _wake(granted)
        return Waiting(wait, waiting)

    def begin_wait_for_slots(self, slots: Slots) -> Waiting | None:
        """`slots.run` waits for them from here on; the same. None: `run.blocker` says enough of it."""
        run = slots.run
        if isinstance(run, Guest):
            return None
        if self.has_paused:
            deadlocks.check_paused(slots, self._strand())
        if run.is_submitted and not deadlocks.matters(run):
            return None
        return self.begin_wait(run, slots)

    def begin_following(self, run: Run, seat: Any) -> Waiting:
        """The same where `run` waits for the result of a stranger, to whom those above it may lend from here on."""
        with self.lock:
            loans.note_follower(run, seat.flight.leader.run, self.lines.values())
        waiting = self.begin_wait(
            run, lambda: () if seat.is_called else ((seat.flight.leader.run,),), "the result that another run makes"
        )
        granted: list[Slots] = []
        with self.lock:
            for ancestor, _, _ in loans.above(run):
                self._lend_from(ancestor, granted)
        _wake(granted)
        return waiting

    def end_wait(self, waiting: Waiting) -> None:
        """Their bodies go on."""
        if self.lock._is_owned():
            _afterwards(self.end_wait, waiting)
            return
        with self.lock:
            self._ended(waiting.wait, waiting.runs)

    def _ended(self, wait: Wait, runs: Iterable[Run]) -> None:
        if isinstance(wait.target, Run) and not wait.target.is_settled:
            self._cuts += 1
        for one in runs:
            one.awaits.remove(wait)
            if not one.awaits:
                one.awaits = None

    # -- granting -----------------------------------------------------------------------------------------------------

    def _grant(self, slots: Slots) -> bool:
        """Give `slots` what it waits for, if all of it can be had now."""
        lenders: dict[Line, Slots] = {}
        to_pay: list[Line] = []
        for line in slots.lines:
            if not line.is_active:
                continue
            is_first = next(iter(line.waiting)) is slots
            if is_first and line.has_room(slots):
                continue
            if is_first and line.decay:
                to_pay.append(line)
                continue
            lender = loans.lender_of(slots, line) if slots.above else None
            if lender is None:
                slots.due = None  # to wait for a time would be to ask again and again
                return False
            lenders[line] = lender
        if to_pay and (self._share_at_first == 0 or not self.pay(slots, to_pay)):
            return False
        for line in slots.lines:
            line.leave(slots)
            lender = lenders.get(line)
            if lender is None:
                line.hold(slots)
            else:
                loans.lend(lender, line, slots)
        slots.granted = True
        slots.since = self.monotonic()
        return True

    def pay(self, slots: Slots, lines: Sequence[Line]) -> bool:
        """Take slots of limits that decay, if it is time; else `slots.due` says when it will be."""
        now = self.monotonic()
        time = due(slots, lines)
        if time > now:
            if slots.due != time and slots.wake is not None:  # it has become the first in line
                slots.wake()
            slots.due = time
            return False
        charge(slots, lines, time, now)
        return True

    def forget(self, slots: Slots) -> None:
        """What was taken comes back by itself; but of a limit that has lost its decay meanwhile, it is given back."""
        with self.lock:
            leave_run(slots)
            granted = self._grant_waiting([line for line in slots.lines if line.drop(slots)])
        _wake(granted)

    def refuse(self, name: str, why: str) -> None:
        """Let the first in a line wait no longer: it would for ever. It gets a `DeadlockError`."""
        with self.lock:
            line = self.lines.get(name)
            first = None if line is None else next(iter(line.waiting), None)
            if first is None:
                return
            turn_away(first, DeadlockError(f"{first.run.name!r} would wait for ever for {first.text()}: {why}"))
            granted = self._grant_waiting(first.lines)
        _wake([first, *granted])

    def look_again(self, lines: Iterable[Line]) -> None:
        """Grant what can be granted: a time has come, or the store has changed these lines."""
        with self.lock:
            granted = self._grant_waiting(lines)
        _wake(granted)

    def _grant_waiting(self, lines: Iterable[Line]) -> list[Slots]:
        """Grant to the heads of lines what can be granted after a change in `lines`."""
        granted: list[Slots] = []
        changed = list(lines)
        #: Those for whom what was given back is not enough: it may be that nothing more ever is.
        left: dict[Slots, None] = {}
        while changed or left:
            if not changed:
                head, _ = left.popitem()
                if not head.is_decided and (why := deadlocks.found(head)) is not None:
                    turn_away(head, why)
                    granted.append(head)
                    changed.extend(head.lines)
                continue
            line = changed.pop()
            is_same = True
            while line.waiting:
                head = next(iter(line.waiting))
                if len(head.lines) == 1 and line.has_room(head):
                    line.leave(head)
                    line.hold(head)
                    head.granted = True
                    head.since = self.monotonic()
                elif (head.above or line.decay or len(head.lines) > 1) and self._grant(head):
                    changed.extend(other for other in head.lines if other is not line)
                else:
                    if is_same or len(head.lines) > 1 or head.count > 1:
                        left[head] = None
                    break
                granted.append(head)
                is_same = False
        return granted

    def _lend_from(self, ancestor: Holder, granted: list[Slots]) -> None:
        """Lend what `ancestor` has to the first ones below it that wait for it, if it may be lent."""
        for held in (ancestor.slots, *(ancestor.guards or ())) if ancestor.awaits else ():
            if held is None or not held.granted:
                continue
            for line in held.lines:
                near = line.near.get(ancestor.number)
                if not near or (held.lent_to is not None and line in held.lent_to):
                    continue
                for slots in near:
                    if loans.lender_of(slots, line) is held and self._grant(slots):
                        granted.append(slots)
                        granted.extend(self._grant_waiting(other for other in slots.lines if other is not line))
                        break


def _afterwards(method: Callable[[Any], None], argument: Any) -> None:
    """Call it once this thread is through with what it does here."""
    threading.Thread(target=method, args=(argument,), name="asynctask-slots").start()


def _wake(granted: list[Slots]) -> None:
    for slots in granted:
        if slots.wake is not None:
            slots.wake()
