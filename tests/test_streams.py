"""`Task.stream`: bounded concurrency over any input, results as they come or in order, left early or at the end."""

import contextlib
import gc
import io
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import anyio
import pytest

from asynctask import ProcessPoolTaskRunner, ThreadPoolTaskRunner, flow, get_client, tags, task
from asynctask.errors import BlockingWaitError, OptionError, ParameterBindError
from asynctask.runtime import task_run
from testkit import fresh, until

LIMIT = 20  # seconds after which a test that hangs fails


@task
async def double(x: int) -> int:
    await anyio.sleep(0)
    return x * 2


@task
def plain_double(x: int) -> int:
    return x * 2


@task
async def odd_fails(x: int) -> int:
    if x % 2:
        raise LookupError(x)
    return x


async def counted(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await anyio.sleep(0)
        yield i


class Gates:
    """A task whose runs wait until the test lets each of them go."""

    def __init__(self) -> None:
        self.gates: dict[int, anyio.Event] = {}
        self.ended: list[str] = []

        @task
        async def wait(x: int) -> int:
            self.gates[x] = anyio.Event()
            try:
                await self.gates[x].wait()
            except BaseException:
                self.ended.append(f"{x} cancelled")
                raise
            return x

        self.wait = wait

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(LIMIT):
            while not condition():
                await anyio.sleep(0.001)

    async def until_in_flight(self, *numbers: int) -> None:
        await self.until(lambda: set(numbers) <= set(self.gates))


@pytest.fixture
def gates() -> Gates:
    return Gates()


# -- results ------------------------------------------------------------------------------------------------------


INPUTS: dict[str, Callable[[int], Any]] = {
    "range": range,
    "list": lambda n: list(range(n)),
    "iterator": lambda n: iter(range(n)),
    "async": counted,
}


@pytest.mark.parametrize("made", INPUTS.values(), ids=list(INPUTS))
@pytest.mark.parametrize("size", [1, 3, 100])
async def test_every_result_comes_once_whatever_the_input(made: Callable[[int], Any], size: int) -> None:
    for each in (double, plain_double):
        assert sorted([value async for value in each.stream(made(20), concurrency=size)]) == list(range(0, 40, 2))
        in_order = [value async for value in each.stream(made(20), concurrency=size, ordered=True)]
        assert in_order == list(range(0, 40, 2))


@pytest.mark.parametrize("made", INPUTS.values(), ids=list(INPUTS))
async def test_an_empty_input_gives_nothing(made: Callable[[int], Any]) -> None:
    assert [value async for value in double.stream(made(0), concurrency=2)] == []


async def test_results_come_as_runs_end(gates: Gates) -> None:
    stream = gates.wait.stream([1, 2, 3], concurrency=3)
    got: list[int] = []

    async def take() -> None:
        async for value in stream:
            got.append(value)

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await gates.until_in_flight(1, 2, 3)
        for number in (2, 3, 1):
            gates.gates[number].set()
            await gates.until(lambda number=number: number in got)  # type: ignore[misc]
    assert got == [2, 3, 1]


async def test_ordered_results_wait_for_those_before_them(gates: Gates) -> None:
    got: list[int] = []

    async def take() -> None:
        async for value in gates.wait.stream([1, 2, 3], concurrency=3, ordered=True):
            got.append(value)

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await gates.until_in_flight(1, 2, 3)
        gates.gates[3].set()
        gates.gates[2].set()
        await anyio.wait_all_tasks_blocked()
        assert got == []
        gates.gates[1].set()
    assert got == [1, 2, 3]


# -- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("ordered", [False, True], ids=["as-they-come", "ordered"])
async def test_never_more_than_n_in_flight_results_not_yet_taken_included(is_async: bool, ordered: bool) -> None:
    pulled: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(10):
            pulled.append(i)
            yield i

    async def anumbers() -> AsyncIterator[int]:
        for i in numbers():
            yield i

    taken = 0
    stream = double.stream(anumbers() if is_async else numbers(), concurrency=3, ordered=ordered)
    assert pulled == []
    async for _ in stream:
        for _ in range(30):  # turns of the loop: all three have long ended, and nobody takes them
            await anyio.sleep(0)
        assert len(pulled) - taken <= 3
        taken += 1
    assert taken == 10


async def test_the_input_is_pulled_only_when_there_is_room(gates: Gates) -> None:
    pulled: list[int] = []

    async def numbers() -> AsyncIterator[int]:
        for i in range(4):
            pulled.append(i)
            yield i

    got: list[int] = []

    async def take() -> None:
        async for value in gates.wait.stream(numbers(), concurrency=2):
            got.append(value)

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await gates.until_in_flight(0, 1)
        await anyio.wait_all_tasks_blocked()
        assert pulled == [0, 1]
        gates.gates[1].set()
        await gates.until_in_flight(2)
        await anyio.wait_all_tasks_blocked()
        assert (pulled, got) == ([0, 1, 2], [1])
        for number in (0, 2, 3):
            await gates.until_in_flight(number)
            gates.gates[number].set()
    assert sorted(got) == [0, 1, 2, 3]


class Item:
    """A value that can be watched."""

    def __init__(self, number: int) -> None:
        self.number = number


class Watched:
    """An endless input whose items, and what the runs make of them, are counted as long as anything refers to them."""

    def __init__(self) -> None:
        self.pulled = 0
        self.given: weakref.WeakSet[Item] = weakref.WeakSet()
        self.made: weakref.WeakSet[Item] = weakref.WeakSet()

    def plain(self) -> Iterator[Item]:
        while True:
            item = Item(self.pulled)
            self.pulled += 1
            self.given.add(item)
            yield item
            del item

    async def asynchronous(self) -> AsyncIterator[Item]:
        for item in self.plain():
            yield item
            del item

    def make(self, item: Item) -> Item:
        made = Item(item.number)
        self.made.add(made)
        return made


@pytest.mark.parametrize("kind", ["loop", "loop, suspending", "threads"])
@pytest.mark.parametrize("ordered", [False, True], ids=["as-they-come", "ordered"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_an_endless_input_takes_constant_memory(kind: str, ordered: bool, is_async: bool) -> None:
    watched = Watched()

    @task
    async def on_loop(item: Item) -> Item:
        if kind == "loop, suspending":
            await anyio.sleep(0)
        return watched.make(item)

    @task
    def on_thread(item: Item) -> Item:
        return watched.make(item)

    async with fresh() as runtime:
        source: Any = watched.asynchronous() if is_async else watched.plain()
        stream = (on_thread if kind == "threads" else on_loop).stream(source, concurrency=4, ordered=ordered)
        taken = 0
        async for made in stream:
            taken += 1
            assert len(runtime.runs) <= 4
            assert watched.pulled - taken <= 4
            assert len(watched.made) <= 5  # the one at hand, and four that may be over
            assert len(watched.given) <= 6  # those of the runs; the generator's own; and one on its way
            assert made.number < taken + 4
            if taken == 300:
                break
        del stream, made
        await until(lambda: not runtime.runs)


def test_an_endless_input_takes_constant_memory_in_plain_code() -> None:
    watched = Watched()
    stream = task(watched.make).stream(watched.plain(), concurrency=4)
    for taken in range(1, 200):
        next(stream)
        assert watched.pulled - taken <= 4
        assert len(watched.made) <= 5
        assert len(watched.given) <= 6
    stream.close()


async def test_a_result_does_not_wait_for_a_slow_input() -> None:
    send, receive = anyio.create_memory_object_stream[int](1)
    got: list[int] = []
    with anyio.fail_after(LIMIT):
        async with send, receive:
            await send.send(1)
            async for value in double.stream(receive, concurrency=10):
                got.append(value)
                if value >= 64:
                    await send.aclose()
                else:
                    await send.send(value)  # the next input exists only when this result was taken
    assert got == [2, 4, 8, 16, 32, 64]


async def test_a_stream_that_is_left_by_its_own_input_ends() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        stream.close()
        yield 2

    async def anumbers() -> AsyncIterator[int]:
        for number in numbers():
            yield number

    for source in (numbers(), anumbers()):
        stream: Any = double.stream(source, concurrency=1)
        async with fresh(), get_client() as client:
            with anyio.fail_after(LIMIT):
                assert [value async for value in stream] == [2]
            await anyio.wait_all_tasks_blocked()
            assert len(await client.read_task_runs()) == 1


async def test_sync_tasks_of_a_stream_run_beside_each_other() -> None:
    together = threading.Barrier(3)

    @task
    def meet(x: int) -> int:
        together.wait(LIMIT)
        return x

    assert sorted([value async for value in meet.stream(range(3), concurrency=3)]) == [0, 1, 2]


# -- failures -----------------------------------------------------------------------------------------------------


async def test_a_failure_ends_the_stream_and_cancels_the_rest(gates: Gates) -> None:
    @task
    async def work(x: int) -> int:
        if x == 1:
            await gates.until_in_flight(0)
            raise LookupError(x)
        return await gates.wait(x)

    closed: list[str] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append("closed")

    stream = work.stream(numbers(), concurrency=2)
    with pytest.raises(LookupError):
        async for _ in stream:
            pass
    assert closed == ["closed"]
    await gates.until(lambda: gates.ended == ["0 cancelled"])
    assert [value async for value in stream] == []


async def test_failures_can_be_values() -> None:
    got = [value async for value in odd_fails.stream(range(4), concurrency=2, ordered=True, return_exceptions=True)]
    assert [value if isinstance(value, int) else type(value) for value in got] == [0, LookupError, 2, LookupError]


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_an_input_that_raises_ends_the_stream_even_if_failures_are_values(gates: Gates, is_async: bool) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise OSError("the input broke")

    async def anumbers() -> AsyncIterator[int]:
        for number in numbers():
            yield number

    stream = gates.wait.stream(anumbers() if is_async else numbers(), concurrency=2, return_exceptions=True)
    with anyio.fail_after(LIMIT), pytest.raises(OSError, match="the input broke"):
        async for _ in stream:
            pass
    await anyio.wait_all_tasks_blocked()
    assert 1 not in gates.gates or gates.ended == ["1 cancelled"]


@pytest.mark.parametrize("made", INPUTS.values(), ids=list(INPUTS))
async def test_a_task_that_does_not_take_one_argument_is_refused_at_the_first_result(
    made: Callable[[int], Any],
) -> None:
    @task
    async def two(a: int, b: int) -> None: ...

    with pytest.raises(ParameterBindError, match="task 'two'"):
        async for _ in two.stream(made(1), concurrency=1):
            pass


# -- leaving early ------------------------------------------------------------------------------------------------


async def test_leaving_the_loop_cancels_what_is_in_flight_and_closes_a_plain_input(gates: Gates) -> None:
    closed: list[str] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append("closed")

    async def use() -> None:
        async for value in gates.wait.stream(numbers(), concurrency=3):
            assert value == 1
            break

    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await gates.until_in_flight(0, 1, 2)
        gates.gates[1].set()
    assert closed == ["closed"]
    await gates.until(lambda: sorted(gates.ended) == ["0 cancelled", "2 cancelled"])


async def test_leaving_the_loop_interrupts_bodies_in_threads(gates: Gates) -> None:
    begun, ended = threading.Barrier(3), []

    @task
    def work(x: int) -> int:
        if x == 0:
            begun.wait(LIMIT)
            return x
        try:
            begun.wait(LIMIT)
            while True:
                time.sleep(0.001)
        finally:
            ended.append(x)

    with anyio.fail_after(LIMIT):
        async for value in work.stream(range(100), concurrency=3):
            assert value == 0
            break
        await until(lambda: sorted(ended) == [1, 2])


async def test_leaving_the_loop_closes_an_async_input_that_may_await_in_its_cleaning_up(gates: Gates) -> None:
    closed = anyio.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            for i in range(100):
                yield i
        finally:
            await anyio.sleep(0)
            closed.set()

    async for _ in double.stream(numbers(), concurrency=2):
        break
    with anyio.fail_after(LIMIT):
        await closed.wait()


async def test_an_input_that_is_being_waited_for_is_cancelled() -> None:
    ended = anyio.Event()

    async def numbers() -> AsyncIterator[int]:
        yield 1
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with anyio.fail_after(LIMIT):
        async for _ in double.stream(numbers(), concurrency=2):
            break
        await ended.wait()


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_aclose_returns_when_the_input_is_closed(is_async: bool) -> None:
    closed: list[str] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append("plain")

    async def anumbers() -> AsyncIterator[int]:
        try:
            for number in range(100):
                yield number
        finally:
            await anyio.sleep(0)
            closed.append("async")

    stream: Any = double.stream(anumbers() if is_async else numbers(), concurrency=2)
    async with contextlib.aclosing(stream):
        assert await anext(stream) in (0, 2)
    assert closed == ["async" if is_async else "plain"]
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_cancelled_consumer_cancels_what_is_in_flight(gates: Gates) -> None:
    async def use() -> None:
        async for _ in gates.wait.stream(counted(100), concurrency=2):
            raise AssertionError("nothing ends")

    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await gates.until_in_flight(0, 1)
        group.cancel_scope.cancel()
    await gates.until(lambda: sorted(gates.ended) == ["0 cancelled", "1 cancelled"])


async def test_a_stream_that_is_never_iterated_pulls_nothing_and_leaves_nothing() -> None:
    pulled: list[int] = []

    def numbers() -> Iterator[int]:
        pulled.append(0)
        yield 0

    for source in (numbers(), counted(3)):
        stream = double.stream(source, concurrency=2)
        del stream
    gc.collect()
    assert pulled == []


async def test_a_file_is_not_closed() -> None:
    lines = io.StringIO("1\n2\n3\n")
    async for _ in plain_double.stream(lines, concurrency=1):
        break
    assert not lines.closed


# -- where it belongs ---------------------------------------------------------------------------------------------


async def test_runs_of_a_stream_belong_to_the_run_that_reads_it() -> None:
    @task
    async def child(x: int) -> list[str]:
        return sorted(task_run.tags)

    seen: list[Any] = []
    noting = child.with_options(on_completion=lambda t, run, s: seen.append(run.parent_task_run_id))

    @task
    async def parent(source: Any) -> Any:
        got = [value async for value in noting.stream(source, concurrency=2)]
        return task_run.id, got

    with tags("outer"):
        for source in ([1, 2], counted(2)):
            run_id, got = await parent(source)
            assert seen == [run_id] * 2
            assert got == [["outer"]] * 2
            seen.clear()


async def test_a_stream_in_a_flow_ends_with_it(gates: Gates) -> None:
    @flow
    async def whole() -> None:
        async for _ in gates.wait.stream(counted(10), concurrency=2):
            raise OSError("stop")

    async with anyio.create_task_group() as group:

        async def run() -> None:
            with pytest.raises(OSError, match="stop"):
                await whole()

        group.start_soon(run)
        await gates.until_in_flight(0, 1)
        gates.gates[0].set()
    assert "1 cancelled" in gates.ended


async def test_futures_in_the_input_are_resolved() -> None:
    source: Iterable[Any] = [double.submit(1), double.submit(2)]
    assert [value async for value in double.stream(source, concurrency=2, ordered=True)] == [4, 8]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True, None])
async def test_a_wrong_concurrency_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"task 'double': stream\(concurrency=...\) must be a number from 1, not"):
        double.stream([1], concurrency=wrong)


