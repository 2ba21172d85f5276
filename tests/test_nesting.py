"""Tasks call tasks, in every mixture of colours and forms, to any depth that the interpreter allows."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asynctask import Runtime, ThreadPoolTaskRunner, flow, task
from asynctask.runtime import flow_run, task_run
from asynctask.stores.memory import MemoryStore

# -- who is whose parent ------------------------------------------------------------------------------------------


@task
def here() -> tuple[Any, Any]:
    return task_run.id, flow_run.id


@task
async def ahere() -> tuple[Any, Any]:
    await anyio.sleep(0)
    return task_run.id, flow_run.id


async def test_a_run_started_inside_another_is_its_child_however_it_is_started() -> None:
    parents: list[Any] = []
    noting: Any = {"on_completion": lambda t, run, s: parents.append((run.id, run.parent_task_run_id, run.flow_run_id))}
    child, achild = here.with_options(**noting), ahere.with_options(**noting)

    @task
    def parent() -> Any:
        return task_run.id, [child(), child.submit().result(20), achild.submit().result(20)]

    @task
    async def aparent() -> Any:
        return task_run.id, [child(), await achild(), await child.submit(), await achild.submit()]

    in_thread = await anyio.to_thread.run_sync(parent)
    for made in (in_thread, await parent.submit(), await aparent(), await aparent.submit()):
        run_id, children = made
        expected = {(child_id, run_id, None) for child_id, _ in children}
        assert expected <= set(parents)
        parents = [one for one in parents if one not in expected]
    assert parents == []


def test_runs_inside_a_flow_know_it_at_every_depth() -> None:
    @task
    def middle() -> Any:
        return here(), here.submit().result(20)

    @flow
    def whole() -> Any:
        return flow_run.id, middle(), middle.submit().result(20)

    flow_id, *pairs = whole()
    assert [inner for pair in pairs for _, inner in pair] == [flow_id] * 4


def test_the_context_is_the_parents_again_after_a_child() -> None:
    @task
    def fails() -> None:
        raise LookupError

    @task
    def values() -> Iterator[int]:
        yield 1
        yield 2

    @task
    def parent() -> list[Any]:
        seen = [task_run.id]
        here()
        seen.append(task_run.id)
        fails(return_state=True)
        seen.append(task_run.id)
        for _ in values():
            seen.append(task_run.id)
        assert next(iter(values())) == 1
        seen.append(task_run.id)
        return seen

    assert len(set(parent())) == 1
    assert task_run.id is None


async def test_sibling_runs_on_one_loop_do_not_see_each_other() -> None:
    both = [anyio.Event(), anyio.Event()]

    @task
    async def one(me: int) -> bool:
        before = task_run.id
        both[me].set()
        await both[1 - me].wait()
        return before == task_run.id

    with anyio.fail_after(20):
        assert await one.map([0, 1]) == [True, True]


# -- depth --------------------------------------------------------------------------------------------------------


@task
def down(n: int) -> int:
    return 0 if n == 0 else 1 + down(n - 1)


@task
def forever(n: int = 0) -> int:
    return forever(n + 1)


def test_sync_tasks_nest_as_deep_as_the_recursion_limit_allows() -> None:
    assert down(100) == 100
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        # From 3.12 on, what is called through C (a coroutine's `send`) has a limit of its own, which nobody can raise.
        depth = 2_000 if sys.version_info < (3, 12) else 300
        assert down(depth) == depth
    finally:
        sys.setrecursionlimit(limit)


def test_endless_recursion_of_sync_tasks_ends_every_run_failed() -> None:
    runs: list[Any] = []

    @task
    def endless() -> None:
        runs.append(1)
        endless()

    state = endless(return_state=True)
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), RecursionError)
    assert len(runs) > 50
    with pytest.raises(RecursionError):
        forever()
    assert task_run.id is None
    assert down(10) == 10


def depth() -> int:
    frame, count = sys._getframe(), 0
    while frame is not None:
        frame, count = frame.f_back, count + 1  # type: ignore[assignment]
    return count


@task
async def aforever() -> int:
    return await aforever()


@task
def yielding_forever() -> Iterator[int]:
    yield from yielding_forever()


async def call(kind: str) -> None:
    if kind == "sync":
        forever()
    elif kind == "async":
        await aforever()
    else:
        list(yielding_forever())


@pytest.mark.parametrize("kind", ["sync", "async", "generator"])
async def test_endless_recursion_ends_every_run_at_whichever_call_the_stack_runs_out(kind: str) -> None:
    """The last run has no stack left to end itself, and where exactly it stops depends on the depth of its caller."""
    limit = sys.getrecursionlimit()
    async with Runtime(store=MemoryStore()) as runtime:
        for more in range(30):
            sys.setrecursionlimit(depth() + 200 + more)
            try:
                with pytest.raises(RecursionError):
                    await call(kind)
            finally:
                sys.setrecursionlimit(limit)
            assert runtime.runs == []
            assert task_run.id is None


async def test_endless_recursion_of_awaited_tasks_ends_failed() -> None:
    @task
    async def endless() -> None:
        await endless()

    state = await endless(return_state=True)
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), RecursionError)
    future = endless.submit()
    with pytest.raises(RecursionError):
        await future


async def test_a_thousand_runs_that_submit_and_await_each_other() -> None:
    @task
    async def chain(n: int) -> int:
        return 0 if n == 0 else 1 + await chain.submit(n - 1)

    with anyio.fail_after(20):
        assert await chain.submit(1_000) == 1_000


async def test_a_chain_of_a_thousand_dependencies() -> None:
    @task
    async def increase(x: int) -> int:
        return x + 1

    future = increase.submit(0)
    for _ in range(999):
        future = increase.submit(future)
    with anyio.fail_after(20):
        assert await future == 1_000


async def test_a_failure_at_the_bottom_of_a_thousand_submits_reaches_the_top() -> None:
    @task
    async def chain(n: int) -> int:
        if n == 0:
            raise LookupError("bottom")
        return await chain.submit(n - 1)

    with anyio.fail_after(20), pytest.raises(LookupError, match="bottom"):
        await chain.submit(1_000)


@pytest.mark.parametrize("depth", [1, 2, 20])
def test_waiting_in_a_pool_of_one_thread_does_not_stop_it(depth: int) -> None:
    @task
    def nested(n: int) -> int:
        return 0 if n == 0 else 1 + nested.submit(n - 1).result(10)

    async def main() -> None:
        async with Runtime(store=MemoryStore(), task_runner=ThreadPoolTaskRunner(1)):
            with anyio.fail_after(20):
                assert await nested.submit(depth) == depth
                assert await nested.map([depth] * 3) == [depth] * 3

    anyio.run(main)
    with RuntimeElsewhere(1):
        assert nested.submit(depth).result(10) == depth


class RuntimeElsewhere:
    """A runtime of its own on a loop in a thread, for plain code in this one."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._ready = threading.Event()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=lambda: anyio.run(self._main))

    async def _main(self) -> None:
        async with Runtime(store=MemoryStore(), task_runner=ThreadPoolTaskRunner(self._workers)):
            self._ready.set()
            await anyio.to_thread.run_sync(self._leave.wait)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def __exit__(self, *error: object) -> None:
        self._leave.set()
        self._thread.join(10)


