"""Dependencies: futures and states anywhere in arguments become values before the body starts, or it does not start."""

import dataclasses
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import attrs
import msgspec
import pydantic
import pytest

from asynctask import allow_failure, opaque, quote, task, unmapped
from asynctask.errors import UpstreamTaskError
from asynctask.states import Completed


@task
def give(value: Any) -> Any:
    return value


@task
def fail(text: str = "upstream broke") -> Any:
    raise LookupError(text)


@task
def take(value: Any) -> Any:
    return value


@task
async def atake(value: Any) -> Any:
    return value


Point = namedtuple("Point", "x y")


class Typed(NamedTuple):
    x: Any
    y: Any = 0


@dataclasses.dataclass
class Plain:
    x: Any
    y: Any = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any = 0


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any
    y: Any = 0


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotted:
    x: Any
    y: Any = 0


class Struct(msgspec.Struct):
    x: Any
    y: Any = 0


class FrozenStruct(msgspec.Struct, frozen=True):
    x: Any
    y: Any = 0


@attrs.define
class Attrs:
    x: Any
    y: Any = 0


@attrs.frozen
class FrozenAttrs:
    x: Any
    y: Any = 0


@attrs.define(slots=False)
class DictAttrs:
    x: Any
    y: Any = 0


class Model(pydantic.BaseModel):
    x: Any
    y: Any = 0


class FrozenModel(pydantic.BaseModel, frozen=True):
    x: Any
    y: Any = 0


class OpenModel(pydantic.BaseModel, extra="allow"):
    y: Any = 0


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda v: v,
    "list": lambda v: [1, v],
    "tuple": lambda v: (1, v),
    "set": lambda v: {1, v},
    "frozenset": lambda v: frozenset((1, v)),
    "dict value": lambda v: {"k": v},
    "dict key": lambda v: {v: "k"},
    "namedtuple": lambda v: Point(1, v),
    "NamedTuple": lambda v: Typed(v),
    "OrderedDict": lambda v: OrderedDict(a=1, b=v),
    "defaultdict": lambda v: defaultdict(list, a=v),
    "dataclass": lambda v: Plain(v),
    "frozen dataclass": lambda v: Frozen(v),
    "slots dataclass": lambda v: Slotted(v),
    "frozen slots dataclass": lambda v: FrozenSlotted(v),
    "struct": lambda v: Struct(v),
    "frozen struct": lambda v: FrozenStruct(v),
    "attrs": lambda v: Attrs(v),
    "frozen attrs": lambda v: FrozenAttrs(v),
    "dict attrs": lambda v: DictAttrs(v),
    "pydantic": lambda v: Model(x=v),
    "frozen pydantic": lambda v: FrozenModel(x=v),
    "open pydantic": lambda v: OpenModel(x=v),
    "many at once": lambda v: [{"a": (Plain({Point(v, 2)}), Struct([Attrs(Model(x=v))]))}],
}


