"""A web application whose handlers await tasks and submit work, and which finishes that work when it is told to stop.

python examples/web_app.py [--port 8000]       needs: pip install starlette uvicorn

curl localhost:8000/square/12                  awaits a task in the handler
curl -X POST 'localhost:8000/reports?seconds=5'    submits work, and answers at once with a run id
curl localhost:8000/runs                       what is under way
curl localhost:8000/runs/ID                    one run, with its history
kill -TERM PID                                 stops: takes no more requests, finishes the runs, then ends
"""

import argparse
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asynctask import Runtime, TaskRun, get_client, task
from asynctask.errors import ObjectNotFound, OptionError


def say(text: str) -> None:
    # In one piece, line end included: tasks say things from several threads at once.
    print(f"{time.strftime('%H:%M:%S')}  {text}\n", end="", flush=True)


class Archive:
    """Stands for a database that the application opens and closes, and that tasks write to."""

    is_open = False

    def write(self, report: str) -> None:
        assert self.is_open, "a task ran after its database was closed"
        say(f"archived: {report}")


archive = Archive()


@task(retries=2, timeout_seconds=1)
async def square(number: int) -> int:
    await anyio.sleep(0.01)
    return number * number


@task(tags=["reports"])
def make_report(title: str, seconds: float) -> str:
    """A sync task; submitted, it blocks a thread and not the server."""
    time.sleep(seconds)
    report = f"{title}, made in {seconds:g} s"
    archive.write(report)
    return report


async def get_square(request: Request) -> Response:
    return JSONResponse({"square": await square(request.path_params["number"])})


async def post_report(request: Request) -> Response:
    seconds = float(request.query_params.get("seconds", "1"))
    future = make_report.submit(request.query_params.get("title", "report"), seconds)
    say(f"submitted: run {future.task_run_id}")
    return JSONResponse({"id": str(future.task_run_id)}, status_code=202)


async def get_runs(request: Request) -> Response:
    return JSONResponse([as_json(run) for run in runtime.runs])


async def get_run(request: Request) -> Response:
    try:
        async with get_client() as client:
            return JSONResponse(as_json(await client.read_task_run(request.path_params["id"])))
    except (ObjectNotFound, OptionError) as error:
        return JSONResponse({"error": str(error)}, status_code=404)


def as_json(run: TaskRun) -> dict[str, object]:
    history = [{"state": state.name, "at": state.timestamp.isoformat()} for state in run.states]
    return {"id": str(run.id), "name": run.name, "state": run.state_name, "history": history}


@contextlib.asynccontextmanager
async def database(app: Starlette) -> AsyncIterator[None]:
    """The application's own lifespan. The runtime is entered inside it, so runs that drain still find it open."""
    archive.is_open = True
    say("archive open")
    yield
    archive.is_open = False
    say("archive closed, after the last run")


runtime = Runtime(name="web", shutdown_timeout=20)
app = Starlette(
    lifespan=runtime.lifespan(database),
    routes=[
        Route("/square/{number:int}", get_square),
        Route("/reports", post_report, methods=["POST"]),
        Route("/runs", get_runs),
        Route("/runs/{id}", get_run),
    ],
)


def open_socket(port: int) -> socket.socket:
    """Listens on `port`, or on any free one if that is taken (or 0)."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(("127.0.0.1", port))
    except OSError:
        server.bind(("127.0.0.1", 0))
    server.listen(128)  # who connects before the application has started waits, and is not refused
    return server


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description="A web application with tasks.")
    asked.add_argument("--port", type=int, default=8000, help="0, or taken: any free one")
    with open_socket(asked.parse_args().port) as listening:
        here = f"http://127.0.0.1:{listening.getsockname()[1]}"
        say(f"serving {here} as process {os.getpid()}; try: curl {here}/square/12")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        server.run(sockets=[listening])