async def test_what_cannot_be_iterated_over_is_refused_at_once() -> None:
    with pytest.raises(OptionError, match=r"task 'double': stream\(\) needs an iterable or async iterable, not 5"):
        double.stream(5, concurrency=1)  # type: ignore[arg-type]


# -- on every runner, and one after another ---------------------------------------------------------------------------


@task
def times_ten(x: int) -> int:
    return x * 10


@task
async def slow_times_ten(x: int) -> int:
    await anyio.sleep(0.001)
    return x * 10


def on(runner: str) -> Any:
    """`times_ten` on a runner."""
    if runner == "loop":
        return slow_times_ten
    two = ThreadPoolTaskRunner(2) if runner == "threads" else ProcessPoolTaskRunner(2)
    return times_ten.with_options(task_runner=two)


@pytest.mark.parametrize("runner", ["loop", "threads", "processes"])
async def test_a_stream_is_the_same_on_every_runner(runner: str) -> None:
    each = on(runner)
    async with fresh():
        for made in INPUTS.values():
            in_order = [value async for value in each.stream(made(20), concurrency=3, ordered=True)]
            assert in_order == list(range(0, 200, 10))
            assert sorted([value async for value in each.stream(made(20), concurrency=3)]) == in_order


class Counted:
    """The numbers from 1 on, without an end."""

    def __init__(self) -> None:
        self.pulled = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.pulled += 1
            yield self.pulled


