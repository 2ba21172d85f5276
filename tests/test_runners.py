"""Thread runners: how many threads, which of them, and what they know of the caller."""

import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

import asynctask.runners
from asynctask import Runtime, TaskFuture, ThreadPoolTaskRunner, flow, task
from asynctask.errors import OptionError, WorkerLostError
from asynctask.runners import ThreadPool
from asynctask.stores.memory import MemoryStore
from testkit import until


def fresh(workers: int | None = None) -> Runtime:
    return Runtime(store=MemoryStore(), task_runner=None if workers is None else ThreadPoolTaskRunner(workers))


def is_handed_over(future: TaskFuture[Any]) -> bool:
    """Whether the runner has its body: in a thread, or waiting for a free one."""
    return future.state.is_running() or future.run.waiting_on == "a free thread"


@task
def where() -> str:
    return threading.current_thread().name


async def test_at_most_max_workers_bodies_run_at_once_and_as_many_as_that():
    together = threading.Barrier(3)
    lock = threading.Lock()
    now = most = 0

    @task
    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(20)  # breaks if fewer than three run at once
        with lock:
            now -= 1

    async with fresh(3):
        for future in [work.submit() for _ in range(12)]:
            await future
    assert most == 3


async def test_calls_are_served_in_the_order_in_which_they_came():
    order: list[int] = []
    gate = threading.Event()

    @task
    def work(number: int) -> None:
        gate.wait(20)
        order.append(number)

    async with fresh(1) as rt:
        futures = []
        for number in range(5):  # one by one: trio starts tasks of one moment in any order
            futures.append(work.submit(number))
            await until(lambda: is_handed_over(futures[-1]))
        gate.set()
        for future in futures:
            await future
        assert rt.abandoned_threads == []
    assert order == list(range(5))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("width", [1, 3])
