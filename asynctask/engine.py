"""The life of one run, from top to bottom, for sync and async alike; and the same life for generators.

1. Every way out leaves the run in a final state, settled, and holding nothing.
2. The engine waits only through the port it is given; what it decides, it asks of pure functions.
3. Order: inputs first, then the slots, then the body. Only Running holds a slot: not waiting for an upstream,
   not waiting for a retry. A timeout bounds one attempt; hooks run inside the run's context.
4. The path of a cancelled run awaits nothing.
5. A submitted run keeps its exception for who asks for it; a called one raises it to its caller.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from . import retries
from .bodies import GENERATORS, timed_out
from .errors import ConcurrencyLimitAborted, Interrupted, OptionError, UpstreamTaskError
from .inputs import ATOMS, failed_upstream, fill, find, is_plain, lineage
from .limits import Slots
from .loops import begun, is_being_cancelled, is_cancellation, was_cancelled_before
from .runs import Run, current_run
from .states import CANCELLED, COMPLETED, CRASHED, FAILED, PENDING, RUNNING, SCHEDULED, Outcome, State, aggregate
from .waiting import Port

logger = logging.getLogger("asynctask")
#: Modules whose frames are cut off tracebacks: ours, and what brings an exception from a thread.
_NOT_THEIRS = (__name__.rpartition(".")[0] + ".", "concurrent.futures.")


async def execute(run: Run, port: Port) -> Any:
    """Take `run` through its life and return its value, or raise its exception (see rule 5)."""
    spec = run.spec
    options = spec.options
    token = None
    try:
        if not run.is_submitted:
            run.journal.live[run.number] = run
        elif run.home.begins_early:
            await begun()
        token = current_run.set(run)
        if run.cancel_reason is not None:
            raise Interrupted
        if run.wait_for or ((run.args or run.kwargs) and not is_plain(run.args, run.kwargs)):
            await inputs_ready(run, port)
        if options.run_name is not None:
            run.given_name = rendered_name(run)
        attempt = 1
        while True:
            slots = await slots_taken(run, port) if run.tags else None
            try:
                run.enter(RUNNING, "Running" if attempt == 1 else "Retrying")
                if options.on_running:
                    await port.call_hooks(options.on_running, run, run.state)
                made = port.call(run) if spec.enclose is None else spec.enclose(run, port)
                value = await made if port.is_async or spec.enclose is not None else made
                if value.__class__ in ATOMS or value.__class__ not in NEED_CARE:
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
            await port.sleep(run, delay)
        last = run.states[-1].type
        if last is COMPLETED:
            if options.on_completion:
                await port.call_hooks(options.on_completion, run, run.state)
            if run.value.__class__ not in ATOMS:
                lineage.note(run.value, run)
            return run.value
        await port.call_hooks(ending_hooks(run), run, run.state)
        if run.is_submitted:
            return None
        raise run.state.error()
    except BaseException as error:
        if not run.is_final:
            await end_early(run, error, port)
        if run.is_submitted and not is_cancellation(error):
            return None
        raise
    finally:
        try:
            run.settle()
        except RecursionError:  # to note it takes no call, for which there is no stack
            run.journal.unsettled = (run, run.journal.unsettled)
        if token is not None and not run.is_submitted:  # a submitted run has a context of its own
            leave_context(token)
        # Else: run -> its error -> the traceback -> this frame -> run, which only the collector would free. The token
        # leads to the context, and so to the run. Every frame between here and the body keeps the same rule.
        del run, token


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
                        leave_context(token)
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
        body = None
        del run, token


class Steps:
    """The body of one attempt of a generator task, advanced step by step; sync or async inside."""

    __slots__ = ("_generator", "_is_async", "_left", "_port", "_run", "has_yielded", "is_over")

    def __init__(self, run: Run, port: Port) -> None:
        self._run = run
        self._port = port
        self._generator: Any = None
        self._is_async = run.spec.is_async
        #: Seconds left to the body; the time that the consumer takes between two steps does not count.
        self._left = run.spec.options.timeout
        self.has_yielded = False
        self.is_over = False

    async def begin(self) -> Any:
        run = self._run
        self._generator = run.spec.body(*run.args, **run.kwargs)
        return await self.send(None)

    async def send(self, value: Any) -> Any:
        generator = self._generator
        return await self._step((lambda: generator.asend(value)) if self._is_async else lambda: generator.send(value))

    async def throw(self, error: BaseException) -> Any:
        generator = self._generator
        return await self._step((lambda: generator.athrow(error)) if self._is_async else lambda: generator.throw(error))

    async def close(self) -> None:
        generator = self._generator
        if self._is_async:
            await generator.aclose()
        else:
            generator.close()

    async def _step(self, step: Callable[[], Any]) -> Any:
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
            lent = port.services.limits.begin_wait(run)
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


def rendered_name(run: Run) -> str:
    """The run's name by the task's template or function. Raises `OptionError`, naming the option."""
    template = run.spec.options.run_name
    option = "flow_run_name" if run.spec.is_flow else "task_run_name"
    try:
        if isinstance(template, str):
            return template.format(**run.parameters)
        assert template is not None
        takes = "parameters" in inspect.signature(template).parameters
        name = template(parameters=run.parameters) if takes else template()
    except Exception as error:
        raise OptionError(f"{run.spec.name!r}: option {option!r} could not make a name: {error!r}") from error
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # the user's function may lie
        raise OptionError(f"{run.spec.name!r}: option {option!r} must give a string, not {type(name).__name__}")
    return name


async def slots_taken(run: Run, port: Port) -> Slots | None:
    """Take a slot of every limited tag of the run, waiting in line if need be; None when no tag is limited."""
    limits = port.services.limits
    slots = limits.take(run)
    if slots is None:
        return None
    try:
        if not slots.granted:
            run.enter(SCHEDULED, "AwaitingConcurrencySlot", f"tags: {', '.join(line.tag for line in slots.lines)}")
            run.blocker = slots
            lent = limits.begin_wait(run)
            try:
                await port.until_granted(slots)
            finally:
                limits.end_wait(lent)
            run.blocker = None
            if slots.refused is not None:
                raise slots.refused
    except BaseException:  # cancelled while waiting, perhaps just as the slots were granted
        limits.give(slots)
        raise
    run.slots = slots
    return slots


def give_slots(run: Run, slots: Slots, port: Port) -> None:
    """Give back the slots of an attempt; if it is being cancelled, its final state comes a moment later.

    An interrupted body that is still in its thread keeps them until it leaves: what the limit guards is in use.
    """
    run.slots = None
    limits = port.services.limits
    for body in list(port.services.abandoned):
        if body.slots is slots and body.when_left(lambda: limits.give(slots)):
            return
    limits.give(slots)


def has_yielded(run: Run) -> bool:
    """Whether a submitted generator has given a value, which somebody may have taken: then it is not retried."""
    return run.yielded is not None and bool(run.yielded.values)


#: Exactly these types of values stand, or may stand, for something else.
NEED_CARE: set[type] = {State, Outcome, list, tuple, set, GeneratorType, AsyncGeneratorType, CoroutineType}


async def consumed(value: Any, port: Port) -> Any:
    """What a body returned; the values of a generator, which is more of its work."""
    if value.__class__ in GENERATORS:
        return list(value)  # type: ignore[call-overload]
    if isinstance(value, AsyncGeneratorType) and port.is_async:
        return [one async for one in value]  # pyright: ignore[reportUnknownVariableType]
    return value  # pyright: ignore[reportUnknownVariableType]


def take_outcome(run: Run, value: Any) -> None:
    """Enter the state that a body's return value stands for: a state, states, a generator, or a plain value."""
    if isinstance(value, CoroutineType):
        value.close()
        raise TypeError(
            f"task {run.spec.name!r} returned a coroutine that nobody awaited; "
            f"await it in the body, and make the function async if it is not"
        )
    if isinstance(value, (list, tuple, set)) and value and all(isinstance(one, State) for one in value):  # pyright: ignore[reportUnknownVariableType]
        several: list[State] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        whole = aggregate(several)
        value = Outcome(whole.type, whole.name, whole.time, whole.message, several) if whole.is_completed() else whole
    if not isinstance(value, State):
        run.value = value
        run.enter(COMPLETED, "Completed")
        return
    if not value.type.is_final:
        raise TypeError(f"task {run.spec.name!r} returned the state {value!r}, which is no end; return Completed(...)")
    if value.type is FAILED:
        raise Returned(value)
    if value.type is COMPLETED:
        run.value = value.data
    else:
        run.error = value.error()
    run.enter(value.type, value.name, value.message)


