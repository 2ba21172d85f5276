"""Tasks, retries, futures, a flow, and what is known of every run afterwards. Takes a second.

python examples/quickstart.py
"""

import asyncio
import logging

from asynctask import flow, get_client, tags, task
from asynctask.runtime import task_run

WEATHER = {"Oslo": 4, "Lima": 19, "Cairo": 31, "Quito": 14}


@task(retries=3, retry_delay_seconds=[0.05, 0.1], timeout_seconds=2)
async def fetch(city: str) -> int:
    """An async task. Its first attempt at Lima fails, so that you see a retry."""
    await asyncio.sleep(0.1)
    if city == "Lima" and task_run.run_count == 1:
        raise ConnectionError("the station did not answer")
    return WEATHER[city]


@task
def fahrenheit(celsius: int) -> float:
    """A sync task: submitted, it runs on a thread, beside the event loop."""
    return celsius * 9 / 5 + 32


@task(log_prints=True)
def report(cities: list[str], degrees: list[float]) -> str:
    warmest = max(zip(degrees, cities, strict=True))
    print(f"compared {len(cities)} cities")  # goes to the log of this run
    return f"{warmest[1]} is warmest, at {warmest[0]:.0f} F"


@flow
async def weather(cities: list[str]) -> str:
    """A flow owns the runs that are started in it: when it ends, they have ended."""
    celsius = fetch.map(cities)  # four runs, side by side
    degrees = fahrenheit.map(celsius)  # each waits for its own input, and for nothing else
    return await report.submit(cities, degrees)  # futures are found in arguments, at any depth


async def main() -> None:
    with tags("quickstart"):
        print(await weather(list(WEATHER)))

    print("\nwhat happened:")
    async with get_client() as client:
        for run in reversed(await client.read_task_runs(tags=["quickstart"])):
            states = " > ".join(state.name for state in run.states)
            print(f"  {run.name:18} {run.total_run_time * 1000:5.0f} ms  {states}")


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)-7s %(name)s: %(message)s", level=logging.INFO)
    asyncio.run(main())
