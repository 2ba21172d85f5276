"""Cache policies: what they are made of, how they are joined, and what is refused at once."""

import copy
import dataclasses
import itertools
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from asynctask.cache_policies import (
    DEFAULT,
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    NONE,
    RUN_ID,
    TASK_SOURCE,
    CacheKeyFnPolicy,
    CachePolicy,
    IsolationLevel,
    source_of,
)
from asynctask.errors import CacheKeyError, OptionError

CONTEXT: Any = None


def key(policy: CachePolicy, inputs: dict[str, Any] | None = None, flow: dict[str, Any] | None = None) -> str | None:
    return policy.compute_key(CONTEXT, {"a": 1, "b": 2} if inputs is None else inputs, flow or {})


class Prefixed(CachePolicy):
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def compute_key(self, task_ctx: Any, inputs: Any, flow_parameters: Any, **kwargs: Any) -> str | None:
        return f"{self.prefix}-{inputs['a']}"


@dataclasses.dataclass
class Named(CachePolicy):
    label: str = "x"
    parts: int = 1

    def compute_key(self, task_ctx: Any, inputs: Any, flow_parameters: Any, **kwargs: Any) -> str | None:
        return self.label


class Locks:
    def acquire_lock(self) -> None: ...

    def release_lock(self) -> None: ...


# Sums -----------------------------------------------------------------------------------------------------------------


def test_a_sum_has_one_key_in_whatever_order_it_is_written() -> None:
    parts = [INPUTS, FLOW_PARAMETERS, Prefixed("p"), Named(), CachePolicy.from_cache_key_fn(lambda c, p: "k")]
    sums = [a + b + c + d + e for a, b, c, d, e in itertools.permutations(parts)]
    assert len({key(policy, flow={"f": 1}) for policy in sums}) == 1
    assert (INPUTS + RUN_ID) + TASK_SOURCE == TASK_SOURCE + (RUN_ID + INPUTS) == DEFAULT
    assert hash(INPUTS + RUN_ID) == hash(RUN_ID + INPUTS)


def test_every_part_of_a_sum_counts() -> None:
    policy = INPUTS + FLOW_PARAMETERS + Named()
    keys = [
        key(policy, {"a": 1}, {"f": 1}),
        key(policy, {"a": 2}, {"f": 1}),
        key(policy, {"a": 1}, {"f": 2}),
        key(policy, {"f": 1}, {"a": 1}),
        key(INPUTS + FLOW_PARAMETERS, {"a": 1}, {"f": 1}),
        key(INPUTS + FLOW_PARAMETERS + Named("y"), {"a": 1}, {"f": 1}),
    ]
    assert len(set(keys)) == len(keys)


def test_two_functions_that_swap_their_keys_do_not_share_one() -> None:
    one, other = CachePolicy.from_cache_key_fn(lambda c, p: p["a"]), CachePolicy.from_cache_key_fn(lambda c, p: p["b"])
    for policy in (one + other, other + one):
        assert key(policy, {"a": "x", "b": "y"}) != key(policy, {"a": "y", "b": "x"})
    assert key(one + other, {"a": "x", "b": "y"}) == key(other + one, {"a": "x", "b": "y"})


def test_keys_of_parts_cannot_run_into_each_other() -> None:
    given: dict[type, str | None] = {}

    class First(CachePolicy):
        def compute_key(self, task_ctx: Any, inputs: Any, flow_parameters: Any, **kwargs: Any) -> str | None:
            return given[type(self)]

    class Second(First):
        pass

    policy: Any = First() + Second()
    given.update({First: "a", Second: "b"})
    two = key(policy)
    given.update({First: f"a{policy.labels[1]}b", Second: None})
    assert key(policy) != two


def test_parts_without_a_key_are_left_out_and_none_at_all_is_no_key() -> None:
    assert key(FLOW_PARAMETERS) is None
    assert key(INPUTS, {}) is None
    assert key(INPUTS + FLOW_PARAMETERS, {}) is None
    silent = CachePolicy.from_cache_key_fn(lambda c, p: None)
    assert key(silent + INPUTS) == key(INPUTS + silent) is not None
    assert key(silent + FLOW_PARAMETERS) is None


def test_several_inputs_become_one_that_leaves_out_what_any_of_them_does() -> None:
    policy = (INPUTS - "a") + RUN_ID + (INPUTS - "b")
    assert policy == RUN_ID + (INPUTS - "a" - "b")
    assert (INPUTS - "a") + INPUTS == INPUTS - "a"
    assert INPUTS + INPUTS == INPUTS
    assert RUN_ID + RUN_ID == RUN_ID


