"""Limits that several processes share through one SQLite file: who is served, when, and what a kill or a stop does.

Children do what they are told by lines, and say by lines what their runs do, with the time on the clock that all
processes share (CLOCK_MONOTONIC). So each test compares the order of what happened, never how long it took.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from testkit import most_at_once

CHILD = """
import os, random, sys, threading, time
import anyio, anyio.to_thread
from asynctask import Runtime, get_client, task
from asynctask.blocking import drive
from asynctask.loops import blocking
from asynctask.scopes import runtime_here

url, kind = sys.argv[1:]
gates = {}

def say(*words):  # one write, smaller than a pipe's buffer: a line is there whole, or not at all
    os.write(1, (" ".join(map(str, (*words, time.monotonic_ns()))) + "\\n").encode())

@task
async def held(name):
    say("in", name)
    await gates[name].wait()
    say("out", name)

@task
def held_in_thread(name):
    say("in", name)
    gates[name].wait()
    say("out", name)

@task
async def short(name):
    say("in", name)
    await anyio.sleep(0.001)
    say("out", name)

@task
async def busy(name, seconds):
    say("in", name)
    time.sleep(seconds)
    say("out", name)

def tagged(one, name, words):
    return one.with_options(tags=words, task_run_name=name)

def is_waiting(name):
    return any(run.name == name and run.state_name == "AwaitingConcurrencySlot" for run in runtime_here().runs)

async def watch(name, future):
    while not future.done():
        if is_waiting(name):
            say("waiting", name)
            break
        if future.state.is_running():
            break
        await anyio.sleep(0.001)
    await tell_end(name, future)

async def tell_end(name, future):
    state = await future.wait_async()
    try:
        await future
        say("ended", name, state.name)
    except Exception as error:
        say("ended", name, state.name, type(error).__name__)

def change(verb, tag, *size):
    with get_client(sync_client=True) as client:
        if verb == "limit":
            client.create_concurrency_limit(tag, int(size[0]))
        elif verb == "delete":
            client.delete_concurrency_limit_by_tag(tag)
        else:
            client.reset_concurrency_limit_by_tag(tag)
    say("changed", tag)

def agree(name):
    with blocking():
        drive(runtime_here().store.ready())  # settles with the others who has what, and who waits
    say("agreed", name)

def call(name, *tags):
    def watch_call():
        while calling.is_alive():
            if is_waiting(name):
                say("waiting", name)
                break
            time.sleep(0.001)
        calling.join()

    gates[name] = threading.Event()
    calling = threading.Thread(target=tagged(held_in_thread, name, tags), args=[name])
    calling.start()
    watching = threading.Thread(target=watch_call)
    watching.start()

async def many(group, prefix, count, *tags):
    dice = random.Random(prefix)
    for number in range(int(count)):
        names = dice.sample(tags, dice.randint(1, len(tags)))
        name = f"{prefix}{number}:{','.join(names)}"
        group.start_soon(tell_end, name, tagged(short, name, names).submit(name))

async def obey(group, futures, verb, name, *words):
    if verb == "start":
        gates[name] = anyio.Event()
        futures[name] = tagged(held, name, words).submit(name)
    elif verb == "thread":
        gates[name] = threading.Event()
        futures[name] = tagged(held_in_thread, name, words).submit(name)
    elif verb == "short":
        futures[name] = tagged(short, name, words).submit(name)
    elif verb == "block":
        futures[name] = tagged(busy, name, words[1:]).submit(name, float(words[0]))
    elif verb == "call":
        call(name, *words)
    elif verb == "many":
        await many(group, name, *words)
    elif verb == "end":
        gates[name].set()
    elif verb == "cancel":
        futures[name].cancel()
    elif verb == "agree":
        await anyio.to_thread.run_sync(agree, name)
    else:
        await anyio.to_thread.run_sync(change, verb, name, *words)
    if verb in ("start", "thread", "short", "block"):
        group.start_soon(watch, name, futures[name])

