"""Fifty processes fight for three slots, are killed with SIGKILL at random moments, and are replaced.

Every body logs its entry and its exit, in nanoseconds of CLOCK_MONOTONIC, in one file that all append to. An exit is
logged before the body returns, so a stay that was logged lies within the time in which the slot was held; of a process
that was killed inside, it lasts until the moment before the signal was sent, up to which it was certainly alive.
Never more than three such stays may overlap.

The processes are forked by a server that has everything imported, but no thread and no file open, as in `test_kill`;
each opens the store for itself. Set ASYNCTASK_LONG_FUZZ=1 for ten times as many kills.
"""

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asynctask import Runtime
from asynctask.stores.base import RunFilter
from asynctask.stores.sqlite import SQLiteStore
from testkit import most_at_once, running, set_limit

KILLS = 2_500 if os.environ.get("ASYNCTASK_LONG_FUZZ") else 250
AT_ONCE = 50
SLOTS = 3
PATIENCE = 30.0  # seconds without anything new until the storm counts as stuck

SERVER = """
import os, random, signal, sys, time
import anyio, trio
import anyio._backends._asyncio, anyio._backends._trio
from asynctask import Runtime, concurrency, task
from asynctask.stores.sqlite import SQLiteStore

path, log = sys.argv[1:]

def say(*words):  # one write, smaller than a pipe's buffer: a line is there whole, or not at all
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def note(*words):
    os.write(note.file, (" ".join(map(str, (*words, time.monotonic_ns()))) + "\\n").encode())

@task(tags=["storm"])
async def inside(me, number, seconds):
    note("in", me, number)
    await anyio.sleep(seconds)
    note("out", me, number)

@task(tags=["storm"])
def inside_a_thread(me, number, seconds):
    note("in", me, number)
    time.sleep(seconds)
    note("out", me, number)

@task
async def asleep():
    await anyio.sleep(600)

async def lane(me, lane_number):
    dice = random.Random(me * 10 + lane_number)
    for number in range(lane_number, 10**9, 3):
        seconds = dice.choice([0, 0.001, 0.005, 0.03])
        way = dice.randrange(4)
        if way == 0:
            await inside(me, number, seconds)
        elif way == 1:
            await inside.submit(me, number, seconds)
        elif way == 2:
            await inside_a_thread.submit(me, number, seconds)
        else:
            async with concurrency("tag:storm"):
                note("in", me, number)
                await anyio.sleep(seconds)
                note("out", me, number)

async def work(me):
    async with Runtime(store=SQLiteStore(path)) as runtime:
        asleep.submit()
        await anyio.sleep(0)
        await runtime.flush()  # its run is on disk: whoever finds this process dead ends it as Crashed
        say("up", me, os.getpid())
        async with anyio.create_task_group() as lanes:
            for number in range(1 + me % 3):
                lanes.start_soon(lane, me, number)

async def take_all(me, count):
    \"\"\"What is left when the storm is over: one process that gets every slot at once.\"\"\"
    entered = []

    @task(tags=["storm"])
    async def last():
        note("in", me, len(entered))
        entered.append(time.monotonic_ns())
        await everybody.wait()

    everybody = anyio.Event()
    async with Runtime(store=SQLiteStore(path)):
        began = time.monotonic_ns()
        futures = [last.submit() for _ in range(count)]
        while len(entered) < count:
            await anyio.sleep(0.001)
        everybody.set()
        for future in futures:
            await future
    say("all", me, (entered[-1] - began) // 1_000_000)

def serve():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        verb, me, *count = line.split()
        if os.fork() == 0:
            try:
                note.file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                backend = "trio" if int(me) % 2 else "asyncio"
                if verb == "work":
                    anyio.run(work, int(me), backend=backend)
                else:
                    anyio.run(take_all, int(me), int(count[0]), backend=backend)
                os._exit(0)
            except BaseException as error:
                say("error", me, repr(error).replace("\\n", " "))
            os._exit(1)

serve()
"""


