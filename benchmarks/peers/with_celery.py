"""Celery: in memory with its worker on threads of this process, with a Redis and a worker in another, or in place.

In memory, the worker looks every millisecond instead of every second, and for results one looks every half of one
instead of every half second. On Redis they do not poll. The worker has 40 threads, or two processes; it sends no
events, and takes as many messages as there are. `eager` is `apply`, which runs a task where it is called, without
broker or result. Results stay in memory or in Redis for a day; nothing is on disk.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
from celery.contrib.testing.worker import start_worker
from celery.result import ResultSet
from harness import MEGABYTE, THREADS, VARIANT, WORKERS, main, session, workload
from redis_server import SOCKET, redis

TITLE = "Celery"
REQUIREMENTS = ["celery[redis]==5.7.0"]
VARIANTS = {"Redis": "runs", "memory": "runs", "eager": "nothing"}
IMPORT = "from celery import Celery"
ABSENT = {
    "processes/memory": "its broker in memory is for threads",
    "megabyte/memory": "its broker in memory is for threads",
    "hit": "it keeps no results for later calls",
    "recorded": "what it keeps is in memory or in Redis here",
    "asleep": "it has threads and processes, and no coroutines: 40 at once",
    "asleep, 100,000": "it has threads and processes, and no coroutines: 40 at once",
    "submitted/eager": "what it is given, it does at once",
    "mapped/eager": "what it is given, it does at once",
    "threads/eager": "what it is given, it does at once",
    "processes/eager": "what it is given, it does at once",
    "megabyte/eager": "what it is given, it does at once",
    "limited/eager": "what it is given, it does at once",
    "chain/eager": "what it is given, it does at once",
    "tree/eager": "what it is given, it does at once",
}
OFTEN = 0.0005

logging.disable(logging.CRITICAL)
if VARIANT == "Redis":
    app = celery.Celery("field", broker=f"redis+socket://{SOCKET}", backend=f"redis+socket://{SOCKET}")
else:
    app = celery.Celery("field", broker="memory://", backend="cache+memory://")
    app.conf.broker_transport_options = {"polling_interval": 0.001}
app.conf.update(
    task_serializer="pickle",
    result_serializer="pickle",
    accept_content=["pickle", "json"],
    worker_prefetch_multiplier=0,
    worker_hijack_root_logger=False,
)


# The names: as a worker in another process knows them, which has this file under another name.
@app.task(name="nothing")
def nothing() -> None:
    pass


@app.task(name="one")
def one() -> int:
    return 1


@app.task(name="add_one")
def add_one(number: int) -> int:
    return number + 1


@app.task(name="add")
def add(left: int, right: int) -> int:
    return left + right


@app.task(name="give")
def give(value: bytes) -> bytes:
    return value


@app.task(name="sleep")
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="succeeds", autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
def succeeds() -> None:
    pass


@contextlib.contextmanager
def worker(pool: str, at_once: int, queue: str = "celery") -> Iterator[object]:
    """One in this process, or with a Redis in another."""
    if VARIANT == "memory":
        with start_worker(app, pool=pool, concurrency=at_once, queues=[queue], perform_ping_check=False):
            yield
        return
    here = Path(__file__)
    command = [sys.executable, "-m", "celery", "--quiet", "-A", here.stem, "worker", "--loglevel", "CRITICAL"]
    command += ["--pool", pool, "--concurrency", str(at_once), "--queues", queue, "--hostname", f"{queue}@field"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    as_root = {"C_FORCE_ROOT": "1"}  # else it refuses to unpickle as root, which is who runs this in a container
    process = subprocess.Popen(command, env={**os.environ, **as_root, "PYTHONPATH": str(here.parent)})
    try:
        nothing.apply_async(queue=queue).get(timeout=60)
        yield
    finally:
        process.terminate()
        process.wait()


@session
def workers() -> Iterator[object]:
    with contextlib.ExitStack() as around:
        if VARIANT == "Redis":
            around.enter_context(redis())
        if VARIANT != "eager":
            around.enter_context(worker("threads", THREADS))
        yield


def results(signatures: list[Any], queue: str = "celery") -> list[Any]:
    return ResultSet([signature.apply_async(queue=queue) for signature in signatures]).get(interval=OFTEN)


def in_turn(task: Any) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            if VARIANT == "eager":
                task.apply().get()
            else:
                task.delay().get(interval=OFTEN)

    return run


@workload("awaited")
def awaited() -> Iterator[object]:
    yield in_turn(nothing)


@workload("submitted", variants=("Redis", "memory"))
@workload("threads", variants=("Redis", "memory"))
def submitted(count: int) -> None:
    results([nothing.s()] * count)


@workload("mapped", variants=("Redis", "memory"))
def mapped(count: int) -> None:
    group = celery.group([add_one.s(number) for number in range(count)])
    assert group.apply_async().get(interval=OFTEN)[-1] == count


@workload("processes", variants=("Redis",))
def processes() -> Iterator[object]:
    with worker("prefork", WORKERS, "processes"):
        yield lambda count: results([nothing.s()] * count, "processes")


@workload("megabyte", variants=("Redis",))
def megabyte() -> Iterator[object]:
    """To the worker's threads, which are in another process too."""

    def run(count: int) -> None:
        for _ in range(count):
            assert len(give.delay(MEGABYTE).get()) == len(MEGABYTE)

    yield run


@workload("chain", variants=("Redis", "memory"))
def chain(count: int) -> None:
    whole = celery.chain(add_one.s(0), *[add_one.s()] * (count - 1))
    assert whole.apply_async().get(interval=OFTEN) == count


@workload("tree", variants=("Redis", "memory"))
def tree(count: int) -> None:
    level = results([one.s()] * count)
    while len(level) > 1:
        level = results([add.s(*pair) for pair in zip(level[::2], level[1::2], strict=True)])
    assert level[0] == count


@workload("retry")
def retried() -> Iterator[object]:
    yield in_turn(succeeds)


@workload("limited", variants=("Redis", "memory"))
def limited() -> Iterator[object]:
    """The last one: when a worker in this process ends, its others end too."""
    with worker("threads", 10, "ten"):
        yield lambda count: results([sleep.s(0.001)] * count, "ten")


if __name__ == "__main__":
    main()
