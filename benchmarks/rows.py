"""How long lists of runs take on many rows: `python benchmarks/rows.py [--rows N | --quick] [--folder F]`.

1. The database is made by the store itself, so that it has the store's schema, and filled past it, by plain SQL.
2. What is in it is as lopsided as life: some tasks have most of the runs, a few values are very rare and very old.
3. Each filter is asked for in an interpreter of its own: once as the first thing it does, the store being opened for
   it and pages coming from the disk, if the system has them not in memory; and then again and again. The median of
   those is held against the bar.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio

from asynctask import Runtime, get_client
from asynctask.stores import lists
from asynctask.stores.schema import name_number
from asynctask.stores.sqlite import SQLiteStore

#: Milliseconds that a list may take.
BAR = 50.0
ROUNDS = 9
TASKS, TAGS, FLOWS = 50, 200, 10_000
#: The kinds of states of flows have these numbers more than those of tasks.
OF_FLOWS = 100
START = 1_767_225_600.0  # 2026-01-01
#: Shares of states, in percent; what is over is Completed.
STATES = (
    ("FAILED", "Failed", 4.5),
    ("FAILED", "TimedOut", 0.5),
    ("COMPLETED", "Cached", 5.0),
    ("COMPLETED", "RolledBack", 0.1),
    ("CANCELLED", "Cancelled", 0.4),
    ("CRASHED", "Crashed", 0.01),
    ("SCHEDULED", "AwaitingRetry", 0.001),
    ("RUNNING", "Running", 0.001),
)
#: Text in names of which fewer than three letters or digits are known is not in an index of its own.
EXCEPTED = (
    *("name: two letters (rare)", "name: task and a digit", "name: task and two digits", "name: dash and two digits"),
)
#: What only the oldest few runs have: a list that looks through the newest for it looks through all.
RARE = 3

#: By name: the filters of `read_task_runs`, or of `read_flow_runs` where it says so.
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "state_type FAILED": {"state_type": "FAILED"},
    "state_type CRASHED": {"state_type": "CRASHED"},
    "state_type PAUSED (none)": {"state_type": "PAUSED"},
    "state_name Completed": {"state_name": "Completed"},
    "state_name Great (rare)": {"state_name": "Great"},
    "tag": {"tags": ["tag-7"]},
    "tag (rare)": {"tags": ["rare-tag"]},
    "task": {"task_name": "task_0"},
    "task (rare)": {"task_name": "rare_task"},
    "flow run": {"flow_run_id": "flow"},
    "since": {"since": "late"},
    "before": {"before": "early"},
    "name: given": {"name": "order"},
    "name: given, one": {"name": "order-4242 "},
    "name: given (rare)": {"name": "needle"},
    "name: nowhere": {"name": "nothing like it"},
    "name: two letters": {"name": "or"},
    "name: two letters (rare)": {"name": "né"},
    "name: of a task": {"name": "task_1"},
    "name: of a task whose runs have others": {"name": "named_task"},
    "name: of a task (rare)": {"name": "rare_task"},
    "name: a run's, whole": {"name": "whole"},
    "name: task and a digit": {"name": "task_1-3"},
    "name: task and two digits": {"name": "task_1-37"},
    "name: task and three digits": {"name": "task_1-37f"},
    "name: four digits": {"name": "37f3"},
    "name: three digits": {"name": "37f"},
    "name: task and the oldest digits": {"name": "task_1-000"},
    "name: dash and two digits": {"name": "-37"},
    "flows": {"flows": True},
    "flows, state_type FAILED": {"flows": True, "state_type": "FAILED"},
    "flows, state_type CRASHED": {"flows": True, "state_type": "CRASHED"},
    "flows, task": {"flows": True, "task_name": "flow_3"},
}


def run_id(number: int, count: int) -> bytes:
    """The id of run `number` of `count`, which are spread over four weeks."""
    milliseconds = int((START + 28 * 86400 * number / count) * 1000)
    return ((milliseconds << 80) + (0x7ABC << 64) + (0x2 << 62) + (0x3ABCDEF << 32) + number).to_bytes(16, "big")


def rows(count: int, kinds: dict[str, tuple[int, str]], rare_kind: int) -> Iterator[tuple[Any, ...]]:
    """Rows of `runs`, the oldest first."""
    source = random.Random(1)
    names = list(kinds)
    shares = [share for _, _, share in STATES]
    weights = [*shares, 100 - sum(shares)]
    states: Iterator[str] = iter(())
    tasks: Iterator[int] = iter(())
    weights_of_tasks = [1 / place for place in range(1, TASKS + 1)]
    flow_every = max(1, count // FLOWS)
    flow: bytes | None = None
    for number in range(count):
        if number % 10_000 == 0:  # in portions: one by one it takes four times as long
            states = iter(source.choices(names, weights, k=10_000))
            tasks = iter(source.choices(list(range(1, TASKS + 1)), weights_of_tasks, k=10_000))
        ident = run_id(number, count)
        kind, history = kinds[next(states)]
        task = next(tasks)
        began = START + 28 * 86400 * number / count
        is_flow = number % flow_every == 0
        name = tags = None
        if is_flow:
            flow = ident
            task, kind = TASKS + 3 + number // flow_every % 5, kind + OF_FLOWS
        elif number < RARE:
            kind, task = rare_kind, TASKS + 1
        elif number < 2 * RARE:
            name, tags = f"a needle {number}, né", '["rare-tag"]'
        elif number % 100 == 50:
            tags = f'["tag-{source.randrange(TAGS)}"]'
        elif number % 100 == 51:
            name, task = f"order-{number % 9973} of {source.choice(('Ann', 'Bob', 'Zoë'))}", TASKS + 2
        elif number % 100 == 52:
            name = f"re-order {number}"
        short = number & 0xFFFFFF if name is None else None
        yield (
            ident, task, kind, int(is_flow), name, short, None if is_flow else flow, None, None, tags,
            history % (began, began + 0.001, began + 0.3), began + 0.3, '{"path":"\'/data/in.csv\'","number":"17"}',
            "Traceback (most recent call last):\n  ...\nValueError: no\n" if "FAILED" in history else None, None, None,
            None,
        )  # fmt: skip


async def make(path: Path, count: int) -> None:
    """A database of `count` runs at `path`."""
    await SQLiteStore(path).info()  # which makes the file
    database = sqlite3.connect(path, isolation_level=None)
    database.create_function("name_number", 1, name_number, deterministic=True)
    database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -400000;")
    indexes = database.execute("SELECT name, sql FROM sqlite_master WHERE tbl_name = 'runs' AND sql LIKE 'CREATE IND%'")
    later = indexes.fetchall()
    for name, _ in later:
        database.execute(f"DROP INDEX {name}")
    named = [*(f"task_{number}" for number in range(TASKS)), "rare_task", "named_task"]
    both = [(name, 0) for name in named] + [(f"flow_{number}", 1) for number in range(5)]
    database.executemany(
        "INSERT INTO tasks (id, key, name, is_flow) VALUES (?, ?, ?, ?)",
        [(place, f"app:{name}", name, is_flow) for place, (name, is_flow) in enumerate(both, 1)],
    )
    kinds: dict[str, tuple[int, str]] = {}
    pairs = [*((type, name) for type, name, _ in STATES), ("COMPLETED", "Completed"), ("COMPLETED", "Great")]
    for place, (type, name) in enumerate(pairs, 1):
        kinds[name] = (place, f'[["PENDING","Pending",%f,""],["RUNNING","Running",%f,""],["{type}","{name}",%f,""]]')
        for shift, is_flow in ((0, 0), (OF_FLOWS, 1)):
            values = (place + shift, type, name, is_flow)
            database.execute("INSERT INTO kinds (id, type, name, is_flow) VALUES (?, ?, ?, ?)", values)
    rare, _ = kinds.pop("Great")
    database.execute("BEGIN")
    marks = ", ".join("?" * 17)
    database.executemany(f"INSERT INTO runs VALUES ({marks})", rows(count, kinds, rare))
    for _, text in later:
        database.execute(text)
    database.execute(
        "INSERT INTO run_tags SELECT tag.value, runs.id FROM runs, json_each(runs.tags) AS tag WHERE tags IS NOT NULL"
    )
    database.execute(
        "INSERT INTO run_names (rowid, name, id) SELECT name_number(id), name, id FROM runs WHERE name IS NOT NULL"
    )
    database.execute("COMMIT")
    database.close()
    await SQLiteStore(path).info()  # back to a log of writes, as the store has it


def filters_of(name: str, count: int) -> dict[str, Any]:
    """The filters by that name, with what depends on the number of rows."""
    found = dict(FILTERS[name])
    middle = count // 2
    if found.get("flow_run_id"):
        every = max(1, count // FLOWS)
        found["flow_run_id"] = UUID(bytes=run_id(middle // every * every, count))
    if found.get("since"):
        found["since"] = datetime.fromtimestamp(START, UTC) + timedelta(days=27)
    if found.get("before"):
        found["before"] = datetime.fromtimestamp(START, UTC) + timedelta(days=1)
    return found


async def ask(path: Path, name: str, count: int, limit: int) -> dict[str, Any]:
    """Milliseconds of the first answer and of the later ones, how many runs it had, and the plan."""
    queries: list[Any] = []
    list_runs = lists.list_runs

    def noted(*args: Any) -> Any:
        queries.append(list_runs(*args))
        return queries[-1]

    vars(lists)["list_runs"] = noted
    filters = filters_of(name, count)
    is_flow = filters.pop("flows", False)
    times: list[float] = []
    found: list[Any] = []
    first = time.perf_counter()
    async with Runtime(store=SQLiteStore(path)), get_client() as client:
        read = client.read_flow_runs if is_flow else client.read_task_runs
        for _ in range(ROUNDS + 1):
            start = first if not times else time.perf_counter()
            found = await read(limit=limit, **filters)
            times.append((time.perf_counter() - start) * 1000)
            if times[-1] > 3000:
                break
    database = sqlite3.connect(path)
    plan = database.execute(f"EXPLAIN QUERY PLAN {queries[0].text}", queries[0].values).fetchall()
    database.close()
    return {"first": times[0], "warm": statistics.median(times[1:] or times), "found": len(found), "plan": plan}


def told(plan: list[list[Any]]) -> str:
    """The walks of a plan, in one line."""
    walks = [text for _, _, _, text in plan if text.startswith(("SEARCH runs", "SCAN run", "SEARCH run_"))]
    kept = [one for one in dict.fromkeys(walks) if one != "SEARCH runs USING PRIMARY KEY (id=?)"]
    return "; ".join(kept) or "; ".join(dict.fromkeys(walks))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="200,000 rows; exit 0 whatever the numbers")
    parser.add_argument("--limit", type=int, default=51, help="runs in a list; 51 is what `runs ls` asks for")
    parser.add_argument("--folder", type=Path, help="where the database is made; 6 GB for 10 million rows")
    parser.add_argument("--keep", action="store_true", help="leave it there, and take it if it is there already")
    parser.add_argument("--only", help="filters whose name has this text")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    given = parser.parse_args()
    count = 200_000 if given.quick else given.rows
    folder = given.folder or Path(tempfile.mkdtemp(prefix="asynctask-rows-"))
    path = folder / "runs.db"
    if given.ask:
        print(json.dumps(anyio.run(ask, path, given.ask, count, given.limit)))
        return 0
    try:
        if not (given.keep and path.exists()):
            start = time.perf_counter()
            folder.mkdir(exist_ok=True)
            anyio.run(make, path, count)
            seconds = time.perf_counter() - start
            print(f"{count:,} rows, {path.stat().st_size / 1e9:.1f} GB, made in {seconds:.0f} s")
        return measure(folder, count, given.limit, given.only) and not given.quick
    finally:
        if not given.keep:
            shutil.rmtree(folder)


def measure(folder: Path, count: int, limit: int, only: str | None) -> bool:
    """Print the table; whether anything is over the bar."""
    print(f"milliseconds, bar {BAR:g}, {count:,} rows, lists of {limit}, SQLite {sqlite3.sqlite_version}")
    print(f"{'filter':40} {'first':>8} {'warm':>8} {'runs':>5}      plan")
    is_over = False
    for name in FILTERS:
        if only is not None and only not in name:
            continue
        command = [sys.executable, __file__, "--ask", name, "--rows", str(count), "--limit", str(limit)]
        out = subprocess.run([*command, "--folder", str(folder)], check=True, capture_output=True, text=True).stdout
        found = json.loads(out)
        is_slow = found["warm"] > BAR
        is_over |= is_slow and name not in EXCEPTED
        mark = "" if not is_slow else "slow" if name in EXCEPTED else "OVER"
        print(f"{name:40} {found['first']:8.1f} {found['warm']:8.1f} {found['found']:5} {mark:4} {told(found['plan'])}")
    return is_over


if __name__ == "__main__":
    sys.exit(main())
