"""What every test gets: both event loops, and a check that it left nothing behind.

1. A coroutine test runs on asyncio and on trio (anyio's plugin), unless it is marked `asyncio` (pytest-asyncio's).
2. After each test that passed: no new thread, child process, open file, pending task, nor complaint in asyncio's log.
   What ends by itself gets GRACE seconds to do so; the check waits only when something is still there.
3. Warnings, unraisable exceptions and exceptions of threads fail a test through pytest (`filterwarnings = error`); the
   check collects garbage first, so that they land on the test that caused them.
4. `@pytest.mark.allow_leak(kind, reason=...)` excuses one test from one kind.
"""

import asyncio
import contextlib
import functools
import gc
import importlib
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

GRACE = 2.0  # seconds: the slowest honest ending seen is a worker thread of a loop that has just closed
KINDS = ("threads", "children", "files", "tasks", "log")
PASSED = pytest.StashKey[bool]()

#: Tests that say nothing of a store share nothing with the user's: neither their data folder, nor what is in it.
os.environ["ASYNCTASK_STORE_URL"] = "memory://"
os.environ.pop("PYTHONASYNCIODEBUG", None)  # debug mode costs five times the time and changes what is collected when


@pytest.fixture(scope="module", params=[("asyncio", {"debug": False}), ("trio", {})], ids=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: Any) -> None:
    """Rule 1. anyio's own auto mode would also run the tests marked `asyncio` twice."""
    if not collector.istestfunction(obj, name):
        return
    body = obj.hypothesis.inner_test if hasattr(obj, "hypothesis") else obj
    own = {mark.name for mark in getattr(obj, "pytestmark", ())}
    if inspect.iscoroutinefunction(body) and "asyncio" not in own and not collector.get_closest_marker("asyncio"):
        pytest.mark.usefixtures("anyio_backend")(obj)


def pytest_collection_finish() -> None:
    with contextlib.suppress(ImportError):  # libuv opens one pipe for good with its first loop: not the first test's
        importlib.import_module("uvloop").new_event_loop().close()
    gc.collect()
    gc.freeze()  # from here on a collection walks only what tests made: 0.3 ms, not 40


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    gc.unfreeze()  # hypothesis looks for referrers as it reports, and would not see frozen ones


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    if call.when == "call":
        item.stash[PASSED] = call.excinfo is None
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Tasks can be counted only before the loop closes, so inside the test; closing cancels what it left in silence."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj) and "tasks" not in allowed(item):
        item.obj = leaving_no_task(item.obj)
    return (yield)


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    excused = allowed(request.node)
    asyncio_log = Records()
    logging.getLogger("asyncio").addHandler(asyncio_log)
    before = {kind: look() for kind, look in WATCHED.items()}
    try:
        yield
        close_default_runtime()
        if not request.node.stash.get(PASSED, False):
            return  # a failed test's traceback keeps its locals alive: one report is enough
        gc.collect()
        leaks = still_there(before, excused)
    finally:
        logging.getLogger("asyncio").removeHandler(asyncio_log)
        gc.freeze()
    if "log" not in excused:
        leaks += [f"asyncio logged: {message}" for message in asyncio_log.messages]
    assert not leaks, "the test left behind:\n  " + "\n  ".join(leaks)


def allowed(item: pytest.Item) -> set[str]:
    excused = set()
    for mark in item.iter_markers("allow_leak"):
        assert mark.args[:1] in {(kind,) for kind in KINDS}, f"allow_leak takes one of {KINDS}"
        assert mark.kwargs.get("reason"), "allow_leak needs a reason="
        excused.add(mark.args[0])
    return excused


def close_default_runtime() -> None:
    close = getattr(sys.modules.get("asynctask.scopes"), "close_default", None)
    if close is not None:
        close(timeout=5)


def still_there(before: dict[str, dict[Any, str]], excused: set[str]) -> list[str]:
    """What was not there before the test and does not go away within GRACE seconds."""
    deadline = time.monotonic() + GRACE
    pause = 0.0005
    while True:
        leaks = [
            f"{kind}: {name}"
            for kind, look in WATCHED.items()
            if kind not in excused
            for key, name in look().items()
            if key not in before[kind]
        ]
        if not leaks or time.monotonic() > deadline:
            return leaks
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
        gc.collect()


def threads() -> dict[Any, str]:
    # trio keeps idle workers for ten seconds, under this name; a busy one bears the name of its job.
    return {
        thread: f"{thread.name!r}{' (daemon)' if thread.daemon else ''}"
        for thread in threading.enumerate()
        if not thread.name.startswith("Trio thread ")
    }


def children() -> dict[Any, str]:
    """By pid and what it runs. One system call when there is none, which is nearly always."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):  # no child; no such call on this system
        return {}
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if parent == str(os.getpid()) and int(folder.name) != getattr(tracker, "_pid", None):
            found[int(folder.name)] = f"pid {folder.name} {command or '(ended, never waited for)'}"
    return found


def files() -> dict[Any, str]:
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return {}
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    found = {}
    for name in names:
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the listing's own
            continue
        if int(name) != getattr(tracker, "_fd", None):
            found[name, target] = f"{name} -> {target}"
    return found


WATCHED: dict[str, Callable[[], dict[Any, str]]] = {"threads": threads, "children": children, "files": files}


class Records(logging.Handler):
    """Errors of asyncio that nobody awaits: destroyed but pending, exception never retrieved, error in a callback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def leaving_no_task(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def checked(*args: Any, **kwargs: Any) -> None:
        before = unfinished_tasks()
        await function(*args, **kwargs)
        deadline = time.monotonic() + GRACE
        turns = 0
        while left := unfinished_tasks() - before:
            assert time.monotonic() < deadline, f"the test left behind:\n  tasks: {left}"
            await anyio.sleep(0 if turns < 20 else 0.01)
            turns += 1

    return checked


def unfinished_tasks() -> set[Any]:
    """asyncio's tasks, or trio's system tasks (its others cannot outlive their nursery)."""
    try:
        return asyncio.all_tasks()
    except RuntimeError:
        root = sys.modules["trio"].lowlevel.current_root_task()
        return {task for nursery in root.child_nurseries for task in nursery.child_tasks}