def three_stages(numbers: Iterable[int]) -> Any:
    first = on("loop").stream(numbers, concurrency=2, ordered=True)
    second = on("threads").stream(first, concurrency=3, ordered=True)
    return on("processes").stream(second, concurrency=4, ordered=True)


async def test_stages_on_different_runners_are_bounded_from_end_to_end() -> None:
    numbers = Counted()
    taken = 0
    async with fresh() as runtime:
        with anyio.fail_after(30):
            async for value in three_stages(numbers):
                taken += 1
                assert value == taken * 1000
                assert numbers.pulled - taken <= 2 + 3 + 4
                assert len(runtime.runs) <= 2 + 3 + 4
                if taken == 40:
                    break
            await until(lambda: not runtime.runs)


def test_stages_on_different_runners_are_bounded_in_plain_code_too() -> None:
    numbers = Counted()
    stages = three_stages(numbers)
    for taken in range(1, 30):
        assert next(stages) == taken * 1000
        assert numbers.pulled - taken <= 2 + 3 + 4
    stages.close()
    assert list(stages) == []


class Stages:
    """A pipeline of three stages over an endless input that can be watched; the one in the middle is given."""

    def __init__(self, gates: Gates, middle: Any, is_async: bool = False) -> None:
        self.pulled = 0
        self.closed = False
        first = double.stream(self.ainput() if is_async else self.input(), concurrency=2, ordered=True)
        self.middle = middle.stream(first, concurrency=2, ordered=True)
        self.last: Any = gates.wait.stream(self.middle, concurrency=3)

    def input(self) -> Iterator[int]:
        try:
            while True:
                self.pulled += 1
                yield self.pulled
        finally:
            self.closed = True

    async def ainput(self) -> AsyncIterator[int]:
        try:
            while True:
                self.pulled += 1
                yield self.pulled
        finally:
            await anyio.sleep(0)
            self.closed = True


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_failure_in_the_middle_of_a_pipeline_ends_all_of_it(gates: Gates, is_async: bool) -> None:
    @task
    async def breaks_at_six(x: int) -> int:
        if x == 6:
            await gates.until(lambda: len(gates.gates) == 2)
            raise LookupError("in the middle")
        return x

    async with fresh() as runtime:
        stages = Stages(gates, breaks_at_six, is_async)
        with anyio.fail_after(LIMIT), pytest.raises(LookupError, match="in the middle"):
            async for _ in stages.last:
                pass
        await gates.until(lambda: sorted(gates.ended) == ["2 cancelled", "4 cancelled"])
        await gates.until(lambda: stages.closed and not runtime.runs)
        assert [value async for value in stages.last] == []


