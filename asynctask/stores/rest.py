"""Forks, and connections that must not be closed: what SQLite's library asks of the processes that carry it.

1. The library is at rest when this process forks: a fork waits until nobody is `at_work`, for a few milliseconds as a
   rule. Otherwise a child could find one of its inner locks taken for ever, or half a transaction.
2. A forked child closes what it inherits, at once. The library believes that it still has the locks of those
   connections, which a child has not; what it opens on the same file would go unlocked, and lose what it writes.
3. A connection whose file was replaced is left open for good: closing deletes the log by its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import weakref

import aiosqlite

#: Seconds that a fork waits at most.
PATIENCE = 5.0

#: Held by whoever changes the numbers below, and by a fork.
_change = threading.Condition(threading.Lock())
_workers = 0
_is_forking = False
_connections: weakref.WeakSet[aiosqlite.Connection] = weakref.WeakSet()

THREAD_NAME = "asynctask-sqlite"


def _is_of_others(record: logging.LogRecord) -> bool:
    """Whether what aiosqlite logs is of the program's own use of it.

    Of ours it would be two lines a statement, with all that is written, in every program that logs at DEBUG; and a
    handler that calls a task would never come to an end.
    """
    return threading.current_thread().name != THREAD_NAME


logging.getLogger("aiosqlite").addFilter(_is_of_others)


class at_work:
    """`async with at_work()`: this code calls the library. Not to be nested: a fork between the two would wait."""

    async def __aenter__(self) -> None:
        while not _begin():  # noqa: ASYNC110  # a fork is over in a few milliseconds, and cannot set an event
            await asyncio.sleep(0.001)

    async def __aexit__(self, *error: object) -> None:
        global _workers
        with _change:
            _workers -= 1
            if not _workers:
                _change.notify_all()


def _begin() -> bool:
    global _workers
    with _change:
        if not _is_forking:
            _workers += 1
        return not _is_forking


async def connected(path: str) -> aiosqlite.Connection:
    """A new connection, in a thread of its own."""
    connection = aiosqlite.connect(path, isolation_level=None, check_same_thread=False)  # a child closes it elsewhere
    thread = connection._thread  # pyright: ignore[reportPrivateUsage]
    # Else the interpreter, ending, would wait for this thread before we are told that it ends.
    thread.daemon = True
    thread.name = THREAD_NAME
    try:
        await connection
    except sqlite3.Error:
        thread.join()  # its last act is to tell this loop, which may be closed a moment later
        raise
    _connections.add(connection)
    return connection


def leave_open(*connections: aiosqlite.Connection | None) -> None:
    """Never close these, not even when the interpreter ends, and end their threads."""
    for one in connections:
        if one is not None:
            _immortal(_taken_from(one))
            one.stop()  # pyright: ignore[reportUnknownMemberType]


def _taken_from(connection: aiosqlite.Connection) -> sqlite3.Connection | None:
    inner = connection._connection  # pyright: ignore[reportPrivateUsage]
    connection._connection = None  # pyright: ignore[reportPrivateUsage]
    return inner


def _immortal(inner: sqlite3.Connection | None) -> None:
    import ctypes  # 5 ms, for an accident

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inner))


def _before_fork() -> None:
    global _is_forking
    _change.acquire()
    _change.wait_for(lambda: not _is_forking)
    _is_forking = True
    _change.wait_for(lambda: not _workers, PATIENCE)


def _after_in_parent() -> None:
    global _is_forking
    _is_forking = False
    _change.notify_all()
    _change.release()


def _after_in_child() -> None:
    global _is_forking, _workers, _change
    was_at_rest = not _workers
    _is_forking, _workers = False, 0
    _change = threading.Condition(threading.Lock())
    for one in list(_connections):
        inner = _taken_from(one)
        if inner is None:
            continue
        if was_at_rest:
            with contextlib.suppress(sqlite3.Error):
                inner.close()
        else:
            _immortal(inner)
    _connections.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