class Returned(Exception):
    """Carries a Failed state that a body returned to where failures are dealt with; never leaves this file."""

    def __init__(self, state: State) -> None:
        self.state = state


async def after_failure(
    run: Run, error: Exception, attempt: int, port: Port, *, may_retry: bool = True
) -> float | None:
    """Enter the state that follows a failed attempt; seconds until the next one, or None when this was the last."""
    spec = run.spec
    options = spec.options
    now = run.journal.clock.now()
    settle_deeper(run, port)
    if isinstance(error, Returned):
        failed = error.state
        error = failed.error()
    elif error is run.timeout_error:
        failed = Outcome(FAILED, "TimedOut", now, str(error), error)
    else:
        failed = Outcome(FAILED, "Failed", now, f"{type(error).__name__}: {text_of(error)}", error)
    remaining = retries.retries_allowed(options, is_flow=spec.is_flow) - attempt + 1
    if remaining > 0 and (run.cancel_reason is not None or was_cancelled_before(error)):
        may_retry = False  # it failed as it cleaned up: another attempt would outlive its own cancellation
    if may_retry and remaining > 0 and retries.is_retried(options, error) and await is_wanted(run, failed, port):
        delay = retries.delay_before(options, attempt, port.services.random, is_flow=spec.is_flow)
        text = f"{failed.message}; attempt {attempt + 1} of {attempt + remaining} starts in {delay:g} s"
        run.enter(SCHEDULED, "AwaitingRetry", text)
        return delay
    keep_error(run, error)
    run.enter(FAILED, failed.name, failed.message)
    return None