async def test_failures_that_are_values_are_passed_on_to_the_next_stage() -> None:
    @task
    async def told(x: Any) -> str:
        return type(x).__name__

    first = odd_fails.stream(range(4), concurrency=2, ordered=True, return_exceptions=True)
    names = [name async for name in told.stream(first, concurrency=2, ordered=True)]
    assert names == ["int", "LookupError", "int", "LookupError"]


def test_a_failure_in_the_middle_of_a_pipeline_ends_all_of_it_in_plain_code() -> None:
    closed: list[str] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append("closed")

    @task
    def breaks_at_six(x: int) -> int:
        if x == 6:
            raise LookupError("in the middle")
        return x

    middle = breaks_at_six.stream(plain_double.stream(numbers(), concurrency=2, ordered=True), concurrency=1)
    last = plain_double.stream(middle, concurrency=1)
    assert [next(last) for _ in range(3)] == [0, 4, 8]
    with pytest.raises(LookupError, match="in the middle") as failure:
        next(last)
    assert closed == ["closed"], "also while somebody keeps the failure, whose traceback keeps the streams"
    del middle, last, failure


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_consumer_that_is_cancelled_as_it_waits_ends_the_whole_pipeline(gates: Gates, is_async: bool) -> None:
    async with fresh() as runtime:
        stages = Stages(gates, double, is_async)
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as group:

                async def use() -> None:
                    async for _ in stages.last:
                        raise AssertionError("nothing ends")

                group.start_soon(use)
                await gates.until(lambda: len(gates.gates) == 3)
                await anyio.wait_all_tasks_blocked()
                assert stages.pulled <= 2 + 2 + 3
                group.cancel_scope.cancel()
        await gates.until(lambda: len(gates.ended) == 3)
        await gates.until(lambda: stages.closed and not runtime.runs)


