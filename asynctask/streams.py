"""A window of runs that moves over an input of any length, for `Task.stream`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any

from . import loops
from .futures import TaskFuture, lending


class Window:
    """At most `size` runs in flight, results not yet taken included; the input is pulled only when there is room."""

    def __init__(
        self,
        submit: Callable[[Any], TaskFuture[Any]],
        source: Iterable[Any] | AsyncIterable[Any],
        size: int,
        ordered: bool,
    ) -> None:
        self._submit = submit
        self._source = source
        self._size = size
        self._ordered = ordered
        #: In the order of the input; and the same in the order in which they end.
        self._flying: deque[TaskFuture[Any]] = deque()
        self._landed: deque[TaskFuture[Any]] = deque()
        self._waker: loops.Waker | None = None
        self._is_exhausted = False

    async def results(self, return_exceptions: bool) -> AsyncIterator[Any]:
        source = self._source
        pull = aiter(source) if isinstance(source, AsyncIterable) else iter(source)
        try:
            while True:
                while len(self._flying) < self._size and not self._is_exhausted:
                    await self._pull(pull)
                if not self._flying:
                    return
                future = await self._next()
                self._flying.remove(future)
                yield future.state.result(raise_on_failure=not return_exceptions)
        finally:
            for future in self._flying:
                future.cancel("its stream was left")
            await self._close(pull)

    async def _pull(self, pull: Any) -> None:
        try:
            value: Any = await anext(pull) if isinstance(pull, AsyncIterator) else next(pull)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        except (StopIteration, StopAsyncIteration):
            self._is_exhausted = True
            return
        future = self._submit(value)
        self._flying.append(future)
        future.run.when_settled(lambda: self._land(future))

    def _land(self, future: TaskFuture[Any]) -> None:
        self._landed.append(future)
        waker = self._waker
        if waker is not None:
            waker.wake()

    async def _next(self) -> TaskFuture[Any]:
        while True:
            if self._ordered and self._flying[0].done():
                return self._flying[0]
            if not self._ordered and self._landed:
                return self._landed.popleft()
            waker = self._waker = loops.here().waker()
            if not self._is_ready():  # something may have landed just before the waker was there
                with lending():
                    await waker.wait()
            self._waker = None

    def _is_ready(self) -> bool:
        return self._flying[0].done() if self._ordered else bool(self._landed)

    async def _close(self, pull: Any) -> None:
        if hasattr(pull, "aclose"):
            await pull.aclose()
        elif hasattr(pull, "close"):
            pull.close()
