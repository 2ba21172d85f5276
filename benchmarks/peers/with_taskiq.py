"""Taskiq: its broker in memory, in tasks of the loop, or `in place`, where sending a task runs it.

Results are kept in memory under the task's id; there is no history and no queue. Arguments and results go through its
message and its middlewares as they would with a broker elsewhere, types are not cast. `awaited` asks for the result at
every turn of the loop; where many are sent, `wait_all` waits for them, so that nothing polls.
"""

import asyncio

from harness import THREADS, VARIANT, main, workload
from taskiq import InMemoryBroker, SimpleRetryMiddleware

TITLE = "Taskiq"
REQUIREMENTS = ["taskiq==0.13.0"]
VARIANTS = {"": "runs", "in place": "runs"}
IMPORT = "import taskiq"
ABSENT = {
    "submitted/in place": "what is sent is run before the next is sent: see awaited",
    "mapped/in place": "what is sent is run before the next is sent: see awaited",
    "threads/in place": "what is sent is run before the next is sent: see awaited",
    "tree/in place": "what is sent is run before the next is sent: see awaited",
    "asleep/in place": "what is sent is run before the next is sent",
    "asleep, 100,000/in place": "what is sent is run before the next is sent",
    "processes": "only a worker of its command line has them, and it needs a broker elsewhere",
    "megabyte": "only a worker of its command line has processes",
    "hit": "it has no cache",
    "limited": "what limits is a worker of its command line",
    "recorded": "nothing in it keeps runs on disk",
}


def new_broker() -> InMemoryBroker:
    return InMemoryBroker(
        sync_tasks_pool_size=THREADS, max_stored_results=200_000, cast_types=False, await_inplace=VARIANT == "in place"
    )


broker = new_broker()
retrying = new_broker().with_middlewares(SimpleRetryMiddleware())


@broker.task
async def nothing() -> None:
    pass


@broker.task
async def one() -> int:
    return 1


@broker.task
async def add_one(number: int) -> int:
    return number + 1


@broker.task
async def add(left: int, right: int) -> int:
    return left + right


@broker.task
def plain_nothing() -> None:
    pass


@broker.task
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@retrying.task(retry_on_error=True, max_retries=3)
async def succeeds() -> None:
    pass


async def results(sent):
    await broker.wait_all()
    return [(await each.get_result()).return_value for each in sent]


@workload("awaited")
async def awaited(count: int) -> None:
    for _ in range(count):
        sent = await nothing.kiq()
        await sent.wait_result(check_interval=0)


@workload("submitted", variants=("",))
async def submitted(count: int) -> None:
    await results([await nothing.kiq() for _ in range(count)])


@workload("mapped", variants=("",))
async def mapped(count: int) -> None:
    await results([await add_one.kiq(number) for number in range(count)])


@workload("threads", variants=("",))
async def threads(count: int) -> None:
    await results([await plain_nothing.kiq() for _ in range(count)])


@workload("asleep", variants=("",))
@workload("asleep, 100,000", variants=("",))
async def asleep(count: int, seconds: float) -> None:
    await results([await sleep.kiq(seconds) for _ in range(count)])


@workload("chain")
async def chain(count: int) -> None:
    value = 0
    for _ in range(count):
        sent = await add_one.kiq(value)
        value = (await sent.wait_result(check_interval=0)).return_value
    assert value == count


@workload("tree", variants=("",))
async def tree(count: int) -> None:
    level = await results([await one.kiq() for _ in range(count)])
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = await results([await add.kiq(*pair) for pair in pairs])
    assert level == [count]


@workload("retry")
async def retried(count: int) -> None:
    for _ in range(count):
        sent = await succeeds.kiq()
        await sent.wait_result(check_interval=0)


if __name__ == "__main__":
    main()
