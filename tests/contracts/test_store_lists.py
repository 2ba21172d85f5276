"""What every store must find: lists and counts of runs by any filters, page by page, whatever is in the texts."""

import random
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from asynctask import Runtime, State, StateType, TaskRun, flow, task
from asynctask.runs import Trace
from asynctask.stores import sqlite
from asynctask.stores.base import RunFilter, Store
from asynctask.stores.lists import list_runs, parts_of
from asynctask.stores.sqlite import SQLiteStore

START = 1_767_225_600_000  # 2026-01-01, in milliseconds
KINDS = (
    (StateType.COMPLETED, "Completed"),
    (StateType.COMPLETED, "Great"),
    (StateType.COMPLETED, "it's *done*"),
    (StateType.FAILED, "Failed"),
    (StateType.FAILED, "TimedOut"),
    (StateType.CRASHED, "Crashed"),
    (StateType.CANCELLED, "Cancelled"),
)
NAMES = ("load", "load-all", "fade", "a-1", "it's", "Größe", "add", "LOAD", "*?[x]", "a_b%c")
TEXTS = (
    "nightly load", "it's 'quoted'", "100%", "a_b", "*", "?", "[", "]", "[a-z]*", "x[?]y", "🎉", "né", "zwei\nZeilen",
    "\\", "a\0b", "'; DROP TABLE runs; --", "Größe", "GRÖSSE", "ab", "\u202ertl", '"', "nul \\x00", "ﬁ", "e\u0301",
)  # fmt: skip


def some_tasks() -> list[Any]:
    def body(x: int = 1) -> None: ...

    tasks: list[Any] = [task(name=name)(body) for name in NAMES]
    return [*tasks, flow(name="load")(body), flow(name="nightly-flow")(body)]


TASKS = some_tasks()


def make_trace(number: int, **fields: Any) -> Trace:
    fields = {"spec": TASKS[0].spec, "tags": frozenset[str](), "kind": KINDS[0], **fields}
    kind = fields.pop("kind")
    seconds = (number >> 80) / 1000
    states = (State(StateType.PENDING, "Pending", seconds), State(kind[0], kind[1], seconds + 0.001))
    return Trace(number=number, states=states, **fields)


