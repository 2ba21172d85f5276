"""What a run depends on: upstreams that do not complete, `wait_for`, and what is recorded of both."""

import sys
import threading
from typing import Any

import anyio
import pytest

from asynctask import allow_failure, flow, quote, task
from asynctask.errors import BlockingWaitError, UpstreamTaskError
from asynctask.runtime import task_run
from asynctask.states import Failed


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


@task
def two(a: Any, b: Any) -> Any:
    return a, b


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
        future.result(20)
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
        assert go.wait(20)
        order.append("first")

    @task
    def second() -> None:
        order.append("second")

    future = first.submit()
    later = second.submit(wait_for=[{"deep": [future]}])
    go.set()
    later.result(20)
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
    note.submit(2, wait_for=note.submit(1)).result(20)
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
