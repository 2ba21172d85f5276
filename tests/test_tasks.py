"""Every way to call a task: each row of the call table, for each kind of function."""

import asyncio
import functools
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asynctask import AsyncGeneratorTask, AsyncTask, GeneratorTask, Task, TaskFuture, TaskFutureList, task
from asynctask.errors import BlockingWaitError


@task
def double(x: int) -> int:
    return x * 2


@task
async def adouble(x: int) -> int:
    await anyio.sleep(0)
    return x * 2


@task
def count(n: int) -> Iterator[int]:
    yield from range(n)


@task
async def acount(n: int) -> Any:
    for i in range(n):
        await anyio.sleep(0)
        yield i


@task
def broken(x: int = 0) -> int:
    raise LookupError(f"no {x}")


@task
async def abroken(x: int = 0) -> int:
    raise LookupError(f"no {x}")


# -- sync tasks ---------------------------------------------------------------------------------------------------


def test_a_sync_task_runs_in_the_callers_thread() -> None:
    @task
    def where() -> int:
        return threading.get_ident()

    assert isinstance(where, Task)
    assert where() == threading.get_ident()


async def test_a_sync_task_called_on_a_loop_runs_inline() -> None:
    @task
    def where() -> int:
        return threading.get_ident()

    assert where() == threading.get_ident()
    assert await where.submit() != threading.get_ident()


def test_a_sync_task_raises_the_bodys_own_exception() -> None:
    with pytest.raises(LookupError, match="no 3"):
        broken(3)


def test_return_state_gives_the_final_state_and_raises_nothing() -> None:
    state = double(4, return_state=True)
    assert state.is_completed()
    assert state.result() == 8
    state = broken(4, return_state=True)
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), LookupError)
    with pytest.raises(LookupError):
        state.result()


def test_return_state_false_is_a_plain_call() -> None:
    assert double(4, return_state=False) == 8


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_return_state_does_not_swallow_an_interrupt(stop: type[BaseException]) -> None:
    @task
    def stopped() -> None:
        raise stop

    with pytest.raises(stop):
        stopped(return_state=True)


def test_a_submitted_sync_task_runs_on_another_thread_and_gives_a_future_at_once() -> None:
    go = threading.Event()

    @task
    def wait() -> int:
        assert go.wait(20)
        return threading.get_ident()

    future = wait.submit()
    assert isinstance(future, TaskFuture)
    assert not future.done()
    go.set()
    assert future.result(20) != threading.get_ident()


async def test_map_of_a_sync_task_gives_results_in_the_order_of_its_input() -> None:
    futures = double.map([3, 1, 2])
    assert isinstance(futures, TaskFutureList)
    assert await futures == [6, 2, 4]


def test_submit_and_map_with_return_state_wait_for_final_states() -> None:
    state = double.submit(4, return_state=True)
    assert (state.name, state.result()) == ("Completed", 8)
    assert broken.submit(4, return_state=True).is_failed()
    assert [state.result() for state in adouble.map([1, 2], return_state=True)] == [2, 4]
    assert double.submit(4, return_state=False).result(20) == 8

    @task
    def options(**kwargs: Any) -> Any:
        return kwargs

    assert options.submit(a=1, return_state=True).result() == {"a": 1}


async def test_submit_with_return_state_on_its_own_loop_says_to_await() -> None:
    with pytest.raises(BlockingWaitError, match="await"):
        adouble.submit(4, return_state=True)


def test_map_and_submit_from_plain_code_need_no_loop() -> None:
    assert double.map(range(3)).result(20) == [0, 2, 4]
    assert adouble.map(range(3)).result(20) == [0, 2, 4]
    assert adouble.submit(4).result(20) == 8


# -- async tasks --------------------------------------------------------------------------------------------------


async def test_an_async_task_is_awaited_and_runs_in_the_callers_task() -> None:
    @task
    async def where() -> int:
        return threading.get_ident()

    assert isinstance(where, AsyncTask)
    made = where()
    assert inspect.iscoroutine(made)
    assert await made == threading.get_ident()


async def test_an_async_task_raises_the_bodys_own_exception() -> None:
    with pytest.raises(LookupError, match="no 3"):
        await abroken(3)


async def test_return_state_of_an_async_task_is_awaited() -> None:
    assert (await adouble(4, return_state=True)).result() == 8
    assert (await abroken(4, return_state=True)).is_failed()


async def test_submitted_async_tasks_run_beside_each_other_on_the_callers_loop() -> None:
    both_there = [anyio.Event(), anyio.Event()]

    @task
    async def meet(me: int) -> int:
        both_there[me].set()
        await both_there[1 - me].wait()
        return threading.get_ident()

    with anyio.fail_after(20):
        assert await meet.map([0, 1]) == [threading.get_ident()] * 2


@pytest.mark.asyncio
async def test_coroutines_of_tasks_are_for_gather_and_create_task() -> None:
    assert await asyncio.gather(adouble(1), adouble(2)) == [2, 4]
    assert await asyncio.create_task(adouble(3)) == 6


# -- generators ---------------------------------------------------------------------------------------------------


def test_a_generator_task_is_an_iterator() -> None:
    assert isinstance(count, GeneratorTask)
    values = count(3)
    assert next(values) == 0
    assert list(values) == [1, 2]


