"""Cached tasks as people use them: what is taken from the cache, when, by whom, and what never is."""

import inspect
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from asynctask import Runtime, flow, get_client, states, task
from asynctask.cache_keys import task_input_hash
from asynctask.cache_policies import (
    DEFAULT,
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    RUN_ID,
    TASK_SOURCE,
    CachePolicy,
)
from asynctask.errors import OptionError
from asynctask.scopes import current_runtime
from asynctask.stores.base import Store
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from testkit import limit_of, set_limit

STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SQLiteStore(folder / "runs.db"),
}
WAYS = ("call", "submit", "map")
COLOURS = ("sync", "async")


@pytest.fixture(params=STORES, ids=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path)


@pytest.fixture
def bodies() -> Counter[Any]:
    """How often a body ran, by what it was given."""
    return Counter()


@pytest.fixture
def plain(store: Store) -> Iterator[Runtime]:
    """A runtime for code without an event loop."""
    runtime = Runtime(store=store)
    token = current_runtime.set(runtime)
    yield runtime
    runtime.close()
    current_runtime.reset(token)


def made(bodies: Counter[Any], colour: str = "sync", **options: Any) -> Any:
    """A cached task that gives a list made of its argument, and counts."""

    def work(x: Any) -> list[Any]:
        bodies[x if isinstance(x, (int, str)) else repr(x)] += 1
        return [x]

    async def async_work(x: Any) -> list[Any]:
        return work(x)

    return task(**({"cache_policy": INPUTS} | options))(work if colour == "sync" else async_work)


async def value_of(way: str, t: Any, *args: Any) -> Any:
    if way == "submit":
        return await t.submit(*args)
    if way == "map":
        return (await t.map(*[[one] for one in args]))[0]
    value = t(*args)
    return await value if inspect.isawaitable(value) else value


async def last_run() -> Any:
    async with get_client() as client:
        return (await client.read_task_runs(limit=1))[0]


def names(run: Any) -> list[str]:
    return [state.name for state in run.states]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


# -- hits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("way", WAYS)
async def test_the_second_run_with_equal_arguments_is_cached_and_another_one_runs(store, bodies, way, colour):
    t = made(bodies, colour)
    async with Runtime(store=store):
        assert await value_of(way, t, 1) == [1]
        assert names(await last_run()) == ["Pending", "Running", "Completed"]
        assert await value_of(way, t, 1) == [1]
        assert names(await last_run()) == ["Pending", "Cached"]
        assert await value_of(way, t, 2) == [2]
    assert bodies == {1: 1, 2: 1}


@pytest.mark.parametrize("way", WAYS)
def test_in_plain_code_as_well(plain, bodies, way):
    t = made(bodies)
    for _ in range(3):
        value = t(1) if way == "call" else t.submit(1).result() if way == "submit" else t.map([1]).result()[0]
        assert value == [1]
    assert t(1, return_state=True).name == "Cached"
    assert bodies == {1: 1}


def test_an_async_task_submitted_from_plain_code_is_cached(plain, bodies):
    t = made(bodies, "async")
    assert [t.submit(1).result() for _ in range(3)] == [[1]] * 3
    assert bodies == {1: 1}


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_cached_run_never_runs_takes_no_slot_and_calls_only_the_completion_hook(store, bodies, colour):
    called: list[str] = []

    def hook(name: str) -> Any:
        return lambda task, run, state: called.append(f"{name}: {state.name}")

    hooks = {name: hook(name) for name in ("on_running", "on_completion", "on_failure", "on_crashed")}
    t = made(bodies, colour, tags=["slow"], **hooks)
    async with Runtime(store=store) as runtime:
        await set_limit("slow", 1)
        await value_of("call", t, 1)
        assert called == ["on_running: Running", "on_completion: Completed"]
        called.clear()
        go, begun = anyio.Event(), anyio.Event()

        @task(tags=["slow"])
        async def holder() -> None:
            begun.set()
            await go.wait()

        holding = holder.submit()
        await begun.wait()
        with anyio.fail_after(20):  # the only slot is taken
            state = await t.submit(1).wait_async()
        assert state is not None
        assert (state.type, state.name, state.result()) == (states.COMPLETED, "Cached", [1])
        run = await last_run()
        assert (run.run_count, run.start_time, run.total_run_time) == (0, None, 0)
        assert (run.end_time is not None, sorted(run.tags), run.result is not None) == (True, ["slow"], True)
        assert called == ["on_completion: Cached"]
        assert len(limit_of(runtime, "slow").active_slots) == 1
        go.set()
        await holding


