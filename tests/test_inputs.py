"""Dependencies: futures and states anywhere in arguments become values before the body starts, or it does not start."""

import dataclasses
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import anyio
import attrs
import msgspec
import pydantic
import pytest

from asynctask import allow_failure, flow, opaque, quote, task, unmapped
from asynctask.errors import BlockingWaitError, UpstreamTaskError
from asynctask.runtime import task_run
from asynctask.states import Completed, Failed


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


Point = namedtuple("Point", "x y")  # noqa: PYI024


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
    assert take.submit(given).result(5) == holding(7)
    assert take.submit(value=given).result(5) == holding(7)


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
    assert take.submit(given).result(5) is given


def test_only_what_holds_a_future_is_copied() -> None:
    still = [1, 2]
    got = take({"still": still, "changed": [give.submit(3)]})
    assert got == {"still": [1, 2], "changed": [3]}
    assert got["still"] is still


def test_futures_are_found_two_hundred_levels_down() -> None:
    nested: Any = give.submit(7)
    for level in range(200):
        nested = [nested] if level % 2 else {"k": nested}
    got = take(nested)
    for level in reversed(range(200)):
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
        return go.wait(5)

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
    held = [inner]
    assert take(opaque(held)) is held
    assert take(opaque(give.submit(7))) == 7


def test_marks_nest_and_unwrap() -> None:
    future = fail.submit()
    for marked in (allow_failure(unmapped(future)), unmapped(allow_failure(future)), opaque(allow_failure(future))):
        assert isinstance(take(marked), LookupError)
    assert take(unmapped([1])) == [1]
    assert allow_failure(3).unwrap() == 3
    assert allow_failure(3).rewrap(4) == allow_failure(4)


# -- upstreams that did not complete ------------------------------------------------------------------------------


async def test_a_run_whose_upstream_failed_never_starts() -> None:
    started: list[Any] = []

    @task(on_running=lambda t, r, s: started.append("hook"))
    async def body(x: Any) -> None:
        started.append("body")

    future = body.submit(fail.submit("gone"))
    with pytest.raises(UpstreamTaskError) as caught:
        await future
    assert isinstance(caught.value.__cause__, LookupError)
    assert (future.state.type.value, future.state.name) == ("PENDING", "NotReady")
    assert future.state.is_final()
    assert future.done()
    assert started == []


def test_a_direct_call_with_a_failed_upstream_raises_it() -> None:
    with pytest.raises(UpstreamTaskError, match="fail-"):
        take(fail.submit())
    state = take([fail.submit()], return_state=True)
    assert state.name == "NotReady"
    with pytest.raises(UpstreamTaskError):
        state.result()


def test_not_ready_passes_down_a_chain() -> None:
    future = take.submit(take.submit(take.submit(fail.submit())))
    with pytest.raises(UpstreamTaskError) as caught:
        future.result(5)
    cause: BaseException | None = caught.value
    while isinstance(cause, UpstreamTaskError):
        cause = cause.__cause__
    assert isinstance(cause, LookupError)


@pytest.mark.parametrize("state", [Failed(message="no"), fail(return_state=True)], ids=["made", "of-a-run"])
def test_a_failed_state_as_argument_is_a_failed_upstream(state: Any) -> None:
    with pytest.raises(UpstreamTaskError, match="ended Failed"):
        take(state)


async def test_a_cancelled_upstream_makes_its_downstream_not_ready() -> None:
    never = anyio.Event()

    @task
    async def wait() -> None:
        await never.wait()

    upstream = wait.submit()
    future = atake.submit(upstream)
    upstream.cancel()
    with pytest.raises(UpstreamTaskError, match="ended Cancelled"):
        await future


# -- wait_for -----------------------------------------------------------------------------------------------------


def test_wait_for_waits_without_data() -> None:
    order: list[str] = []
    go = threading.Event()

    @task
    def first() -> None:
        assert go.wait(5)
        order.append("first")

    @task
    def second() -> None:
        order.append("second")

    future = first.submit()
    later = second.submit(wait_for=[{"deep": [future]}])
    go.set()
    later.result(5)
    second(wait_for=[later])
    assert order == ["first", "second", "second"]


