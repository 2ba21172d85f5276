"""How processes share the slots of a limit: never more than there are, the oldest first, and nothing lies about."""

import itertools
import random

import pytest

from asynctask.lines import Guest, Line, Slots
from asynctask.shares import Other, Share, settled


class Process:
    """One process's side of a limit, with a clock that all share."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.line = Line("limit", size, share=0)
        self.row = Other(name, 0, 0, 0.0)

    def want(self, now: float) -> None:
        slots = Slots(None, Guest(self.name), [self.line], came=now)
        self.line.enter(slots)

    def run_some(self) -> list[float]:
        """Grant what may be granted here; when those who are served came."""
        served: list[float] = []
        while self.line.waiting and self.line.has_room(head := next(iter(self.line.waiting))):
            self.line.leave(head)
            self.line.hold(head)
            served.append(head.came)
        return served

    def end_one(self) -> None:
        self.line.drop(next(iter(self.line.holders)))
        self.line.sets_aside()


def settle(process: Process, everybody: list[Process], *, is_idle: bool = False) -> Share:
    """What a transaction of one process does."""
    others = [one.row for one in everybody if one is not process]
    share = settled(process.line, others, process.name, is_idle=is_idle)
    process.row = Other(process.name, share.held, share.wanted, share.since)
    process.line.share, process.line.published, process.line.foreign = share.held, share.wanted, share.foreign
    return share


def settle_all(everybody: list[Process], first: Process) -> None:
    """Settle one, and whoever is told by that, as the bells do."""
    to_settle = [first]
    for _ in range(200):
        if not to_settle:
            return
        process = to_settle.pop(0)
        share = settle(process, everybody)
        process.run_some()
        to_settle += [one for one in everybody if one.name in share.to_tell and one not in to_settle]
    raise AssertionError("they tell each other for ever")


@pytest.mark.parametrize("seed", range(200))
def test_however_processes_come_and_go_there_are_never_more_holders_than_slots_and_none_waits_for_a_free_one(seed):
    dice = random.Random(seed)
    size = dice.choice([1, 1, 2, 3, 10])
    everybody = [Process(str(number), size) for number in range(dice.choice([2, 3, 8]))]
    for now in range(60):
        process = dice.choice(everybody)
        if dice.random() < 0.5 or not process.line.used:
            process.want(float(now))
        else:
            process.end_one()
        settle_all(everybody, process)
        used = sum(one.line.used for one in everybody)
        assert used <= sum(one.row.held for one in everybody) <= size
        assert all(one.line.used <= one.row.held for one in everybody)
        if any(one.line.waiting for one in everybody):
            assert used == size, "a slot is free while somebody waits"


@pytest.mark.parametrize("seed", range(100))
def test_whoever_came_first_in_any_process_is_served_first(seed):
    dice = random.Random(seed)
    everybody = [Process(str(number), 1) for number in range(4)]
    for now in range(40):
        process = dice.choice(everybody)
        process.want(float(now))
        settle_all(everybody, process)
    served: list[float] = []
    while True:
        (holder,) = [one for one in everybody if one.line.used]
        served.append(next(iter(holder.line.holders)).came)
        holder.end_one()
        if not any(one.line.waiting for one in everybody):
            break
        settle_all(everybody, holder)
    assert served == [float(now) for now in range(40)]


def test_alone_a_process_takes_ever_more_and_keeps_it_until_it_is_idle():
    process = Process("1", 100)
    held: list[int] = []
    for now in itertools.count():
        process.want(float(now))
        if process.line.share <= process.line.used:
            held.append(settle(process, [process]).held)
        process.run_some()
        if process.line.used == 100:
            break
    assert held == [1, 3, 7, 15, 31, 63, 100]
    for _ in range(90):
        process.end_one()
    assert settle(process, [process]).held == 100
    assert settle(process, [process], is_idle=True).held == 10


def test_what_is_not_used_goes_to_who_waits_at_once_and_no_more_of_it_than_that():
    first, second = Process("1", 10), Process("2", 10)
    for now in range(6):
        first.want(float(now))
    settle_all([first, second], first)
    for _ in range(5):
        first.end_one()
    second.want(7.0)
    settle_all([first, second], second)
    assert (first.line.used, second.line.used) == (1, 1)
    assert second.line.share == 1


def test_a_lowered_limit_takes_nothing_away_that_is_in_use():
    first, second = Process("1", 3), Process("2", 3)
    for now in range(3):
        first.want(float(now))
    settle_all([first, second], first)
    for one in (first, second):
        one.line.size = 1
    second.want(4.0)
    settle_all([first, second], second)
    assert (first.line.used, second.line.used) == (3, 0)
    for left in (2, 1):
        first.end_one()
        settle_all([first, second], first)
        assert (first.line.used, second.line.used) == (left, 0)
    first.end_one()
    settle_all([first, second], first)
    assert (first.line.used, second.line.used) == (0, 1)