class Log:
    """What the bodies logged: for each stay, (process, number) -> when it began and ended; read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self.entries: dict[tuple[int, int], int] = {}
        self.exits: dict[tuple[int, int], int] = {}

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.decode().splitlines():
            word, me, number, stamp = line.split()
            where = self.entries if word == "in" else self.exits
            assert (int(me), int(number)) not in where, f"{line} was logged before"
            where[int(me), int(number)] = int(stamp)

    def inside(self) -> list[int]:
        """The processes that are inside, as far as was read."""
        return [key[0] for key in self.entries if key not in self.exits]


class Storm:
    """The server, and the processes that it has forked: who is up, who was killed, and when."""

    def __init__(self, process: subprocess.Popen[bytes], log: Log) -> None:
        self.process = process
        self.log = log
        self.pids: dict[int, int] = {}
        self.killed: dict[int, int] = {}
        self.took_all: int | None = None
        self.started = 0
        self._buffer = b""

    def start(self, verb: str = "work", *more: object) -> None:
        assert self.process.stdin is not None
        self.started += 1
        self.process.stdin.write(" ".join(map(str, (verb, self.started, *more))).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, timeout: float) -> None:
        """Read what was said, for so long at most."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            return
        found = os.read(self.process.stdout.fileno(), 1 << 16)
        assert found, "the server has ended; its error is on stderr"
        *lines, self._buffer = (self._buffer + found).split(b"\n")
        for line in lines:
            word, me, *rest = line.decode().split(" ")
            assert word != "error", f"process {me}: {' '.join(rest)}"
            if word == "up":
                self.pids[int(me)] = int(rest[0])
            else:
                self.took_all = int(rest[0])

    def kill(self, me: int) -> None:
        """Kill it, note the last moment at which it was certainly alive, and return once it is dead."""
        descriptor = os.pidfd_open(self.pids.pop(me))
        try:
            self.killed[me] = time.monotonic_ns()
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            assert select.select([descriptor], [], [], 10)[0]
        finally:
            os.close(descriptor)

    def stays(self) -> Iterator[tuple[int, int]]:
        for key, entry in self.log.entries.items():
            # Who was killed inside may have logged its exit after the signal was sent: then that is what counts.
            yield entry, max(entry, self.log.exits.get(key, self.killed.get(key[0], entry)))


@contextmanager
def storm(path: Path, log: Path) -> Iterator[Storm]:
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", SERVER, str(path), str(log)]
    pipe = subprocess.PIPE
    with running(command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True) as process:
        try:
            yield Storm(process, Log(log))
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the server with all that it has forked, also what is not up yet


def until_all_have_been_inside(one: Storm, processes: set[int], since: int) -> None:
    """Each of these enters once more after `since`; while it lasts, somebody always does."""
    entries, last = 0, time.monotonic()
    while True:
        one.hear(0.02)
        one.log.read()
        left = processes - {key[0] for key, entry in one.log.entries.items() if entry > since}
        if not left:
            return
        if len(one.log.entries) > entries:
            entries, last = len(one.log.entries), time.monotonic()
        assert time.monotonic() < last + PATIENCE, f"nobody enters any more, and {sorted(left)} wait"


def until_up(one: Storm, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while len(one.pids) < count:
        assert time.monotonic() < end, f"{len(one.pids)} of {count} processes are up"
        one.hear(0.1)


def kill_at_random(one: Storm, dice: random.Random) -> int:
    """Kill one after another, and start another for each; how many of them were inside by the log."""
    were_inside = 0
    for _ in range(KILLS):
        pause_until = time.monotonic() + dice.random() * 0.12
        while (left := pause_until - time.monotonic()) > 0:
            one.hear(left)
        until_up(one, AT_ONCE // 2)
        one.log.read()
        holders = [me for me in one.log.inside() if me in one.pids]
        is_aimed = bool(holders) and dice.random() < 0.6
        were_inside += is_aimed
        one.kill(dice.choice(holders if is_aimed else sorted(one.pids)))
        one.start()
    return were_inside


@pytest.mark.timeout(1_200 if KILLS > 250 else 180)
@pytest.mark.asyncio
async def test_fifty_processes_that_are_killed_at_random_never_hold_more_than_three_slots(tmp_path):
    path = tmp_path / "runs.db"
    async with Runtime(store=SQLiteStore(path)):
        await set_limit("storm", SLOTS)
    with storm(path, tmp_path / "log") as one:
        for number in range(AT_ONCE):
            one.start()
            until_up(one, number // 4)  # three or four at a time: they share two processors
        until_up(one, AT_ONCE)
        were_inside = kill_at_random(one, random.Random(11))
        until_up(one, AT_ONCE)
        survivors = set(one.pids)
        until_all_have_been_inside(one, survivors, time.monotonic_ns())
        for me in survivors:
            one.kill(me)
        one.log.read()
        most = most_at_once(one.stays())
        killed = len(one.killed)

        one.start("take_all", SLOTS)
        end = time.monotonic() + PATIENCE
        while one.took_all is None:
            assert time.monotonic() < end, "slots of the dead are still held"
            one.hear(0.1)
    assert most == SLOTS
    assert were_inside > KILLS / 10  # else little was shown
    assert one.took_all < 2_000, "the slots of the dead were free only after so many ms"
    async with Runtime(store=SQLiteStore(path)) as runtime:
        store = runtime.store
        for name in ("Running", "AwaitingConcurrencySlot", "Pending"):
            assert await store.count_runs(RunFilter(state_name=name)) == 0
        assert await store.count_runs(RunFilter(state_name="Crashed", task_name="asleep")) == killed
        assert await store.count_runs(RunFilter(task_name="asleep")) == killed
