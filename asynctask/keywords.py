"""The options of tasks and flows as keyword arguments, for type checkers alone: making these takes 1 ms."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypedDict

from .options import Around, CachePolicyLike, Hook, RetryCondition, RetryDelay, TaskRunner, TransactionHook


class TaskOptions(TypedDict, total=False):
    """The options of `@task` and `Task.with_options`, as people write them."""

    name: str | None
    description: str | None
    tags: Iterable[str] | None
    version: str | None
    task_run_name: str | Callable[..., str] | None
    retries: int | None
    retry_delay_seconds: RetryDelay | None
    retry_jitter_factor: float | None
    retry_on: type[BaseException] | Sequence[type[BaseException]] | None
    retry_condition_fn: RetryCondition | None
    timeout_seconds: float | timedelta | None
    cache_policy: CachePolicyLike | None
    cache_key_fn: Callable[[Any, dict[str, Any]], str | None] | None
    cache_expiration: timedelta | float | None
    refresh_cache: bool | None
    persist_result: bool | None
    result_storage: str | os.PathLike[str] | None
    result_storage_key: str | None
    result_serializer: Any
    cache_result_in_memory: bool | None
    log_prints: bool | None
    on_commit: TransactionHook | Sequence[TransactionHook] | None
    on_rollback: TransactionHook | Sequence[TransactionHook] | None
    on_running: Hook | Sequence[Hook] | None
    on_completion: Hook | Sequence[Hook] | None
    on_failure: Hook | Sequence[Hook] | None
    on_cancellation: Hook | Sequence[Hook] | None
    on_crashed: Hook | Sequence[Hook] | None
    around: Around | Sequence[Around] | None
    task_runner: TaskRunner | None


class FlowOptions(TypedDict, total=False):
    """The options of `@flow` and `Flow.with_options`, as people write them."""

    name: str | None
    description: str | None
    version: str | None
    flow_run_name: str | Callable[..., str] | None
    task_runner: TaskRunner | None
    retries: int | None
    retry_delay_seconds: RetryDelay | None
    timeout_seconds: float | timedelta | None
    validate_parameters: bool | None
    persist_result: bool | None
    result_serializer: Any
    log_prints: bool | None
    on_running: Hook | Sequence[Hook] | None
    on_completion: Hook | Sequence[Hook] | None
    on_failure: Hook | Sequence[Hook] | None
    on_cancellation: Hook | Sequence[Hook] | None
    on_crashed: Hook | Sequence[Hook] | None
