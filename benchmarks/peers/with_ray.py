"""Ray: a cluster of this machine alone, remote functions and, as `actor`, coroutines of one asynchronous actor.

Two CPUs, no dashboard, no usage statistics, no logs forwarded. Whatever runs is in another process and goes through a
local scheduler; results are in shared memory as long as someone holds them. Nothing is kept after that or on disk. A
remote function runs in a worker process of its own, so those that only wait are done in the actor.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DEDUP_LOGS": "0"}
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else it warns of what a later Ray will do

import ray
from harness import MEGABYTE, THREADS, VARIANT, WORKERS, main, session, workload

TITLE = "Ray"
REQUIREMENTS = ["ray==2.60.0"]
VARIANTS = {"": "runs", "actor": "runs"}
IMPORT = "import ray"
ABSENT = {
    "threads": "a remote function runs in a process; see the actor",
    "processes/actor": "an actor is one process",
    "megabyte/actor": "as with remote functions",
    "hit": "it keeps no results for later calls",
    "recorded": "it keeps nothing on disk",
    "asleep": "a remote function that sleeps takes a process; see the actor",
    "asleep, 100,000": "it does not start so many within the time",
    "limited": "a remote function's limit is by CPUs; see the actor",
}


@session
def cluster() -> Iterator[object]:
    # Not in FOLDER: the names of its sockets would be longer than the system allows.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",  # not the one that RAY_ADDRESS names
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="CRITICAL",
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


class Actor:
    """What the variant `actor` runs, many coroutines at a time, in one other process."""

    async def nothing(self) -> None:
        pass

    async def one(self) -> int:
        return 1

    async def add_one(self, number: int) -> int:
        return number + 1

    async def add(self, left: int, right: int) -> int:
        return left + right

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Threaded:
    def nothing(self) -> None:
        pass


def nothing() -> None:
    pass


def one() -> int:
    return 1


def add_one(number: int) -> int:
    return number + 1


def add(left: int, right: int) -> int:
    return left + right


def give(value: bytes) -> bytes:
    return value


def remote(*functions: Callable[..., object]) -> list[Any]:
    """What has `remote`: of these functions, or of a new actor's methods with their names."""
    if VARIANT != "actor":
        return [ray.remote(function) for function in functions]
    its = actor(20_000)
    return [getattr(its, function.__name__) for function in functions]


def actor(at_once: int, of: type = Actor, **more: object) -> Any:
    return ray.remote(num_cpus=0, max_concurrency=at_once, **more)(of).remote()


@workload("awaited")
def awaited() -> Iterator[object]:
    (function,) = remote(nothing)

    def run(count: int) -> None:
        for _ in range(count):
            ray.get(function.remote())

    yield run


@workload("submitted")
def submitted() -> Iterator[object]:
    (function,) = remote(nothing)
    yield lambda count: ray.get([function.remote() for _ in range(count)])


@workload("mapped")
def mapped() -> Iterator[object]:
    (function,) = remote(add_one)

    def run(count: int) -> None:
        assert ray.get([function.remote(number) for number in range(count)])[-1] == count

    yield run


@workload("threads", variants=("actor",))
def threads() -> Iterator[object]:
    """The methods of an actor without coroutines run on as many threads as it has places."""
    method = actor(THREADS, Threaded).nothing
    yield lambda count: ray.get([method.remote() for _ in range(count)])


@workload("processes", variants=("",))
def processes() -> Iterator[object]:
    yield from submitted()


@workload("megabyte", variants=("",))
def megabyte() -> Iterator[object]:
    (function,) = remote(give)

    def run(count: int) -> None:
        for _ in range(count):
            assert len(ray.get(function.remote(MEGABYTE))) == len(MEGABYTE)

    yield run


@workload("asleep", variants=("actor",))
def asleep() -> Iterator[object]:
    method = actor(20_000).sleep
    yield lambda count, seconds: ray.get([method.remote(seconds) for _ in range(count)])


@workload("limited", variants=("actor",))
def limited() -> Iterator[object]:
    """An actor's own limit: so many of its coroutines at once."""
    method = actor(10).sleep
    yield lambda count: ray.get([method.remote(0.001) for _ in range(count)])


@workload("chain")
def chain() -> Iterator[object]:
    (function,) = remote(add_one)

    def run(count: int) -> None:
        last = function.remote(0)
        for _ in range(count - 1):
            last = function.remote(last)
        assert ray.get(last) == count

    yield run


@workload("tree")
def tree() -> Iterator[object]:
    leaf, both = remote(one, add)

    def run(count: int) -> None:
        level = [leaf.remote() for _ in range(count)]
        while len(level) > 1:
            level = [both.remote(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
        assert ray.get(level[0]) == count

    yield run


@workload("retry")
def retried() -> Iterator[object]:
    if VARIANT == "actor":
        function = actor(20_000).nothing.options(max_task_retries=3, retry_exceptions=True)
    else:
        function = ray.remote(max_retries=3, retry_exceptions=True)(nothing)

    def run(count: int) -> None:
        for _ in range(count):
            ray.get(function.remote())

    yield run


if __name__ == "__main__":
    main()
