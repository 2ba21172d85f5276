"""Processes killed with SIGKILL while they record and cache: the file is sound, what was told to be kept is there.

A server, itself a child of the test, has everything imported, no thread and no file open, and forks a worker for each
line it is given: 300 of them can be killed in the time in which 300 interpreters would start.
"""

import json
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asynctask import Runtime, State
from asynctask.results import value_of
from asynctask.stores.base import RunFilter
from asynctask.stores.sqlite import SQLiteStore
from testkit import running, until

KILLS = 300
AT_ONCE = 6

WORKER = """
import asyncio, os, random, signal, sys
import anyio
from asynctask import Runtime, task
from asynctask.runtime import task_run
from asynctask.stores.sqlite import SQLiteStore

path = sys.argv[1]
ids = []

def say(*words):  # one write, smaller than a pipe's buffer: a line is there whole, or not at all
    os.write(1, (" ".join(map(str, (os.getpid(), *words))) + "\\n").encode())

@task
async def plain(n):
    ids.append(task_run.id.hex)

@task(tags=["asleep"])
async def asleep():
    ids.append(task_run.id.hex)
    await anyio.sleep(600)

def value(key):
    return {"key": key, "body": key * (20 if len(key) % 3 else 30_000)}  # some are files beside the database

@task(cache_key_fn=lambda context, parameters: parameters["key"])
async def cached(key):
    return value(key)

@task(persist_result=True)
async def kept():
    return str(task_run.id)

async def work(mine):
    store = SQLiteStore(path)
    async with Runtime(store=store) as runtime:
        say("up")
        for n in range(100_000):
            if n % 4 == 0:
                asleep.submit()
                await anyio.sleep(0)
            for _ in range(mine.randrange(30)):
                await plain(n)
            key = f"{mine.randrange(400):x}" * mine.randrange(1, 4)
            if mine.random() < 0.5:
                assert await cached(key) == value(key)
                say("cached", key)
            if mine.random() < 0.3:
                say("kept", await kept())
            if mine.random() < 0.7:
                told = ids[-60:]
                await runtime.flush()
                say("flushed", *told)

def serve():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if line == "mark\\n":
            say("mark")
            continue
        if os.fork() == 0:
            try:
                asyncio.run(work(random.Random(line)))
            except BaseException as error:
                say("error", repr(error))
            os._exit(1)

serve()
"""


