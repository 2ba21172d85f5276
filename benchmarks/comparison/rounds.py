"""One round of one variant of a peer: its works, in processes that are watched and leave nothing behind.

1. All works share a process, and so a server or a cluster; those of sleepers, whose memory counts, have one each.
2. A work that takes longer than its time is killed with everything that its process started; the works after it go on
   in a new process. The same when the process dies.
3. Everything that becomes of a work is one `Told`: its figures, or a word why there are none.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .peers import Peer

#: Seconds that a peer gets to be ready, and to end by itself when all is told.
READY_SECONDS, END_SECONDS = 90.0, 15.0
#: The variable by which a process that a peer started, however indirectly, is known as its.
MARK = "ASYNCTASK_FIELD_MARK"


class Order(NamedTuple):
    """How much is to be measured, and how long anything may take."""

    #: Seconds for each work, about.
    budget: float = 0.3
    #: The most things to do at once; 0 for what the harness has.
    most: int = 0
    #: Seconds after which a work counts as hanging.
    limit: float = 60.0


class Told(NamedTuple):
    """What became of a work in one round."""

    work: str
    figures: dict[str, Any] | None = None
    why: str = ""


def measure(
    peer: Peer, variant: str, works: list[str], python: Path, order: Order, versions: dict[str, str]
) -> Iterator[Told]:
    """Each of these works once. Versions of the peer's packages are put into `versions`."""
    for together in groups(works):
        left = together
        while left:
            left = yield from one_process(peer, variant, left, python, order, versions)


def groups(works: list[str]) -> list[list[str]]:
    alone = [[work] for work in works if work.startswith("asleep")]
    together = [work for work in works if not work.startswith("asleep")]
    return [group for group in (together, *alone) if group]


def one_process(
    peer: Peer, variant: str, works: list[str], python: Path, order: Order, versions: dict[str, str]
) -> Iterator[Told]:
    """Measure as many of these works as one process lives for; the rest is returned."""
    with tempfile.TemporaryDirectory(prefix="asynctask-field-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with started(peer, variant, works, python, order, folder) as process:
            watch = Watch(process, folder, order.limit)
            for event in watch.events():
                match event["event"]:
                    case "ready":
                        versions.update(event["versions"])
                    case "measured":
                        yield Told(event["work"], figures=event)
                    case "failed":
                        yield Told(event["work"], why=event["why"])
    if watch.work is not None:
        yield Told(watch.work, why=watch.why)
        return works[works.index(watch.work) + 1 :]
    if watch.why:  # before the first work, or between two: the same would happen to the others
        yield from (Told(work, why=watch.why) for work in watch.untold(works))
    return []


class Watch:
    """Reads what a process tells, and notices when it hangs or dies."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, limit: float) -> None:
        self._process, self._folder, self._limit = process, folder, limit
        self._told: set[str] = set()
        #: The work under way when it was over, if one was; and why it was over before all was told.
        self.work: str | None = None
        self.why = ""

    def untold(self, works: list[str]) -> list[str]:
        return [work for work in works if work not in self._told]

    def events(self) -> Iterator[dict[str, Any]]:
        deadline, seconds = time.monotonic() + READY_SECONDS, READY_SECONDS
        with (self._folder / "told").open() as file:
            while True:
                has_ended = self._process.poll() is not None  # before reading, so that its last words are read
                for line in whole_lines(file):
                    event = json.loads(line)
                    if event["event"] == "done":
                        return
                    self.work = event["work"] if event["event"] == "begin" else None
                    if event["event"] in ("measured", "failed"):
                        self._told.add(event["work"])
                    deadline, seconds = time.monotonic() + self._limit, self._limit
                    yield event
                if has_ended:
                    self.why = f"failed: the process ended with {self._process.returncode}: {self._last_words()}"
                    return
                if time.monotonic() > deadline:
                    self.why = f"failed: nothing for {seconds:g} s: {self._last_words()}"
                    return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.05)

    def _last_words(self) -> str:
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it printed nothing")


def whole_lines(file: Any) -> Iterator[str]:
    """The lines that are there by now; half a line is left for the next time."""
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return
        yield line


@contextlib.contextmanager
def started(
    peer: Peer, variant: str, works: list[str], python: Path, order: Order, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a peer, in a session and a folder of its own; with whatever it started, it is gone afterwards."""
    told, mark = folder / "told", uuid.uuid4().hex
    told.touch()
    scratch = folder / "scratch"
    scratch.mkdir()
    surroundings = {
        **os.environ,
        MARK: mark,
        "ASYNCTASK_FIELD_VARIANT": variant,
        "ASYNCTASK_FIELD_FOLDER": str(scratch),
        "PYTHONDONTWRITEBYTECODE": "",  # importing is measured, compiling is not
    }
    if peer.requirements is not None:
        surroundings.pop("PYTHONPATH", None)
        surroundings["PATH"] = os.pathsep.join([str(python.parent), surroundings.get("PATH", "")])
    command = [str(python), str(peer.file), "--told", str(told), "--budget", str(order.budget)]
    command += ["--most", str(order.most)] if order.most else []
    command += ["--versions", *peer.packages, "--", *works]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=surroundings, cwd=scratch,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
        if (told.read_bytes().splitlines() or [b""])[-1].startswith(b'{"event": "done"'):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
    finally:
        end(process, mark)
        shutil.rmtree(scratch, ignore_errors=True)


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill the process, its group, and what it started elsewhere, known by the mark in its surroundings."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()
    needle = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours
            if needle in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
