"""Crawl a web site that misbehaves: pages that answer 503, pages that never answer, links to nowhere.

The site is served by this very program, so that nothing else is needed. Requests are retried with growing delays,
given up after half a second each, and never more than eight at once; all of it is said in the decorator of `fetch`.

    python examples/crawler.py               asyncio
    python examples/crawler.py --trio        trio
"""

import argparse
import logging
import random
import re
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream
from rich.console import Console
from rich.table import Table

from asynctask import AsyncTask, State, TaskRun, as_completed, flow, get_client, task
from asynctask.live import live
from asynctask.tasks import exponential_backoff

PAGES = 120
DICE = random.Random(4)  # the same misbehaviour each time


class HttpError(Exception):
    def __init__(self, status: int, path: str) -> None:
        super().__init__(f"{status} for {path}")
        self.status = status


@dataclass
class Page:
    path: str
    size: int
    links: list[str]


def is_worth_another_try(task: AsyncTask[..., Any], run: TaskRun, state: State) -> bool:
    """A missing page stays missing; a server that is busy, or silent, may answer the next time."""
    return not (isinstance(state.data, HttpError) and state.data.status == 404)


@task(
    tags=["http"],
    task_run_name="GET {path}",
    timeout_seconds=0.5,
    retries=4,
    retry_delay_seconds=exponential_backoff(0.05),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_another_try,
)
async def fetch(port: int, path: str) -> Page:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join([part async for part in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status != 200:
        raise HttpError(status, path)
    return Page(path, len(body), re.findall(r'href="([^"]+)"', body.decode()))


@flow
async def crawl(port: int, start: str) -> tuple[list[Page], dict[str, str]]:
    """Page by page as answers come, level by level; a page that cannot be had is noted, and the crawl goes on."""
    async with get_client() as client:
        await client.create_concurrency_limit("http", 8)
    pages: list[Page] = []
    missing: dict[str, str] = {}
    seen, level = {start}, [start]
    while level:
        futures = {fetch.submit(port, path): path for path in level}
        level = []
        async for future in as_completed(futures):
            result = await future.result_async(raise_on_failure=False)
            if isinstance(result, Page):
                pages.append(result)
                level += [link for link in dict.fromkeys(result.links) if link not in seen]
                seen.update(result.links)
            else:
                missing[futures[future]] = str(result)
    return pages, missing


# -- the site ---------------------------------------------------------------------------------------------------


async def answer(stream: SocketStream) -> None:
    """One request: one in six answers is a 503, one in forty never comes, every page links to six others."""
    async with stream:
        request = await stream.receive()
        number = int(re.findall(rb"/page/(\d+)", request)[0])
        await anyio.sleep(DICE.uniform(0.005, 0.05))
        luck = DICE.random()
        if luck < 0.025:
            await anyio.sleep(30)
        status, body = "200 OK", "".join(f'<a href="/page/{link}">{link}</a>\n' for link in links_of(number))
        if luck < 0.19:
            status, body = "503 Service Unavailable", "busy"
        elif number >= PAGES:
            status, body = "404 Not Found", "no such page"
        await stream.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


async def answer_safely(stream: SocketStream) -> None:
    try:
        await answer(stream)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
        return  # the crawler lost patience and hung up


def links_of(number: int) -> list[int]:
    return [(number * 5 + step * 7 + 1) % (PAGES + 3) for step in range(6)]


# -- and the whole ----------------------------------------------------------------------------------------------


async def main() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with anyio.create_task_group() as server:
        server.start_soon(listener.serve, answer_safely)
        with live():
            pages, missing = await crawl(port, "/page/0")
        async with get_client() as client:
            runs = await client.read_task_runs(task_name="fetch", limit=1000)
        server.cancel_scope.cancel()
    await listener.aclose()
    show(pages, missing, runs)


def show(pages: list[Page], missing: dict[str, str], runs: list[TaskRun]) -> None:
    console = Console()
    console.print(f"{len(pages)} pages, {sum(page.size for page in pages):,} bytes, {len(missing)} could not be had:")
    for path, why in sorted(missing.items()):
        console.print(f"  {path}: {why}", markup=False, highlight=False)
    table = Table(title="The requests that took most attempts", title_justify="left", box=None, pad_edge=False)
    for heading in ("run", "attempts", "what happened"):
        table.add_column(heading)

    for run in sorted(runs, key=lambda run: -run.run_count)[:6]:
        happened = [said(state) for state in run.states if state.name in ("AwaitingRetry", "Completed", "Failed")]
        table.add_row(run.name, str(run.run_count), ", ".join(happened))
    console.print(table)


def said(state: State) -> str:
    """The cause that a state's message begins with: `HttpError: 503 for /page/7; attempt 2 of 5 starts ...`."""
    if state.is_completed():
        return "answered"
    return "no answer" if "timeout" in state.message else state.message.split(" for ")[0].removeprefix("HttpError: ")


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description="Crawl a site that misbehaves.")
    asked.add_argument("--trio", action="store_true", help="on trio, not on asyncio")
    logging.getLogger("asynctask").setLevel(logging.CRITICAL)
    anyio.run(main, backend="trio" if asked.parse_args().trio else "asyncio")