class Server:
    """Forks workers on one database, tells what they said, and kills them."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.said: list[tuple[str, list[str]]] = []
        self._buffer = b""

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def start(self, seed: int) -> int:
        """A worker that is up; its pid."""
        self.send(str(seed))
        return int(self.hear("up")[0])

    def hear(self, word: str) -> tuple[str, list[str]]:
        """Wait for the next line that says `word`, from anybody."""
        while True:
            for place in range(len(self.said)):
                if self.said[place][1][0] == word:
                    return self.said.pop(place)
            self._read(20)

    def hear_all(self) -> list[tuple[str, list[str]]]:
        """All that was said until now, also by the dead."""
        self.send("mark")
        self.hear("mark")
        said, self.said = self.said, []
        return said

    def _read(self, timeout: float) -> None:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        assert ready, "nothing was said for too long"
        self._buffer += os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            pid, *words = line.decode().split(" ")
            assert words[0] != "error", f"worker {pid}: {' '.join(words)}"
            self.said.append((pid, words))


def kill(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        assert select.select([descriptor], [], [], 10)[0]
    finally:
        os.close(descriptor)


@contextmanager
def server(path: Path) -> Iterator[Server]:
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", WORKER, str(path)]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            yield Server(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)


def told(said: list[tuple[str, list[str]]]) -> tuple[set[str], set[str], set[str]]:
    """Of what workers said: the ids of flushed runs, the keys of cached values, the runs whose result was kept."""
    flushed: set[str] = set()
    cached: set[str] = set()
    kept: set[str] = set()
    for _, (word, *rest) in said:
        if word == "flushed":
            flushed.update(rest)
        elif word == "cached":
            cached.add(rest[0])
        elif word == "kept":
            kept.add(rest[0])
    return flushed, cached, kept


def expected(key: str) -> dict[str, Any]:
    return {"key": key, "body": key * (20 if len(key) % 3 else 30_000)}


@pytest.mark.timeout(240)
@pytest.mark.asyncio
async def test_after_each_of_300_kills_the_file_is_sound_and_all_that_was_told_is_there(tmp_path):
    path = tmp_path / "runs.db"
    moments = random.Random(7)
    flushed: set[str] = set()
    cached: set[str] = set()
    kept: set[str] = set()
    with server(path) as workers:
        for start in range(0, KILLS, AT_ONCE):
            pids = [workers.start(start + one) for one in range(AT_ONCE)]
            for pid in pids:
                select.select([], [], [], moments.random() * 0.02)
                kill(pid)
            for mine, new in zip((flushed, cached, kept), told(workers.hear_all()), strict=True):
                mine.update(new)
            async with Runtime(store=SQLiteStore(path)) as runtime:
                await runtime.store.count_runs(RunFilter())  # opens it, and so ends the runs of the dead
                check(path, flushed)
                await check_results(runtime.store, cached, kept)
    assert len(flushed) > KILLS
    assert min(len(cached), len(kept)) > 5  # there was something to lose; on a quiet machine it is 100


def check(path: Path, flushed: set[str]) -> None:
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert {row[0].hex() for row in connection.execute("SELECT id FROM runs")} >= flushed
        left = connection.execute("SELECT count(*) FROM runs WHERE owner IS NOT NULL OR ended IS NULL").fetchone()
        assert left == (0,)
        asleep = connection.execute("SELECT states FROM runs JOIN run_tags USING (id) WHERE tag = 'asleep'").fetchall()
        for (states,) in asleep:
            type, name, _, message = json.loads(states)[-1]
            assert (type, name) == ("CRASHED", "Crashed")
            assert "ended without ending it" in message
    finally:
        connection.close()


async def check_results(store: Any, cached: set[str], kept: set[str]) -> None:
    found = set()
    for entry in await store.read_cache(None, 1_000_000):
        stored = await store.read_result(entry.key)  # raises, if it is not what was written
        found.add(entry.key)
        expects = {"cached": expected(entry.key), "kept": entry.key.removeprefix("run:")}
        assert value_of(stored) == expects[entry.task_name]
    assert found >= cached | {f"run:{one}" for one in kept}


async def test_the_next_opener_ends_the_runs_of_the_dead_and_not_those_of_the_living(tmp_path):
    path = tmp_path / "runs.db"
    with server(path) as workers:
        living, dead = workers.start(1), workers.start(2)
        heard: set[str] = set()
        while heard < {str(living), str(dead)}:
            heard.add(workers.hear("flushed")[0])
        kill(dead)
        async with Runtime(store=SQLiteStore(path)) as runtime:
            crashed = await runtime.store.read_runs(RunFilter(state_name="Crashed"), 100)
            running = await runtime.store.read_runs(RunFilter(state_name="Running"), 100)
            assert {one.task_name for one in crashed} <= {"asleep", "plain", "kept", "cached"}
            assert {f"(pid {dead})" in state_of(one).message for one in crashed} == {True}
            assert any(one.task_name == "asleep" for one in running)
            before = {one.id for one in running if one.task_name == "asleep"}
            await until(lambda: True)
            workers.hear("flushed")
            after = {one.id for one in await runtime.store.read_runs(RunFilter(state_name="Running"), 1000)}
            assert before <= after
        kill(living)
        async with Runtime(store=SQLiteStore(path)) as runtime:
            assert await runtime.store.count_runs(RunFilter(state_name="Running")) == 0
            ended = [await runtime.store.read_run(one) for one in before]
        assert {state_of(one).message for one in ended} == {f"its process (pid {living}) ended without ending it"}


def state_of(run: Any) -> State:
    state: State = run.state
    return state
