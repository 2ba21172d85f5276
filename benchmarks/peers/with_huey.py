"""Huey: `immediate`, where a call of a task runs it; and a consumer with two threads, on SQLite or in memory.

Immediate mode queues nothing. With SQLite, queue and results are on disk, without fsync, which is its default; results
are deleted as they are read. Consumer and caller share a process, which is the fastest way that it has on one machine
(a thread each for many waits longer for the interpreter than two); both look for news every half millisecond.
"""

import logging
from collections.abc import Iterator

from harness import FOLDER, VARIANT, WORKERS, main, session, workload
from huey import MemoryHuey, SqliteHuey

TITLE = "Huey"
REQUIREMENTS = ["huey==3.5.4"]
VARIANTS = {"immediate": "runs", "memory": "runs", "SQLite": "disk"}
IMPORT = "import huey"
ABSENT = {
    "submitted/immediate": "see awaited: a call runs the task",
    "mapped/immediate": "see awaited: a call runs the task",
    "threads/immediate": "see awaited: a call runs the task, in the caller's thread",
    "processes": "a consumer of its command line has them",
    "megabyte": "a consumer of its command line has processes",
    "hit": "it has no cache",
    "recorded": "nothing is on disk",
    "asleep": "a thread for each",
    "asleep, 100,000": "a thread for each",
    "limited": "its limit is the number of its workers",
}
SECONDS = 0.0005

logging.getLogger("huey").setLevel(logging.CRITICAL)
huey = SqliteHuey(filename=str(FOLDER / "huey.db")) if VARIANT == "SQLite" else MemoryHuey()
huey.immediate = VARIANT == "immediate"


@session
def consumer() -> Iterator[object]:
    if huey.immediate:
        yield
        return
    its = huey.create_consumer(
        workers=WORKERS,
        periodic=False,
        initial_delay=SECONDS,
        max_delay=SECONDS,
        backoff=1.0,
        check_worker_health=False,
    )
    its.start()
    yield
    its.stop(graceful=True)


@huey.task()
def nothing() -> None:
    return True  # None is no result for it


@huey.task()
def one() -> int:
    return 1


@huey.task()
def add_one(number: int) -> int:
    return number + 1


@huey.task()
def add(left: int, right: int) -> int:
    return left + right


@huey.task(retries=3)
def succeeds() -> None:
    return True


def value(sent):
    return sent.get(blocking=True, backoff=1.0, max_delay=SECONDS)


@workload("awaited")
@workload("recorded", variants=("SQLite",))
def awaited(count: int) -> None:
    for _ in range(count):
        value(nothing())


@workload("submitted", variants=("memory", "SQLite"))
@workload("threads", variants=("memory", "SQLite"))
def submitted(count: int) -> None:
    for sent in [nothing() for _ in range(count)]:
        value(sent)


@workload("mapped", variants=("memory", "SQLite"))
def mapped(count: int) -> None:
    for sent in add_one.map(range(count)):
        assert value(sent)


@workload("chain")
def chain(count: int) -> None:
    last = 0
    for _ in range(count):
        last = value(add_one(last))
    assert last == count


@workload("tree")
def tree(count: int) -> None:
    level = [value(sent) for sent in [one() for _ in range(count)]]
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [value(sent) for sent in [add(*pair) for pair in pairs]]
    assert level == [count]


@workload("retry")
def retried(count: int) -> None:
    for _ in range(count):
        value(succeeds())


if __name__ == "__main__":
    main()