@pytest.fixture(params=list(CONTAINERS), ids=[name.replace(" ", "-") for name in CONTAINERS])
def holding(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return CONTAINERS[request.param]


# -- where they are found -----------------------------------------------------------------------------------------


def test_a_future_is_found_in_every_container(holding: Callable[[Any], Any]) -> None:
    given = holding(give.submit(7))
    got = take(given)
    assert got == holding(7)
    assert type(got) is (type(holding(7)))
    assert take.submit(given).result(20) == holding(7)
    assert take.submit(value=given).result(20) == holding(7)


async def test_a_state_is_found_in_every_container(holding: Callable[[Any], Any]) -> None:
    assert await atake(holding(give(7, return_state=True))) == holding(7)
    assert await atake.submit(holding(Completed(data=7))) == holding(7)


async def test_a_failed_upstream_is_found_in_every_container(holding: Callable[[Any], Any]) -> None:
    future = atake.submit(holding(fail.submit()))
    with pytest.raises(UpstreamTaskError, match=r"upstream run 'fail-\w+' ended Failed: LookupError: upstream broke"):
        await future
    assert future.state.name == "NotReady"
    assert await atake(holding(7)) == holding(7)


def test_the_callers_own_container_is_not_changed(holding: Callable[[Any], Any]) -> None:
    state = give(7, return_state=True)
    given = holding(state)
    before = repr(given)
    take(given)
    assert repr(given) == before


def test_a_container_with_nothing_to_resolve_is_passed_as_it_is(holding: Callable[[Any], Any]) -> None:
    given = holding(7)
    assert take(given) is given
    assert take.submit(given).result(20) is given


def test_only_what_holds_a_future_is_copied() -> None:
    still = [1, 2]
    got = take({"still": still, "changed": [give.submit(3)]})
    assert got == {"still": [1, 2], "changed": [3]}
    assert got["still"] is still


def test_futures_are_found_deeper_than_the_recursion_limit() -> None:
    nested: Any = give.submit(7)
    for level in range(5_000):
        nested = [nested] if level % 2 else {"k": nested}
    got = take(nested)
    for level in reversed(range(5_000)):
        got = got[0] if level % 2 else got["k"]
    assert got == 7


def test_a_container_that_holds_itself_is_searched_once() -> None:
    around: list[Any] = [give.submit(7)]
    around.append(around)
    assert take(around)[0] == 7
    still: list[Any] = [1]
    still.append(still)
    assert take(still) is still
    around_dict: dict[str, Any] = {"f": give.submit(8)}
    around_dict["me"] = [around_dict]
    assert take(around_dict)["f"] == 8


def test_one_container_found_twice_stays_one() -> None:
    shared = [give.submit(7)]
    first, second = take((shared, shared))
    assert first == [7]
    assert first is second


class Named(dict[str, Any]):
    def __init__(self, name: str, **items: Any) -> None:
        super().__init__(**items)
        self.name = name


class NamedList(list[Any]):
    def __init__(self, name: str, items: Any) -> None:
        super().__init__(items)
        self.name = name


class Pair(tuple[Any, ...]):
    def __new__(cls, left: Any, right: Any) -> "Pair":
        return super().__new__(cls, (left, right))


def test_subclasses_keep_their_type_and_their_own_attributes() -> None:
    f = give.submit(7)
    named = take(Named("n", a=f))
    assert (type(named), named.name, named) == (Named, "n", {"a": 7})
    several = take(NamedList("l", [f]))
    assert (type(several), several.name, several) == (NamedList, "l", [7])
    pair = take(Pair(f, 2))
    assert (type(pair), pair) == (Pair, (7, 2))
    table = take(defaultdict(list, a=f))
    assert table["new"] == []
    assert type(take(Counter({f: 2}))) is Counter


def test_fields_that_init_does_not_take_are_kept() -> None:
    @dataclasses.dataclass
    class Odd:
        x: Any
        made: Any = dataclasses.field(init=False, default=5)
        unset: Any = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            assert self.x is future, "a copy is not made anew"

    future = give.submit(7)
    got = take(Odd(future))
    assert (got.x, got.made, hasattr(got, "unset")) == (7, 5, False)


def test_a_pydantic_copy_has_set_only_what_was_set() -> None:
    got = take(Model(x=give.submit(7)))
    assert got.model_fields_set == {"x"}


def test_proxies_mocks_and_generators_are_passed_without_a_look_inside() -> None:
    got: list[Any] = []
    keep = task(got.append, name="keep")
    for odd in (mock.Mock(spec=dict), mock.MagicMock(), mock.Mock(spec=Plain), (i for i in [give.submit(1)]), Plain):
        keep(odd)
        keep([odd, give.submit(1)])
        assert got[-2] is got[-1][0] is odd


def test_results_that_a_container_cannot_hold_fail_the_run_with_the_reason() -> None:
    with pytest.raises(TypeError, match=r"a set among the arguments cannot hold .*unhashable type: 'list'"):
        take({give.submit([1])})
    with pytest.raises(TypeError, match="a dict among the arguments"):
        take({give.submit([1]): 1})


# -- marks --------------------------------------------------------------------------------------------------------


def test_allow_failure_passes_the_exception_in() -> None:
    future = fail.submit("gone")
    got = take(allow_failure(future))
    assert isinstance(got, LookupError)
    assert str(got) == "gone"
    assert [type(one) for one in take([allow_failure([future]), 1])[0]] == [LookupError]
    assert take(allow_failure(give.submit(7))) == 7
    assert isinstance(take(allow_failure(fail(return_state=True))), LookupError)


def test_allow_failure_passes_in_that_an_upstream_was_not_ready() -> None:
    downstream = take.submit(fail.submit())
    got = take(allow_failure(downstream))
    assert isinstance(got, UpstreamTaskError)
    assert isinstance(got.__cause__, LookupError)


@task
def two(a: Any, b: Any) -> Any:
    return a, b


def test_a_failure_allowed_in_one_place_is_not_allowed_in_another() -> None:
    future = fail.submit()
    shared = [future]
    for a, b in ((future, allow_failure(future)), (allow_failure(future), future), (shared, allow_failure(shared))):
        for args in ((a, b), (b, a), ([a, b], 1), ([b, a], 1)):
            state = two(*args, return_state=True)
            assert state.name == "NotReady"


def test_quote_passes_a_future_as_it_is_without_waiting() -> None:
    go = threading.Event()

    @task
    def slow() -> bool:
        return go.wait(20)

    future = slow.submit()
    assert take(quote(future)) is future
    nested = {"k": [future]}
    assert take(quote(nested)) is nested
    assert take([quote(nested), 1])[0] is nested
    go.set()


def test_opaque_resolves_a_future_but_not_what_is_in_its_value() -> None:
    inner = give.submit(1)
    outer = give.submit(quote([inner]))
    assert take(opaque(outer)) == [inner]
    held = [inner, fail.submit()]
    assert take(opaque(held)) is held
    assert take(opaque(give.submit(7))) == 7


def test_marks_nest_and_unwrap() -> None:
    future = fail.submit()
    for marked in (allow_failure(unmapped(future)), unmapped(allow_failure(future)), opaque(allow_failure(future))):
        assert isinstance(take(marked), LookupError)
    assert take(unmapped([1])) == [1]
    assert allow_failure(3).unwrap() == 3
    assert allow_failure(3).rewrap(4) == allow_failure(4)
