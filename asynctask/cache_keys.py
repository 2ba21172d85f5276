"""The cache key of one run, by its task's `cache_policy` or `cache_key_fn`, or why there is none.

1. A policy's key belongs to its task. What a `cache_key_fn` gives is the key, as it is, for all tasks that give it.
2. Whatever a user's argument, function or policy does, `compute_key` gives no key and the reason; it does not raise.
"""

# Names with an underscore are for the files of this noun: a user's policy may have attributes of any other name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

from .cache_policies import (
    NO_CACHE,
    CacheContext,
    CacheKeyFnPolicy,
    CachePolicy,
    Inputs,
    TaskSource,
    framed,
    refuse_key_fn,
    source_of,
    usable,
)
from .errors import AsyncTaskError, CacheKeyError, HashError, OptionError
from .hashing import digest, inputs_digest, text_digest
from .redact import shown, text_of
from .runs import Run
from .shapes import code_of
from .specs import TaskSpec, kind_of

#: Characters that a key may have.
MOST_CHARACTERS = 2000

_logger = logging.getLogger("asynctask")


def prepare(spec: TaskSpec) -> None:
    """Check a new task's `cache_policy` and `cache_key_fn`, and keep its source if the policy asks for it.

    Raises `OptionError`, naming the task and the option.
    """
    policy, key_fn = spec.options.cache_policy, spec.options.cache_key_fn
    if policy is not None and not isinstance(policy, CachePolicy):
        raise OptionError(
            f"{spec.what} {spec.name!r}: option 'cache_policy' must be a cache policy, such as INPUTS, "
            f"not {shown(policy, 80)}"
        )
    if key_fn is not None:
        refuse_key_fn(f"{spec.what} {spec.name!r}: option 'cache_key_fn'", key_fn)
        if policy is not None:
            _logger.warning("%s %r: its cache_key_fn is used, and its cache_policy is not", spec.what, spec.name)
    elif policy is not None and any(isinstance(part, TaskSource) for part in policy._parts()):
        spec.source = source_of(spec.fn)


#: The digests of functions' codes, for `task_input_hash`.
_codes: WeakKeyDictionary[TaskSpec, str] = WeakKeyDictionary()


def task_input_hash(context: CacheContext, parameters: dict[str, Any]) -> str | None:
    """A `cache_key_fn`: the key of a task, its function's code and its arguments.

    None, so that the run is not cached, with a warning that names the argument, if one cannot be hashed.
    """
    spec = context.task_run.spec
    code = _codes.get(spec)
    if code is None:
        code = _codes[spec] = digest(code_of(kind_of(spec.fn)))
    try:
        return text_digest(framed(spec.key, code, inputs_digest(parameters)))
    except HashError as error:
        _logger.warning("task %r: run %r is not cached: %s", spec.name, context.task_run.name, error)
        return None


def compute_key(run: Run) -> tuple[str | None, AsyncTaskError | None]:
    """The key under which the store keeps the result of a run, and if there should be one and is not, why.

    2 us for `INPUTS` over texts and numbers. The reason is a `HashError` or a `CacheKeyError`; what the user's code
    raised is its cause.
    """
    spec = run.spec
    key_fn = spec.options.cache_key_fn
    policy = spec.options.cache_policy
    if policy is None:
        if key_fn is None:
            return None, None
        policy = NO_CACHE  # a key function goes before any
    try:
        parameters = spec.named(run.args, run.kwargs)
        if key_fn is None and type(policy) is Inputs:
            return policy._digest(parameters, spec.key), None
        context = CacheContext(run, parameters)
        if key_fn is None and type(policy) is CacheKeyFnPolicy:
            key_fn = policy.cache_key_fn
        if key_fn is not None:
            return _checked(usable(key_fn(context, parameters), "cache_key_fn")), None
        flow = run.flow
        flow_parameters = {} if flow is None else flow.spec.named(flow.args, flow.kwargs)
        key = usable(policy.compute_key(context, parameters, flow_parameters), policy)
        return (None if key is None else text_digest(framed(spec.key, policy._label(), key))), None
    except (HashError, CacheKeyError) as error:
        return None, error
    except Exception as error:
        who = f"cache policy {shown(policy)}" if key_fn is None else f"cache_key_fn {shown(key_fn, 80)}"
        problem = CacheKeyError(f"{who} raised {type(error).__name__}: {text_of(error)}")
        problem.__cause__ = error
        return None, problem


def _checked(key: str | None) -> str | None:
    """The key, if a store can keep it."""
    if key is None:
        return None
    if not key:
        raise CacheKeyError("cache_key_fn gave an empty key; to leave a run uncached give None")
    if len(key) > MOST_CHARACTERS:
        raise CacheKeyError(
            f"cache_key_fn gave a key of {len(key):,} characters; at most {MOST_CHARACTERS:,} may be: give a hash of it"
        )
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise CacheKeyError(f"cache_key_fn gave a key that is not valid Unicode: {error}") from error
    return key
