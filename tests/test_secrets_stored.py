"""No secret that was given under its name, in a `Secret` or in a URL is on disk or in a log, whatever goes wrong.

What the user's own code writes down (a result, a cached value, a line that it logs) is the user's data, and not meant.
"""

import logging
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import anyio
import pytest

from asynctask import Runtime, flow, get_client, get_run_logger, tags, task
from asynctask.cache_policies import INPUTS
from asynctask.redact import Secret
from asynctask.stores.sqlite import SQLiteStore
from testkit import until

CANARY = "canary-6f1d83c2"
FORMS = (CANARY, CANARY[::-1], CANARY.encode().hex())

#: Calls of a task with one argument, and of one with keyword arguments; in each the canary is a secret.
VALUES: dict[str, Any] = {
    "in a Secret": lambda: Secret(CANARY),
    "in a list of Secrets": lambda: [Secret(CANARY), {"x": Secret(CANARY.encode())}],
    "nested": lambda: {"a": [{"db": {"password": CANARY}}], "headers": {"Authorization": f"Bearer {CANARY}"}},
    "bytes key": lambda: {b"api_key": CANARY},
    "url": lambda: f"postgres://me:{CANARY}@db.example/x?sslmode=require",
    "url in text": lambda: f"connect to https://me:{CANARY}@host/path now",
    "query": lambda: f"https://host/x?token={CANARY}&page=2",
    "assigned": lambda: f"host=db password={CANARY} user=me",
    "exception": lambda: ValueError({"password": CANARY}),
    "long": lambda: {"data": "x" * 10_000, "secret": CANARY * 1000},
}
NAMES = (
    "password",
    "db_password",
    "token",
    "api_key",
    "apiKey",
    "secret",
    "auth_header",
    "credentials",
    "access_token",
)


async def record(path: Path, body: Any) -> None:
    """Run `body` on a store at `path`, with everything logged that can be."""
    store = SQLiteStore(path)
    async with Runtime(store=store) as runtime:
        await body()
        await runtime.flush()
        check_files(path.parent)  # the log of the database too, while it is there
        async with get_client() as client:
            for run in [*await client.read_task_runs(), *await client.read_flow_runs()]:
                shown = f"{run}{await client.read_logs(run.id)}"
                assert not [form for form in FORMS if form in shown]
    check_files(path.parent)


def check_files(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for form in FORMS:
            assert form.encode() not in content, path
            assert form.encode("utf-16-le") not in content, path


@pytest.fixture(autouse=True)
def everything_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="asynctask")
    yield
    assert not [form for form in FORMS if form in caplog.text]


async def test_a_canary_that_is_no_secret_is_found_by_this_search(tmp_path):
    @task
    async def work(city: str) -> None: ...

    store = SQLiteStore(tmp_path / "runs.db")
    async with Runtime(store=store):
        await work("canary-in-a-mine")
    assert b"canary-in-a-mine" in (tmp_path / "runs.db").read_bytes()


@pytest.mark.parametrize("name", NAMES)
async def test_arguments_by_the_names_of_secrets_are_masked(tmp_path, name):
    async def body() -> None:
        @task(tags=["t"])
        async def work(**given: Any) -> None:
            get_run_logger().info("at work")

        @task(retries=1)
        async def fails(x: int, **given: Any) -> None:
            raise RuntimeError("no")

        await work(**{name: CANARY})
        await work.submit(**{name: [CANARY], "x": {name: CANARY}})
        await fails(1, **{name: CANARY.encode()}, return_state=True)

    await record(tmp_path / "runs.db", body)


@pytest.mark.parametrize("kind", VALUES)
async def test_secrets_inside_arguments_are_masked(tmp_path, kind):
    @task
    async def work(value: Any, other: Any = None) -> None: ...

    @flow
    async def whole(value: Any) -> None:
        await work(value)
        await work.submit(1, other=value)

    async def body() -> None:
        await work(VALUES[kind]())
        await work([VALUES[kind]()], other={"x": VALUES[kind]()})
        await whole(VALUES[kind]())

    await record(tmp_path / "runs.db", body)


@pytest.mark.parametrize("kind", ["in a Secret", "nested", "url", "assigned"])
async def test_no_message_of_ours_shows_them_on_failing_paths(tmp_path, kind):
    """A wrong call, a timeout, a cancelled run, a name that cannot be made, a value that cannot be hashed or kept."""
    value = VALUES[kind]

    @task
    async def work(x: int, password: Any = None) -> None: ...

    @task(task_run_name="{value}-{value.nosuch}")
    async def misnamed(value: Any) -> None: ...

    @task(cache_policy=INPUTS)
    async def unhashable(value: Any, password: Any) -> None: ...

    @task(persist_result=True, result_serializer="json")
    async def unkept(value: Any) -> Any:
        return {"object": object()}

    @task(timeout_seconds=0.01)
    async def late(value: Any) -> None:
        import anyio

        await anyio.sleep(10)

    @flow(validate_parameters=True)
    async def checked(password: int) -> None: ...

    async def body() -> None:
        problems: list[BaseException] = []
        for call in (
            lambda: work(1, 2, 3, value()),  # type: ignore[call-arg]
            lambda: work(1, passwort=CANARY),  # type: ignore[call-arg]
            lambda: misnamed(value()),
            lambda: unhashable((one for one in [value()]), CANARY),
            lambda: unkept(value()),
            lambda: late(value()),
            lambda: checked(CANARY),  # type: ignore[arg-type]
            lambda: work.map([1, 2], password=[CANARY]),
        ):
            try:
                outcome: Any = call()
                if hasattr(outcome, "__await__"):
                    await outcome
            except Exception as error:
                problems.append(error)
        assert len(problems) >= 5
        for problem in problems:
            shown = f"{problem!r} {problem} {problem.__cause__!r} {problem.__context__!r}"
            assert not [form for form in FORMS if form in shown], shown

    await record(tmp_path / "runs.db", body)