def test_no_cache_changes_nothing_in_a_sum() -> None:
    assert NONE is NO_CACHE
    assert INPUTS + NO_CACHE is INPUTS
    assert NO_CACHE + INPUTS is INPUTS
    assert NO_CACHE + NONE is NO_CACHE
    assert key(NO_CACHE) is None
    assert sum([INPUTS, RUN_ID], NO_CACHE) == INPUTS + RUN_ID


@pytest.mark.parametrize("other", ["INPUTS", None, 1, CachePolicy, lambda c, p: "k"])
def test_only_policies_can_be_added(other: Any) -> None:
    with pytest.raises(OptionError, match="only a cache policy can be added to INPUTS"):
        INPUTS + other


# Leaving out ----------------------------------------------------------------------------------------------------------


def test_an_argument_that_is_left_out_makes_no_difference() -> None:
    assert key(INPUTS - "b") == key(INPUTS - "b", {"a": 1, "b": 3}) == key(INPUTS - "b", {"a": 1, "b": object()})
    assert key(INPUTS - "b") != key(INPUTS - "b", {"a": 2, "b": 2})
    policy = INPUTS + Named()
    assert key(policy - "b") == key(policy - "b", {"a": 1, "b": 3}) != key(policy)
    assert key(INPUTS - "a" - "b") == key(INPUTS - "b" - "a") is not None, "a call whose arguments do not count"
    assert INPUTS - "b" != INPUTS
    assert key(INPUTS, {"a": 1, "b": 3}) != key(INPUTS), "and the one that was there is unchanged"


def test_leaving_out_keeps_the_configuration_and_passes_by_other_policies() -> None:
    for policy in (INPUTS, INPUTS + RUN_ID):
        assert (policy.configure(isolation_level="SERIALIZABLE") - "a").isolation_level is IsolationLevel.SERIALIZABLE
    assert RUN_ID - "a" == RUN_ID


@pytest.mark.parametrize("name", [1, None, ["a"], INPUTS, b"a"])
def test_what_is_left_out_is_one_name(name: Any) -> None:
    with pytest.raises(OptionError, match="name of one parameter") as caught:
        INPUTS - name
    assert isinstance(caught.value, TypeError)


# Configuring ----------------------------------------------------------------------------------------------------------


def test_configuring_gives_a_copy(tmp_path: pathlib.Path) -> None:
    locks = Locks()
    policy = INPUTS.configure(key_storage=tmp_path, isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=locks)
    assert (policy.key_storage, policy.isolation_level, policy.lock_manager) == (
        tmp_path,
        IsolationLevel.SERIALIZABLE,
        locks,
    )
    assert (INPUTS.key_storage, INPUTS.isolation_level, INPUTS.lock_manager) == (None, None, None)
    assert policy != INPUTS
    assert policy == INPUTS.configure(key_storage=tmp_path, isolation_level="serializable", lock_manager=locks)
    assert policy.configure() == policy
    assert key(policy) == key(INPUTS)
    assert INPUTS.configure(isolation_level="READ_COMMITTED").isolation_level is IsolationLevel.READ_COMMITTED


@pytest.mark.parametrize(
    "wrong",
    [
        *({"isolation_level": "SNAPSHOT"}, {"isolation_level": 1}, {"isolation_level": ""}, {"key_storage": 1}),
        *({"key_storage": ""}, {"lock_manager": object()}, {"lock_manager": Locks}, {"lock_manager": "locks"}),
    ],
    ids=range(8),
)
def test_a_wrong_configuration_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        INPUTS.configure(**wrong)


def test_a_sum_takes_the_configuration_of_its_parts_unless_they_differ() -> None:
    serializable = INPUTS.configure(isolation_level="SERIALIZABLE")
    assert (serializable + RUN_ID).isolation_level is IsolationLevel.SERIALIZABLE
    assert (RUN_ID + serializable).isolation_level is IsolationLevel.SERIALIZABLE
    assert serializable + RUN_ID == (INPUTS + RUN_ID).configure(isolation_level="SERIALIZABLE")
    stored = RUN_ID.configure(key_storage="/a")
    both = serializable + stored
    assert (both.isolation_level, both.key_storage) == (IsolationLevel.SERIALIZABLE, "/a")
    for other in (RUN_ID.configure(isolation_level="READ_COMMITTED"), both.configure(key_storage="/b") - "a"):
        with pytest.raises(OptionError, match=r"must agree on (isolation_level|key_storage)") as caught:
            both + other
        assert isinstance(caught.value, ValueError)


