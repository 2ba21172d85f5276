"""Locks of cache keys from a lock manager of the user's: an object with `acquire_lock` and `release_lock`.

1. Both are called with the key and the id of the run that holds it; `acquire_lock` may wait, and refuses with False.
2. On an event loop `aacquire_lock` is awaited, if there is one; else `acquire_lock` is called in a thread.
3. A lock that comes when its run does not wait any more is given back at once.
"""

from __future__ import annotations

import threading
from typing import Any

import anyio.to_thread

from .errors import StoreError
from .redact import shown
from .runs import Run
from .waiting import Port


async def acquire_lock(manager: Any, key: str, run: Run, port: Port) -> None:
    """Return when the lock of `key` is the run's. Raises `StoreError` if the manager refuses."""
    holder = str(run.id)
    acquire = getattr(manager, "aacquire_lock", None)
    given: object
    if not port.is_async:
        given = await port.call_user(manager.acquire_lock, key, holder)
    elif acquire is not None:
        given = await port.call_user(acquire, key, holder)
    else:
        given = await _acquired_aside(manager, key, holder)
    if _is_refused(given):
        raise StoreError(f"the lock manager {shown(manager, 80)} did not give the lock of run {run.name!r}")


async def _acquired_aside(manager: Any, key: str, holder: str) -> object:
    given: list[object] = []
    has_left = False
    lock = threading.Lock()

    def acquire() -> object:
        found: object = manager.acquire_lock(key, holder)
        with lock:
            given.append(found)
            is_late = has_left
        if is_late and not _is_refused(found):
            manager.release_lock(key, holder)
        return found

    try:
        return await anyio.to_thread.run_sync(acquire, abandon_on_cancel=True)
    except BaseException:
        with lock:
            has_left = True
            is_held = bool(given) and not _is_refused(given[0])
        if is_held:
            manager.release_lock(key, holder)
        raise


def _is_refused(given: object) -> bool:
    """Whether `acquire_lock` said no; one that says nothing has waited until it had the lock."""
    return given is not None and not given