@pytest.mark.parametrize("way", WAYS)
async def test_every_hit_is_a_new_object_and_nobody_can_change_what_is_cached(store, bodies, way):
    t = made(bodies, "async")
    async with Runtime(store=store):
        first = await value_of(way, t, 1)
        first.append("changed by the leader")
        second = await value_of(way, t, 1)
        assert second == [1]
        second.append("changed by a hit")
        assert await value_of(way, t, 1) == [1]
    assert bodies == {1: 1}


async def test_another_process_of_the_same_store_takes_what_the_first_one_kept(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom asynctask import task\nfrom asynctask.cache_policies import INPUTS, TASK_SOURCE\n"
        "@task(cache_policy=INPUTS + TASK_SOURCE)\n"
        "def work(x):\n    print('body', flush=True)\n    return {'x': x, 'more': (1, 2.5, b'b', None, {3})}\n"
        "if __name__ == '__main__':\n"
        "    state = work(7, return_state=True)\n"
        "    print(state.name, state.result() == {'x': 7, 'more': (1, 2.5, b'b', None, {3})}, flush=True)\n"
    )
    said = []
    for seed in ("1", "2"):
        environment = {
            **os.environ, "ASYNCTASK_STORE_URL": f"sqlite:///{tmp_path}/runs.db", "PYTHONHASHSEED": seed
        }  # fmt: skip
        import sys

        done = await anyio.run_process([sys.executable, str(program)], env=environment)
        said.append(done.stdout.decode().split("\n"))
    assert said == [["body", "Completed True", ""], ["Cached True", ""]]


async def test_a_store_opened_again_has_the_entries_and_not_in_memory(tmp_path, bodies):
    t = made(bodies, "async")
    for _ in range(2):
        async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
            assert await t(1) == [1]
    assert bodies == {1: 1}


async def test_a_result_that_is_not_kept_in_memory_comes_from_disk(tmp_path, bodies):
    t = made(bodies, "async", cache_result_in_memory=False)
    store = SQLiteStore(tmp_path / "runs.db")
    async with Runtime(store=store):
        await t(1)
        async with get_client() as client:
            (entry,) = await client.read_cache()
        assert store.result_at_hand(entry.key) is None
        assert await t(1) == [1]
        assert store.result_at_hand(entry.key) is None
    assert bodies == {1: 1}


# -- keys -----------------------------------------------------------------------------------------------------------


async def test_inputs_are_the_arguments_by_name_with_their_defaults(store, bodies):
    @task(cache_policy=INPUTS)
    async def work(x: int, y: int = 2, *rest: int, z: int = 3, **more: int) -> int:
        bodies["work"] += 1
        return x

    async with Runtime(store=store):
        for call in (lambda: work(1), lambda: work(x=1), lambda: work(1, 2), lambda: work(1, y=2, z=3)):
            assert await call() == 1
        assert bodies["work"] == 1
        for call in (lambda: work(1, 3), lambda: work(1, z=4), lambda: work(1, 2, 3), lambda: work(1, w=1)):
            assert await call() == 1
        assert bodies["work"] == 5
        for different in (True, 1.0, "1", b"1"):
            await work(different)
        assert bodies["work"] == 9


async def test_a_default_that_has_changed_is_another_input(store, bodies):
    config = {"size": 1}

    @task(cache_policy=INPUTS)
    async def work(x: int, with_config: dict[str, int] = config) -> int:
        bodies[x] += 1
        return x * with_config["size"]

    async with Runtime(store=store):
        assert [await work(5), await work(5)] == [5, 5]
        config["size"] = 2
        assert [await work(5), await work(5)] == [10, 10]
    assert bodies == {5: 2}


