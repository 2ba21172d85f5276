"""Results at hand: those of this process that a cached task can have without asking a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .base import StoredResult


class Shelf:
    """At most `entries` results and `size` bytes; the ones put there first go first. Any thread."""

    def __init__(self, entries: int, size: int) -> None:
        self._entries = entries
        self._size = size
        self._lock = threading.Lock()
        self._held = 0
        self._results: dict[str, StoredResult] = {}
        #: The result of a key, or None; a plain look into a dict, which needs no lock.
        self.get: Callable[[str], StoredResult | None] = self._results.get

    def __len__(self) -> int:
        return len(self._results)

    def all(self) -> list[StoredResult]:
        """Every result, in the order in which they were put here."""
        with self._lock:
            return list(self._results.values())

    def put(self, result: StoredResult) -> None:
        """Put a result here, in the place of an older one; not one that alone would take more than half the room."""
        with self._lock:
            self._drop(result.key)
            if len(result.payload) > self._size // 2:
                return
            self._results[result.key] = result
            self._held += len(result.payload)
            while len(self._results) > self._entries or self._held > self._size:
                first = next(iter(self._results))
                self._held -= len(self._results.pop(first).payload)

    def drop(self, key: str) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        result = self._results.pop(key, None)
        if result is not None:
            self._held -= len(result.payload)

    def begin_anew(self) -> None:
        """In a forked child, where nobody may be left to give the lock back."""
        self._lock = threading.Lock()
        self._results.clear()
        self._held = 0

    def clear(self) -> None:
        with self._lock:
            self._results.clear()
            self._held = 0
