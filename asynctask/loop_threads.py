"""Event loops of our own in threads, for runs submitted where no loop can take them."""

from __future__ import annotations

import threading

import anyio

from .loops import EventLoop, Waker, here


class LoopThread:
    """An event loop of our own in a daemon thread, for runs submitted where no loop can take them."""

    def __init__(self, name: str, backend: str) -> None:
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self.loop: EventLoop
        self._stop: Waker
        self._thread = threading.Thread(target=self._run, args=(backend,), name=name, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self, backend: str) -> None:
        try:
            anyio.run(self._main, backend=backend)
        except BaseException as error:  # told to whoever starts the thread
            if self._ready.is_set():
                raise
            self._failure = error
            self._ready.set()

    async def _main(self) -> None:
        self.loop = here()
        self._stop = self.loop.waker()
        self._ready.set()
        await self._stop.wait()

    def is_alive(self) -> bool:
        """Whether its loop runs: an exit that is raised in a task of the user's own ends it."""
        return self._thread.is_alive()

    def stop(self, timeout: float | None = None) -> None:
        """End the loop, cancelling what still runs on it, and join the thread."""
        self._stop.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)


class LoopThreads:
    """The loops in threads of one runtime: one of each backend for all its runs, and others for single sync flows."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._own: dict[str, LoopThread] = {}
        self._spare: list[LoopThread] = []
        self._all: list[LoopThread] = []

    def own(self, backend: str) -> EventLoop:
        """The loop for all runs that have no other."""
        with self._lock:
            thread = self._own.get(backend)
            if thread is None or not thread.is_alive():
                thread = self._own[backend] = self._new(backend)
            return thread.loop

    def take(self, backend: str) -> LoopThread:
        """A loop for one sync flow alone; `give` takes it back."""
        with self._lock:
            for thread in self._spare:
                if thread.loop.backend == backend and thread.is_alive():
                    self._spare.remove(thread)
                    return thread
            return self._new(backend)

    def give(self, thread: LoopThread) -> None:
        with self._lock:
            self._spare.append(thread)

    def _new(self, backend: str) -> LoopThread:
        thread = LoopThread(f"{self._name}-loop-{len(self._all) + 1}", backend)
        self._all.append(thread)
        return thread

    def stop(self, timeout: float) -> None:
        """End them all, each within `timeout` seconds."""
        for thread in self._all:
            thread.stop(timeout)
        self._own, self._all, self._spare = {}, [], []
