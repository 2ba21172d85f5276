"""The leak check of `tests/conftest.py` catches what it claims to: each toy leaks one thing, and is caught for that."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

TOYS = """
import asyncio, os, subprocess, sys, threading, time, types, warnings
import anyio, anyio.to_thread, pytest

kept = []
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
on_trio = pytest.mark.parametrize("anyio_backend", ["trio"])


def start(**options):
    thread = threading.Thread(target=time.sleep, args=(30,), daemon=True, name="forgotten", **options)
    thread.start()


def test_thread():
    start()

@pytest.mark.allow_leak("threads", reason="shown to be let through")
def test_ok_thread_allowed():
    start()

def test_ok_thread_that_ends():
    threading.Thread(target=time.sleep, args=(0.05,)).start()

def test_thread_that_raises():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()

def test_child():
    kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]))

def test_ok_child():
    subprocess.run([sys.executable, "-c", ""], check=True)

def test_file():
    kept.append(open(os.devnull))

def test_pipe():
    os.pipe()

def test_ok_file_in_a_cycle():
    cycle = [open(os.devnull)]
    cycle.append(cycle)
    cycle[0].close()

def test_warning_of_an_unclosed_file():
    cycle = [open(os.devnull)]
    cycle.append(cycle)

@on_asyncio
async def test_task(anyio_backend):
    kept.append(asyncio.create_task(asyncio.sleep(30)))

@pytest.mark.asyncio
async def test_task_under_pytest_asyncio():
    kept.append(asyncio.create_task(asyncio.sleep(30)))

@on_trio
async def test_system_task(anyio_backend):
    import trio
    trio.lowlevel.spawn_system_task(trio.sleep, 30)

async def test_ok_task_that_ends(anyio_backend_name):
    if anyio_backend_name == "asyncio":
        kept.append(asyncio.create_task(asyncio.sleep(0.05)))

async def test_ok_worker_thread():
    await anyio.to_thread.run_sync(int)

async def test_never_awaited():
    anyio.sleep(0)

def test_unraisable():
    class Bad:
        def __del__(self):
            raise ValueError("in __del__")
    bad = Bad()
    bad.self = bad

async def lose_an_exception():
    asyncio.get_running_loop().create_future().set_exception(ValueError("lost"))

@on_asyncio
async def test_exception_never_retrieved(anyio_backend):
    await lose_an_exception()

def test_exception_never_retrieved_on_a_loop_of_its_own():
    asyncio.run(lose_an_exception())

def test_destroyed_but_pending():
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(asyncio.Event().wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

def test_warning():
    warnings.warn("old", DeprecationWarning)

def test_ok_uvloop():
    uvloop = pytest.importorskip("uvloop")
    uvloop.run(asyncio.sleep(0))

def test_ok_failing_once_is_reported_once():
    held = open(os.devnull)
    pytest.xfail("the traceback holds the file")

@pytest.mark.allow_leak("threads")
def test_allowed_without_a_reason():
    pass

def test_ok_default_runtime_is_closed():
    stop = threading.Event()
    threading.Thread(target=stop.wait).start()
    scopes = types.ModuleType("asynctask.scopes")
    scopes.close_default = lambda timeout: stop.set()
    sys.modules["asynctask.scopes"] = scopes

def test_ok_last():
    del sys.modules["asynctask.scopes"]
    for child in (each for each in kept if isinstance(each, subprocess.Popen)):
        child.kill()
        child.wait()
    for file in kept:
        getattr(file, "close", int)()
"""

CAUGHT = {
    "test_thread": "threads: 'forgotten' (daemon)",
    "test_thread_that_raises": "ZeroDivisionError",
    "test_child": "children: pid ",
    "test_file": "files: ",
    "test_pipe": "-> pipe:",
    "test_warning_of_an_unclosed_file": "ResourceWarning",
    "test_task[asyncio]": "tasks: ",
    "test_task_under_pytest_asyncio": "tasks: ",
    "test_system_task[trio]": "tasks: ",
    "test_never_awaited[asyncio]": "was never awaited",
    "test_never_awaited[trio]": "was never awaited",
    "test_unraisable": "in __del__",
    "test_exception_never_retrieved[asyncio]": "ValueError: lost",  # raised by anyio's runner
    "test_exception_never_retrieved_on_a_loop_of_its_own": "asyncio logged: Future exception was never retrieved",
    "test_destroyed_but_pending": "asyncio logged: Task was destroyed but it is pending",
    "test_warning": "DeprecationWarning",
    "test_allowed_without_a_reason": "needs a reason",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the toys were told, by test: one subprocess for all of them, under this project's own settings."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "pyproject.toml").write_text((TESTS.parent / "pyproject.toml").read_text())
    (folder / "conftest.py").write_text((TESTS / "conftest.py").read_text().replace("GRACE = 2.0", "GRACE = 0.3"))
    (folder / "test_toys.py").write_text(TOYS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=out.xml", "test_toys.py"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    told: dict[str, list[str]] = {}
    for case in ElementTree.parse(folder / "out.xml").iter("testcase"):
        told.setdefault(case.attrib["name"], []).extend(
            (each.get("message") or "") + (each.text or "") for each in case if each.tag in ("failure", "error")
        )
    return told


@pytest.mark.parametrize("toy", CAUGHT)
def test_a_leak_is_caught(outcomes: dict[str, list[str]], toy: str) -> None:
    assert len(outcomes[toy]) == 1, f"told {len(outcomes[toy])} times"
    assert CAUGHT[toy] in outcomes[toy][0]


def test_what_leaks_nothing_passes(outcomes: dict[str, list[str]]) -> None:
    clean = {name: told for name, told in outcomes.items() if name not in CAUGHT}
    assert len(clean) == 12
    assert {name: told for name, told in clean.items() if told} == {}