def random_traces(source: random.Random, count: int) -> list[Trace]:
    """Ended runs of several processes, many in one millisecond; in the order in which they ended, which is any."""
    flows = [uuid.UUID(int=source.getrandbits(128)).int for _ in range(3)]
    prefixes = [source.getrandbits(12) << 64 | source.getrandbits(62) >> 30 << 32 for _ in range(3)]
    traces: list[Trace] = []
    for count_low in range(source.getrandbits(24), source.getrandbits(24) + 2**25, 2**25 // count)[:count]:
        number = (START + source.randrange(count // 8)) << 80 | source.choice(prefixes) | count_low
        traces.append(
            make_trace(
                number,
                spec=source.choice(TASKS).spec,
                kind=source.choice(KINDS),
                tags=frozenset(source.sample(TEXTS[:6], source.choice((0, 0, 1, 2, 3)))),
                flow_number=source.choice((None, *flows)),
                given_name=f"{source.choice(TEXTS)}{source.choice(TEXTS)}" if source.random() < 0.4 else None,
            )
        )
    return traces


def random_filter(source: random.Random, runs: list[TaskRun]) -> RunFilter:
    """One to three filters, mostly of values that some run has."""

    def text() -> str:
        name = source.choice(runs).name
        start = source.randrange(len(name))
        found = name[start : start + source.choice((1, 2, 3, 4, 6, 20))]
        return source.choice((found, found, found, found.upper(), f"{found}x", source.choice(TEXTS), f"-{found}"))

    some = source.choice(runs)
    fields: dict[str, Callable[[], Any]] = {
        "state_type": lambda: source.choice((some.state_type, StateType.PAUSED)),
        "state_name": lambda: source.choice((some.state_name, "nosuch")),
        "tags": lambda: frozenset(some.tags[: source.choice((1, 2))]) or frozenset({"nosuch"}),
        "task_name": lambda: source.choice((some.task_name, "nosuch")),
        "flow_run_id": lambda: some.flow_run_id or uuid.UUID(int=1),
        "name": text,
        "is_flow": lambda: source.random() < 0.2,
        "since": lambda: made(some),
        "before": lambda: made(some) + timedelta(milliseconds=1),
    }
    chosen = {*source.sample(list(fields), source.choice((1, 1, 1, 2, 3))), *source.choice(((), ("name",)))}
    return RunFilter(**{name: fields[name]() for name in chosen})


def made(run: TaskRun) -> datetime:
    return datetime.fromtimestamp((run.id.int >> 80) / 1000, UTC)


def fits(run: TaskRun, which: RunFilter) -> bool:
    """The meaning of a filter, from the record alone."""
    return (
        which.state_type in (None, run.state_type)
        and which.state_name in (None, run.state_name)
        and all(tag in run.tags for tag in which.tags)
        and which.task_name in (None, run.task_name)
        and which.flow_run_id in (None, run.flow_run_id)
        and (which.name is None or which.name in run.name or readable(which.name) in run.name)
        and which.is_flow in (None, run.is_flow)
        and (which.since is None or made(run) >= which.since)
        and (which.before is None or made(run) < which.before)
    )


def readable(text: str) -> str:
    return text.replace("\0", "\\x00")


@asynccontextmanager
async def held(store: Store, traces: list[Trace]) -> AsyncIterator[list[TaskRun]]:
    """The store, open, with these runs in it; gives them as it does, the newest first."""
    store.hold()
    try:
        for trace in traces:
            store.keep(trace)
        yield await store.read_runs(RunFilter(), 100_000)
    finally:
        with anyio.CancelScope(shield=True):
            await store.release()


@pytest.mark.parametrize("seed", range(3))
async def test_any_filters_find_what_a_look_at_every_record_finds(make, seed):
    source = random.Random(seed)
    traces = random_traces(source, 400)
    store = make()
    async with held(store, traces) as runs:
        assert [run.id.int for run in runs] == sorted((trace.number for trace in traces), reverse=True)
        for _ in range(250):
            which = random_filter(source, runs)
            right = [run.id for run in runs if fits(run, which)]
            assert [run.id for run in await store.read_runs(which, 1000)] == right, which
            assert await store.count_runs(which) == len(right), which
            limit = source.choice((0, 1, 2, 7, 50))
            assert [run.id for run in await store.read_runs(which, limit)] == right[:limit], which


@pytest.mark.parametrize("seed", range(3))
async def test_pages_hold_each_run_exactly_once_in_order(make, seed):
    """By any filter and size of pages, also where many runs of several processes are of one millisecond."""
    source = random.Random(seed + 100)
    store = make()
    async with held(store, random_traces(source, 300)) as runs:
        for _ in range(40):
            which = random_filter(source, runs) if source.random() < 0.8 else RunFilter()
            right = [run.id for run in runs if fits(run, which)]
            size = source.choice((1, 2, 5, 30)) if len(right) < 60 else 30
            found: list[uuid.UUID] = []
            while page := await store.read_runs(which, size, found[-1] if found else None):
                found += [run.id for run in page]
            assert found == right, which


async def test_pages_hold_each_old_run_once_while_new_ones_arrive(store):
    @task
    async def step(x: int) -> None: ...

    async with Runtime(store=store):
        await step.map(range(60))
        before = {run.id for run in await store.read_runs(RunFilter(), 1000)}
        found: list[uuid.UUID] = []
        while page := await store.read_runs(RunFilter(task_name="step"), 7, found[-1] if found else None):
            found += [run.id for run in page]
            await step.map(range(5))
    assert len(found) == len(set(found))
    assert found == sorted(found, reverse=True)
    assert set(found) == before


async def test_any_cursor_is_only_a_place_in_the_order(store):
    traces = [make_trace((START + place) << 80 | place, given_name=f"name {place}") for place in range(10)]
    async with held(store, traces):
        for which in (RunFilter(), RunFilter(name="name"), RunFilter(task_name="load")):
            assert len(await store.read_runs(which, 100, uuid.UUID(int=2**128 - 1))) == 10
            assert len(await store.read_runs(which, 100, uuid.UUID(int=(START + 4) << 80))) == 4
            assert await store.read_runs(which, 100, uuid.UUID(int=0)) == []


async def test_times_far_away_are_filters_like_any_other(store):
    """From the year 1 to 9999, in other zones too."""
    east = datetime.max.replace(tzinfo=UTC).astimezone(UTC) - timedelta(days=1)
    early = datetime(1, 1, 2, tzinfo=UTC)
    traces = [make_trace((START + place) << 80 | place, given_name=f"name {place}") for place in range(3)]
    async with held(store, traces):
        for name in (None, "name"):
            assert len(await store.read_runs(RunFilter(since=early, before=east, name=name), 10)) == 3
            assert await store.read_runs(RunFilter(since=east, name=name), 10) == []
            assert await store.read_runs(RunFilter(before=early, name=name), 10) == []


@pytest.mark.parametrize("text", [*TEXTS, "\ud800", "é🎉", "\x7f\x1b[31m"], ids=ascii)
async def test_text_in_names_is_found_as_it_stands(store, text):
    """None of its characters has a meaning of its own, in given names or in those of tasks."""
    named = make_trace(START << 80 | 1, given_name=f"before {text} after")
    of_task = make_trace((START + 1) << 80 | 0xABCDEF, spec=task(name=f"my {text} task")(lambda: None).spec)
    traces = [named, of_task, make_trace((START + 2) << 80 | 3), make_trace((START + 3) << 80, given_name="other")]
    async with held(store, traces):
        for pattern in (text, f" {text}", f"{text} "):
            found = [run.id.int for run in await store.read_runs(RunFilter(name=pattern), 10)]
            assert found == [of_task.number, named.number]
        assert [run.id for run in await store.read_runs(RunFilter(name=f"my {text} task-abcdef"), 10)] == [of_task.id]
        assert [run.id for run in await store.read_runs(RunFilter(name=f"re {text} af"), 10)] == [named.id]
        assert await store.read_runs(RunFilter(name=f"{text}{text}{text}x"), 10) == []


@pytest.mark.parametrize(
    "text",
    ["load-00a3f7", "load", "oad", "load-", "d-0", "load-0", "load-00", "load-00a", "-00a3f7", "-00a", "-0", "-",
     "00a3f7", "a3f7", "3f7", "f7", "7", "0a3f", "l", "lo", ""],
)  # fmt: skip
async def test_a_default_name_is_found_by_every_piece_of_it(store, text):
    run = make_trace(START << 80 | 0x1200A3F7)
    async with held(store, [run, make_trace((START + 1) << 80 | 0x111111, given_name="§")]) as runs:
        assert runs[1].name == "load-00a3f7"
        assert run.id in [one.id for one in await store.read_runs(RunFilter(name=text), 10)]
        assert await store.read_runs(RunFilter(name="load-00a3f8"), 10) == []


async def test_a_run_is_not_found_by_the_name_that_it_would_have_had(store):
    run = make_trace(START << 80 | 0x00A3F7, given_name="given")
    async with held(store, [run]):
        for text in ("load", "load-", "load-0", "00a3f7", "3f7", "-00a3f7"):
            assert await store.read_runs(RunFilter(name=text), 10) == []


async def test_upper_and_lower_case_are_told_apart(store):
    traces = [make_trace((START + place) << 80, given_name=name) for place, name in enumerate(("Straße", "STRASSE"))]
    async with held(store, traces):
        for text, count in (("Straße", 1), ("straße", 0), ("STRA", 1), ("ß", 1), ("tra", 1), ("LOAD", 0)):
            assert len(await store.read_runs(RunFilter(name=text), 10)) == count


@pytest.mark.parametrize(
    "text", ["' OR 1=1 --", "x'); DELETE FROM runs; --", '" OR ""="', "?1", ":a", "NULL", "%", "*", "1) UNION SELECT 1"]
)
async def test_sql_in_a_filter_stays_data(store, text):
    async with held(store, [make_trace((START + place) << 80 | place, tags=frozenset({"t"})) for place in range(3)]):
        for which in (
            RunFilter(name=text),
            RunFilter(state_name=text),
            RunFilter(tags=frozenset({text})),
            RunFilter(tags=frozenset({"t", text})),
            RunFilter(task_name=text),
        ):
            assert await store.read_runs(which, 10) == []
            assert await store.count_runs(which) == 0
        assert await store.count_runs(RunFilter()) == 3


async def test_very_many_names_of_states_and_tasks_are_no_harder_to_find(store):
    """More than one statement takes values."""
    traces = [
        make_trace((START + place) << 80 | place, kind=(StateType.COMPLETED, f"done {place}"), spec=spec)
        for place, spec in enumerate(task(name=f"task {place}")(lambda: None).spec for place in range(900))
    ]
    async with held(store, traces):
        assert len(await store.read_runs(RunFilter(state_type=StateType.COMPLETED), 1000)) == 900
        assert len(await store.read_runs(RunFilter(name="task "), 1000)) == 900
        assert [run.state_name for run in await store.read_runs(RunFilter(state_name="done 7"), 10)] == ["done 7"]
        found = await store.read_runs(RunFilter(name="task 89", state_type=StateType.COMPLETED), 1000)
        assert [run.task_name for run in found] == [f"task {n}" for n in (*range(899, 889, -1), 89)]


FILTERS = [
    *({}, {"state_type": StateType.FAILED}, {"state_name": "Great"}, {"tags": frozenset({"100%"})}),
    *({"task_name": "load"}, {"flow_run_id": uuid.UUID(int=5)}),
    *({when: datetime(2026, 1, 1, tzinfo=UTC)} for when in ("since", "before")),
    *({"name": text} for text in ("né", "load", "load-3", "load-37", "load-37f", "37f", "37f3", "-37f")),
]


@pytest.mark.parametrize("is_flow", [None, False, True], ids=str)
@pytest.mark.parametrize("filters", FILTERS, ids=lambda given: " ".join(f"{name} {one}" for name, one in given.items()))
async def test_any_one_filter_walks_along_an_index(tmp_path, monkeypatch, filters, is_flow):
    """In SQLite: no look through all runs, and no sorting but of those with three digits and more in their names."""
    given: list[Any] = []
    monkeypatch.setattr(sqlite.lists, "list_runs", lambda *some: given.append(some) or list_runs(*some))
    which = RunFilter(**filters, is_flow=is_flow)
    store = SQLiteStore(tmp_path / "runs.db")
    async with held(store, random_traces(random.Random(1), 200)):
        await store.read_runs(which, 50)
    database = sqlite3.connect(tmp_path / "runs.db")
    _, known, limit, cursor = given[-1]
    parts = parts_of(which, known, cursor)
    assert parts
    for part in parts:
        query = part.walk(limit)
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query.text}", query.values)]
        if filters:
            assert not [line for line in plan if line.startswith(("SCAN runs", "SCAN run_tags"))]
        if "37f" not in (which.name or ""):
            assert not [line for line in plan if "TEMP B-TREE" in line]
    database.close()
