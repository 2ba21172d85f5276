"""The life of one run, from top to bottom, for sync and async alike; and the same life for generators.

1. Every way out leaves the run in a final state, settled, and holding nothing.
2. The engine waits only through the port it is given; what it decides, it asks of pure functions.
3. Order: inputs first, then the slots, then the body. Only Running holds a slot: not waiting for an upstream,
   not waiting for a retry. A timeout bounds one attempt; hooks run inside the run's context.
4. The path of a cancelled run awaits nothing.
5. A submitted run keeps its exception for who asks for it; a called one raises it to its caller.
6. No frame between here and the body keeps its run: run -> its error -> traceback -> frame -> run is a ring that
   only the collector would free. A token leads to the context, and so to the run.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any

from .bodies import timed_out
from .deadlocks import pause
from .endings import (
    NEED_CARE,
    after_failure,
    consumed,
    end_early,
    ending_hooks,
    has_yielded,
    take_outcome,
)
from .errors import Interrupted, OptionError
from .inputs import ATOMS, failed_upstream, fill, find, is_plain, lineage
from .lines import Slots
from .loops import begun, must_pass, strand_here
from .redact import shown
from .runs import Run, are_small, current_run, current_transaction
from .secrets import masked
from .specs import without_secrets
from .states import COMPLETED, RUNNING, SCHEDULED
from .waiting import Port


async def execute(run: Run, port: Port) -> Any:
    """Take `run` through its life and return its value, or raise its exception (see rule 5)."""
    spec = run.spec
    options = spec.options
    token = keeping = None
    try:
        journal = run.journal
        if run.is_submitted:
            if run.home.begins_early:
                await begun()
            current_run.set(run)  # in a context of its own
        else:
            journal.live[run.number] = run
            token = current_run.set(run)
        if run.cancel_reason is not None:
            raise Interrupted
        if journal.is_crowded:
            await port.until_room()
        if run.wait_for or not (run.is_small or is_plain(run.args, run.kwargs)):
            await inputs_ready(run, port)
        if options.run_name is not None:
            run.given_name = rendered_name(run)
        is_cached, attempt = False, 1
        if spec.keeper is not None or current_transaction.get() is not None:
            keeping = await (spec.keeper or current_transaction.get().keeper).begin(run, port)
            is_cached = keeping is None
        while not is_cached:
            slots = await slots_taken(run, port) if run.tags else None
            try:
                if spec.is_async or not port.is_async or options.on_running:  # else `port.call` does, where it begins
                    run.enter(RUNNING, "Running" if attempt == 1 else "Retrying")
                if options.on_running:
                    await port.call_hooks(options.on_running, run, run.state)
                made = port.call(run) if spec.enclose is None else spec.enclose(run, port)
                value = await made if port.is_async or spec.enclose is not None else made
                if keeping is not None:
                    value = await keeping.keep(run, await consumed(value, port), port)
                if value.__class__ not in NEED_CARE:
                    run.value = value
                    run.enter(COMPLETED, "Completed")
                else:
                    take_outcome(run, await consumed(value, port))
                delay = None
            except Exception as error:
                delay = await after_failure(run, error, attempt, port, may_retry=not has_yielded(run))
            finally:
                if slots is not None:
                    give_slots(run, slots, port)
            if delay is None:
                break
            attempt += 1
            if keeping is not None:
                await keeping.again(port)
            await port.sleep(run, delay)
        if keeping is not None:
            await keeping.finish(run, port)
        if run.states[-1].type is COMPLETED:
            if options.on_completion:
                await port.call_hooks(options.on_completion, run, run.state)
            if run.value.__class__ not in ATOMS:
                lineage.note(run.value, run)
            return run.value
        await port.call_hooks(ending_hooks(run), run, run.state)
        if not run.is_submitted:
            raise run.state.error()
    except BaseException as error:
        if not run.is_final:
            await end_early(run, error, port)
        if run.is_submitted and not must_pass(error):
            return None
        raise
    finally:
        if keeping is not None:
            keeping.end(run, port)
        try:
            run.settle()
        except RecursionError:  # to note it takes no call, for which there is no stack
            run.journal.unsettled = (run, run.journal.unsettled)
        except Interrupted:  # meant for a body further up in this thread
            run.settle(again=True)
            raise
        leave_context(token)
        del run, token, keeping  # rule 6


async def stream(run: Run, port: Port) -> AsyncGenerator[Any, Any]:
    """The same life for a generator task: Running while it yields, retried only until its first value is out.

    Values sent and exceptions thrown in reach the body. Closed early, the run ends Completed.
    """
    options = run.spec.options
    body: Steps | None = None
    token = current_run.set(run)
    run.journal.live[run.number] = run
    try:
        try:
            if run.wait_for or not is_plain(run.args, run.kwargs):
                await inputs_ready(run, port)
            if options.run_name is not None:
                run.given_name = rendered_name(run)
            attempt = 1
            while True:
                slots = await slots_taken(run, port) if run.tags else None
                body = Steps(run, port)
                try:
                    run.enter(RUNNING, "Running" if attempt == 1 else "Retrying")
                    if options.on_running:
                        await port.call_hooks(options.on_running, run, run.state)
                    value = await body.begin()
                    while not body.is_over:
                        body.pause(slots, token)
                        try:
                            sent = yield value
                        except GeneratorExit:
                            token = current_run.set(run)
                            await body.close()
                            run.enter(COMPLETED, "Completed", "closed before its end")
                            raise
                        except BaseException as thrown:  # deliberate: the body says what follows
                            token = current_run.set(run)
                            value = await body.throw(thrown)
                        else:
                            token = current_run.set(run)
                            value = await body.send(sent)
                    run.value = value
                    run.enter(COMPLETED, "Completed")
                    delay = None
                except Exception as error:
                    delay = await after_failure(run, error, attempt, port, may_retry=not body.has_yielded)
                finally:
                    if slots is not None:
                        give_slots(run, slots, port)
                if delay is None:
                    break
                attempt += 1
                await port.sleep(run, delay)
            await port.call_hooks(ending_hooks(run), run, run.state)
            if run.states[-1].type is not COMPLETED:
                raise run.state.error()
        except BaseException as error:
            if not run.is_final:
                await end_early(run, error, port)
            elif isinstance(error, GeneratorExit):
                port.call_hooks_now(ending_hooks(run), run, run.state)
            raise
    finally:
        try:
            run.settle()
        except RecursionError:
            run.journal.unsettled = (run, run.journal.unsettled)
        leave_context(token)
        if body is not None:
            body.let_go()
        del run, token


class Steps:
    """The body of one attempt of a generator task, advanced step by step; sync or async inside."""

    __slots__ = ("_generator", "_is_async", "_left", "_port", "_run", "_slots", "has_yielded", "is_over")

    def __init__(self, run: Run, port: Port) -> None:
        self._run: Any = run
        self._port = port
        self._generator: Any = None
        self._slots: Slots | None = None
        self._is_async = run.spec.is_async
        #: Seconds left to the body; the time that the consumer takes between two steps does not count.
        self._left = run.spec.options.timeout
        self.has_yielded = False
        self.is_over = False

    async def begin(self) -> Any:
        run = self._run
        self._generator = run.spec.body(*run.args, **run.kwargs)
        return await self.send(None)

    def pause(self, slots: Slots | None, token: Any) -> None:
        """It has given a value, and goes on only when the code does that took it; see `deadlocks.check_paused`."""
        leave_context(token)
        self._slots = slots
        if slots is not None:
            pause(slots, strand_here())

    def _resume(self) -> None:
        if self._slots is not None:
            pause(self._slots, None)

    async def send(self, value: Any) -> Any:
        generator = self._generator
        return await self._step((lambda: generator.asend(value)) if self._is_async else lambda: generator.send(value))

    async def throw(self, error: BaseException) -> Any:
        generator = self._generator
        return await self._step((lambda: generator.athrow(error)) if self._is_async else lambda: generator.throw(error))

    async def close(self) -> None:
        self._resume()
        generator = self._generator
        if self._is_async:
            await generator.aclose()
        else:
            generator.close()

    def let_go(self) -> None:
        """Over: the traceback of what the body raised leads here, and must not lead on to the run."""
        self._run = self._generator = self._slots = None

    async def _step(self, step: Callable[[], Any]) -> Any:
        self._resume()
        if self._left == 0.0:  # used up by steps that never let anybody stop them
            await self.close()
            raise timed_out(self._run)
        monotonic = self._run.journal.clock.monotonic
        start = monotonic()
        advance = partial(_advance_async if self._is_async else _advance, step)
        self.is_over, value = await self._port.step(self._run, advance, self._left)
        if self.is_over:
            return value
        if self._left is not None:
            self._left = max(0.0, self._left - (monotonic() - start))
        self.has_yielded = True
        if value.__class__ not in ATOMS:
            lineage.note(value, self._run)
        return value


def _advance(step: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return False, step()
    except StopIteration as end:  # may not pass through a coroutine
        return True, end.value


async def _advance_async(step: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
    try:
        return False, await step()
    except StopAsyncIteration:
        return True, None


# -- the steps of a life, in order --------------------------------------------------------------------------------


async def inputs_ready(run: Run, port: Port) -> None:
    """Wait for every run found in the arguments or in `wait_for`, then put values in their places."""
    found = find((*run.args, *run.kwargs.values()))
    awaited = find(run.wait_for)
    for upstream in (*found.runs, *awaited.runs):
        if not upstream.is_settled:
            run.blocker = upstream
            lent = port.services.limits.begin_wait(run, upstream)
            try:
                await port.until_settled(upstream)
            finally:
                port.services.limits.end_wait(lent)
    run.blocker = None
    upstreams = dict.fromkeys(one.number for one in (*found.runs, *awaited.runs))
    upstreams.update(dict.fromkeys(one.run_number for one in (*found.states, *awaited.states) if one.run_number))
    for number, is_generator in found.sources:
        if is_generator:  # what a generator yields is passed on while it runs: it is the parent of who takes it
            run.parent_number = number
        else:
            upstreams[number] = None
    if upstreams:
        run.upstream = list(upstreams)
    failed = failed_upstream(found) or failed_upstream(awaited)
    if failed is not None:
        raise failed
    if found.is_to_fill:
        run.args = tuple(fill(value) for value in run.args)
        run.kwargs = {name: fill(value) for name, value in run.kwargs.items()}
        if run.spec.check_filled is not None:
            run.args, run.kwargs = run.spec.check_filled(run.args, run.kwargs)
    run.is_small = not run.kwargs and are_small(run.args)
    if not run.is_small:
        run.note(texts=run.shown_parameters())  # now: the body may change what it is given


def rendered_name(run: Run) -> str:
    """The run's name by the task's template or function, secrets masked. Raises `OptionError`, naming the option."""
    template = run.spec.options.run_name
    option = f"{run.spec.what}_run_name"
    try:
        if isinstance(template, str):
            return masked(without_secrets(template).format(**run.parameters))
        assert template is not None
        takes = "parameters" in inspect.signature(template).parameters
        name = template(parameters=run.parameters) if takes else template()
    except Exception as error:
        raise OptionError(f"{run.spec.name!r}: option {option!r} could not make a name: {shown(error)}") from error
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # the user's function may lie
        raise OptionError(f"{run.spec.name!r}: option {option!r} must give a string, not {type(name).__name__}")
    return masked(name)


async def slots_taken(run: Run, port: Port) -> Slots | None:
    """Take a slot of every limited tag of the run, waiting in line if need be; None when no tag is limited."""
    limits = port.services.limits
    if not limits.is_known:
        await port.ask(port.services.store.ready())
    slots = limits.take(run)
    if slots is None:
        return None
    try:
        if not slots.granted:
            run.enter(SCHEDULED, "AwaitingConcurrencySlot", slots.text())
            lent = limits.begin_wait_for_slots(slots)
            try:
                while not slots.granted and slots.refused is None:
                    await port.until_granted(slots)
            finally:
                if lent is not None:
                    limits.end_wait(lent)
            run.blocker = None
            if slots.refused is not None:
                raise slots.refused
    except BaseException:  # cancelled while waiting, perhaps just as the slots were granted
        run.blocker = None
        limits.give(slots)
        raise
    run.slots = slots
    return slots


def give_slots(run: Run, slots: Slots, port: Port) -> None:
    """Give back the slots of an attempt; if it is being cancelled, its final state comes a moment later.

    An interrupted body that is still in its thread keeps them until it leaves: what the limit guards is in use.
    """
    limits = port.services.limits
    for body in list(port.services.abandoned) if port.services.abandoned else ():
        if body.slots is slots and body.when_left(lambda: limits.give(slots)):
            return  # `run.slots` stays as well: what the body still calls in that thread may borrow them
    run.slots = None
    limits.give(slots)


def leave_context(token: Any) -> None:
    """Undo `current_run.set`, if this is still the context in which it was done."""
    try:
        if token is not None:
            current_run.reset(token)
    except ValueError:  # closed by the garbage collector, from wherever it ran: there is nothing to undo here
        return
