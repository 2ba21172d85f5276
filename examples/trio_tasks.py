"""The same tasks under trio: nothing is declared, the loop that runs is the loop that is used.

python examples/trio_tasks.py            needs trio: pip install trio
"""

import logging
import time

import anyio
import trio

from asynctask import Runtime, flow, task
from asynctask.live import live


@task(retries=2, retry_delay_seconds=0.1)
async def fetch(number: int) -> int:
    """trio's own calls, inside a task."""
    with trio.move_on_after(5):
        await trio.sleep(0.05 * (number % 4))
    if number == 5 and fetch_counts.setdefault(number, 0) < 1:
        fetch_counts[number] += 1
        raise ConnectionError("the first attempt at 5 fails")
    return number * number


fetch_counts: dict[int, int] = {}


@task(timeout_seconds=0.2)
async def too_slow() -> None:
    await anyio.sleep(10)  # anyio's calls work as well


@task
def on_a_thread(number: int) -> int:
    time.sleep(0.02)  # a sync task that is submitted blocks a thread, not the loop
    return number + 1


@flow
async def squares(count: int) -> int:
    numbers = on_a_thread.map(fetch.map(range(count)))
    slow = too_slow.submit()
    total = sum(await numbers)
    print(f"the slow one: {await slow.wait_async()}")
    return total


async def main() -> None:
    async with Runtime(name="trio-example"):
        with live():
            print(f"the sum: {await squares(20)}")

        with trio.move_on_after(0.05):  # trio's cancellation reaches into a task that is called
            await fetch(3)
        print("cancelled by trio, and left in time")


if __name__ == "__main__":
    logging.getLogger("asynctask").setLevel(logging.CRITICAL)
    trio.run(main)
