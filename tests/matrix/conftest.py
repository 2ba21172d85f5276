"""The cells of the matrix: every entry, kind of function and place from which a task can be called.

A test of this folder takes the fixture `cell`, says once what should happen, and runs in every cell of its row set:

    kind   sync, async, generator, async generator     what the function is
    entry  call, state, submit, map                    `t(x)`, `t(x, return_state=True)`, `t.submit(x)`, `t.map([x])`
    place  plain                                       no event loop anywhere in the test
           asyncio, trio                               on the loop: bodies run on it, or in its threads if submitted
           beside asyncio, beside trio                 in a thread, while the runtime lives on a loop in another

Cells that cannot be are left out: only a loop can await a coroutine, so `call` and `state` of async tasks need one.
`cell` covers all of them; `function` leaves the generators out, `submitted` has only `submit` and `map`.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import anyio
import anyio.from_thread
import pytest

from asynctask import Runtime, State, TaskFuture, TaskRun, flow, get_client, task
from asynctask.scopes import close_default
from asynctask.stores.memory import MemoryStore

KINDS = ("sync", "async", "generator", "async generator")
ENTRIES = ("call", "state", "submit", "map")
PLACES = ("plain", "asyncio", "trio", "beside asyncio", "beside trio")
ROWS: dict[str, Callable[[str, str, str], bool]] = {
    "cell": lambda kind, entry, place: True,
    "function": lambda kind, entry, place: "generator" not in kind,
    "submitted": lambda kind, entry, place: entry in ("submit", "map"),
}
WAIT = 10.0  # seconds until a test that hangs fails
numbers = itertools.count(1)


def is_possible(kind: str, entry: str, place: str) -> bool:
    return "async" not in kind or entry in ("submit", "map") or place in ("asyncio", "trio")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, wanted in ROWS.items():
        if fixture in metafunc.fixturenames:
            cells = [cell for cell in itertools.product(KINDS, ENTRIES, PLACES) if is_possible(*cell) and wanted(*cell)]
            metafunc.parametrize(fixture, cells, indirect=True, ids=[", ".join(cell) for cell in cells])


class Ended(NamedTuple):
    """What came of a run: a value or an error, and the record the store has of it."""

    value: Any
    error: BaseException | None
    run: TaskRun

    @property
    def names(self) -> list[str]:
        """The names of its states, in order."""
        return [state.name for state in self.run.states]


class Cell:
    """One combination, and how to make a task of its kind and run it through its entry at its place."""

    def __init__(self, kind: str, entry: str, place: str, stack: ExitStack) -> None:
        self.kind = kind
        self.entry = entry
        self.place = place
        self.is_on_loop = place in ("asyncio", "trio")
        #: Ends the runtime before the test does.
        self.close = stack.close
        #: Whether several runs of this cell can be under way at once.
        self.overlaps = entry in ("submit", "map") or not self.is_on_loop or "async" in kind
        self._portal: anyio.from_thread.BlockingPortal | None = None
        self._tags: set[str] = set()
        if place == "plain":
            stack.callback(close_default)
            stack.callback(self._delete_limits)  # the default runtime's store is shared by the whole process
        else:
            backend = place.removeprefix("beside ")
            self._portal = stack.enter_context(anyio.from_thread.start_blocking_portal(backend))
            stack.enter_context(self._portal.wrap_async_context_manager(Runtime(store=MemoryStore())))

    def task(self, body: Callable[[Any], Any], **options: Any) -> Any:
        """A task of this kind with a parameter `x` (and `y=0`) that gives `body(x)`."""

        def sync(x: Any, y: Any = 0) -> Any:
            return _slept(body(x))

        async def asynchronous(x: Any, y: Any = 0) -> Any:
            return await _slept_async(body(x))

        def generator(x: Any, y: Any = 0) -> Any:
            yield _slept(body(x))

        async def async_generator(x: Any, y: Any = 0) -> Any:
            yield await _slept_async(body(x))

        fn = {"sync": sync, "async": asynchronous, "generator": generator, "async generator": async_generator}
        return task(**{"name": f"matrix-{next(numbers)}", **options})(fn[self.kind])

    def run(self, t: Any, x: Any, **special: Any) -> Ended:
        """Run `t(x)` through this cell's entry to its end."""
        if self.is_on_loop:
            assert self._portal is not None
            value, error = self._portal.call(self._on_loop, t, x, special)
        else:
            value, error = self._here(t, x, special)
        if error is None and "generator" in self.kind:
            (value,) = value
        return Ended(value, error, self.runs(t)[0])

    def run_together(self, t: Any, xs: list[Any]) -> list[Any]:
        """The values of `t` over `xs`, sorted; all under way at once where this cell can."""
        if self.entry == "map":
            values = self._mapped(t, xs)
        elif self.overlaps:
            values = []
            threads = [threading.Thread(target=lambda x=x: values.append(self.run(t, x).value)) for x in xs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(WAIT)
        else:
            values = [self.run(t, x).value for x in xs]
        return sorted(values)

    def inside(self, decorate: Any, t: Any, x: Any) -> tuple[Ended, TaskRun]:
        """Run `t(x)` inside the body of a task or flow; and that one's own record."""
        name = f"outer-{next(numbers)}"
        outcome: list[Any] = []

        async def outer_async() -> None:
            outcome.extend(await self._on_loop(t, x, {}))

        def outer() -> None:
            outcome.extend(self._here(t, x, {}))

        if self.is_on_loop:
            assert self._portal is not None
            self._portal.call(decorate(name=name)(outer_async))
        else:
            decorate(name=name)(outer)()
        with get_client(sync_client=True) as client:
            found = (client.read_flow_runs if decorate is flow else client.read_task_runs)(name=name)
        return Ended(*outcome, self.runs(t)[0]), found[0]

    def future(self, t: Any, x: Any) -> TaskFuture[Any]:
        """A run of `t(x)` under way, whatever this cell's entry."""
        if not self.is_on_loop:
            return t.submit(x)
        assert self._portal is not None
        (future,) = self._portal.call(lambda: [t.submit(x)])  # the portal awaits what can be awaited
        return future

    def settled(self, t: Any, x: Any) -> TaskFuture[Any]:
        """The same, over: an inline call on a loop could not wait for it."""
        future = self.future(t, x)
        assert future.wait(WAIT) is not None
        return future

    def runs(self, t: Any) -> list[TaskRun]:
        """The records of the runs of `t`, the newest first."""
        with get_client(sync_client=True) as client:
            return client.read_task_runs(task_name=t.name)

    def limit(self, slots: int) -> str:
        """A new tag with a limit."""
        tag = f"limited-{next(numbers)}"
        self._tags.add(tag)
        with get_client(sync_client=True) as client:
            client.create_concurrency_limit(tag, slots)
        return tag

    def read_limit(self, tag: str) -> Any:
        with get_client(sync_client=True) as client:
            return client.read_concurrency_limit_by_tag(tag)

    def _delete_limits(self) -> None:
        with get_client(sync_client=True) as client:
            for tag in self._tags:
                client.delete_concurrency_limit_by_tag(tag)

    def _mapped(self, t: Any, xs: list[Any]) -> list[Any]:
        if self.is_on_loop:
            assert self._portal is not None
            (futures,) = self._portal.call(lambda: [t.map(xs)])
        else:
            futures = t.map(xs)
        values = futures.result(timeout=WAIT)
        return [value[0] for value in values] if "generator" in self.kind else values

    def _here(self, t: Any, x: Any, special: dict[str, Any]) -> tuple[Any, BaseException | None]:
        """In this thread, which runs no loop."""
        try:
            if self.entry == "call":
                made = t(x, **special)
                return (list(made) if self.kind == "generator" else made), None
            if self.entry == "state":
                return _of(t(x, return_state=True, **special))
            return self._submitted(t, x, special).result(timeout=WAIT), None
        except Exception as error:
            return None, error

    async def _on_loop(self, t: Any, x: Any, special: dict[str, Any]) -> tuple[Any, BaseException | None]:
        try:
            if self.entry == "call":
                made = t(x, **special)
                if self.kind == "async generator":
                    return [value async for value in made], None
                return (await made if self.kind == "async" else list(made) if self.kind == "generator" else made), None
            if self.entry == "state":
                state = t(x, return_state=True, **special)
                return _of(await state if "async" in self.kind else state)
            return await self._submitted(t, x, special), None
        except Exception as error:
            return None, error

    def _submitted(self, t: Any, x: Any, special: dict[str, Any]) -> TaskFuture[Any]:
        if self.entry == "submit":
            return t.submit(x, **special)
        (future,) = t.map([x], **special)
        return future


def _of(state: State) -> tuple[Any, BaseException | None]:
    return _or_none(state), _error(state)


def _or_none(state: State) -> Any:
    return state.data if state.is_completed() else None


def _error(state: State) -> BaseException | None:
    return None if state.is_completed() else state.result(raise_on_failure=False)


class Pause(NamedTuple):
    """Returned by a body: wait this long, or until `until` is true, as its kind does; then give `value`."""

    seconds: float
    value: Any = None
    until: Callable[[], bool] = lambda: False
    and_then: Callable[[], object] = lambda: None


def _slept(value: Any) -> Any:
    if not isinstance(value, Pause):
        return value
    end = time.monotonic() + value.seconds
    while not value.until() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.002))  # in small pieces: a thread is interrupted between two of them
    value.and_then()
    return value.value


async def _slept_async(value: Any) -> Any:
    if not isinstance(value, Pause):
        await anyio.sleep(0)
        return value
    end = anyio.current_time() + value.seconds
    while not value.until() and (left := end - anyio.current_time()) > 0:
        await anyio.sleep(min(left, 0.002))
    value.and_then()
    return value.value


@pytest.fixture
def pause() -> type[Pause]:
    return Pause


def _cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    with ExitStack() as stack:
        yield Cell(*request.param, stack)


cell = pytest.fixture(_cell, name="cell")
function = pytest.fixture(_cell, name="function")
submitted = pytest.fixture(_cell, name="submitted")
