"""DBOS on SQLite: plain steps of one plain workflow, or workflows by themselves, whichever of its ways is faster.

Every step and workflow is on disk before its caller goes on; that cannot be turned off, so compare it with those that
record. SQLite has a write-ahead log and `synchronous=NORMAL`, which is 2 to 15 times as fast as what DBOS leaves it
at. What is plain runs on its threads, 40; handles and queues look every 5 ms instead of every second. A step's figure
has its part of one workflow in it: a hundredth of one where a hundred are measured.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from dbos import DBOS, SetWorkflowID
from harness import FOLDER, THREADS, VARIANT, main, session, workload
from sqlalchemy import Engine, event

TITLE = "DBOS"
REQUIREMENTS = ["dbos==3.4.0"]
VARIANTS = {"step": "disk", "workflow": "disk"}
IMPORT = "import dbos"
ABSENT = {
    "threads/step": "a plain step runs in its workflow's thread",
    "processes": "its workers in other processes need PostgreSQL",
    "megabyte": "its workers in other processes need PostgreSQL",
    "hit/step": "a step's result is its workflow's; see the workflow",
    "limited/step": "queues limit workflows",
    "asleep, 100,000": "it does not start so many within the time",
    "retry/workflow": "a workflow is recovered, not tried again; see the step",
}
OFTEN = 0.005


@event.listens_for(Engine, "connect")
def tune(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


@session
def dbos() -> Iterator[object]:
    DBOS(
        config={
            "name": "field",
            "system_database_url": f"sqlite:///{FOLDER}/dbos.db",
            "log_level": "CRITICAL",
            "max_executor_threads": THREADS,
        }
    )
    DBOS.launch()
    DBOS.register_queue("ten", worker_concurrency=10, polling_interval_sec=OFTEN)
    yield
    DBOS.destroy()


kind: Callable[[Callable[..., Any]], Callable[..., Any]] = DBOS.step() if VARIANT == "step" else DBOS.workflow()


@kind
def nothing() -> None:
    pass


@kind
def one() -> int:
    return 1


@kind
def add_one(number: int) -> int:
    return number + 1


@kind
def add(left: int, right: int) -> int:
    return left + right


@kind
async def nothing_here() -> None:
    pass


@kind
async def add_one_here(number: int) -> int:
    return number + 1


@kind
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@DBOS.step(retries_allowed=True, max_attempts=4, interval_seconds=0)
def succeeds() -> None:
    pass


def results(function: Callable[..., Any], inputs: list[tuple[Any, ...]]) -> list[Any]:
    """Of workflows on its threads."""
    handles = [DBOS.start_workflow(function, *given) for given in inputs]
    return [handle.get_result(polling_interval_sec=OFTEN) for handle in handles]


def workflow_of_steps(function: Callable[..., Any]) -> Callable[..., Any]:
    return DBOS.workflow()(function) if VARIANT == "step" else function


@workload("awaited")
@workload("recorded")
@workflow_of_steps
def awaited(count: int) -> None:
    for _ in range(count):
        nothing()


@workload("submitted", variants=("step",))
@DBOS.workflow()
async def steps_submitted(count: int) -> None:
    await asyncio.gather(*(nothing_here() for _ in range(count)))


@workload("mapped", variants=("step",))
@DBOS.workflow()
async def steps_mapped(count: int) -> None:
    assert (await asyncio.gather(*(add_one_here(number) for number in range(count))))[-1] == count


@workload("submitted", variants=("workflow",))
@workload("threads", variants=("workflow",))
def submitted(count: int) -> None:
    results(nothing, [()] * count)


@workload("mapped", variants=("workflow",))
def mapped(count: int) -> None:
    assert results(add_one, [(number,) for number in range(count)])[-1] == count


@workload("hit", variants=("workflow",))
def hit(count: int) -> None:
    """A workflow of the same id is not run again: its result comes from the database."""
    for _ in range(count):
        with SetWorkflowID("the same"):
            add_one(1)


@workload("asleep")
@workflow_of_steps
async def asleep(count: int, seconds: float) -> None:
    await asyncio.gather(*(sleep(seconds) for _ in range(count)))


@workload("limited", variants=("workflow",))
async def limited(count: int) -> None:
    handles = [await DBOS.enqueue_workflow_async("ten", sleep, 0.001) for _ in range(count)]
    for handle in handles:
        await handle.get_result(polling_interval_sec=OFTEN)


@workload("chain")
@workflow_of_steps
def chain(count: int) -> None:
    last = 0
    for _ in range(count):
        last = add_one(last)
    assert last == count


@workload("tree", variants=("step",))
@DBOS.workflow()
def tree_of_steps(count: int) -> None:
    """One after another: plain steps so are faster than `async` ones at once, as the database takes one at a time."""
    level = [one() for _ in range(count)]
    while len(level) > 1:
        level = [add(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    assert level[0] == count


@workload("tree", variants=("workflow",))
def tree(count: int) -> None:
    level = results(one, [()] * count)
    while len(level) > 1:
        level = results(add, list(zip(level[::2], level[1::2], strict=True)))
    assert level[0] == count


@workload("retry", variants=("step",))
@DBOS.workflow()
def retried(count: int) -> None:
    for _ in range(count):
        succeeds()


if __name__ == "__main__":
    main()