async def is_wanted(run: Run, failed: State, port: Port) -> bool:
    """What the task's `retry_condition_fn` says; an exception in it is logged and means no."""
    condition = run.spec.options.retry_condition_fn
    if condition is None:
        return True
    try:
        return bool(await port.call_user(condition, run.spec.task, run, failed))
    except Exception:
        logger.exception("retry_condition_fn of task %r raised; run %r is not retried", run.spec.name, run.name)
        return False


def ending_hooks(run: Run) -> tuple[Any, ...]:
    """The hooks for the final state that the run is in."""
    options = run.spec.options
    kind = run.states[-1].type
    if kind is COMPLETED:
        return options.on_completion
    if kind is FAILED:
        return options.on_failure
    if kind is CANCELLED:
        return options.on_cancellation
    return options.on_crashed if kind is CRASHED else ()


def settle_deeper(caller: Run, port: Port) -> None:
    """End the runs, called by `caller` in the end, that had no stack left to end themselves."""
    journal = caller.journal
    while journal.unsettled is not None:
        run, others = journal.unsettled
        if not run.is_final:
            run.enter(FAILED, "Failed", "RecursionError: no stack was left for it")
            port.call_hooks_now(ending_hooks(run), run, run.state)
        run.is_settled = False  # it may have come halfway
        run.settle()
        journal.unsettled = others  # only now: there may be too little stack here as well, and more further up


async def end_early(run: Run, error: BaseException, port: Port) -> None:
    """Enter the final state of a run that ends outside an attempt, or is cancelled or interrupted in one.

    Waits for nothing when it is cancelled or interrupted.
    """
    settle_deeper(run, port)
    keep_error(run, error)
    if isinstance(error, UpstreamTaskError) and run.states[-1].type is PENDING:
        run.enter(PENDING, "NotReady", str(error))
    elif isinstance(error, ConcurrencyLimitAborted):
        run.enter(CANCELLED, "Cancelled", str(error))
    elif isinstance(error, Exception):
        run.enter(FAILED, "Failed", f"{type(error).__name__}: {text_of(error)}")
    else:
        end_by(run, error)
        port.call_hooks_now(ending_hooks(run), run, run.state)
        return
    await port.call_hooks(ending_hooks(run), run, run.state)


def end_by(run: Run, error: BaseException) -> None:
    """Enter Cancelled or Crashed, for a run ended by `error`, which is no ordinary exception."""
    if run.cancel_reason is not None:
        run.error = None
        run.enter(CANCELLED, "Cancelled", run.cancel_reason)
    elif isinstance(error, Interrupted) or is_cancellation(error):
        run.error = None
        if run.is_submitted and is_being_cancelled():
            run.enter(CRASHED, "Crashed", "ended by its event loop, which is closing")
        else:
            run.enter(CANCELLED, "Cancelled", "cancelled by its caller")
    elif isinstance(error, KeyboardInterrupt):
        run.enter(CRASHED, "Crashed", "ended by an interrupt")
    elif isinstance(error, SystemExit):
        run.enter(CRASHED, "Crashed", f"ended by an exit (code {error.code!r})")
    elif isinstance(error, GeneratorExit):
        run.enter(CRASHED, "Crashed", "closed before its end, as by a closing event loop")
    else:
        run.enter(CRASHED, "Crashed", f"{type(error).__name__}: {text_of(error)}")


def keep_error(run: Run, error: BaseException) -> None:
    """Make `error` the run's, its traceback beginning in the user's body, so that it does not keep our frames alive."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_NOT_THEIRS):
        trace = trace.tb_next
    run.error = error.with_traceback(trace)
    run.trace = trace


def text_of(error: BaseException) -> str:
    """The message of an exception, also of one whose `__str__` raises or is huge."""
    try:
        text = str(error)
    except Exception as broken:
        return f"(its message cannot be shown: {type(broken).__name__})"
    return text if len(text) <= 1000 else text[:997] + "..."


def leave_context(token: Any) -> None:
    """Undo `current_run.set`, if this is still the context in which it was done."""
    try:
        current_run.reset(token)
    except ValueError:  # closed by the garbage collector, from wherever it ran: there is nothing to undo here
        return
