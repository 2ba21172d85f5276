"""The real clock, and ids that sort by the time of their making."""

import os
import random
import threading
import time
from uuid import UUID

import pytest

from asynctask.clocks import Clock, Ids


def test_the_clock_gives_the_time_that_people_see_and_one_that_never_goes_back() -> None:
    clock = Clock()
    assert abs(clock.now() - time.time()) < 1
    assert clock.monotonic() <= clock.monotonic()
    assert not clock.is_virtual


def test_the_real_clock_cannot_be_moved() -> None:
    with pytest.raises(NotImplementedError, match="virtual"):
        Clock().advance(1)


def test_an_id_is_a_version_7_uuid_with_its_time_in_front() -> None:
    made = UUID(int=Ids(random.Random(1)).new(1_700_000_000.123))
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert made.int >> 80 == 1_700_000_000_123


def test_ids_sort_by_time_and_within_a_millisecond_by_order() -> None:
    ids = Ids(random.Random(2))
    times = [100.0, 100.0, 100.0004, 100.001, 100.002, 5_000_000.0]
    made = [ids.new(seconds) for seconds in times]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_an_id_made_after_the_wall_clock_was_set_back_is_new_all_the_same() -> None:
    ids = Ids(random.Random(3))
    made = [ids.new(seconds) for seconds in (100.0, 99.0, 100.0, 99.0)]
    assert len(set(made)) == 4


def test_two_processes_do_not_share_ids_though_they_make_them_at_the_same_time() -> None:
    first, second = Ids(random.Random(4)), Ids(random.Random(5))
    made = {ids.new(7.0) for ids in (first, second) for _ in range(1000)}
    assert len(made) == 2000


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_makes_other_ids_than_its_parent_in_the_same_millisecond() -> None:
    ids = Ids(random.Random(4))
    ids.new(7.0)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b" ".join(str(ids.new(7.0)).encode() for _ in range(100)))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        theirs = set(map(int, pipe.read().split()))
    os.waitpid(child, 0)
    assert len(theirs) == 100
    assert theirs.isdisjoint(ids.new(7.0) for _ in range(100))


def test_a_seed_repeats_its_ids() -> None:
    assert Ids(random.Random(6)).new(1.0) == Ids(random.Random(6)).new(1.0)


def test_threads_that_make_ids_at_once_never_make_the_same() -> None:
    """Time moves on under them, so that what a millisecond has in common changes hands as they go."""
    ids = Ids(random.Random(7))
    barrier = threading.Barrier(4)
    made: list[list[int]] = [[] for _ in range(4)]

    def make(place: int) -> None:
        barrier.wait(timeout=20)
        made[place] = [ids.new(number / 10_000) for number in range(5_000)]

    threads = [threading.Thread(target=make, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    everything = [number for numbers in made for number in numbers]
    assert len(set(everything)) == 20_000


@pytest.mark.parametrize("seed", range(20))
def test_every_id_of_a_process_is_a_version_7_uuid(seed: int) -> None:
    """Whatever the random bits, the counter does not run into version or variant."""
    ids = Ids(random.Random(seed))
    for _ in range(100):
        made = UUID(int=ids.new(1_700_000_000.0))
        assert (made.version, made.variant) == (7, "specified in RFC 4122")
