"""Hooks, arguments, numbers and runtimes at their worst: each has one right outcome, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import anyio
import pytest

from asynctask import task
from asynctask.errors import CrashedRun, OptionError, RuntimeClosedError, RuntimeInUseError
from testkit import fresh, limit_of

HOOKS = ("on_running", "on_completion", "on_failure", "on_cancellation", "on_crashed")


# -- hooks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("in the hook"), ExceptionGroup("g", [ValueError()])], ids=["one", "group"]
)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_hook_that_raises_is_logged_and_changes_nothing(is_async: bool, error: Any, caplog: Any) -> None:
    def hook(task: Any, run: Any, state: Any) -> None:
        raise error

    async def async_hook(task: Any, run: Any, state: Any) -> None:
        raise error

    chosen = dict.fromkeys(HOOKS, async_hook if is_async else hook)
    async with fresh() as rt:

        @task(**chosen)
        async def body(x: int) -> int:
            return 1 // x

        assert await body(1) == 1
        with pytest.raises(ZeroDivisionError):
            await body(0)
        assert await body.submit(1) == 1
        with pytest.raises(ZeroDivisionError):
            await body.submit(0)
        assert rt.runs == []
    assert sum("raised on entering" in record.message for record in caplog.records) == 8


async def test_a_hook_that_raises_an_exit_does_not_end_the_loop() -> None:
    def hook(task: Any, run: Any, state: Any) -> None:
        raise SystemExit(1)

    async with fresh() as rt:

        @task(on_completion=[hook])
        async def body() -> str:
            return "value"

        assert await body.submit() == "value"
        with pytest.raises(SystemExit):
            await body()
        assert rt.runs == []


async def test_a_hook_that_raises_an_exit_before_the_body_crashes_the_run() -> None:
    def hook(task: Any, run: Any, state: Any) -> None:
        raise SystemExit(1)

    async with fresh() as rt:
        with pytest.raises(CrashedRun):
            await task(on_running=[hook])(lambda: 1).submit()
        assert rt.runs == []


async def test_a_hook_that_blocks_delays_only_the_end_of_its_run() -> None:
    """A future is done when the hooks are."""
    blocked: list[float] = []

    def hook(task: Any, run: Any, state: Any) -> None:
        time.sleep(0.02)
        blocked.append(time.monotonic())

    async with fresh():
        future = task(on_completion=[hook])(lambda: "value").submit()
        assert await future == "value"
        assert blocked
        assert blocked[0] <= time.monotonic()


async def test_an_async_hook_that_never_ends_is_ended_with_the_runtime_and_the_value_stays() -> None:
    begun = anyio.Event()

    async def hook(task: Any, run: Any, state: Any) -> None:
        begun.set()
        await anyio.sleep_forever()

    with anyio.fail_after(20):
        async with fresh(shutdown_timeout=0.01):
            future = task(on_completion=[hook])(lambda: "value").submit()
            await begun.wait()
            assert not future.done()
    assert future.done()
    assert future.result() == "value"


@pytest.mark.parametrize("seconds", [0.0, 0.02])
async def test_an_async_hook_of_a_cancelled_run_goes_on_until_the_runtime_has_waited(seconds: float) -> None:
    begun = anyio.Event()
    ended: list[str] = []

    async def hook(task: Any, run: Any, state: Any) -> None:
        await anyio.sleep(seconds)
        ended.append(state.name)

    async def body() -> None:
        begun.set()
        await anyio.sleep_forever()

    async with fresh():
        future = task(on_cancellation=[hook])(body).submit()
        await begun.wait()
        future.cancel()
        await future.wait_async()
    assert ended == ["Cancelled"]


# -- arguments ------------------------------------------------------------------------------------------------------


class Hostile:
    """An object on which everything that is not needed raises."""

    def __init__(self, error: type[BaseException]) -> None:
        self.__dict__["error"] = error

    def _refuse(self, *args: Any) -> Any:
        raise self.__dict__["error"]("leave me alone")

    __repr__ = __str__ = __eq__ = __bool__ = __len__ = __iter__ = __getitem__ = _refuse
    __setattr__ = __format__ = __hash__ = __getattr__ = __reduce__ = __copy__ = __deepcopy__ = _refuse


@pytest.mark.parametrize("make", [lambda: Hostile(RuntimeError), MagicMock], ids=["hostile", "mock"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_an_argument_that_breaks_is_passed_as_it_is(is_async: bool, make: Callable[[], Any]) -> None:
    value = make()
    seen: list[Any] = []

    def body(x: Any) -> bool:
        seen.append(x)
        return True

    async def async_body(x: Any) -> bool:
        return body(x)

    async with fresh() as rt:
        t: Any = task(async_body if is_async else body)
        assert (await t(value) if is_async else t(value)) is True
        future = t.submit(value)
        assert rt.runs[0].parameters
        assert await future is True
        assert await t.submit([value, {"in": value}]) is True
    assert seen[0] is value
    assert seen[1] is value
    assert seen[2][0] is value
    assert seen[2][1]["in"] is value


async def test_a_value_that_breaks_comes_back_as_it_is() -> None:
    value = Hostile(RuntimeError)
    async with fresh():
        assert task(lambda: value)() is value
        future = task(lambda: value).submit()
        assert await future is value
        (passed, _) = await task(lambda x: x).submit([future, 1])
        assert passed is value


async def test_a_name_over_an_argument_that_breaks_is_an_error_that_names_the_option() -> None:
    async with fresh() as rt:
        t = task(task_run_name="{x}")(lambda x: x)
        with pytest.raises(OptionError, match="task_run_name"):
            await t.submit(Hostile(RuntimeError))
        assert rt.runs == []


def test_in_the_log_and_the_record_an_argument_that_breaks_is_told_by_its_type() -> None:
    begun, go = threading.Event(), threading.Event()

    def body(x: Any) -> None:
        begun.set()
        go.wait(20)

    future = task(body).submit(Hostile(ValueError))
    assert begun.wait(20)
    assert future.run.record().parameters == {"x": "<Hostile whose repr raised ValueError>"}
    go.set()
    assert future.result(timeout=20) is None


# -- numbers --------------------------------------------------------------------------------------------------------

MANY = 10_000


async def test_ten_thousand_submits_at_once() -> None:
    async with fresh() as rt:

        @task
        async def double(x: int) -> int:
            await anyio.sleep(0)
            return 2 * x

        futures = [double.submit(x) for x in range(MANY)]
        assert len(rt.runs) == MANY
        assert [await future for future in futures] == [2 * x for x in range(MANY)]
        assert rt.runs == []


def test_ten_thousand_submits_at_once_on_threads() -> None:
    t = task(lambda x: 2 * x)
    futures = [t.submit(x) for x in range(MANY)]
    assert [future.result(timeout=30) for future in futures] == [2 * x for x in range(MANY)]
    assert threading.active_count() < 100


async def test_ten_thousand_runs_under_one_limit() -> None:
    async with fresh() as rt:
        rt.limits.set("tag:few", 3)
        inside = peak = 0

        @task(tags=["few"])
        async def body(x: int) -> int:
            nonlocal inside, peak
            inside += 1
            peak = max(peak, inside)
            await anyio.sleep(0)
            inside -= 1
            return x

        assert sum(await body.map(range(MANY))) == sum(range(MANY))
        assert peak == 3
        assert limit_of(rt, "few").active_slots == []


def in_fifty_threads(work: Callable[[int], None]) -> list[BaseException]:
    """Let fifty threads begin together; what they raised."""
    errors: list[BaseException] = []
    together = threading.Barrier(50)

    def begin(number: int) -> None:
        try:
            together.wait(10)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return errors


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_submits_from_fifty_threads_at_once(kind: str) -> None:
    results: list[int] = []

    async def async_double(x: int) -> int:
        await anyio.sleep(0)
        return 2 * x

    t: Any = task(async_double if kind == "async" else lambda x: 2 * x)
    errors = in_fifty_threads(
        lambda number: results.extend(future.result(timeout=20) for future in t.map(range(number, number + 10)))
    )
    assert errors == []
    assert sorted(results) == sorted(2 * x for number in range(50) for x in range(number, number + 10))


async def test_submits_from_fifty_threads_to_a_runtime_on_a_loop() -> None:
    results: list[int] = []

    @task
    async def double(x: int) -> int:
        await anyio.sleep(0)
        return 2 * x

    async with fresh() as rt:
        errors = await anyio.to_thread.run_sync(
            in_fifty_threads, lambda number: results.append(double.submit(number).result(timeout=20))
        )
        assert rt.runs == []
    assert errors == []
    assert sorted(results) == [2 * x for x in range(50)]


# -- runtimes -------------------------------------------------------------------------------------------------------


async def test_a_runtime_closed_twice_is_closed() -> None:
    async with fresh() as rt:
        assert await task(lambda: 1).submit() == 1
    await rt.aclose()
    await rt.aclose()
    assert rt.is_closed


async def test_a_runtime_used_after_it_was_closed_says_so() -> None:
    rt = fresh(name="ours")
    t = task(lambda: 1)
    async with rt:
        await rt.aclose()
        with pytest.raises(RuntimeClosedError, match="'ours' is closed"):
            t.submit()
        with pytest.raises(RuntimeClosedError, match="'ours' is closed"):
            t()


async def test_a_runtime_entered_twice_says_so_and_goes_on() -> None:
    async with fresh(name="ours") as rt:
        with pytest.raises(RuntimeInUseError, match="'ours' is already entered"):
            async with rt:
                pass
        assert await task(lambda: 1).submit() == 1


async def test_a_runtime_entered_on_a_second_loop_says_so_and_goes_on() -> None:
    async with fresh(name="ours") as rt:

        async def enter() -> None:
            async with rt:
                pass

        for backend in ("asyncio", "trio"):
            with pytest.raises(RuntimeInUseError, match="'ours' is already entered"):
                await anyio.to_thread.run_sync(lambda b=backend: anyio.run(enter, backend=b))
        assert await task(lambda: 1).submit() == 1


def test_a_runtime_may_be_entered_again_on_another_loop_once_it_was_left() -> None:
    rt = fresh()

    async def enter() -> int:
        async with rt:
            return await task(lambda: 1).submit()

    assert [anyio.run(enter, backend=backend) for backend in ("asyncio", "trio", "asyncio")] == [1, 1, 1]
