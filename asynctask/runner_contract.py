"""What every task runner must do, as tests that the author of one inherits: `class TestMine(TaskRunnerContract)`.

1. Each test is one promise, said in its name, on asyncio and (where it is installed) on trio. None depends on plugins.
2. Nothing waits for ever: what is not there after `patience` seconds is a promise that was not kept.
3. That a body has begun, or ended, is seen and never guessed from a time; see `witnesses`.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_thread

from . import witnesses
from .client import get_client
from .errors import SerializationError, TaskTimeoutError, WorkerLostError
from .flows import flow
from .options import TaskRunner
from .promises import BACKENDS, error_of, expect, heard, in_threads, kept, names_of, plainly
from .runtime import flow_run
from .scopes import Runtime
from .states import State
from .stores.base import Store
from .stores.memory import MemoryStore
from .tasks import tags, task
from .witnesses import Witness, attend, attend_async, attend_stuck, colour, give, paint, place, place_async, until

#: Seconds of the timeouts under test: a body has begun by then, as a rule.
TIMEOUT = 0.5


class TaskRunnerContract:
    """The promises of a task runner. A subclass says `runner()`, and what its runner cannot be expected to do.

    pytest runs them as the tests of any class, with no plugin. Nothing here imports pytest.
    """

    #: Whether bodies get the very arguments, in this process, and a copy of the caller's context variables. If not,
    #: they are in other processes, and what travels is pickled.
    shares_memory: ClassVar[bool] = True
    #: Whether a timeout or a cancellation also ends a body that is stuck in a call which cannot be interrupted.
    kills: ClassVar[bool] = False
    #: Whether bodies may wait for others of the same runner, at any depth. Not if it has a fixed number of threads.
    nests: ClassVar[bool] = True
    #: Seconds that anything may take.
    patience: ClassVar[float] = 30.0

    def runner(self) -> TaskRunner:
        """A new one."""
        raise NotImplementedError(f"{type(self).__name__} must have a method runner() that gives a task runner")

    def __init_subclass__(cls) -> None:
        """Drop the promises that runners of its kind do not give."""
        dropped = {
            "test_bodies_may_wait_for_bodies_at_any_depth": not cls.nests,
            "test_what_cannot_travel_is_refused_by_name": cls.shares_memory,
            "test_a_lost_worker_fails_its_own_attempt_and_no_other": cls.shares_memory,
            "test_an_executor_that_is_shut_down_fails_its_runs_until_the_runner_is_closed": not cls.shares_memory,
        }
        for name, is_dropped in dropped.items():
            if is_dropped:
                setattr(cls, name, None)
            elif getattr(cls, name) is None:  # by a class between
                setattr(cls, name, getattr(TaskRunnerContract, name))

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Each promise on each loop."""
        if "backend" in metafunc.fixturenames:
            metafunc.parametrize("backend", BACKENDS)

    def runtime(
        self,
        *,
        task_runner: TaskRunner | None = None,
        store: Store | str | None = None,
        shutdown_timeout: float | None = None,
    ) -> Runtime:
        """One that shares nothing, with a runner of its own."""
        return Runtime(
            store=store or MemoryStore(),
            task_runner=task_runner or self.runner(),
            name="contract",
            shutdown_timeout=shutdown_timeout,
        )

    @kept
    async def test_bodies_of_every_kind_run_and_give_their_results(self, folder: Path) -> None:
        async with self.runtime():
            future = place.submit()
            there, there_async = await future, await place_async.submit()
            expect(names_of(future), ["Pending", "Running", "Completed"], "the states of a run")
            expect(await witnesses.count.submit(4), [0, 1, 2, 3], "the values of a generator")
            expect(await witnesses.count_async.submit(4), [0, 1, 2, 3], "the values of an async generator")
            called = place()
        here = os.getpid()
        expect(called, (here, threading.get_ident()), "what is called, and not submitted, was here")
        for where, kind in ((there, "a body"), (there_async, "an async body")):
            expect(where.process == here, self.shares_memory, f"{kind} was in this process ({self.shares_memory=})")
        expect(there == (here, threading.get_ident()), False, "a sync body was in the thread of the event loop")

    @kept
    async def test_arguments_and_results_arrive_as_they_are(self, folder: Path) -> None:
        class Pair:
            def __init__(self, left: int) -> None:
                self.left = left

        plain = [None, True, 2**70, -1.5, "text", b"bytes", (1, [2, {"three": {4}}]), datetime(2026, 1, 1, tzinfo=UTC)]
        offset, large, thing = 5, bytes(range(256)) * 4096, object()

        @task
        def pair(left: int, *, right: int = 0) -> Pair:
            return Pair(left + right + offset)

        async with self.runtime():
            expect(await give.map(plain), plain, "what bodies gave back")
            expect(await witnesses.join.submit("a", "b", end="!", c="d"), "a b c=d!", "the arguments of a body")
            expect(await give.submit(large) == large, True, "a megabyte came back")
            made = await pair.submit(1, right=2)
            expect((type(made), made.left), (Pair, 8), "what a closure made of a local class")
            if self.shares_memory:
                expect(await give.submit(thing) is thing, True, "the very object came back")

    @kept
    async def test_what_a_body_raises_is_what_its_run_raises(self, folder: Path) -> None:
        async with self.runtime():
            future = witnesses.fail.submit("inner", "outer")
            error = await error_of(future)
            expect((type(error), str(error)), (ValueError, "outer"), "the error")
            cause = str(error.__cause__) if self.shares_memory else str(error.__cause__).removeprefix("KeyError: ")
            expect(cause, "'inner'", "its cause")
            expect(error.__notes__[:1], ["a note"], "its notes")
            expect(names_of(future)[-1], "Failed", "the state of its run")
            retried = witnesses.fail_until.with_options(retries=3).submit(3)
            expect(await retried, 3, "the attempt that made it")
            wanted = ["Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Completed"]
            expect(names_of(retried), wanted, "the states of a run that was retried")
            ended = witnesses.exit_with.with_options(retries=3).submit(7)
            await ended.wait_async()
            expect(names_of(ended), ["Pending", "Running", "Crashed"], "the states of a run that SystemExit ended")
            expect(await give.submit(1), 1, "the next run")

    @kept
    async def test_what_cannot_travel_is_refused_by_name(self, folder: Path) -> None:
        @task
        def lock() -> Any:
            return threading.Lock()

        async with self.runtime():
            error = await error_of(give.submit(threading.Lock()))
            expect(isinstance(error, SerializationError) and "'value'" in str(error), True, f"{error!r} names it")
            error = await error_of(lock.submit())
            expect(isinstance(error, TypeError) and "result" in str(error), True, f"{error!r} says it is the result")
            expect(await give.submit(1), 1, "the next run")

    @kept
    async def test_every_one_of_many_runs_ends_with_its_own_result(self, folder: Path) -> None:
        async with self.runtime() as runtime:
            # Short ones may be called together, until one is long.
            for body in (give, witnesses.dawdle, give, witnesses.dawdle, give):
                expect(await body.map(range(200)), list(range(200)), "the results of 200 runs")
            expect(runtime.runs, [], "the runs that are under way when all have ended")

    @kept
    async def test_the_event_loop_goes_on_while_a_body_runs(self, folder: Path) -> None:
        with Witness() as witness:
            async with self.runtime():
                future = attend.submit(witness.port, self.patience)
                await witness.until(1)
                await until(lambda: future.state.is_running())
                witness.let_go()
                expect(await future, "let go", "what a body gave that the event loop had to let go")

    @kept
    async def test_bodies_may_wait_for_bodies_at_any_depth(self, folder: Path) -> None:
        async with self.runtime():
            expect(await witnesses.spread.submit(5, 2, self.patience), 32, "runs at the bottom")
            expect(await witnesses.spread_async.submit(3, 2), 8, "runs at the bottom of async ones")

    @kept
    async def test_a_timeout_ends_the_run_and_its_body(self, folder: Path) -> None:
        with Witness() as witness:
            async with self.runtime():
                for body in (attend, attend_async):
                    future = body.with_options(timeout_seconds=TIMEOUT).submit(witness.port, self.patience)
                    expect(type(await error_of(future)), TaskTimeoutError, "the error")
                    expect(names_of(future)[-1], "TimedOut", "the state")
                    await witness.until(0)
                    expect(await give.submit(1), 1, "the next run")

    @kept
    async def test_a_run_whose_body_is_stuck_ends_on_time_and_holds_nobody_up(self, folder: Path) -> None:
        with Witness() as witness:
            async with self.runtime():
                future = attend_stuck.with_options(timeout_seconds=TIMEOUT).submit(witness.port, self.patience)
                expect(type(await error_of(future)), TaskTimeoutError, "the error")
            if not self.kills:
                expect(witness.there, 1, "bodies that were still stuck when the runtime had been left")
                witness.let_go()
            await witness.until(0)
            async with self.runtime():
                expect(await give.submit(1), 1, "the next run")

    @kept
    async def test_a_cancellation_ends_the_run_and_its_body(self, folder: Path) -> None:
        with Witness() as witness:
            async with self.runtime():
                for body in (attend, attend_async):
                    future = body.submit(witness.port, self.patience)
                    await witness.until(1)
                    future.cancel("seen enough")
                    expect(_text(await future.wait_async()), "Cancelled: seen enough", "the state")
                    await witness.until(0)
                    expect(await give.submit(1), 1, "the next run")

    @kept
    async def test_what_is_cancelled_before_it_begins_or_as_it_does_leaves_no_body(self, folder: Path) -> None:
        with Witness() as witness:
            async with self.runtime():
                futures = [attend.submit(witness.port, self.patience) for _ in range(6)]
                futures[0].cancel()
                await until(lambda: witness.there > 0)
                for future in futures:
                    future.cancel()
                states = [await future.wait_async() for future in futures]
                expect([_text(state).split(":")[0] for state in states], ["Cancelled"] * 6, "the states")
                expect(await give.map(range(4)), [0, 1, 2, 3], "the next runs")
                await witness.until(0)

    @kept
    async def test_a_body_knows_its_run_and_its_flow(self, folder: Path) -> None:
        @flow
        async def around() -> tuple[list[Any], list[Any]]:
            with tags("a", "b"):
                future = witnesses.look_around.submit()
            run: list[Any] = [future.task_run_id, future.name, ["a", "b"], 1, "look_around", {}]
            return [*run, flow_run.id, flow_run.id, flow_run.name, "around"], await future

        async with self.runtime():
            wanted, seen = await around()
            expect(seen, wanted, "what a body saw of its run")
            if self.shares_memory:
                colour.set("red")
                expect([await paint.submit("blue"), await paint.submit("green")], ["red", "red"], "what bodies saw")
                expect(colour.get(), "red", "the caller's own, of which bodies have a copy")

    @kept
    async def test_what_bodies_log_and_print_comes_home_in_order(self, folder: Path) -> None:
        wanted = [text for number in range(20) for text in (f"printed {number}", f"logged {number}")]
        with heard() as records:
            async with self.runtime():
                futures = witnesses.talk.map([20] * 4)
                await futures
                async with get_client() as client:
                    logs = [await client.read_logs(future.task_run_id) for future in futures]
        for future, entries in zip(futures, logs, strict=True):
            expect([entry.message for entry in entries], wanted, "what is kept of what a run logged")
            mine = [one.getMessage() for one in records if getattr(one, "task_run_id", "") == str(future.task_run_id)]
            expect([text for text in mine if text in wanted], wanted, "what the loggers here heard of it")

    @kept
    async def test_runs_that_a_body_starts_have_its_run_as_their_parent(self, folder: Path) -> None:
        async with self.runtime(store=f"sqlite:///{folder}/runs.db"):
            future = witnesses.start_another.submit(1, self.nests, self.patience)
            expect(await future, 4 if self.nests else 2, "what came of them")
            wanted = [(future.task_run_id, "Completed")] * (2 if self.nests else 1)
            async with get_client() as client:
                while True:  # another process may write a moment later
                    runs = await client.read_task_runs(task_name="started")
                    if [(run.parent_task_run_id, run.state_name) for run in runs] == wanted:
                        break
                    await anyio.sleep(witnesses.POLL_SECONDS)

    @kept
    async def test_streams_pull_no_more_than_they_may_and_leave_no_body(self, folder: Path) -> None:
        pulled: list[int] = []
        patience = self.patience

        @task
        def attend_at(port: int) -> Any:
            return attend.fn(port, patience)

        def numbers() -> Iterator[int]:
            for number in itertools.count():
                pulled.append(number)
                yield number

        with Witness() as witness:
            async with self.runtime():
                seen: list[int] = []
                async for value in give.stream(numbers(), concurrency=3, ordered=True):
                    seen.append(value)
                    if value == 30:
                        break
                expect(seen, list(range(31)), "the results of a stream")
                expect(len(pulled) <= 31 + 3, True, f"{len(pulled)} pulled is as many as there was room for")
                stream = attend_at.stream(itertools.repeat(witness.port), concurrency=2)
                async with anyio.create_task_group() as group:
                    group.start_soon(_let_one_go, witness)
                    expect(await anext(stream), "let go", "the first result")
                await stream.aclose()
                await witness.until(0)

    def test_plain_code_uses_it_as_well(self) -> None:
        runner = self.runner()

        @flow(task_runner=runner)
        def together() -> int:
            return sum(give.map(range(10)).result(timeout=self.patience))

        def use() -> list[Any]:
            with plainly(self.runtime(task_runner=runner, shutdown_timeout=self.patience)):
                alone = give.submit(1).result(timeout=self.patience)
                return [alone, together(), list(give.stream(range(10), concurrency=2, ordered=True))]

        expect(in_threads([use], self.patience), [[1, 45, list(range(10))]], "what a run, a flow and a stream gave")

    def test_threads_loops_and_flows_share_it(self) -> None:
        runner = self.runner()
        backends = [*BACKENDS, *BACKENDS]
        all_done = threading.Barrier(len(backends))

        @flow(task_runner=runner)
        async def half(first: int) -> int:
            return sum(await give.map(range(first, first + 20)))

        async def use() -> list[int]:
            sums: list[int] = []

            async def add(first: int) -> None:
                sums.append(await half(first))

            async with self.runtime():
                with anyio.fail_after(self.patience):
                    async with anyio.create_task_group() as group:
                        group.start_soon(add, 0)
                        group.start_soon(add, 20)
                await anyio.to_thread.run_sync(all_done.wait, self.patience)  # before anybody closes it
            return sorted(sums)

        found = in_threads([partial(anyio.run, use, backend=backend) for backend in backends], self.patience)
        expect(found, [[190, 590]] * len(backends), "what two flows gave in each of several threads")

    @kept
    async def test_leaving_the_runtime_waits_for_its_runs_or_cancels_them(self, folder: Path) -> None:
        async with self.runtime():
            futures = give.map(range(20))
        expect([future.state.name for future in futures], ["Completed"] * 20, "the states of runs that were waited for")
        with Witness() as witness:
            async with self.runtime(shutdown_timeout=0):
                attending = [attend.submit(witness.port, self.patience) for _ in range(3)]
                await until(lambda: witness.there > 0)
            expect([future.state.name for future in attending], ["Cancelled"] * 3, "the states of runs that were not")
            await witness.until(0)

    @kept
    async def test_it_can_be_closed_at_any_time_and_then_be_used_again(self, folder: Path) -> None:
        runner = self.runner()
        runner.close()
        with Witness() as witness:
            async with self.runtime(task_runner=runner):
                futures = [attend.submit(witness.port, self.patience), *give.map(range(20))]
                await witness.until(1)
                witness.let_go()
                await anyio.to_thread.run_sync(runner.close)
                for future in futures:  # whatever has become of them
                    await future.wait_async()
                expect(await give.map(range(4)), [0, 1, 2, 3], "the results of the next runs")
            runner.close()
            async with self.runtime(task_runner=runner):
                expect(await give.map(range(4)), [0, 1, 2, 3], "those in the next runtime")

    @kept
    async def test_a_lost_worker_fails_its_own_attempt_and_no_other(self, folder: Path) -> None:
        async with self.runtime():
            lost = witnesses.die_until.submit(2, os.getpid())
            expect(type(await error_of(lost)), WorkerLostError, "the error")
            expect(names_of(lost)[-1], "Crashed", "the state")
            expect(await give.map(range(8)), list(range(8)), "the results of the next runs")
            again = witnesses.die_until.with_options(retries=1).submit(2, os.getpid())
            expect(await again, 2, "the attempt that made it")

    @kept
    async def test_an_executor_that_is_shut_down_fails_its_runs_until_the_runner_is_closed(self, folder: Path) -> None:
        runner = self.runner()
        async with self.runtime(task_runner=runner):
            expect(await give.submit(1), 1, "the result of a run")
            futures = give.map(range(50))
            await anyio.lowlevel.checkpoint()
            runner.executor().shutdown(wait=False, cancel_futures=True)
            future = give.with_options(retries=1).submit(2)
            for one in (*futures, future):
                await one.wait_async()
            if names_of(future)[-1] != "Completed":  # its executor takes calls all the same, or the runner made another
                expect("AwaitingRetry" in names_of(future), True, "a run after that was tried again")
            runner.close()
            expect(await give.submit(3), 3, "the result of a run once it was closed")


def _text(state: State | None) -> str:
    return "" if state is None else f"{state.name}: {state.message}"


async def _let_one_go(witness: Witness) -> None:
    await until(lambda: witness.there > 0)
    witness.let_go(1)
