"""`map`: what is spread, what is passed to every run, and what is refused."""

import io
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asynctask import TaskFuture, TaskFutureList, allow_failure, flow, opaque, quote, task, unmapped
from asynctask.errors import (
    BlockingWaitError,
    MappingLengthMismatch,
    MappingMissingIterable,
    ParameterBindError,
    UpstreamTaskError,
)
from asynctask.states import Completed


@task
def pair(a: Any, b: Any = "default") -> Any:
    return a, b


@task
async def apair(a: Any, b: Any = "default") -> Any:
    return a, b


@task
def give(value: Any) -> Any:
    return value


@task
def fail(text: str = "upstream broke") -> Any:
    raise LookupError(text)


@pytest.mark.parametrize(
    "given",
    [[1, 2], (1, 2), range(1, 3), iter([1, 2]), (i for i in (1, 2)), {1: "x", 2: "y"}, {1: 0, 2: 0}.keys(), {1, 2}],
    ids=["list", "tuple", "range", "iterator", "generator", "dict", "keys", "set"],
)
def test_every_iterable_is_mapped_over(given: Any) -> None:
    assert pair.map(given).result(20) == [(1, "default"), (2, "default")]


@pytest.mark.parametrize("given", ["text", b"bytes", bytearray(b"bytes"), 5, None, io.StringIO("a\nb")], ids=range(6))
def test_strings_bytes_files_and_plain_values_are_passed_to_every_run(given: Any) -> None:
    assert pair.map([1, 2], given).result(20) == [(1, given), (2, given)]
    assert pair.map([1, 2], b=given).result(20) == [(1, given), (2, given)]


def test_positions_keywords_and_defaults_mix() -> None:
    assert pair.map([1, 2], [3, 4]).result(20) == [(1, 3), (2, 4)]
    assert pair.map([1, 2], b=[3, 4]).result(20) == [(1, 3), (2, 4)]
    assert pair.map(b=[3, 4], a=[1, 2]).result(20) == [(1, 3), (2, 4)]
    assert pair.map("x", b=[3, 4]).result(20) == [("x", 3), ("x", 4)]


def test_a_default_is_never_mapped_over() -> None:
    @task
    def work(x: int, numbers: Any = (1, 2, 3)) -> Any:
        return x, numbers

    assert work.map([1, 2]).result(20) == [(1, (1, 2, 3)), (2, (1, 2, 3))]