async def on_a_loop():
    async with Runtime(store=url) as runtime, anyio.create_task_group() as group:
        await runtime.flush()
        say("up", "-")
        futures = {}
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            await obey(group, futures, *line.split())

def plainly():
    say("up", "-")
    for line in sys.stdin:
        verb, name, *words = line.split()
        if verb == "end":
            gates[name].set()
        elif verb == "call":
            call(name, *words)
        elif verb == "agree":
            agree(name)
        else:
            change(verb, name, *words)

if kind == "plain":
    plainly()
else:
    anyio.run(on_a_loop, backend=kind)
"""


class Child:
    """A process that shares the store. What it said stays in `said`: (word, name) -> (nanoseconds, other words)."""

    def __init__(self, url: str, kind: str) -> None:
        environment = {**os.environ, "ASYNCTASK_STORE_URL": url}
        command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", CHILD, url, kind]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, env=environment)
        self.said: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self._buffer = b""
        self._is_over = False

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())

    def hear(self, word: str, name: str = "-", timeout: float = 10.0) -> int:
        """When it said so; waits for it."""
        end = time.monotonic() + timeout
        while (word, name) not in self.said:
            left = end - time.monotonic()
            assert left > 0, f"{word} {name} was not said within {timeout} s, but {self.said}"
            self._read(left)
        return self.said[word, name][0]

    def hear_any(self, timeout: float) -> None:
        """Something more, whatever it is."""
        assert self._read(timeout), f"nothing more was said within {timeout} s, but {self.said}"

    def has_said(self, word: str, name: str) -> bool:
        """Up to now."""
        while self._read(0):
            pass
        return (word, name) in self.said

    def do(self, *words: object) -> None:
        """A change of a limit, made before this returns."""
        self.said.pop(("changed", str(words[1])), None)
        self.tell(*words)
        self.hear("changed", str(words[1]))

    def agree(self) -> None:
        """It has settled with the others: they can know who waits here, and it knows who waits there."""
        self.said.pop(("agreed", "-"), None)
        self.tell("agree", "-")
        self.hear("agreed")

    def enter(self, name: str, *tags: str, verb: str = "start") -> int:
        self.tell(verb, name, *tags)
        return self.hear("in", name)

    def wait(self, name: str, *tags: str, verb: str = "start", before: Sequence[Child] = ()) -> None:
        """Start a run that has to wait; and return when these others know that it does.

        They do within milliseconds, but until then they hand out their own slots to their own runs.
        """
        self.tell(verb, name, *tags)
        self.hear("waiting", name)
        for child in (self, *before) if before else ():
            child.agree()

    def end(self, name: str) -> int:
        """Let a body end; when it did."""
        self.tell("end", name)
        return self.hear("out", name)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._is_over = True

    def close(self, *, is_failed: bool) -> None:
        """It leaves the store by itself, with every run ended, unless it was killed."""
        try:
            assert self.process.stdin is not None
            self.process.stdin.close()
            if not self._is_over and not is_failed:
                assert self.process.wait(20) == 0
        finally:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)
                self.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def _read(self, timeout: float) -> bool:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            return False
        found = os.read(self.process.stdout.fileno(), 1 << 16)
        if not found:
            assert self._is_over, "the child has ended; its error is on stderr"
            return False
        *lines, self._buffer = (self._buffer + found).split(b"\n")
        for line in lines:
            word, name, *rest, stamp = line.decode().split(" ")
            self.said[word, name] = (int(stamp), rest)
        return True


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


@contextmanager
def children(url: str, *kinds: str) -> Iterator[list[Child]]:
    """Children of these kinds that share one store, each up; afterwards each must end well."""
    began = [Child(url, kind) for kind in kinds]
    is_failed = True
    try:
        for child in began:
            child.hear("up", timeout=20)
        yield began
        is_failed = False
    finally:
        with ExitStack() as stack:
            for child in began:
                stack.callback(child.close, is_failed=is_failed)


KINDS = [("asyncio", "trio"), ("trio", "asyncio")]
both_ways = pytest.mark.parametrize("kinds", KINDS, ids=["asyncio-trio", "trio-asyncio"])


# -- who is served ----------------------------------------------------------------------------------------------------


@both_ways
def test_a_release_in_one_process_starts_the_run_that_waits_in_another(url, kinds):
    with children(url, *kinds) as (one, other):
        one.do("limit", "db", 1)
        one.enter("first", "db")
        other.wait("second", "db")
        released = one.end("first")
        assert other.hear("in", "second") > released
        one.wait("third", "db")
        released = other.end("second")
        assert one.hear("in", "third") > released
        one.end("third")


@both_ways
def test_a_limit_holds_over_processes_and_lets_in_as_many_as_it_says(url, kinds):
    with children(url, *kinds, "asyncio") as several:
        several[0].do("limit", "db", 4)
        for number, child in enumerate(several):
            child.tell("many", f"{number}-", 60, "db")
        stays = intervals(several, 60)
        assert most_at_once(stays.values()) == 4
        assert len(stays) == 180


@both_ways
def test_first_come_first_served_over_processes(url, kinds):
    with children(url, "asyncio", *kinds) as (holder, one, other):
        holder.do("limit", "db", 1)
        holder.enter("holder", "db")
        arrivals = [
            (one, "a"),
            (other, "b"),
            (one, "c"),
            (other, "d"),
            (other, "e"),
            (one, "f"),
            (holder, "g"),
            (one, "h"),
        ]
        for child, name in arrivals:
            child.wait(name, "db", verb="short", before=[holder])
        holder.end("holder")
        entered = sorted((child.hear("in", name), name) for child, name in arrivals)
        assert [name for _, name in entered] == [name for _, name in arrivals]


@both_ways
def test_runs_that_want_two_tags_at_once_in_two_processes_never_wait_for_each_other(url, kinds):
    with children(url, *kinds) as (one, other):
        one.do("limit", "a", 1)
        one.do("limit", "b", 2)
        one.tell("many", "one-", 60, "a", "b")
        other.tell("many", "other-", 60, "b", "a")
        stays = intervals([one, other], 60)
        for tag, limit in (("a", 1), ("b", 2)):
            assert most_at_once(stay for name, stay in stays.items() if tag in name.split(":")[1]) == limit


def test_a_run_that_wants_two_tags_takes_neither_while_another_process_holds_one(url):
    with children(url, "asyncio", "trio", "asyncio") as (one, other, third):
        one.do("limit", "a", 1)
        one.do("limit", "b", 1)
        one.enter("holds-a", "a")
        other.wait("both", "a", "b", before=[one, third])
        third.wait("late-b", "b", before=[one, other])
        # b has been free all the time, but "both" came before: it was not overtaken, and held nothing while it waited.
        released = one.end("holds-a")
        both = other.hear("in", "both")
        assert not third.has_said("in", "late-b")
        left = other.end("both")
        assert released < both < left < third.hear("in", "late-b")
        third.end("late-b")


def test_a_run_that_wants_two_tags_holds_up_nobody_in_another_process_who_came_before_it(url):
    with children(url, "asyncio", "trio") as (one, other):
        one.do("limit", "a", 1)
        one.do("limit", "b", 1)
        one.enter("holds-a", "a")
        other.enter("holds-b", "b")
        other.wait("early-b", "b", before=[one])
        one.wait("both", "a", "b", before=[other])
        other.end("holds-b")
        other.hear("in", "early-b")
        other.end("early-b")
        one.end("holds-a")
        one.hear("in", "both")
        one.end("both")


def test_sync_tasks_called_in_plain_code_share_the_limit_over_processes(url):
    with children(url, "plain", "plain", "trio") as (one, other, looping):
        one.do("limit", "db", 1)
        one.enter("a", "db", verb="call")
        other.wait("b", "db", verb="call", before=[one])
        looping.wait("c", "db", verb="thread", before=[one])
        one.wait("d", "db", verb="call")
        entered = []
        for child, name, following, after in (
            (one, "a", other, "b"),
            (other, "b", looping, "c"),
            (looping, "c", one, "d"),
        ):
            released = child.end(name)
            entered.append(following.hear("in", after))
            assert entered[-1] > released
        one.end("d")


def test_a_waiting_run_that_is_cancelled_leaves_the_line_over_processes(url):
    with children(url, "asyncio", "trio", "asyncio") as (one, other, third):
        one.do("limit", "db", 1)
        one.enter("first", "db")
        other.wait("second", "db", before=[one])
        third.wait("third", "db", before=[one])
        other.tell("cancel", "second")
        other.hear("ended", "second")
        one.end("first")
        third.hear("in", "third")
        third.end("third")
        assert not other.has_said("in", "second")
        assert other.said["ended", "second"][1] == ["Cancelled", "CancelledRun"]


def test_slots_that_a_process_does_not_use_go_to_another_that_wants_them(url):
    """A block that was taken for four runs is given back when one of them is left."""
    with children(url, "asyncio", "trio") as (one, other):
        one.do("limit", "db", 4)
        for name in "abcd":
            one.enter(name, "db")
        other.wait("e", "db")
        for name in "abc":
            one.end(name)
        other.hear("in", "e")
        for name in "fg":
            other.enter(name, "db")
        other.wait("h", "db")
        released = one.end("d")
        assert other.hear("in", "h") > released
        for name in "efgh":
            other.end(name)


def test_a_block_of_slots_is_given_back_while_the_loop_of_its_process_is_blocked(url):
    with children(url, "asyncio", "trio") as (one, other):
        one.do("limit", "db", 4)
        for name in "abc":
            one.enter(name, "db")
        for name in "abc":
            one.end(name)
        one.tell("block", "blocking", 4, "db")
        one.hear("in", "blocking")
        entered = [other.enter(name, "db") for name in "def"]
        other.wait("g", "db")
        unblocked = one.hear("out", "blocking")
        assert max(entered) < unblocked < other.hear("in", "g")
        for name in "defg":
            other.end(name)


# -- kills and stops --------------------------------------------------------------------------------------------------


@both_ways
def test_the_slot_of_a_killed_holder_goes_to_the_one_who_waits_in_another_process(url, kinds):
    with children(url, *kinds) as (one, other):
        one.do("limit", "db", 1)
        one.enter("first", "db")
        other.wait("second", "db")
        killed = time.monotonic_ns()
        one.kill()
        assert other.hear("in", "second", timeout=20) > killed
        other.end("second")


def test_all_of_a_killed_process_s_block_is_free_also_what_it_did_not_use(url):
    with children(url, "asyncio", "trio") as (one, other):
        one.do("limit", "db", 4)
        for name in "abcd":
            one.enter(name, "db")
        for name in "abc":
            one.end(name)
        one.kill()
        for name in "efgh":
            other.tell("start", name, "db")
        for name in "efgh":
            other.hear("in", name, timeout=20)
        for name in "efgh":
            other.end(name)


def test_a_process_that_is_killed_while_it_waits_holds_up_nobody_behind_it(url):
    with children(url, "asyncio", "trio", "asyncio") as (one, other, third):
        one.do("limit", "db", 1)
        one.enter("first", "db")
        other.wait("second", "db")
        third.wait("third", "db")
        other.kill()
        one.end("first")
        third.hear("in", "third", timeout=20)
        third.end("third")


def test_a_stopped_holder_does_not_lose_its_slot(url):
    with children(url, "asyncio", "trio") as (one, other):
        one.do("limit", "db", 1)
        one.enter("first", "db")
        other.wait("second", "db")
        one.process.send_signal(signal.SIGSTOP)
        # Three seconds of nobody's sign of life: longer than any look at the living takes to come round.
        select.select([], [], [], 3)
        assert not other.has_said("in", "second")
        one.process.send_signal(signal.SIGCONT)
        released = one.end("first")
        assert other.hear("in", "second") > released
        other.end("second")


def test_a_stopped_process_that_is_killed_loses_its_slot(url):
    with children(url, "asyncio", "trio") as (one, other):
        one.do("limit", "db", 1)
        one.enter("first", "db")
        other.wait("second", "db")
        one.process.send_signal(signal.SIGSTOP)
        one.kill()
        other.hear("in", "second", timeout=20)
        other.end("second")


def test_a_process_that_closes_its_store_leaves_its_place_and_its_slots(url):
    with children(url, "asyncio", "trio") as (one, other):
        one.do("limit", "db", 2)
        for name in "ab":
            one.enter(name, "db")
        for name in "ab":
            one.end(name)
        one.close(is_failed=False)
        for name in "cd":
            other.enter(name, "db")
        for name in "cd":
            other.end(name)


# -- limits that change -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("limit", "db", 2), ("delete", "db"), ("reset", "db")], ids=lambda words: words[0])
def test_a_limit_that_a_third_process_raises_deletes_or_resets_lets_the_waiting_in(url, words):
    with children(url, "asyncio", "trio", "asyncio") as (holder, waiter, third):
        holder.do("limit", "db", 1)
        holder.enter("first", "db")
        waiter.wait("second", "db")
        third.do(*words)
        entered = waiter.hear("in", "second")
        assert holder.end("first") > entered
        waiter.end("second")
        third.enter("last", "db")
        third.end("last")


def test_a_limit_that_a_third_process_sets_to_0_refuses_the_waiting_and_lets_holders_end(url):
    with children(url, "asyncio", "trio", "asyncio") as (holder, waiter, third):
        holder.do("limit", "db", 1)
        holder.enter("first", "db")
        waiter.wait("second", "db")
        third.do("limit", "db", 0)
        waiter.hear("ended", "second")
        assert waiter.said["ended", "second"][1][1] == "ConcurrencyLimitAborted"
        for child in (holder, waiter, third):
            child.tell("short", "late", "db")
            child.hear("ended", "late")
            assert child.said["ended", "late"][1][1] == "ConcurrencyLimitAborted"
        holder.end("first")
        holder.hear("ended", "first")
        assert holder.said["ended", "first"][1] == ["Completed"]


def test_a_limit_that_a_third_process_lowers_holds_for_the_next_ones(url):
    with children(url, "asyncio", "trio", "asyncio") as (holder, waiter, third):
        holder.do("limit", "db", 2)
        for name in "ab":
            holder.enter(name, "db")
        third.do("limit", "db", 1)
        waiter.wait("c", "db")
        waiter.wait("d", "db")
        holder.end("a")
        emptied = holder.end("b")
        entered = waiter.hear("in", "c")
        assert entered > emptied
        left = waiter.end("c")
        assert waiter.hear("in", "d") > left
        waiter.end("d")


def test_a_limit_that_another_process_makes_holds_in_those_that_were_there_before(url):
    with children(url, "asyncio", "trio") as (one, other):
        one.enter("before", "db")  # with no limit: it holds nothing
        other.do("limit", "db", 1)
        one.agree()  # it has heard of it, at the latest
        one.enter("first", "db")
        one.wait("second", "db")
        other.wait("third", "db", before=[one])
        released = one.end("first")
        assert released < one.hear("in", "second") < one.end("second") < other.hear("in", "third")
        other.end("third")
        one.end("before")


def intervals(children: list[Child], count: int) -> dict[str, tuple[int, int]]:
    """From when to when each run was inside, once each child has had `count` runs end well."""
    stays: dict[str, tuple[int, int]] = {}
    for child in children:
        while len(ended := [name for word, name in child.said if word == "ended"]) < count:
            child.hear_any(20)
        for name in ended:
            assert child.said["ended", name][1] == ["Completed"]
            stays[name] = (child.said["in", name][0], child.said["out", name][0])
    return stays