async def test_inputs_less_an_argument(store, bodies):
    class Service:
        def __init__(self, lock: Any) -> None:
            self.lock = lock

        @task(cache_policy=INPUTS - "self" - "verbose")
        async def load(self, x: int, verbose: bool = False) -> int:
            bodies[x] += 1
            return x

    async with Runtime(store=store):
        assert await Service(threading.Lock()).load(1) == 1
        assert await Service(threading.Lock()).load(1, verbose=True) == 1
        assert await Service(None).load(2) == 2
    assert bodies == {1: 1, 2: 1}


class Loader:
    """Its methods are cached, by all that they are given."""

    loaded: Counter[Any] = Counter()

    @task(cache_policy=INPUTS)
    @classmethod
    def of_class(cls, x: int) -> int:
        cls.loaded["class"] += 1
        return x

    @task(cache_policy=INPUTS)
    @staticmethod
    def static(x: int) -> int:
        Loader.loaded["static"] += 1
        return x


async def test_class_and_static_methods_are_cached(store):
    Loader.loaded.clear()
    async with Runtime(store=store):
        for load in (Loader.of_class, Loader().of_class, Loader.static, Loader().static):
            assert [load(1), await load.submit(1)] == [1, 1]
    assert Loader.loaded == {"class": 1, "static": 1}


async def test_two_tasks_with_equal_inputs_do_not_meet_and_a_key_of_their_own_is_shared(store, bodies):
    async def one(x: int) -> str:
        bodies["one"] += 1
        return "one"

    async def two(x: int) -> str:
        bodies["two"] += 1
        return "two"

    async with Runtime(store=store):
        assert [await task(fn, cache_policy=INPUTS)(1) for fn in (one, two, one, two)] == ["one", "two"] * 2
        assert bodies == {"one": 1, "two": 1}
        key = {"cache_key_fn": lambda context, parameters: f"mine-{parameters['x']}"}
        assert [await task(fn, **key)(1) for fn in (two, one)] == ["two", "two"]
        assert bodies == {"one": 1, "two": 2}
        async with get_client() as client:
            assert "mine-1" in [entry.key for entry in await client.read_cache()]


async def test_a_key_function_is_told_of_task_run_and_parameters(store):
    told: list[Any] = []

    def key(context: Any, parameters: dict[str, Any]) -> str:
        told.append((context, parameters))
        return f"{context.task.name}-{parameters['x']}-{parameters['y']}"

    @task(cache_key_fn=key)
    async def work(x: int, y: int = 2) -> int:
        return x

    @flow
    async def whole() -> Any:
        return await work(1)

    async with Runtime(store=store):
        await whole()
        run = await last_run()
        ((context, parameters),) = told
        assert parameters == context.parameters == {"x": 1, "y": 2}
        assert context.task_run_id == context.task_run.id == run.id
        assert context.flow_run_id == context.task_run.flow_run_id == run.flow_run_id is not None
        assert context.task_run.name == run.name
        async with get_client() as client:
            assert [entry.key for entry in await client.read_cache()] == ["work-1-2"]


async def test_run_id_shares_within_a_flow_run_and_nowhere_else(store, bodies):
    t = made(bodies, "async", cache_policy=RUN_ID + INPUTS)

    @flow
    async def whole() -> Any:
        return [await t(1), await t.submit(1), await t(2)]

    async with Runtime(store=store):
        assert await whole() == [[1], [1], [2]]
        assert bodies == {1: 1, 2: 1}
        await whole()
        assert bodies == {1: 2, 2: 2}
        await t(1)
        await t(1)
        assert bodies == {1: 4, 2: 2}


