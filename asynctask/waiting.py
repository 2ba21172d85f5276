"""The one file that sleeps, waits, times out and calls user code.

1. The engine suspends only through a port. `Loop` never blocks its thread; `Blocking` never suspends, so that
   `drive` can run the whole life of a run with one `send`.
2. `Blocking` refuses (BlockingWaitError) to wait on a thread whose event loop would have to do the work.
3. Bodies in threads, and what a thread blocks on, are in `bodies`.
4. Clocks are handed in; a virtual one is moved forward instead of slept on.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import anyio

from . import loops
from .bodies import Body, InExecutor, collect_async, timed_out
from .errors import StoreError
from .hooks import Afterwards, log_hook
from .limits import Limits
from .lines import Slots
from .options import Hook, TaskRunner
from .runs import Run, current_run, wake_all
from .states import State
from .stores.base import Store
from .stores.urls import StoresAt

if TYPE_CHECKING:
    import random  # 1 ms at import; a runtime imports it when it is made

logger = logging.getLogger("asynctask")

T = TypeVar("T")


class Answer(Protocol):
    """What becomes of a body elsewhere."""

    def done(self) -> bool: ...

    def result(self) -> Any:
        """What the body gave. Raises its error."""
        ...

    def wake_when_done(self, waker: loops.Waker) -> None:
        """Wake it when the body is over, at once if it is; one for each answer."""
        ...

    def stop(self) -> None:
        """End the body, as far as that is possible; from now on, it changes nothing of its run."""
        ...


class Elsewhere(Protocol):
    """Where bodies run that are not to run on their loop."""

    #: For what a run waits that has not begun there.
    blocker: str

    def start(self, run: Run, store: str, on_start: Callable[[], None] | None) -> Answer:
        """Call the body of `run`, whose runs are kept in the store of that URL; `on_start` as it begins, or never will.

        Enters Running when it begins, if nobody has. Raises `SerializationError` for what cannot travel.
        """
        ...


class Services:
    """What a port works with: the store with its limits, the dice and the executors of one runtime."""

    #: Whether any runner was made whose bodies run in other processes: others need not be asked.
    may_be_elsewhere = False

    def __init__(
        self,
        store: Store,
        source: random.Random,
        runner: Callable[[Run], TaskRunner],
        stores_at: StoresAt,
    ) -> None:
        self.store = store
        #: For tasks that say where their results go.
        self.stores_at = stores_at
        self.limits: Limits = store.limits
        self.random = source
        #: Where the body of a run is to be run.
        self.runner = runner
        #: Interrupted bodies that have not ended yet.
        self.abandoned: set[Body] = set()
        self.afterwards = Afterwards()


class Group(Protocol):
    """Something that is empty at some time: the children of a scope."""

    def is_empty(self) -> bool: ...

    def when_empty(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, from any thread, when it is empty; at once if it is."""
        ...