async def test_leaving_a_pipeline_waits_with_aclose_until_its_input_is_closed(gates: Gates) -> None:
    @task
    async def give(x: int) -> int:
        return x

    stages = Stages(gates, give, True)
    last: Any = give.stream(stages.middle, concurrency=2)
    with anyio.fail_after(LIMIT):
        async with contextlib.aclosing(last):
            assert await anext(last) in (2, 4)
        assert stages.closed


# -- in plain code ----------------------------------------------------------------------------------------------------


@task
def halved(number: int) -> float:
    if number == 13:
        raise ValueError("unlucky")
    return number / 2


@task
async def halved_async(number: int) -> float:
    await anyio.sleep(0)
    return number / 2


@pytest.mark.parametrize("which", [halved, halved_async], ids=["sync", "async"])
def test_in_plain_code_a_stream_is_taken_with_for(which):
    assert list(which.stream(range(10), concurrency=3, ordered=True)) == [number / 2 for number in range(10)]
    assert sorted(which.stream(iter(range(10)), concurrency=3)) == [number / 2 for number in range(10)]
    assert list(which.stream([], concurrency=3)) == []


def test_in_plain_code_the_input_is_pulled_only_when_there_is_room():
    pulled = 0

    def numbers() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield 2

    stream = halved.stream(numbers(), concurrency=4)
    for taken in range(1, 50):
        assert next(stream) == 1
        assert pulled <= taken + 4
    stream.close()
    assert list(stream) == []


def test_in_plain_code_a_failure_ends_the_stream_unless_it_is_asked_for():
    stream = halved.stream(range(10, 20), concurrency=1)
    assert [next(stream) for _ in range(3)] == [5, 5.5, 6]
    with pytest.raises(ValueError, match="unlucky"):
        next(stream)
    assert list(stream) == []
    found = list(halved.stream(range(12, 15), concurrency=1, return_exceptions=True))
    assert [type(one) for one in found] == [float, ValueError, float]


def test_stages_of_streams_pass_things_on_one_by_one_in_plain_code():
    first = halved.stream(range(0, 40, 4), concurrency=2, ordered=True)
    second = halved.stream(first, concurrency=2, ordered=True)
    assert list(second) == [float(number) for number in range(10)]


async def test_a_blocking_stream_on_the_loop_that_must_run_it_is_refused():
    async with fresh():
        with pytest.raises(BlockingWaitError, match="async for"):
            next(halved_async.stream([1], concurrency=1))


def test_an_async_input_needs_async_for():
    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(OptionError, match="async for"):
        next(halved.stream(numbers(), concurrency=1))