@pytest.mark.parametrize(
    ("policy", "count"),
    [
        (FLOW_PARAMETERS, 2),
        (FLOW_PARAMETERS + INPUTS, 4),
        (DEFAULT, 6),
        (INPUTS, 2),
        (INPUTS - "x", 1),
        (TASK_SOURCE, 1),
        (TASK_SOURCE + INPUTS, 2),
        (NO_CACHE, 6),
        (None, 6),
    ],
    ids=repr,
)
async def test_how_often_the_body_runs_in_three_flow_runs_by_policy(store, bodies, policy, count):
    """Each of the flow runs, with the arguments a, b and a, calls the task with 1 and with 2."""
    t = made(bodies, "async", cache_policy=policy)

    @flow
    async def whole(which: str) -> Any:
        return [await t(1), await t(2)]

    async with Runtime(store=store):
        for which in "aba":
            await whole(which)
    assert bodies.total() == count


async def test_task_source_tells_two_versions_of_a_task_apart(store, bodies):
    def version(number: int) -> Any:
        space: dict[str, Any] = {"bodies": bodies}
        exec(f"def work(x):\n    bodies[{number}] += 1\n    return {number}", space)
        space["work"].__module__ = "versions"
        return task(space["work"], cache_policy=TASK_SOURCE + INPUTS)

    async with Runtime(store=store):
        assert [version(1)(5), version(2)(5), version(1)(5)] == [1, 2, 1]
    assert bodies == {1: 1, 2: 1}


async def test_task_input_hash_is_a_key_function(store, bodies):
    t = made(bodies, "async", cache_policy=None, cache_key_fn=task_input_hash)
    other = made(Counter(), "async", name="other", cache_policy=None, cache_key_fn=task_input_hash)
    async with Runtime(store=store):
        for x in (1, 1, 2, {"a": [1]}, {"a": [1]}):
            assert await t(x) == [x]
        assert bodies == {1: 1, 2: 1, "{'a': [1]}": 1}
        assert await other(1) == [1]
        assert (await last_run()).state_name == "Completed"


async def test_a_policy_of_the_users_own(store, bodies):
    class ByParity(CachePolicy):
        def compute_key(self, task_ctx: Any, inputs: Any, flow_parameters: Any, **kwargs: Any) -> str | None:
            return None if inputs["x"] < 0 else str(inputs["x"] % 2)

    t = made(bodies, "async", cache_policy=ByParity())
    async with Runtime(store=store):
        assert [await t(x) for x in (1, 2, 3, 4, -1, -1)] == [[1], [2], [1], [2], [-1], [-1]]
    assert bodies == {1: 1, 2: 1, -1: 2}


async def test_result_storage_key_is_a_key_made_of_a_template(store, bodies):
    t = made(bodies, "async", cache_policy=None, result_storage_key="r-{parameters[x]}-{task_run.task_name}-{x}")
    async with Runtime(store=store):
        assert [await t(1), await t(1)] == [[1], [1]]
        async with get_client() as client:
            assert [entry.key for entry in await client.read_cache()] == [f"r-1-{t.name}-1"]
    assert bodies == {1: 1}


async def test_result_storage_key_goes_before_a_policy_and_is_made_for_each_run(store, bodies):
    t = made(bodies, "async", result_storage_key="{flow_run.name}")

    @flow(flow_run_name="{name}")
    async def whole(name: str) -> Any:
        return await t(1)

    async with Runtime(store=store):
        for name in "abab":
            assert await whole(name) == [1]
        async with get_client() as client:
            assert {entry.key for entry in await client.read_cache()} == {"a", "b"}
    assert bodies == {1: 2}


# -- runs without a key ---------------------------------------------------------------------------------------------


def raising(context: Any, parameters: Any) -> str:
    raise LookupError("no key here")


