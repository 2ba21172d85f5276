"""Every option of a task or flow as one frozen struct, checked when the decorator runs.

What a user wrote is kept as a plain dict, so that `with_options` can replace single options and have the whole
checked again; `Options` is what the rest of the code reads.
"""

from __future__ import annotations

import math
import os
import string
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from typing import Any, Protocol, cast

import msgspec

from .errors import OptionError
from .redact import shown
from .states import State

#: `hook(task, run, state)`, sync or async.
Hook = Callable[[Any, Any, State], Any]
#: `around(call, run)`: runs the rest by calling (or awaiting) `call()`, and returns the value.
Around = Callable[[Callable[[], Any], Any], Any]
#: `condition(task, run, state)`: whether to try again, asked only while attempts remain.
RetryCondition = Callable[[Any, Any, State], bool | Awaitable[bool]]
#: seconds, one number for every retry, one each, or a function from the number of retries to such a list.
RetryDelay = float | Sequence[float] | Callable[[int], Sequence[float]]

#: `hook(txn)`, sync or async, when a transaction is committed or rolled back.
TransactionHook = Callable[[Any], Any]

MOST_DELAYS = 50


class CachePolicyLike(Protocol):
    """A cache policy; there are some in `asynctask.cache_policies`."""

    def compute_key(
        self, task_ctx: Any, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None: ...


class TaskRunner(Protocol):
    """Where bodies run: a source of a `concurrent.futures.Executor`, whose calls run in this process.

    Both methods may be called from any thread. `asynctask.testing.TaskRunnerContract` judges whether one does as it
    must.
    """

    def executor(self) -> Executor:
        """Asked for at each call of a sync body that was submitted; what it raises fails the attempt."""
        ...

    def close(self) -> None:
        """Called when a runtime that has used it is left. It may be used again."""
        ...


#: The options that people may write; see `keywords`.
TASK_OPTIONS = (
    "name", "description", "tags", "version", "task_run_name", "retries", "retry_delay_seconds",
    "retry_jitter_factor", "retry_on", "retry_condition_fn", "timeout_seconds", "cache_policy", "cache_key_fn",
    "cache_expiration", "refresh_cache", "persist_result", "result_storage", "result_storage_key",
    "result_serializer", "cache_result_in_memory", "log_prints", "on_commit", "on_rollback", "on_running",
    "on_completion", "on_failure", "on_cancellation", "on_crashed", "around", "task_runner",
)  # fmt: skip
FLOW_OPTIONS = (
    "name", "description", "version", "flow_run_name", "task_runner", "retries", "retry_delay_seconds",
    "timeout_seconds", "validate_parameters", "persist_result", "result_serializer", "log_prints", "on_running",
    "on_completion", "on_failure", "on_cancellation", "on_crashed",
)  # fmt: skip


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The checked options of one task or flow. None means: not asked for, or as the settings say."""

    name: str
    description: str | None = None
    tags: frozenset[str] = frozenset()
    version: str | None = None
    run_name: str | Callable[..., str] | None = None
    retries: int | None = None
    retry_delays: tuple[float, ...] | None = None
    retry_jitter_factor: float | None = None
    retry_on: tuple[type[BaseException], ...] | None = None
    retry_condition_fn: RetryCondition | None = None
    timeout: float | None = None
    log_prints: bool | None = None
    validate_parameters: bool = True
    cache_policy: Any = None
    cache_key_fn: Callable[[Any, dict[str, Any]], str | None] | None = None
    cache_expiration: timedelta | None = None
    refresh_cache: bool | None = None
    persist_result: bool | None = None
    result_storage: str | None = None
    result_storage_key: str | None = None
    result_serializer: Any = None
    cache_result_in_memory: bool = True
    on_commit: tuple[TransactionHook, ...] = ()
    on_rollback: tuple[TransactionHook, ...] = ()
    on_running: tuple[Hook, ...] = ()
    on_completion: tuple[Hook, ...] = ()
    on_failure: tuple[Hook, ...] = ()
    on_cancellation: tuple[Hook, ...] = ()
    on_crashed: tuple[Hook, ...] = ()
    around: tuple[Around, ...] = ()
    task_runner: TaskRunner | None = None


def check_options(what: str, default_name: str, given: dict[str, Any], *, default_retries: int) -> Options:
    """The `Options` for what a user wrote. `what` is "task" or "flow".

    Raises `OptionError`, naming the task or flow, the option, the value and what to write instead.
    """
    named = given.get("name")
    check = _Check(what, named if isinstance(named, str) and named else default_name, given)
    allowed = FLOW_OPTIONS if what == "flow" else TASK_OPTIONS
    for option in given:
        if option not in allowed:
            import difflib  # 2 ms, for who makes a mistake

            twin = option.replace("task_", "flow_") if what == "flow" else option.replace("flow_", "task_")
            close = [twin] if twin in allowed else difflib.get_close_matches(option, allowed, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(allowed))}"
            raise OptionError(f"{what} {check.name!r}: there is no option {option!r}; {hint}")
    retries = check.count("retries")
    return Options(
        name=check.text("name") or default_name,
        description=check.text("description"),
        tags=check.tags(),
        version=check.text("version"),
        run_name=check.run_name("flow_run_name" if what == "flow" else "task_run_name"),
        retries=retries,
        retry_delays=check.delays(default_retries if retries is None else retries),
        retry_jitter_factor=check.seconds("retry_jitter_factor", "a number that is not negative"),
        retry_on=check.exceptions("retry_on"),
        retry_condition_fn=check.function("retry_condition_fn"),
        timeout=check.seconds("timeout_seconds", "a number of seconds that is not negative") or None,
        log_prints=check.flag("log_prints"),
        validate_parameters=check.flag("validate_parameters") is not False,
        cache_policy=check.policy("cache_policy"),
        cache_key_fn=check.function("cache_key_fn"),
        cache_expiration=check.duration("cache_expiration"),
        refresh_cache=check.flag("refresh_cache"),
        persist_result=check.flag("persist_result"),
        result_storage=check.path("result_storage"),
        result_storage_key=check.text("result_storage_key"),
        result_serializer=given.get("result_serializer"),
        cache_result_in_memory=check.flag("cache_result_in_memory") is not False,
        on_commit=check.functions("on_commit"),
        on_rollback=check.functions("on_rollback"),
        on_running=check.functions("on_running"),
        on_completion=check.functions("on_completion"),
        on_failure=check.functions("on_failure"),
        on_cancellation=check.functions("on_cancellation"),
        on_crashed=check.functions("on_crashed"),
        around=check.functions("around"),
        task_runner=check.runner(),
    )


class _Check:
    """Reads single options; every method raises `OptionError` for a wrong value, in one form of words."""

    __slots__ = ("given", "name", "what")

    def __init__(self, what: str, name: object, given: dict[str, Any]) -> None:
        self.what = what
        self.name = name
        self.given = given

    def wrong(self, option: str, wanted: str, value: object) -> OptionError:
        return OptionError(f"{self.what} {self.name!r}: option {option!r} must be {wanted}, not {shown(value, 80)}")

    def text(self, option: str) -> str | None:
        value = self.given.get(option)
        if value is not None and not (isinstance(value, str) and value):
            raise self.wrong(option, "a string that is not empty", value)
        return value

    def flag(self, option: str) -> bool | None:
        value = self.given.get(option)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(option, "True, False or None", value)
        return value

    def count(self, option: str) -> int | None:
        value = self.given.get(option)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(option, "a whole number that is not negative", value)
        return value

    def seconds(self, option: str, wanted: str) -> float | None:
        value = self.given.get(option)
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if value is None:
            return None
        if not _is_duration(value):
            raise self.wrong(option, wanted, value)
        return float(value)

    def duration(self, option: str) -> timedelta | None:
        value = self.given.get(option)
        if value is None or (isinstance(value, timedelta) and value >= timedelta(0)):
            return value
        if _is_duration(value):
            return timedelta(seconds=float(cast("float", value)))
        raise self.wrong(option, "a timedelta, or a number of seconds, that is not negative", value)

    def path(self, option: str) -> str | None:
        value = self.given.get(option)
        if value is None:
            return None
        is_path = isinstance(value, (str, os.PathLike))
        path = os.fspath(cast("str", value)) if is_path else ""
        if not path or "://" in path:
            raise self.wrong(option, "the path of a folder", value)
        return path

    def policy(self, option: str) -> Any:
        value = self.given.get(option)
        if value is not None and (isinstance(value, type) or not callable(getattr(value, "compute_key", None))):
            raise self.wrong(option, "a cache policy, such as INPUTS of asynctask.cache_policies", value)
        return value

    def tags(self) -> frozenset[str]:
        value = self.given.get("tags")
        if value is None:
            return frozenset()
        if isinstance(value, str):
            raise self.wrong("tags", f"a collection of strings (write [{shown(value, 80)}])", value)
        try:
            tags = list(cast("Iterable[object]", value))
        except TypeError:
            raise self.wrong("tags", "a collection of strings", value) from None
        for tag in tags:
            if not isinstance(tag, str) or not tag:
                raise self.wrong("tags", "a collection of strings that are not empty", value)
        return frozenset(cast("list[str]", tags))

    def delays(self, retries: int) -> tuple[float, ...] | None:
        option = "retry_delay_seconds"
        value = self.given.get(option)
        if value is None:
            return None
        wanted = "a number of seconds that is not negative, a list of such, or a function from retries to such a list"
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if callable(value):
            try:
                value = value(retries)
            except Exception as error:
                raise self.wrong(option, f"a function of one whole number (it raised {shown(error)})", value) from error
        delays = list(cast("Sequence[object]", value)) if isinstance(value, (list, tuple)) else [value]
        if len(delays) > MOST_DELAYS:
            raise OptionError(
                f"{self.what} {self.name!r}: option {option!r} must be at most {MOST_DELAYS} delays "
                f"(the last one repeats), not {len(delays)}"
            )
        seconds = [delay.total_seconds() if isinstance(delay, timedelta) else delay for delay in delays]
        if not all(map(_is_duration, seconds)):
            raise self.wrong(option, wanted, value)  # pyright: ignore[reportUnknownArgumentType]
        return tuple(float(cast("float", delay)) for delay in seconds) or None

    def exceptions(self, option: str) -> tuple[type[BaseException], ...] | None:
        value = self.given.get(option)
        if value is None:
            return None
        several = list(cast("Iterable[object]", value)) if isinstance(value, (list, tuple, set, frozenset)) else [value]
        if not several or not all(isinstance(one, type) and issubclass(one, BaseException) for one in several):
            raise self.wrong(option, "an exception type or a list of them", value)  # pyright: ignore[reportUnknownArgumentType]
        return tuple(cast("list[type[BaseException]]", several))

    def function(self, option: str) -> Any:
        value = self.given.get(option)
        if value is not None and not callable(value):
            raise self.wrong(option, "a function", value)
        return value

    def functions(self, option: str) -> tuple[Any, ...]:
        value = self.given.get(option)
        if value is None:
            return ()
        several = list(cast("Iterable[object]", value)) if isinstance(value, (list, tuple)) else [value]
        for one in several:
            if not callable(one):
                raise self.wrong(option, "a function or a list of functions", one)
        return tuple(several)

    def run_name(self, option: str) -> str | Callable[..., str] | None:
        value = self.given.get(option)
        if value is None or callable(value):
            return cast("Callable[..., str] | None", value)
        if not isinstance(value, str) or not value:
            raise self.wrong(option, "a format string over the parameters, or a function", value)
        try:
            fields = list(string.Formatter().parse(value))
        except ValueError as error:
            raise self.wrong(option, f"a valid format string ({error})", value) from error
        for *_, conversion in fields:
            if conversion and conversion not in "sra":
                raise self.wrong(option, f"a valid format string (!{conversion} is none of !s, !r and !a)", value)
        return value

    def runner(self) -> TaskRunner | None:
        value = self.given.get("task_runner")
        if value is not None and not is_runner(value):
            raise self.wrong("task_runner", RUNNER, value)
        return value


RUNNER = "a task runner with executor() and close(), such as ThreadPoolTaskRunner(max_workers=4)"


def is_runner(value: object) -> bool:
    if isinstance(value, type):
        return False
    return callable(getattr(value, "executor", None)) and callable(getattr(value, "close", None))


def check_runtime(name: str, shutdown_timeout: object, task_runner: object) -> None:
    """Raise `OptionError` for arguments that no `Runtime` can be made with."""
    seconds = 0 if shutdown_timeout is None else shutdown_timeout
    if not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise OptionError(
            f"runtime {name!r}: shutdown_timeout must be a number of seconds that is not negative, "
            f"not {shown(shutdown_timeout, 80)}"
        )
    if task_runner is not None and not is_runner(task_runner):
        raise OptionError(f"runtime {name!r}: task_runner must be {RUNNER}, not {shown(task_runner, 80)}")


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
