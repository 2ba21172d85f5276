"""Prefect: an API server of its own on this machine, with SQLite; the style that suits a work best, or `as usual`.

Best is, whichever is faster: an `async` flow that awaits and gathers its tasks, or a plain flow that submits them to
threads. As usual is an `async` flow that calls `submit` and `map`. Logging is off, results are not persisted except
where they are cached, and the server writes runs and events in batches of 100 every 50 ms, not singly, which takes a
third of its time. Nothing of the flow is in the figures, only its tasks. The states of tasks are sent and written
behind, which the figures leave out too, all but `recorded`: after each round it is waited for, off the clock.

3.8.8, since 3.9.0 and 3.9.1 want a certifi that could not be had when this was written; and with the fastapi that 3.9.1
asks for, as the server of 3.8.8 does not start with newer ones.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from uuid import UUID

from harness import FOLDER, MEGABYTE, THREADS, WORKERS, main, session, workload

os.environ |= {
    "PREFECT_HOME": str(FOLDER.absolute()),
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "0.05",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.05",
    "DO_NOT_TRACK": "1",
}
with socket.create_server(("127.0.0.1", 0)) as free:
    # Its worker processes import this file too, and have the port in their surroundings.
    port = os.environ.setdefault("ASYNCTASK_FIELD_PREFECT_PORT", str(free.getsockname()[1]))
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"  # whatever server the user has, it is not for this
os.environ.pop("PREFECT_API_KEY", None)

from prefect import flow, get_client, task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.runtime import flow_run
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

TITLE = "Prefect"
REQUIREMENTS = ["prefect==3.8.8", "fastapi==0.150.0"]
PACKAGES = ["prefect"]
VARIANTS = {"": "disk", "as usual": "disk"}
IMPORT = "import prefect; prefect.flow, prefect.task"  # it imports them when they are asked for
ABSENT = {
    "processes/as usual": "the same as the best",
    "megabyte/as usual": "the same as the best",
    "hit/as usual": "the same as the best",
    "recorded/as usual": "see the best, and add what submitting takes",
    "limited/as usual": "a limit by tag makes each that finds it full wait on the server: 20 took 31 s",
    "asleep/as usual": "submitting them takes longer than their sleep",
    "asleep, 100,000": "it does not start so many within the time",
    "retry/as usual": "the same as the best",
}


@session
def server() -> Iterator[object]:
    url = os.environ["PREFECT_API_URL"]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port, "--no-ui"]
    process = subprocess.Popen(command)
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"Prefect's server ended with {process.returncode}") from None
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


@task
async def nothing() -> None:
    pass


@task
def plain_nothing() -> None:
    pass


@task
async def one() -> int:
    return 1


@task
def plain_one() -> int:
    return 1


@task
async def add_one(number: int) -> int:
    return number + 1


@task
def plain_add_one(number: int) -> int:
    return number + 1


@task
async def add(left: int, right: int) -> int:
    return left + right


@task
def plain_add(left: int, right: int) -> int:
    return left + right


@task
def give(value: bytes) -> bytes:
    return value


@task
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task
def plain_sleep(seconds: float) -> None:
    time.sleep(seconds)


@task(cache_policy=INPUTS, persist_result=True)
async def cached(number: int, text: str) -> int:
    return number


@task(retries=3)
async def succeeds() -> None:
    pass


def wait_until_written(run_id: str, count: int) -> None:
    """Until the database has so many task runs of this flow that are completed."""
    with get_client(sync_client=True) as client:
        while not client.read_task_runs(
            flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [UUID(run_id)]}}),
            task_run_filter=TaskRunFilter.model_validate({"state": {"type": {"any_": ["COMPLETED"]}}}),
            limit=1,
            offset=count - 1,
        ):
            time.sleep(0.005)


def with_pairs(leaves: int) -> int:
    """How many runs a tree has."""
    return 2 * leaves - 1


def in_flow(body: Callable[..., Awaitable[object]], runs: Callable[[int], int] = int) -> Callable[..., Any]:
    """What runs the body in an `async` flow and returns its seconds; `runs` tells how many task runs those are."""

    @flow(validate_parameters=False, name=body.__name__)
    async def timed(given: tuple[Any, ...]) -> tuple[float, str]:
        start = time.perf_counter()
        await body(*given)
        return time.perf_counter() - start, str(flow_run.get_id())

    async def run(*given: Any) -> float:
        seconds, run_id = await timed(given)
        wait_until_written(run_id, runs(given[0]))
        return seconds

    return run


def in_plain_flow(
    runner: TaskRunner[Any], runs: Callable[[int], int] = int
) -> Callable[[Callable[[int], object]], Callable[[int], float]]:
    """The same in a plain flow, whose `submit` hands over to this runner."""

    def decorate(body: Callable[[int], object]) -> Callable[[int], float]:
        @flow(task_runner=runner, validate_parameters=False, name=body.__name__)
        def timed(count: int) -> tuple[float, str]:
            if isinstance(runner, ProcessPoolTaskRunner):  # each flow starts its processes anew: off the clock
                for future in [plain_nothing.submit() for _ in range(WORKERS)]:
                    future.wait()
            start = time.perf_counter()
            body(count)
            return time.perf_counter() - start, str(flow_run.get_id())

        def run(count: int) -> float:
            seconds, run_id = timed(count)
            wait_until_written(run_id, runs(count))
            return seconds

        return run

    return decorate


ON_THREADS = ThreadPoolTaskRunner(max_workers=THREADS)


# -- the best of its styles -------------------------------------------------------------------------------------------


@workload("awaited", variants=("",))
@in_flow
async def awaited(count: int) -> None:
    for _ in range(count):
        await nothing()


@workload("submitted", variants=("",))
@in_flow
async def submitted(count: int) -> None:
    await asyncio.gather(*(nothing() for _ in range(count)))


@workload("mapped", variants=("",))
@in_flow
async def mapped(count: int) -> None:
    assert (await asyncio.gather(*(add_one(number) for number in range(count))))[-1] == count


@workload("threads", variants=("",))
@in_plain_flow(ON_THREADS)
def threads(count: int) -> None:
    for future in [plain_nothing.submit() for _ in range(count)]:
        future.result()


@workload("processes", variants=("",))
@in_plain_flow(ProcessPoolTaskRunner(max_workers=WORKERS), lambda count: WORKERS + count)
def processes(count: int) -> None:
    for future in [plain_nothing.submit() for _ in range(count)]:
        future.result()


@workload("megabyte", variants=("",))
@in_plain_flow(ProcessPoolTaskRunner(max_workers=WORKERS), lambda count: WORKERS + count)
def megabyte(count: int) -> None:
    for _ in range(count):
        assert len(give.submit(MEGABYTE).result()) == len(MEGABYTE)


@workload("hit", variants=("",))
@in_flow
async def hit(count: int) -> None:
    for _ in range(count):
        await cached(1, "one")


@workload("recorded", variants=("",))
@in_flow
async def recorded(count: int) -> None:
    for _ in range(count):
        await nothing()
    wait_until_written(str(flow_run.get_id()), count)


@workload("asleep", variants=("",))
@in_flow
async def asleep(count: int, seconds: float) -> None:
    await asyncio.gather(*(sleep(seconds) for _ in range(count)))


@workload("limited", variants=("",))
@in_plain_flow(ThreadPoolTaskRunner(max_workers=10))
def limited(count: int) -> None:
    """By the threads of a flow; one by tag, which other processes obey too, is a thousand times slower."""
    for future in [plain_sleep.submit(0.001) for _ in range(count)]:
        future.result()


@workload("chain", variants=("",))
@in_plain_flow(ON_THREADS)
def chain(count: int) -> None:
    last: Any = 0
    for _ in range(count):
        last = plain_add_one.submit(last)
    assert last.result() == count


@workload("tree", variants=("",))
@in_plain_flow(ON_THREADS, with_pairs)
def tree(count: int) -> None:
    level = [plain_one.submit() for _ in range(count)]
    while len(level) > 1:
        level = [plain_add.submit(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    assert level[0].result() == count


@workload("retry", variants=("",))
@in_flow
async def retried(count: int) -> None:
    for _ in range(count):
        await succeeds()


# -- as usual ---------------------------------------------------------------------------------------------------------


@workload("awaited", variants=("as usual",))
@in_flow
async def awaited_as_usual(count: int) -> None:
    for _ in range(count):
        nothing.submit().result()


@workload("submitted", variants=("as usual",))
@in_flow
async def submitted_as_usual(count: int) -> None:
    for future in [nothing.submit() for _ in range(count)]:
        future.result()


@workload("mapped", variants=("as usual",))
@in_flow
async def mapped_as_usual(count: int) -> None:
    assert add_one.map(range(count)).result()[-1] == count


@workload("threads", variants=("as usual",))
@in_flow
async def threads_as_usual(count: int) -> None:
    for future in [plain_nothing.submit() for _ in range(count)]:
        future.result()


@workload("chain", variants=("as usual",))
@in_flow
async def chain_as_usual(count: int) -> None:
    last: Any = 0
    for _ in range(count):
        last = add_one.submit(last)
    assert last.result() == count


@workload("tree", variants=("as usual",))
@partial(in_flow, runs=with_pairs)
async def tree_as_usual(count: int) -> None:
    level = [one.submit() for _ in range(count)]
    while len(level) > 1:
        level = [add.submit(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    assert level[0].result() == count


if __name__ == "__main__":
    main()