async def test_tasks_that_submit_tasks_and_wait_for_them_never_stop_the_pool(workers, width):
    @task
    def nested(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(future.result(timeout=20) for future in [nested.submit(depth - 1) for _ in range(width)])

    async with fresh(workers):
        with anyio.fail_after(20):
            assert await nested.submit(4) == width**4


def test_nested_tasks_of_plain_code_never_stop_the_pool_either():
    @task(task_runner=ThreadPoolTaskRunner(1))
    def nested(depth: int) -> int:
        return 0 if depth == 0 else nested.submit(depth - 1).result(timeout=20) + sum(nested.map([0, 0]).result(20)) + 1

    assert nested.submit(5).result(timeout=20) == 5


async def test_a_worker_that_waits_lends_its_place_and_the_pool_shrinks_again():
    """With one worker, at most one body computes at a time, whatever the depth; idle threads go."""
    lock = threading.Lock()
    computing = most = 0

    @task
    def nested(depth: int) -> None:
        nonlocal computing, most
        if depth:
            nested.submit(depth - 1).result(timeout=20)
        with lock:
            computing += 1
            most = max(most, computing)
        time.sleep(0.002)
        with lock:
            computing -= 1

    async with fresh(1):
        await nested.submit(6)
        await until(lambda: workers() <= 1)
        assert most <= 2  # a lender taking its place back overlaps for a moment with the one it lent it to


def workers() -> int:
    return sum(thread.name.startswith("asynctask-worker") for thread in threading.enumerate())


def test_idle_threads_end(monkeypatch):
    monkeypatch.setattr(asynctask.runners, "IDLE_SECONDS", 0.01)
    pool = ThreadPool(4, "idle-test")
    together = threading.Barrier(4)
    for future in [pool.submit(together.wait, 5) for _ in range(4)]:
        future.result(20)
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("idle-test") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert pool.submit(lambda: 3).result(20) == 3  # and it still works
    pool.shutdown()


def test_a_call_is_taken_by_another_idle_thread_when_the_one_woken_for_it_ends():
    """Else the call would wait for IDLE_SECONDS, until the other one looks."""
    pool = ThreadPool(2, "shrink-test")
    lent, back, busy = threading.Event(), threading.Event(), threading.Event()
    finish = threading.Event()

    def lender() -> None:
        pool.lend()
        lent.set()
        back.wait(20)
        pool.take_back()
        busy.set()
        finish.wait(10)

    first = pool.submit(lender)
    assert lent.wait(20)
    together = threading.Barrier(2)
    for future in [pool.submit(together.wait, 5) for _ in range(2)]:  # two more threads, which then idle
        future.result(20)
    back.set()
    assert busy.wait(20)
    start = time.monotonic()
    assert pool.submit(lambda: "ran").result(10) == "ran"
    assert time.monotonic() - start < 2
    finish.set()
    first.result(20)
    pool.shutdown()


async def test_the_runner_is_the_tasks_own_else_its_flows_else_the_runtimes():
    of_task, of_flow, of_runtime = (Named(name) for name in ("of-task", "of-flow", "of-runtime"))

    @flow
    async def inner() -> list[str]:
        return [await where.submit(), await where.with_options(task_runner=of_task).submit()]

    @flow(task_runner=of_flow)
    async def outer() -> list[str]:
        return [await where.submit(), *await inner()]

    async with Runtime(store=MemoryStore(), task_runner=of_runtime):
        assert [await where.submit(), *await outer()] == ["of-runtime", "of-flow", "of-flow", "of-task"]
    assert [runner.open for runner in (of_task, of_flow, of_runtime)] == [False] * 3  # closed with the runtime


class Named(ThreadPoolTaskRunner):
    """A runner whose threads are called `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(2)
        self.name = name
        self.open = False

    def executor(self) -> Any:
        self.open = True
        executor = super().executor()
        name = self.name

        class Naming:
            def submit(self, call: Any, *args: Any) -> Any:
                def named() -> Any:
                    thread = threading.current_thread()
                    before, thread.name = thread.name, name
                    try:
                        return call(*args)
                    finally:
                        thread.name = before

                return executor.submit(named)

        return Naming()

    def close(self, timeout: float = 0.2) -> None:
        self.open = False
        super().close(timeout)


async def test_context_variables_are_copied_in_and_not_out():
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="unset")

    @task
    def read_and_write() -> str:
        before = name.get()
        name.set("changed in the thread")
        return before

    async with fresh(1):
        name.set("of the caller")
        assert [await read_and_write.submit() for _ in range(2)] == ["of the caller"] * 2
        assert name.get() == "of the caller"


async def test_a_runner_closed_by_one_runtime_serves_the_next():
    runner = ThreadPoolTaskRunner(1)
    for _ in range(2):
        async with Runtime(store=MemoryStore(), task_runner=runner):
            assert (await where.submit()).startswith("asynctask-worker")


async def test_a_runtime_that_closes_does_not_drop_what_another_one_queued_on_the_same_runner():
    runner, gate = ThreadPoolTaskRunner(1), threading.Event()

    @task
    def blocked() -> bool:
        return gate.wait(20)

    async with Runtime(store=MemoryStore(), task_runner=runner):
        futures = [blocked.submit() for _ in range(3)]
        await until(lambda: all(map(is_handed_over, futures)))
        async with Runtime(store=MemoryStore(), task_runner=runner):
            pass
        gate.set()
        assert [await future for future in futures] == [True] * 3


@pytest.mark.parametrize("timeout", [None, 5])
async def test_what_an_executor_drops_is_said_to_be_dropped_and_is_tried_again(timeout):
    dropped = 1

    class Dropping(ThreadPoolTaskRunner):
        def executor(self) -> Any:
            nonlocal dropped
            if not dropped:
                return super().executor()
            dropped -= 1
            executor = ThreadPoolExecutor(1)
            gate = threading.Event()
            executor.submit(gate.wait, 5)
            threading.Timer(0.02, lambda: (executor.shutdown(wait=False, cancel_futures=True), gate.set())).start()
            return executor

    async with Runtime(store=MemoryStore(), task_runner=Dropping(1)):
        future = where.with_options(retries=1, timeout_seconds=timeout).submit()
        assert (await future).startswith("asynctask-worker")
        dropped = 1
        with pytest.raises(WorkerLostError, match="was dropped by its executor before it began"):
            await where.with_options(timeout_seconds=timeout).submit()
    assert [state.name for state in future.run.states] == ["Pending", "AwaitingRetry", "Running", "Completed"]


@pytest.mark.parametrize("broken", ["executor", "submit"])
async def test_what_a_runner_raises_fails_the_attempt_which_is_tried_again(broken):
    class Executor:
        def submit(self, *_: object) -> Any:
            raise OSError("no thread to be had")

    class Broken(ThreadPoolTaskRunner):
        attempts = 0

        def executor(self) -> Any:
            self.attempts += 1
            if self.attempts % 3 == 0:
                return super().executor()
            if broken == "executor":
                raise OSError("no thread to be had")
            return Executor()

    async with Runtime(store=MemoryStore(), task_runner=Broken(1)):
        first = where.with_options(retries=2).submit()
        assert (await first).startswith("asynctask-worker")
        second = where.submit()
        with pytest.raises(OSError, match="no thread to be had"):
            await second
    again = ["AwaitingRetry", "Running"]
    assert [state.name for state in first.run.states] == ["Pending", "AwaitingRetry", *again, "Completed"]
    assert second.state.name == "Failed"
    assert second.run.waiting_on is None


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "4"], ids=repr)
def test_a_wrong_number_of_workers_is_refused(wrong):
    with pytest.raises(OptionError, match="max_workers"):
        ThreadPoolTaskRunner(wrong)