class Port(Protocol):
    """How a run waits and how its body is called."""

    services: Services
    is_async: bool

    def call(self, run: Run) -> Any:
        """Run the body once, within its timeout: an awaitable of the value if `is_async`, else the value.

        Raises what the body raises, or `TaskTimeoutError`.
        """
        ...

    async def ask(self, question: Awaitable[T]) -> T:
        """What a store answers."""
        ...

    async def carry_out(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work` to its end; being cancelled or interrupted meanwhile is raised afterwards."""
        ...

    async def sleep(self, run: Run, seconds: float) -> None: ...

    async def pause(self, seconds: float) -> None:
        """Wait in real time, for somebody outside this process."""
        ...

    async def until_settled(self, run: Run) -> None: ...

    async def until_called(self, run: Run, seat: Group) -> None:
        """Wait until the seat of `run` in a flight is called."""
        ...

    async def until_empty(self, group: Group, seconds: float | None = None) -> bool:
        """Wait until nothing in `group` is under way, at most `seconds`; False if the time is up."""
        ...

    async def until_empty_shielded(self, group: Group) -> None:
        """The same for the cancelled path: goes on waiting when it is cancelled."""
        ...

    def until_granted(self, slots: Slots) -> Awaitable[Any]:
        """Wait until they are granted or refused; or it is time to ask again, which it is if they are neither."""
        ...

    async def until_room(self) -> None:
        """Wait until the store has room for the records of more runs."""
        ...

    async def call_hooks(self, hooks: Iterable[Hook], run: Run, state: State) -> None: ...

    def call_hooks_now(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        """The same for a run that is being cancelled and may not wait."""
        ...

    async def call_user(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the user's that may be sync or async."""
        ...

    async def step(self, run: Run, step: Callable[[], Any], left: float | None) -> Any:
        """Advance a generator's body by one step, within `left` seconds."""
        ...


class Aside:
    """Work in a child of its own; empty when that is done."""

    def __init__(self, work: Coroutine[Any, Any, None], loop: loops.EventLoop) -> None:
        self._work = work
        self._loop = loop
        self._is_done = False
        self._wakes: list[Callable[[], None]] = []
        self.error: BaseException | None = None

    def is_empty(self) -> bool:
        return self._is_done

    def when_empty(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)  # on the loop of the child: it is not done between the look and this

    def child(self) -> loops.Work:
        return cast("loops.Work", self._carried_out())

    async def _carried_out(self) -> None:
        try:
            if self._loop.begins_early:
                await loops.begun()
            await self._work
        except BaseException as error:  # deliberate: raised to who waits
            self.error = error
        finally:
            self._work.close()
            self._is_done = True
            wake_all(self._wakes)


class Loop:
    """Waits on an event loop, asyncio's or trio's."""

    is_async = True

    def __init__(self, services: Services) -> None:
        self.services = services

    def call(self, run: Run) -> Awaitable[Any]:
        spec = run.spec
        if Services.may_be_elsewhere and run.is_submitted and not spec.is_flow:  # what is called, runs here
            found = getattr(self.services.runner(run), "elsewhere", None)
            if found is not None:
                return self._call_elsewhere(run, found())
        if not spec.is_async:
            executor = self.services.runner(run).executor()
            return self._call_elsewhere(run, InExecutor(executor, self.services.abandoned))
        # For a plain body, no coroutine of ours between the engine and the body.
        if spec.is_generator:
            body = collect_async(run)
        elif run.kwargs:
            body = spec.body(*run.args, **run.kwargs)
        else:  # 0.05 us less
            body = spec.body(*run.args)
        return body if spec.options.timeout is None else self._call_in_time(run, body, spec.options.timeout)

    async def _call_in_time(self, run: Run, body: Awaitable[Any], timeout: float) -> Any:
        try:
            with in_time(timeout):
                return await body
            raise timed_out(run)
        finally:
            del run, body  # the traceback of what the body raises leads to this frame; see `execute`

    async def _call_elsewhere(self, run: Run, there: Elsewhere) -> Any:
        # Many wait here at once, as a rule, and the collector looks at whatever each of them has: so no more frames
        # and closures than are needed.
        home = run.home or loops.here()
        timeout = run.spec.options.timeout
        ended = home.waker()
        run.blocker = there.blocker
        try:
            if timeout is None:
                answer = there.start(run, self.services.store.url, None)
                answer.wake_when_done(ended)
                try:
                    await ended.wait()
                except BaseException:
                    answer.stop()
                    raise
            else:
                started = home.waker()
                answer = there.start(run, self.services.store.url, started.wake)
                answer.wake_when_done(ended)
                await _in_its_time(run, answer, started, ended, timeout)
            return answer.result()
        finally:
            run.blocker = None

    async def ask(self, question: Awaitable[T]) -> T:
        return await question

    async def carry_out(self, work: Coroutine[Any, Any, None]) -> None:
        loop = loops.here()
        aside = Aside(work, loop)
        child = aside.child()
        if loop.begins_early:
            child.send(None)
        if loop.start(child, contextvars.copy_context()) is None:
            child.close()
            work.close()
            raise StoreError("nothing can be written any more: the event loop is closing")
        await self.until_empty_shielded(aside)
        if aside.error is not None:
            raise aside.error

    async def sleep(self, run: Run, seconds: float) -> None:
        clock = run.journal.clock
        if clock.is_virtual:
            clock.advance(seconds)
            await anyio.lowlevel.checkpoint()
            return
        await anyio.sleep(seconds)

    async def pause(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def until_called(self, run: Run, seat: Group) -> None:
        await self._empty(seat)

    async def until_settled(self, run: Run) -> None:
        loops.refuse_left_behind(run)
        waker = loops.here().waker()
        run.when_settled(waker.wake)
        try:
            await waker.wait()
        finally:
            run.forget(waker.wake)

    async def until_empty(self, group: Group, seconds: float | None = None) -> bool:
        if group.is_empty():
            return True
        with anyio.move_on_after(seconds):
            while not group.is_empty():  # again, for what was added in the moment between the wake-up and this
                await self._empty(group)
        return group.is_empty()

    async def until_empty_shielded(self, group: Group) -> None:
        later: BaseException | None = None
        while not group.is_empty():
            # anyio's shield does not keep out a native `asyncio.Task.cancel()`; whoever cancels twice waits as well,
            # as in asyncio.TaskGroup. The cancellation goes on afterwards: the flow may be ending for another reason.
            try:
                with anyio.CancelScope(shield=True):
                    await self._empty(group)
            except anyio.get_cancelled_exc_class() as error:  # deliberate: raised once the group is empty
                later = error
        if later is not None:
            try:
                raise later
            finally:
                del later  # its traceback leads here

    async def _empty(self, group: Group) -> None:
        waker = loops.here().waker()
        group.when_empty(waker.wake)
        await waker.wait()

    def until_granted(self, slots: Slots) -> Awaitable[Any]:
        waker = loops.here().waker()
        self.services.limits.when_granted(slots, waker.wake)
        # As a rule no coroutine of ours: a microsecond for each of many that wait in line.
        return waker.wait() if slots.due is None else self._until_due(slots, waker)

    async def _until_due(self, slots: Slots, waker: loops.Waker) -> None:
        limits = self.services.limits
        seconds = limits.seconds_until_due(slots)
        if seconds is not None and limits.clock.is_virtual:
            limits.clock.advance(seconds)
            await anyio.lowlevel.checkpoint()
        else:
            with anyio.move_on_after(seconds):
                await waker.wait()
        limits.look_again(slots.lines)

    async def until_room(self) -> None:
        waker = loops.here().waker()
        self.services.store.when_room(waker.wake)
        await waker.wait()

    async def call_hooks(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        for hook in hooks:
            try:
                made = hook(run.spec.task, run, state)
                if inspect.isawaitable(made):
                    await made
            except Exception:
                log_hook(hook, run, state)

    def call_hooks_now(self, hooks: Iterable[Hook], run: Run, state: State) -> None:
        for hook in hooks:
            try:
                made = hook(run.spec.task, run, state)
            except Exception:
                log_hook(hook, run, state)
                continue
            if inspect.isawaitable(made):
                self._afterwards(hook, made, run, state)

    def _afterwards(self, hook: Hook, made: Awaitable[Any], run: Run, state: State) -> None:
        """Let an async hook of a cancelled run go on in a child of its own, which the runtime waits for."""

        loop = loops.here()
        work = self.services.afterwards.go_on(hook, made, run, state, loop)
        if loop.begins_early:
            work.send(None)
        if loop.start(work, contextvars.copy_context()) is None:
            work.close()
            self.services.afterwards.leave()

    async def call_user(self, function: Callable[..., Any], *args: Any) -> Any:
        made = function(*args)
        return await made if inspect.isawaitable(made) else made

    async def step(self, run: Run, step: Callable[[], Any], left: float | None) -> Any:
        if left is None:
            return await step()
        try:
            with in_time(left):
                return await step()
            raise timed_out(run)
        finally:
            del run, step


async def _in_its_time(run: Run, answer: Answer, started: loops.Waker, ended: loops.Waker, timeout: float) -> None:
    try:
        # Waiting for a thread or worker is no part of the attempt, so the time counts from the body's start.
        await started.wait()
        with in_time(timeout):
            await ended.wait()
        if not answer.done():
            raise timed_out(run)
    except BaseException:
        answer.stop()
        raise


class in_time:
    """`anyio.move_on_after`, for the code of a run.

    A timer of asyncio has a copy of the context in which it was made, and may be kept, though it is cancelled, until
    its time comes; so it is made in a context that does not lead to the run and its value.
    """

    __slots__ = ("_scope",)

    def __init__(self, seconds: float) -> None:
        self._scope = anyio.move_on_after(seconds)

    def __enter__(self) -> None:
        token = current_run.set(None)
        try:
            self._scope.__enter__()
        finally:
            current_run.reset(token)

    def __exit__(self, *error: Any) -> bool:
        return self._scope.__exit__(*error)