def test_variable_keywords_and_positions_are_mapped_too() -> None:
    @task
    def work(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert work.map([1, 2], 5, k=[3, 4], s="x").result(20) == [
        ((1, 5), {"k": 3, "s": "x"}),
        ((2, 5), {"k": 4, "s": "x"}),
    ]


def test_unmapped_passes_a_list_to_every_run() -> None:
    assert pair.map([1, 2], unmapped([3, 4])).result(20) == [(1, [3, 4]), (2, [3, 4])]
    same = pair.map([1, 2], unmapped([3])).result(20)
    assert same[0][1] is same[1][1]


def test_an_empty_iterable_makes_no_run() -> None:
    futures = pair.map([])
    assert futures == []
    assert isinstance(futures, TaskFutureList)
    assert futures.result() == []
    assert pair.map([], []).wait() == []


async def test_an_empty_map_can_be_awaited() -> None:
    assert await pair.map(()) == []


def test_nothing_to_map_over_is_refused_naming_the_task() -> None:
    for args in ((), (1,), ("text",), (unmapped([1]), 2), (quote([1]), 2)):
        with pytest.raises(
            MappingMissingIterable, match=r"task 'pair': map\(\) was given nothing to map over.*unmapped"
        ):
            pair.map(*args)


def test_unequal_lengths_are_refused_naming_each() -> None:
    with pytest.raises(MappingLengthMismatch, match=r"task 'pair': .*argument 1: 3, 'b': 2; wrap .* in unmapped"):
        pair.map([1, 2, 3], b=[1, 2])
    with pytest.raises(MappingLengthMismatch, match=r"argument 1: 0, argument 2: 1"):
        pair.map([], [1])


def test_arguments_that_do_not_fit_are_refused_before_any_run_is_made() -> None:
    started: list[Any] = []
    noting = pair.with_options(on_running=lambda t, r, s: started.append(1))
    with pytest.raises(ParameterBindError, match="task 'pair'"):
        noting.map([1, 2], [1, 2], [1, 2])
    assert started == []


# -- futures ------------------------------------------------------------------------------------------------------


def test_a_future_of_a_list_is_resolved_then_mapped() -> None:
    assert pair.map(give.submit([1, 2])).result(20) == [(1, "default"), (2, "default")]
    assert pair.map(b=give.submit((3, 4)), a=0).result(20) == [(0, 3), (0, 4)]
    assert pair.map(Completed(data=[1, 2])).result(20) == [(1, "default"), (2, "default")]


def test_a_future_of_something_else_is_passed_to_every_run() -> None:
    assert pair.map([1, 2], give.submit("text")).result(20) == [(1, "text"), (2, "text")]


def test_an_unmapped_future_is_resolved_for_every_run() -> None:
    assert pair.map([1, 2], unmapped(give.submit([3, 4]))).result(20) == [(1, [3, 4]), (2, [3, 4])]


def test_a_list_of_futures_is_mapped_without_waiting_for_them() -> None:
    go = threading.Event()

    @task
    def slow(x: int) -> int:
        assert go.wait(20)
        return x

    futures = pair.map(slow.map([1, 2]))
    assert len(futures) == 2
    assert not any(future.done() for future in futures)
    go.set()
    assert futures.result(20) == [(1, "default"), (2, "default")]


def test_futures_inside_the_elements_are_resolved() -> None:
    assert pair.map([{"k": give.submit(1)}, [give.submit(2)]]).result(20) == [({"k": 1}, "default"), ([2], "default")]


def test_mapping_over_a_future_that_failed_raises_naming_it() -> None:
    with pytest.raises(UpstreamTaskError, match=r"upstream run 'fail-.*' ended Failed") as caught:
        pair.map(fail.submit())
    assert isinstance(caught.value.__cause__, LookupError)
    with pytest.raises(UpstreamTaskError, match="ended Failed"):
        pair.map([1], fail(return_state=True))


def test_a_failed_future_that_is_allowed_is_passed_to_every_run() -> None:
    got = pair.map([1, 2], allow_failure(fail.submit())).result(20)
    assert [(a, type(b)) for a, b in got] == [(1, LookupError), (2, LookupError)]


def test_one_failed_element_stops_only_its_own_run() -> None:
    futures = pair.map([give.submit(1), fail.submit(), give.submit(3)])
    futures.wait()
    assert [future.state.name for future in futures] == ["Completed", "NotReady", "Completed"]


def test_marks_around_the_whole_are_put_on_each_element() -> None:
    got = pair.map(allow_failure([give.submit(1), fail.submit()])).result(20)
    assert got[0] == (1, "default")
    assert isinstance(got[1][0], LookupError)
    futures = [give.submit(1)]
    assert pair.map([0], opaque([futures])).result(20) == [(0, futures)]


async def test_mapping_over_an_unfinished_future_on_its_own_loop_says_to_await_it() -> None:
    @task
    async def numbers() -> list[int]:
        await anyio.sleep(0)
        return [1, 2]

    future = numbers.submit()
    with pytest.raises(BlockingWaitError, match=r"task 'apair': map\(\) over a future: .*await the future first"):
        apair.map(future)
    assert await apair.map(await future) == [(1, "default"), (2, "default")]
    assert await apair.map(future) == [(1, "default"), (2, "default")]


def test_runs_of_a_map_over_a_future_know_it_as_their_upstream() -> None:
    seen: list[Any] = []
    noting = pair.with_options(on_completion=lambda t, run, s: seen.append(run.upstream_task_run_ids))
    source = give.submit([1, 2])
    other = give.submit(0)
    noting.map(source, wait_for=[other]).wait()
    assert [sorted(ids) for ids in seen] == [sorted([source.task_run_id, other.task_run_id])] * 2


def test_wait_for_holds_for_every_run() -> None:
    go = threading.Event()

    @task
    def gate() -> None:
        assert go.wait(20)

    futures = pair.map([1, 2], wait_for=(future for future in [gate.submit()]))
    assert not any(future.done() for future in futures)
    go.set()
    assert futures.result(20) == [(1, "default"), (2, "default")]


# -- the list of futures ------------------------------------------------------------------------------------------


def test_a_map_is_a_list_of_futures_in_the_order_of_its_input() -> None:
    futures = pair.map(range(50))
    assert all(isinstance(future, TaskFuture) for future in futures)
    assert [a for a, _ in futures.result(20)] == list(range(50))


async def test_a_map_of_generators_gives_lists() -> None:
    @task
    def upto(n: int) -> Iterator[int]:
        yield from range(n)

    @task
    async def aupto(n: int) -> Any:
        for i in range(n):
            yield i

    assert await upto.map([1, 2]) == [[0], [0, 1]]
    assert await aupto.map([2, 0]) == [[0, 1], []]


def test_a_generator_given_to_a_flow_is_mapped_whole() -> None:
    @flow
    def whole(numbers: Any) -> Any:
        return [value for value, _ in pair.map(numbers).result()]

    assert whole(i for i in range(3)) == [0, 1, 2]


async def test_the_first_failure_of_a_map_is_raised() -> None:
    @task
    async def odd(x: int) -> int:
        if x % 2:
            raise LookupError(x)
        return x

    with pytest.raises(LookupError):
        await odd.map(range(4))
    results = await odd.map(range(4)).result_async(raise_on_failure=False)
    assert [type(result) for result in results] == [int, LookupError, int, LookupError]