UNCACHED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "unhashable": ({"cache_policy": INPUTS}, threading.Lock(), "'x'"),
    "unhashable in a sum": ({"cache_policy": INPUTS + TASK_SOURCE}, threading.Lock(), "'x'"),
    "task_input_hash": ({"cache_key_fn": task_input_hash}, threading.Lock(), "'x'"),
    "raises": ({"cache_key_fn": raising}, 1, "no key here"),
    "no text": ({"cache_key_fn": lambda context, parameters: 5}, 1, "5"),
    "empty": ({"cache_key_fn": lambda context, parameters: ""}, 1, "empty"),
    "too long": ({"cache_key_fn": lambda context, parameters: "k" * 2001}, 1, "2,001"),
    "template": ({"result_storage_key": "{parameters[nope]}"}, 1, "nope"),
    "surrogate": ({"cache_key_fn": lambda context, parameters: "\ud800"}, 1, "Unicode"),
}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("case", UNCACHED)
async def test_a_run_without_a_key_runs_uncached_with_one_warning_that_says_why(store, caplog, case, colour):
    options, argument, why = UNCACHED[case]
    count = 0

    def body(x: Any) -> str:
        nonlocal count
        count += 1
        return "done"

    async def async_body(x: Any) -> str:
        return body(x)

    t = task(**options)(body if colour == "sync" else async_body)
    async with Runtime(store=store):
        for number in (1, 2):
            caplog.clear()
            assert await value_of("call", t, argument) == "done"
            assert count == number
            (warning,) = warnings_of(caplog)
            assert why in warning
            assert (await last_run()).name in warning
            assert (await last_run()).result is None


async def test_a_key_of_2000_characters_and_of_any_text_is_a_key(store, bodies):
    texts = ["k" * 2000, "a'; DROP TABLE results; --", "nul \0 in it", "emoji 🙂", " ", "../../etc/passwd", "%_"]
    t = made(bodies, "async", cache_policy=None, cache_key_fn=lambda context, parameters: parameters["x"])
    async with Runtime(store=store):
        for text in texts * 2:
            assert await t(text) == [text]
    assert bodies == dict.fromkeys(texts, 1)


async def test_no_key_by_the_key_function_is_no_warning(store, bodies, caplog):
    t = made(bodies, "async", cache_policy=None, cache_key_fn=lambda context, parameters: None)
    async with Runtime(store=store):
        assert [await t(1), await t(1)] == [[1], [1]]
    assert bodies == {1: 2}
    assert warnings_of(caplog) == []


async def test_persist_result_false_turns_caching_off_with_one_warning_at_definition(store, bodies, caplog):
    t = made(bodies, "async", persist_result=False)
    (warning,) = warnings_of(caplog)
    assert "persist_result=False" in warning
    async with Runtime(store=store):
        assert [await t(1), await t(1)] == [[1], [1]]
    assert bodies == {1: 2}
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("options", [{"cache_policy": INPUTS}, {"cache_key_fn": task_input_hash}])
def test_generators_are_refused_at_definition(options):
    def steps() -> Iterator[int]:
        yield 1

    async def async_steps() -> Any:
        yield 1

    for fn in (steps, async_steps):
        with pytest.raises(OptionError, match=f"task '{fn.__name__}': a generator is never cached"):
            task(**options)(fn)


#: Says "body" when it runs; what it keeps, it keeps by a serializer of its own.
PROGRAM = """
import json
from asynctask import task
from asynctask.cache_policies import INPUTS

class Backwards:
    name = "backwards"

    def dumps(self, value):
        return json.dumps(value).encode()[::-1]

    def loads(self, data):
        return json.loads(data[::-1])

@task(cache_policy=INPUTS, result_serializer=Backwards())
def work(x):
    print("body")
    return {"x": x}

@task(cache_policy=INPUTS, refresh_cache=False)
def steady(x):
    print("steady")
    return x

print(work(1), steady(1))
"""


def test_what_a_serializer_of_ones_own_kept_serves_the_next_process_unless_the_environment_refreshes(tmp_path):
    def program(**environment: str) -> str:
        (tmp_path / "program.py").write_text(PROGRAM)
        done = subprocess.run(
            [sys.executable, "-W", "error", str(tmp_path / "program.py")], capture_output=True, text=True, timeout=50,
            env={**os.environ, "ASYNCTASK_STORE_URL": f"sqlite:///{tmp_path}/runs.db", **environment},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert program() == "body\nsteady\n{'x': 1} 1\n"
    assert program() == "{'x': 1} 1\n"
    assert program(ASYNCTASK_TASKS_REFRESH_CACHE="true") == "body\n{'x': 1} 1\n"
    assert program() == "{'x': 1} 1\n"
