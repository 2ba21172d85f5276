"""How an attempt or a run ends: what a body returned or raised becomes a state, and what follows from it.

1. Whatever a body returns or raises, and however a run is stopped, exactly one state comes of it, entered here.
2. A failure is tried again only while attempts remain, `retry_on` and `retry_condition_fn` agree, and nobody has asked
   the run to stop.
3. Cancelled is what its caller, its flow or `cancel()` ended; Crashed what an interrupt, an exit or a closing loop did.
"""

from __future__ import annotations

import logging
import sys
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from . import retries
from .bodies import GENERATORS
from .errors import ConcurrencyLimitAborted, Interrupted, SerializationError, UpstreamTaskError, WorkerLostError
from .loops import is_being_cancelled, is_cancellation, was_cancelled_before
from .observers import log_retry
from .records import retry_message
from .redact import shown, text_of
from .runs import Run
from .states import CANCELLED, COMPLETED, CRASHED, FAILED, PENDING, SCHEDULED, Outcome, State, aggregate
from .waiting import Port

logger = logging.getLogger("asynctask")
#: A task that has lost its worker so often in a row is not tried again; and what such messages say.
MOST_LOSSES, LOST = 3, "worker process"
#: Modules whose frames are cut off tracebacks: ours, and what brings an exception from a thread.
_NOT_THEIRS = (__name__.rpartition(".")[0] + ".", "concurrent.futures.")


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
    what = run.spec.what
    if isinstance(value, CoroutineType):
        value.close()
        raise TypeError(
            f"{what} {run.spec.name!r} returned a coroutine that nobody awaited; "
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
        name = run.spec.name
        raise TypeError(f"{what} {name!r} returned the state {value!r}, which is no end; return Completed(...)")
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
    elif isinstance(error, WorkerLostError):
        failed = Outcome(CRASHED, "Crashed", now, str(error), error)
    else:
        failed = Outcome(FAILED, "Failed", now, f"{type(error).__name__}: {text_of(error)}", error)
    remaining = retries.retries_allowed(options, is_flow=spec.is_flow) - attempt + 1
    if isinstance(error, SerializationError) and run.spec.keeper is not None:
        may_retry = False  # its body did what it should; another attempt would give the same
    if remaining > 0 and (run.cancel_reason is not None or was_cancelled_before(error)):
        may_retry = False  # it failed as it cleaned up: another attempt would outlive its own cancellation
    is_lost = failed.type is CRASHED
    if is_lost and losses_in_a_row(run) + 1 >= MOST_LOSSES:
        may_retry = False  # it is most likely the body that kills its worker
    may_retry = may_retry and remaining > 0 and (is_lost or retries.is_retried(options, error))
    if may_retry and await is_wanted(run, failed, port):
        delay = retries.delay_before(options, attempt, port.services.random, is_flow=spec.is_flow)
        next_one = f"attempt {attempt + 1} of {attempt + remaining}"
        run.enter(SCHEDULED, "AwaitingRetry", retry_message(failed.message, next_one, delay))
        log_retry(run)
        return delay
    keep_error(run, error)
    run.enter(failed.type, failed.name, failed.message)
    return None


def losses_in_a_row(run: Run) -> int:
    """How many of the last attempts ended with the loss of their worker."""
    messages = [state.message for state in run.states if state.name == "AwaitingRetry"]
    return next((count for count, text in enumerate(reversed(messages)) if LOST not in text), len(messages))


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
        run.enter(CRASHED, "Crashed", f"ended by an exit (code {shown(error.code)})")
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


def stop(run: Run, reason: str) -> bool:
    """Ask a submitted run, and the runs submitted inside it, to stop. False if it is over."""
    if run.is_settled:
        return False
    siblings: dict[int, Run] = {} if run.inside is None else run.inside.children
    ask_to_stop(run, reason)
    for other in list(siblings.values()):
        ancestor = other.parent
        while ancestor is not None and ancestor is not run:
            ancestor = ancestor.parent
        if ancestor is run:
            ask_to_stop(other, reason)
    return True


def ask_to_stop(run: Run, reason: str) -> None:
    """Cancel one submitted run, where it runs."""
    if run.cancel_reason is None:
        run.cancel_reason = reason
    child, home = run.child, run.home
    if child is not None and home is not None:
        home.cancel(child)


def program_was_interrupted() -> bool:
    """Whether the program ends because nobody has caught a Ctrl-C; a session of `python -i` goes on after one."""
    shown_last: object = getattr(sys, "last_type", None)  # set as the interpreter prints what nobody has caught
    return isinstance(shown_last, type) and issubclass(shown_last, KeyboardInterrupt) and not hasattr(sys, "ps1")