async def test_exceptions_of_other_code_that_hold_a_login_or_an_assignment_are_masked(tmp_path):
    """In the state's message and in the traceback; the lines of the source are shown, the values in them are not."""

    @task
    async def connect(password: str) -> None:
        url = f"postgres://me:{password}@db/x"
        try:
            raise OSError(f"cannot connect to {url}")
        except OSError as error:
            raise RuntimeError(f"password={password!r} was refused") from error

    async def body() -> None:
        await connect(CANARY, return_state=True)

    await record(tmp_path / "runs.db", body)


async def test_a_key_made_of_secrets_does_not_tell_them(tmp_path):
    """The digest of a short secret could be searched for: it is not one of the secret alone."""
    import hashlib

    @task(cache_policy=INPUTS)
    async def work(password: str, x: int) -> int:
        return x

    async def body() -> None:
        assert [await work(CANARY, 1) for _ in range(2)] == [1, 1]
        assert await work(CANARY, 2) == 2

    path = tmp_path / "runs.db"
    await record(path, body)
    keys = [entry.key for entry in await SQLiteStore(path).read_cache(None, 10)]
    assert len(keys) == 2
    for make in (hashlib.md5, hashlib.sha1, hashlib.sha256, hashlib.blake2b, hashlib.blake2s):
        for text in (CANARY, repr(CANARY), f"s{CANARY}"):
            digest = make(text.encode()).hexdigest()
            assert not [key for key in keys if digest[:16] in key]


async def test_default_arguments_are_masked_too(tmp_path):
    @task
    async def work(token: str = CANARY, settings: Any = None) -> None: ...

    async def body() -> None:
        await work()
        with tags("t"):
            await work(settings={"client_secret": CANARY})

    await record(tmp_path / "runs.db", body)


NAMED: dict[str, Any] = {
    "by its name": ("at {city} with {password}", {"city": "Ulm", "password": CANARY}),
    "with a conversion and a width": ("{password!r:>40} in {city:>5}", {"city": "Ulm", "password": CANARY}),
    "an attribute": ("{settings.api_key}, {city}", {"city": "Ulm", "settings": types.SimpleNamespace(api_key=CANARY)}),
    "an item": ("{settings[token]}, {city}", {"city": "Ulm", "settings": {"token": CANARY}}),
    "a whole dict": ("{settings}, {city}", {"city": "Ulm", "settings": {"token": CANARY}}),
    "a Secret": ("{value}, {city}", {"city": "Ulm", "value": Secret(CANARY)}),
    "a url": ("{value}, {city}", {"city": "Ulm", "value": f"https://me:{CANARY}@host/x"}),
    "braces": ("{{{password}}} {city}", {"city": "Ulm", "password": CANARY}),
}


@pytest.mark.parametrize("kind", NAMED)
async def test_the_name_of_a_run_made_of_its_arguments_does_not_tell_them(tmp_path, kind):
    """Nor does what others say who wait for it."""
    template, given = NAMED[kind]
    seen: list[str] = []
    may_end = anyio.Event()

    async def body(city: str, password: str = "", settings: Any = None, value: Any = None) -> None:
        await may_end.wait()

    async def both() -> None:
        work = task(task_run_name=template, cache_key_fn=lambda context, parameters: "key")(body)
        first, second = work.submit(**given), work.submit(**given)
        await until(lambda: [one for one in (first, second) if "cache key" in (one.run.waiting_on or "")])
        seen.extend([first.run.name, f"{first.run.waiting_on}{second.run.waiting_on}"])
        async with get_client() as client:
            seen.extend(str(run) for run in await client.read_task_runs())
        may_end.set()
        await first
        await second

    await record(tmp_path / "runs.db", both)
    assert not [text for text in seen if CANARY in text]
    assert "Ulm" in seen[0]
    assert seen[0] in seen[1]
    if "password" in given and "braces" not in kind:
        assert "**********" in seen[0]
    if kind == "braces":
        assert seen[0] == "{**********} Ulm"


PROGRAM = """
import logging, os, sys
logging.basicConfig(level=logging.DEBUG)
from asynctask import task

@task(retries=1)
def work(password, url):
    raise RuntimeError("no")

work(os.environ["CANARY"], url="amqp://me:" + os.environ["CANARY"] + "@host", return_state=True)
work.submit(os.environ["CANARY"], "x", return_state=True)
"""


def test_nothing_a_program_prints_or_leaves_behind_has_it(tmp_path):
    environment = {**os.environ, "ASYNCTASK_HOME": str(tmp_path), "CANARY": CANARY}
    environment.pop("ASYNCTASK_STORE_URL")
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=True)
    assert "work" in done.stderr
    assert CANARY not in done.stderr + done.stdout
    check_files(tmp_path)
