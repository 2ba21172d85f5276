"""A runtime inside a web application: entered with it, and drained while the application's own resources are there."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastapi import BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from asynctask import Runtime, flow, get_client, task
from asynctask.runtime import task_run
from asynctask.stores.memory import MemoryStore

Endpoints = dict[str, Callable[..., Any]]


def starlette(lifespan: Any, endpoints: Endpoints) -> Starlette:
    def of(endpoint: Callable[..., Any]) -> Callable[..., Any]:
        if getattr(endpoint, "is_sync", False):

            def sync_answer(request: Request) -> JSONResponse:
                return JSONResponse(endpoint())

            return sync_answer

        async def answer(request: Request) -> JSONResponse:
            return JSONResponse(await endpoint())

        return answer

    return Starlette(routes=[Route(path, of(endpoint)) for path, endpoint in endpoints.items()], lifespan=lifespan)


def fastapi(lifespan: Any, endpoints: Endpoints) -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    for path, endpoint in endpoints.items():
        app.get(path)(endpoint)
    return app


frameworks = pytest.mark.parametrize("make", [starlette, fastapi], ids=["starlette", "fastapi"])
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@frameworks
@backends
def test_tasks_that_drain_still_have_what_the_application_opened(make, backend):
    log: list[str] = []
    rt = Runtime(store=MemoryStore())

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, Any]]:
        log.append("opened")
        yield {"pool": "a pool"}
        log.append("closed")

    @task
    async def work() -> None:
        await anyio.sleep(0.02)
        log.append(f"worked, {rt.is_closing=}")

    async def start() -> str:
        work.submit()
        return "started"

    app = make(rt.lifespan(own), {"/start": start})
    with TestClient(app, backend=backend) as client:
        assert client.app_state["pool"] == "a pool"  # what `own` yields is passed on
        assert client.get("/start").json() == "started"
        assert len(rt.runs) == 1
    assert log == ["opened", "worked, rt.is_closing=True", "closed"]
    assert rt.is_closed


@frameworks
@backends
def test_handlers_await_tasks_and_flows_of_the_runtime_in_the_lifespan(make, backend):
    rt = Runtime(store=MemoryStore(), name="app")

    @task
    async def double(x: int) -> int:
        return x * 2

    @task
    def triple(x: int) -> int:
        return x * 3

    @flow
    def both(x: int) -> list[int]:
        return [double.submit(x).result(timeout=20), triple.submit(x).result(timeout=20)]

    async def asynchronous() -> list[Any]:
        return [await double(1), await double.submit(2), await triple.submit(3), both(4)]

    def synchronous() -> list[Any]:  # in a thread of the server's
        return [double.submit(1).result(timeout=20), triple(2), both(3)]

    synchronous.is_sync = True  # type: ignore[attr-defined]
    app = make(rt.lifespan, {"/async": asynchronous, "/sync": synchronous})
    with TestClient(app, backend=backend) as client:
        for _ in range(2):
            assert client.get("/async").json() == [2, 4, 9, [8, 12]]
            assert client.get("/sync").json() == [2, 6, [6, 9]]
    assert rt.is_closed
    assert rt.runs == []


@backends
def test_a_task_can_itself_be_a_handler_and_its_parameters_are_those_of_the_request(backend):
    rt = Runtime(store=MemoryStore())

    @task
    async def asynchronous(x: int) -> list[Any]:
        return [x * 2, task_run.task_name]

    @task
    def synchronous(x: int) -> list[Any]:
        return [x * 3, task_run.task_name]

    app = fastapi(rt.lifespan, {"/async": asynchronous, "/sync": synchronous})
    with TestClient(app, backend=backend) as client:
        assert client.get("/async?x=2").json() == [4, "asynchronous"]
        assert client.get("/sync?x=2").json() == [6, "synchronous"]
        assert client.get("/sync?x=two").status_code == 422
        with get_client(sync_client=True) as runs:
            assert [run.state_name for run in runs.read_task_runs()] == ["Completed", "Completed"]


@backends
def test_an_application_can_be_started_again_with_the_same_runtime(backend):
    rt = Runtime(store=MemoryStore())

    @task
    async def one() -> int:
        return 1

    async def answer() -> int:
        return await one.submit()

    app = fastapi(rt.lifespan, {"/": answer})
    for _ in range(2):
        with TestClient(app, backend=backend) as client:
            assert client.get("/").json() == 1


@backends
def test_an_application_that_fails_to_start_leaves_nothing_behind(backend):
    rt = Runtime(store=MemoryStore())

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    app = Starlette(lifespan=rt.lifespan(own))
    with pytest.raises(RuntimeError, match="no database"), TestClient(app, backend=backend):
        pass
    assert not rt.is_entered


@backends
def test_frameworks_await_async_tasks_given_as_background_tasks_and_handlers_of_exceptions(backend):
    done: list[int] = []

    @task
    async def later(x: int) -> None:
        await anyio.sleep(0)
        done.append(x)

    @task
    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(str(error), 418)

    async def answer(background: BackgroundTasks) -> str:
        background.add_task(later, 1)
        return "soon"

    async def fails() -> str:
        raise ValueError("no")

    rt = Runtime(store=MemoryStore())
    app = fastapi(rt.lifespan, {"/": answer, "/fails": fails})
    app.add_exception_handler(ValueError, on_error)
    with TestClient(app, backend=backend) as client:
        assert client.get("/").json() == "soon"
        assert done == [1]
        answered = client.get("/fails")
    assert (answered.status_code, answered.json()) == (418, "no")


@backends
def test_a_task_that_is_a_method_can_be_a_handler(backend):
    class Shop:
        @task
        async def price(self, item: str) -> str:
            return f"{item}: {len(item)}"

    app = fastapi(Runtime(store=MemoryStore()).lifespan, {"/": Shop().price})
    with TestClient(app, backend=backend) as client:
        assert client.get("/?item=tea").json() == "tea: 3"