def test_a_tree_of_runs_in_a_pool_of_two_threads() -> None:
    @task
    def tree(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(tree.map([depth - 1] * 3).result(20))

    async def main() -> None:
        async with Runtime(store=MemoryStore(), task_runner=ThreadPoolTaskRunner(2)):
            with anyio.fail_after(30):
                assert await tree.submit(4) == 81

    anyio.run(main)


async def test_colours_alternate_to_any_depth() -> None:
    @task
    def plain(n: int) -> int:
        return 0 if n == 0 else 1 + awaited.submit(n - 1).result(10)

    @task
    async def awaited(n: int) -> int:
        return 0 if n == 0 else 1 + await plain.submit(n - 1)

    with anyio.fail_after(20):
        assert await awaited(20) == 20
        assert await plain.submit(20) == 20


def test_generators_nest() -> None:
    @task
    def walk(n: int) -> Iterator[int]:
        if n:
            yield from walk(n - 1)
        yield n

    assert list(walk(30)) == list(range(31))
    assert walk.submit(30).result(20) == list(range(31))


async def test_async_generators_nest() -> None:
    @task
    async def walk(n: int) -> Any:
        if n:
            async for value in walk(n - 1):
                yield value
        yield n

    assert [value async for value in walk(30)] == list(range(31))
    assert await walk.submit(30) == list(range(31))


def test_fifty_threads_submit_at_once() -> None:
    together = threading.Barrier(50)
    results: list[Any] = []

    @task
    async def double(x: int) -> int:
        await anyio.sleep(0)
        return x * 2

    @task
    def plain_double(x: int) -> int:
        return x * 2

    def work(x: int) -> None:
        together.wait(10)
        results.append((double.submit(x).result(10), plain_double.submit(x).result(10), plain_double(x)))

    threads = [threading.Thread(target=work, args=(x,)) for x in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == [(x * 2,) * 3 for x in range(50)]