async def test_wait_for_works_for_every_kind_and_form_of_call() -> None:
    @task
    def values() -> Any:
        yield 1

    @task
    async def avalues() -> Any:
        yield 1

    bad = fail.submit()
    await bad.wait_async()
    for call in (
        lambda: atake(1, wait_for=[bad]),
        lambda: atake.submit(1, wait_for=[bad]),
        lambda: take.submit(1, wait_for=(bad,)),
        lambda: take.map([1, 2], wait_for=iter([bad])),
        lambda: values.submit(wait_for=[bad]),
        lambda: avalues.submit(wait_for={bad}),
    ):
        with pytest.raises(UpstreamTaskError, match="fail-"):
            await call()
    for sync_call in (lambda: take(1, wait_for=[bad]), lambda: list(values(wait_for=[bad]))):
        with pytest.raises(UpstreamTaskError, match="fail-"):
            sync_call()
    with pytest.raises(UpstreamTaskError, match="fail-"):
        async for _ in avalues(wait_for=[bad]):
            pass
    assert await take.submit(1, wait_for=[allow_failure(bad)]) == 1


def test_wait_for_takes_one_future_and_refuses_what_is_none() -> None:
    order: list[int] = []
    note = task(order.append, name="note")
    note.submit(2, wait_for=note.submit(1)).result(5)
    assert order == [1, 2]
    note.map([3], wait_for=fail(return_state=True)).wait()
    assert order == [1, 2]
    for wrong in (5, "abc"):
        for call in (take, take.submit, lambda x, wait_for: take.map([x], wait_for=wait_for)):
            with pytest.raises(ValueError, match=r"task 'take': wait_for must be a list of futures or states"):
                call(1, wait_for=wrong)


async def test_an_inline_call_that_would_wait_for_its_own_loop_is_refused() -> None:
    future = atake.submit(1)
    with pytest.raises(BlockingWaitError, match=r"submit"):
        take(future)
    assert await future == 1
    assert take(future) == 1


# -- what is recorded ---------------------------------------------------------------------------------------------


class Thing:
    """Takes a weak reference, so its identity is certain."""


@task
def make() -> Thing:
    return Thing()


def recorded() -> tuple[dict[str, list[Any]], Any]:
    seen: dict[str, list[Any]] = {}
    return seen, lambda t, run, s: seen.setdefault(t.name, run.upstream_task_run_ids)


def test_upstreams_are_recorded_once_each_in_order() -> None:
    seen, note = recorded()
    user = two.with_options(name="user", on_completion=note)
    a, b, c = give.submit(1), give.submit(2), give.submit(3)
    user([b, {"a": a}, b], quote(c), wait_for=[c])
    assert seen["user"] == [b.task_run_id, a.task_run_id, c.task_run_id]
    other = two.with_options(name="other", on_completion=note)
    state = give(1, return_state=True)
    other(state, allow_failure(fail(return_state=True)))
    assert seen["other"][0] == state.task_run_id
    assert len(seen["other"]) == 2


def test_a_plain_result_object_is_recorded_as_upstream() -> None:
    seen, note = recorded()
    ids: list[Any] = []
    thing = make.with_options(on_completion=lambda t, run, s: ids.append(run.id))()
    take.with_options(on_completion=note)({"deep": [thing]})
    assert seen["take"] == ids


def test_equal_objects_and_small_values_are_never_guessed_to_be_upstream() -> None:
    seen, note = recorded()
    taking = take.with_options(on_completion=note)
    for value in ([1, 2], {"a": 1}, "text", 5, None):
        given = give(value)
        taking(given)
        assert seen.pop("take") == []
    make()
    taking(Thing())
    assert seen["take"] == []


def test_an_object_that_died_leaves_no_trace_for_the_next_at_its_address() -> None:
    seen, note = recorded()
    taking = take.with_options(on_completion=note)
    for _ in range(50):
        make()
        taking(Thing())
        assert seen.pop("take") == []


def test_what_a_generator_yields_makes_it_the_parent() -> None:
    parents: list[Any] = []
    ids: list[Any] = []

    @task
    def source() -> Any:
        ids.append(task_run.id)
        yield Thing()

    taking = take.with_options(on_completion=lambda t, run, s: parents.append(run.parent_task_run_id))
    for thing in source():
        taking(thing)
    assert parents == ids


def test_flows_give_the_same_dependencies() -> None:
    seen, note = recorded()

    @flow
    def whole() -> Any:
        a = give.submit(1)
        return take.with_options(on_completion=note).submit([a]).result(), a.task_run_id

    value, upstream = whole()
    assert value == [1]
    assert seen["take"] == [upstream]


def test_arguments_are_not_kept_alive_by_the_search() -> None:
    thing = Thing()
    before = sys.getrefcount(thing)
    take([thing])
    take({"k": thing})
    assert sys.getrefcount(thing) == before