def test_return_state_of_a_generator_task_consumes_the_run() -> None:
    assert count(3, return_state=True).result() == [0, 1, 2]


def test_the_return_value_of_a_generator_task_reaches_yield_from() -> None:
    @task
    def numbers() -> Any:
        yield 1
        return "the end"

    def user() -> Any:
        return (yield from numbers())

    made = user()
    assert next(made) == 1
    with pytest.raises(StopIteration) as stopped:
        next(made)
    assert stopped.value.value == "the end"


async def test_a_generator_task_that_is_dropped_is_closed_at_once_also_on_a_loop() -> None:
    ended: list[str] = []

    @task(on_completion=lambda t, r, s: ended.append(s.message))
    def values() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            ended.append("cleaned up")

    for value in values():
        assert value == 0
        break
    assert ended == ["cleaned up", "closed before its end"]
    never_begun = values()
    del never_begun
    assert len(ended) == 2


async def test_an_async_generator_task_is_an_async_iterator() -> None:
    assert isinstance(acount, AsyncGeneratorTask)
    assert [value async for value in acount(3)] == [0, 1, 2]


async def test_return_state_of_an_async_generator_task_is_awaited() -> None:
    state = await acount(3, return_state=True)
    assert state.result() == [0, 1, 2]


async def test_a_submitted_generator_gives_the_list_and_can_be_iterated() -> None:
    assert await count.submit(3) == [0, 1, 2]
    assert await acount.submit(3) == [0, 1, 2]
    assert [value async for value in count.submit(3)] == [0, 1, 2]
    assert [value async for value in acount.submit(3)] == [0, 1, 2]
    assert await acount.map([1, 2]) == [[0], [0, 1]]


def test_a_submitted_generator_can_be_iterated_from_plain_code() -> None:
    assert list(count.submit(3)) == [0, 1, 2]
    assert list(acount.submit(3)) == [0, 1, 2]


async def test_only_futures_of_generators_can_be_iterated() -> None:
    future = adouble.submit(1)
    with pytest.raises(TypeError, match="its task is not a generator"):
        async for _ in future:
            pass
    await future


def test_a_task_that_returns_a_generator_has_it_consumed_into_a_list() -> None:
    @task
    def lazily(n: int) -> Any:
        return (i for i in range(n))

    assert lazily(3) == [0, 1, 2]
    assert lazily.submit(3).result(20) == [0, 1, 2]


async def test_a_generator_that_a_submitted_task_returns_is_consumed_on_its_thread() -> None:
    @task
    def lazily() -> Any:
        return (threading.get_ident() for _ in range(2))

    assert threading.get_ident() not in await lazily.submit()


# -- other callables ----------------------------------------------------------------------------------------------


class Adder:
    """Adds a number."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, x: int) -> int:
        return x + self.step


class AsyncAdder(Adder):
    async def __call__(self, x: int) -> int:  # type: ignore[override]
        await anyio.sleep(0)
        return x + self.step


class Repeater:
    def __call__(self, n: int) -> Iterator[int]:
        yield from range(n)


def add(x: int, step: int) -> int:
    """Adds two numbers."""
    return x + step


async def aadd(x: int, step: int) -> int:
    return x + step


def test_a_callable_object_is_a_task_named_by_its_class() -> None:
    plus = task(Adder(5))
    assert isinstance(plus, Task)
    assert (plus.name, plus.description) == ("Adder", "Adds a number.")
    assert plus(1) == 6
    assert plus.submit(1).result(20) == 6
    assert list(task(Repeater())(2)) == [0, 1]


async def test_an_object_with_an_async_call_is_an_async_task() -> None:
    plus = task(AsyncAdder(5))
    assert isinstance(plus, AsyncTask)
    assert await plus(1) == 6
    assert await plus.submit(1) == 6


async def test_a_partial_has_the_name_colour_and_description_of_its_function() -> None:
    plus = task(functools.partial(add, step=5))
    assert (plus.name, plus.description) == ("add", "Adds two numbers.")
    assert plus(1) == 6
    aplus = task(functools.partial(functools.partial(aadd), step=5))
    assert isinstance(aplus, AsyncTask)
    assert await aplus(1) == 6
    assert await task(functools.partial(AsyncAdder(5)))(1) == 6


def test_a_lambda_is_a_task() -> None:
    assert task(lambda x: x + 1)(1) == 2
    assert task(lambda x: x + 1, name="next")(1, return_state=True).result() == 2


def test_builtins_are_tasks_with_and_without_a_signature() -> None:
    assert task(len)("abc") == 3
    biggest = task(max)  # inspect.signature knows nothing about it
    assert biggest(1, 3, 2) == 3
    assert biggest([1, -3], key=abs) == -3
    assert biggest.submit([1, -3], key=abs).result(20) == -3


def test_a_bound_method_of_any_object_is_a_task() -> None:
    assert task([3, 1, 3].count)(3) == 2
    assert task(Adder(2).__call__)(1) == 3


def test_a_forgotten_await_is_told_with_the_name_of_the_task() -> None:
    @task
    async def fetch() -> int:
        return 1

    with pytest.warns(RuntimeWarning, match="coroutine 'fetch' was never awaited"):
        fetch()  # freed, and so told of, at the end of this line