# As objects -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [INPUTS, DEFAULT, RUN_ID, NO_CACHE, CacheKeyFnPolicy(key)])
def test_policies_are_never_changed(policy: CachePolicy) -> None:
    with pytest.raises(AttributeError, match="never changed"):
        policy.isolation_level = IsolationLevel.SERIALIZABLE
    with pytest.raises(AttributeError, match="never changed"):
        policy.other = 1  # type: ignore[attr-defined]
    assert vars(policy) == vars(copy.copy(policy))


def test_a_policy_of_ones_own_has_its_attributes_but_not_the_configuration() -> None:
    policy = Prefixed("a")
    policy.prefix = "b"
    with pytest.raises(AttributeError, match="never changed"):
        policy.key_storage = "/a"
    configured = policy.configure(key_storage="/a")
    assert (configured.prefix, configured.key_storage, policy.key_storage) == ("b", "/a", None)
    assert Prefixed("a") == Prefixed("a") != Prefixed("b")
    assert key(Named("q") + INPUTS) != key(Named("r") + INPUTS)
    with pytest.raises(NotImplementedError, match="without a compute_key"):
        key(CachePolicy())


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (INPUTS, "INPUTS"),
        (INPUTS - "b" - "a", "INPUTS - 'a' - 'b'"),
        (DEFAULT, "INPUTS + TASK_SOURCE + RUN_ID"),
        ((INPUTS - "a") + FLOW_PARAMETERS, "(INPUTS - 'a') + FLOW_PARAMETERS"),
        (INPUTS.configure(isolation_level="SERIALIZABLE"), "INPUTS.configure(isolation_level=SERIALIZABLE)"),
        ((INPUTS + RUN_ID).configure(key_storage="/a"), "(INPUTS + RUN_ID).configure(key_storage='/a')"),
        (NONE, "NO_CACHE"),
        (CachePolicy.from_cache_key_fn(key), "CachePolicy.from_cache_key_fn(key)"),
        (Prefixed("p") + RUN_ID, "Prefixed(prefix='p') + RUN_ID"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_policy_reads_as_it_is_written(policy: CachePolicy, text: str) -> None:
    assert repr(policy) == text


def test_policies_survive_pickling() -> None:
    for policy in (DEFAULT, (INPUTS - "a") + Prefixed("p"), INPUTS.configure(isolation_level="SERIALIZABLE")):
        assert pickle.loads(pickle.dumps(policy)) == policy


@pytest.mark.parametrize("given", [None, "f", 3])
def test_a_key_function_must_be_a_plain_function(given: Any) -> None:
    async def waits(context: Any, parameters: Any) -> str:
        return "k"

    for wrong in (given, waits):
        with pytest.raises(OptionError, match="plain function"):
            CachePolicy.from_cache_key_fn(wrong)


def test_a_part_that_gives_no_text_is_named() -> None:
    number: Any = lambda c, p: 5  # noqa: E731
    with pytest.raises(CacheKeyError, match="gave 5 as key"):
        key(CachePolicy.from_cache_key_fn(number) + INPUTS)


# Sources --------------------------------------------------------------------------------------------------------------


def sample(x: int) -> int:
    return x + 1


class Callable_:
    def __call__(self, x: int) -> int:
        return x + 2


def test_the_source_is_the_text_of_the_function() -> None:
    import functools

    assert source_of(sample) == "def sample(x: int) -> int:\n    return x + 1\n"
    assert "return x + 2" in source_of(Callable_())
    partials = [functools.partial(sample, 1), functools.partial(sample, 2), functools.partial(sample, x=1)]
    assert len({source_of(fn) for fn in [sample, *partials]}) == 4
    assert source_of(functools.partial(partials[0])).startswith(source_of(sample))
    assert source_of(len) == source_of(len) != source_of(abs)


def made_of(source: str) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    exec(source, scope)
    function: Callable[..., Any] = scope["f"]
    return function


def test_where_there_is_no_text_the_code_stands_for_it() -> None:
    one, same, other = (made_of(f"def f(x): return x + {number}") for number in (1, 1, 2))
    assert source_of(one) == source_of(same) != source_of(other)


def test_the_source_of_a_repl_is_the_same_in_every_process() -> None:
    program = (
        "from asynctask.cache_policies import source_of\ndef f(x): return x in {'a', 'b', 'c'}\nprint(source_of(f))"
    )

    def run(seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-"],
            input=program,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        ).stdout

    assert run("1") == run("2") != ""
