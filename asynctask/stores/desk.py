"""Where stores with a disk or a network behind them work: one asyncio loop in a thread of its own.

1. Whoever asks, on asyncio, on trio or in plain code, leaves a question and waits as it can: nobody else's loop ever
   waits for a disk, and a store is written once, for asyncio.
2. A desk is open while somebody has use of it, and its thread ends with the last use; the next one opens it again.
3. Who stops waiting (cancelled) leaves the question behind: what was asked for is done all the same.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import anyio

from ..bodies import block_on
from ..loops import loop_to_wait_on
from ..runs import wake_all

T = TypeVar("T")


class Answer(Generic[T]):
    """What will come of a question; set once, in the desk's thread."""

    __slots__ = ("_error", "_is_there", "_value", "_wakes")

    def __init__(self) -> None:
        self._is_there = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._wakes: list[Callable[[], None]] = []

    def set(self, value: T | None, error: BaseException | None = None) -> None:
        self._value, self._error = value, error
        self._is_there = True
        wake_all(self._wakes)

    def when_there(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)
        if self._is_there:
            wake_all(self._wakes)

    async def wait(self) -> T:
        """The answer, or its exception, raised."""
        if not self._is_there:
            loop = loop_to_wait_on()
            if loop is None:
                ready = threading.Event()
                self.when_there(ready.set)
                block_on(ready)
            else:
                waker = loop.waker()
                self.when_there(waker.wake)
                await waker.wait()
        if self._error is None:
            return self._value  # type: ignore[no-any-return]
        try:
            raise self._error
        finally:
            del self  # its traceback leads here


class _Session:
    """One opening of a desk: its thread, and how to wake it."""

    __slots__ = ("bell", "gone", "is_closing", "loop", "thread")

    def __init__(self) -> None:
        self.thread: threading.Thread
        self.loop: asyncio.AbstractEventLoop | None = None
        self.bell: asyncio.Event | None = None
        self.is_closing = False
        #: Set as the last act of the thread.
        self.gone: Answer[None] = Answer()

    def ring(self) -> None:
        loop, bell = self.loop, self.bell
        if loop is not None and bell is not None:
            try:
                loop.call_soon_threadsafe(bell.set)
            except RuntimeError:  # it has closed in this moment
                return


class Desk:
    """A loop in a thread that opens with the first use and closes with the last.

    `background(closing)` runs there all the while; when `closing` is set, no question is under way and none will
    come, and it ends, letting go of what it has opened.
    """

    def __init__(self, name: str, background: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        self._name = name
        self._background = background
        self._lock = threading.Lock()
        self._uses = 0
        self._questions: deque[tuple[Callable[[], Awaitable[Any]], Answer[Any]]] = deque()
        self._session: _Session | None = None
        self._before: _Session | None = None

    def use(self) -> None:
        """Open, or stay open, until `leave` is called as often."""
        with self._lock:
            self._uses += 1
            if self._session is None:
                session = self._session = _Session()
                before, self._before = self._before, None
                session.thread = threading.Thread(
                    target=self._run, args=(session, before), name=self._name, daemon=True
                )
                session.thread.start()

    async def leave(self) -> None:
        """One use less; with the last one, return when the desk is closed and its thread has ended."""
        with self._lock:
            self._uses -= 1
            session = self._session
            if self._uses or session is None:
                return
            self._before, self._session = session, None
            session.is_closing = True
            session.ring()
        await session.gone.wait()
        session.thread.join()

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """What the coroutine of `question()` gives, run at the desk, which need not be open yet."""
        answer: Answer[T] = Answer()
        self.use()
        try:
            self.post(question, answer)
            return await answer.wait()
        finally:
            with nullcontext() if loop_to_wait_on() is None else anyio.CancelScope(shield=True):
                await self.leave()

    def post(self, question: Callable[[], Awaitable[Any]], answer: Answer[Any] | None = None) -> None:
        """Leave a question and go on. Only while the desk is open."""
        self._questions.append((question, answer or Answer()))
        session = self._session
        if session is not None:
            session.ring()

    def ring(self) -> None:
        """Wake the desk, if it is open: there may be something in a queue of the store's."""
        session = self._session
        if session is not None:
            session.ring()

    def _run(self, session: _Session, before: _Session | None) -> None:
        if before is not None:
            before.thread.join()  # two at once would have the store's files twice
        try:
            asyncio.run(self._main(session))
        finally:
            session.gone.set(None)

    async def _main(self, session: _Session) -> None:
        bell = session.bell = asyncio.Event()
        session.loop = asyncio.get_running_loop()
        closing = asyncio.Event()
        background = asyncio.ensure_future(self._background(closing))
        at_work: set[asyncio.Future[None]] = set()
        while True:
            while self._questions:
                question, answer = self._questions.popleft()
                work = asyncio.ensure_future(_answered(question, answer))
                at_work.add(work)
                work.add_done_callback(at_work.discard)
            if session.is_closing and not at_work and not self._questions:
                break
            if at_work and session.is_closing:
                await asyncio.wait(at_work)
                continue
            await bell.wait()
            bell.clear()
        closing.set()
        await background


async def ring_when(closing: asyncio.Event, bell: asyncio.Event) -> None:
    """For what runs in the background and waits for a bell of its own: the desk closes."""
    await closing.wait()
    bell.set()


async def _answered(question: Callable[[], Awaitable[Any]], answer: Answer[Any]) -> None:
    try:
        value = await question()
    except BaseException as error:  # deliberate: it is raised to who asked
        answer.set(None, error)
        return
    answer.set(value)
