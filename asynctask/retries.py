"""When to try again, and after how long. Pure: nothing here waits or calls user code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .options import MOST_DELAYS, Options
from .settings import settings

if TYPE_CHECKING:
    import random  # 1 ms at import; a runtime imports it when it is made


def exponential_backoff(backoff_factor: float) -> Callable[[int], list[float]]:
    """For `retry_delay_seconds`: delays of `backoff_factor` seconds times 1, 2, 4, 8, ..."""
    if backoff_factor < 0:
        raise ValueError(f"backoff_factor must not be negative, not {backoff_factor!r}")

    def delays(retries: int) -> list[float]:
        return [backoff_factor * 2**attempt for attempt in range(min(retries, MOST_DELAYS))]

    return delays


def retries_allowed(options: Options, *, is_flow: bool) -> int:
    """How many attempts may follow the first."""
    if options.retries is not None:
        return options.retries
    return settings.values.flow_default_retries if is_flow else settings.values.task_default_retries


def is_retried(options: Options, error: BaseException | None) -> bool:
    """Whether `retry_on` admits this failure; without `retry_on`, every failure is admitted."""
    return options.retry_on is None or isinstance(error, options.retry_on)


def delay_before(options: Options, retry: int, source: random.Random, *, is_flow: bool) -> float:
    """Seconds to wait before retry number `retry` (from 1); the last delay of a list repeats."""
    delays = options.retry_delays
    if delays is None:
        values = settings.values
        default = values.flow_default_retry_delay_seconds if is_flow else values.task_default_retry_delay_seconds
        delays = tuple(default) if isinstance(default, list) else (default,)
    if not delays:
        return 0.0
    delay = delays[min(retry, len(delays)) - 1]
    return jittered(delay, options.retry_jitter_factor or 0.0, source)


def jittered(delay: float, factor: float, source: random.Random) -> float:
    """A random delay with mean `delay` and at most `delay * (1 + factor)`: a clamped exponential.

    Drawn from an exponential distribution of mean `delay`, cut to `[c * delay, (1 + factor) * delay]`, where `c`
    is the lower end whose cut-off mass balances the upper one's, so that the mean stays (Prefect's
    `clamped_poisson_interval`; the sampling is inversion, Devroye 1986, II.2).
    """
    if delay <= 0 or factor <= 0:
        return delay
    spread = 1 + factor
    lower = 0.0 if spread >= 50 else math.log2(2**spread / (2**spread - 1))
    low, high = 1 - math.exp(-lower), 1 - math.exp(-spread)
    return min(-delay * math.log1p(-source.uniform(low, high)), delay * spread)
