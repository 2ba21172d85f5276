"""Databases of older versions: brought up to date with all that is in them, or left as they are."""

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from asynctask import Runtime, task
from asynctask.errors import StoreError
from asynctask.stores import database
from asynctask.stores.base import RunFilter
from asynctask.stores.schema import MIGRATIONS, VERSION, name_number
from asynctask.stores.sqlite import SQLiteStore

EVERYTHING = RunFilter()
NOW = 1_790_000_000.0


@task
async def double(x: int) -> int:
    return x * 2


def number_of(place: int) -> int:
    """The id of the run at that place of an old database: they sort by it."""
    return (int(NOW * 1000) + place << 80) | 0x7 << 76 | 0b10 << 62 | place


def old_database(path: Path, version: int, runs: int = 20) -> None:
    """A database as that version left it: completed runs, some with a name, a tag and a parent, and one limit."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA application_id = {database.APPLICATION}")
        connection.create_function("name_number", 1, name_number, deterministic=True)
        for statements in MIGRATIONS[:version]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version}")
        insert(connection, "tasks", id=1, key="module.old", name="old", is_flow=0)
        insert(connection, "kinds", id=1, type="COMPLETED", name="Completed", is_flow=0)
        for place in range(runs):
            run_id = number_of(place).to_bytes(16, "big")
            states = [["PENDING", "Pending", NOW, ""], ["RUNNING", "Running", NOW + 1, ""],
                      ["COMPLETED", "Completed", NOW + 2, ""]]  # fmt: skip
            insert(
                connection, "runs", id=run_id, task=1, kind=1, is_flow=0, name=f"name {place}" if place % 2 else None,
                short=number_of(place) & 0xFFFFFF, states=json.dumps(states), ended=NOW + 2,
                parameters=json.dumps({"x": str(place)}), tags=json.dumps(["old"]), type="COMPLETED",
                state_name="Completed", made=NOW, task_name="old",
            )  # fmt: skip
            insert(connection, "run_tags", tag="old", id=run_id)
            if version >= 3 and place % 2:
                insert(connection, "run_names", rowid=name_number(run_id), name=f"name {place}", id=run_id)
        insert(connection, "limits", **({"tag": "old"} if version < 4 else {"name": "tag:old"}), size=3)


def insert(connection: sqlite3.Connection, table: str, **values: Any) -> None:
    """Insert a row, with those of the values that the table has a column for in its version."""
    columns = {"rowid", *(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))}
    values = {name: value for name, value in values.items() if name in columns}
    names, places = ", ".join(values), ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", list(values.values()))


def content(path: Path) -> dict[str, list[Any]]:
    """The whole database: its schema, version, and rows."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        schema = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
        found: dict[str, list[Any]] = {
            name: connection.execute(f"SELECT * FROM {name}").fetchall()
            for type, name, _ in schema
            if type == "table" and not name.startswith("run_names")
        }
        return {**found, "schema": schema, "version": connection.execute("PRAGMA user_version").fetchall()}


@pytest.mark.parametrize("version", range(1, VERSION))
async def test_an_old_database_is_migrated_with_all_that_is_in_it(tmp_path, version):
    path = tmp_path / "runs.db"
    old_database(path, version)
    async with Runtime(store=SQLiteStore(path)) as runtime:
        store = runtime.store
        assert (await store.info()).schema_version == VERSION
        runs = await store.read_runs(EVERYTHING, 100)
        assert [one.id for one in runs] == [UUID(int=number_of(place)) for place in reversed(range(20))]
        assert {one.state_name for one in runs} == {"Completed"}
        assert [one.parameters for one in runs[:2]] == [{"x": "19"}, {"x": "18"}]
        assert [len(one.states) for one in runs] == [3] * 20
        assert runs[0].total_run_time == pytest.approx(1)
        assert (await store.read_limit("tag:old")).limit == 3
        named = await store.read_runs(RunFilter(name="name 1"), 100)
        assert [one.name for one in named] == [f"name {place}" for place in (19, 17, 15, 13, 11, 1)]
        for which in (
            RunFilter(tags=frozenset(["old"])), RunFilter(task_name="old"), RunFilter(state_name="Completed"),
            RunFilter(is_flow=False), RunFilter(state_name="Completed", is_flow=False),
        ):  # fmt: skip
            assert await store.count_runs(which) == 20, which
        assert await double(2) == 4
        await runtime.flush()
        assert await store.count_runs(EVERYTHING) == 21
        await store.delete_run(runs[0].id)
        assert await store.count_runs(EVERYTHING) == 20
    assert content(path)["version"] == [(VERSION,)]


@pytest.mark.parametrize("version", range(1, VERSION))
async def test_a_migrated_database_has_the_schema_of_a_new_one(tmp_path, version):
    async with Runtime(store=SQLiteStore(tmp_path / "new.db")) as runtime:
        await runtime.store.info()
    old_database(tmp_path / "old.db", version, runs=0)
    async with Runtime(store=SQLiteStore(tmp_path / "old.db")) as runtime:
        await runtime.store.info()
    assert content(tmp_path / "old.db")["schema"] == content(tmp_path / "new.db")["schema"]


@pytest.mark.parametrize("version", range(1, VERSION))
async def test_a_migration_that_fails_leaves_the_old_version_and_all_that_is_in_it(
    tmp_path, monkeypatch, caplog, version
):
    path = tmp_path / "runs.db"
    old_database(path, version)
    before = content(path)
    broken = ("CREATE TABLE one_more (id INTEGER)", "DELETE FROM runs", "INSERT INTO nowhere VALUES (1)")
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS[:version], broken, *MIGRATIONS[version + 1 :]))
    monkeypatch.setattr("asynctask.stores.sqlite.LAST_SECONDS", 0.2)
    async with Runtime(store=SQLiteStore(path)) as runtime:
        assert await double(2) == 4
        with pytest.raises(StoreError, match=r"runs\.db.*no such table: nowhere"):
            await runtime.flush()
    assert content(path) == before
    monkeypatch.undo()
    async with Runtime(store=SQLiteStore(path)) as runtime:
        assert await runtime.store.count_runs(EVERYTHING) == 20
    assert "1 runs of this process could not be recorded" in caplog.text


async def test_a_database_of_a_newer_version_is_refused_and_not_touched(tmp_path, monkeypatch):
    path = tmp_path / "runs.db"
    old_database(path, VERSION)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = content(path)
    monkeypatch.setattr("asynctask.stores.sqlite.LAST_SECONDS", 0.2)
    async with Runtime(store=SQLiteStore(path)) as runtime:
        assert await double(2) == 4
        with pytest.raises(StoreError, match=rf"newer asynctask \(schema {VERSION + 1}.*upgrade asynctask"):
            await runtime.flush()
        with pytest.raises(StoreError, match="newer asynctask"):
            await runtime.store.count_runs(EVERYTHING)
    assert content(path) == before


@pytest.mark.timeout(120)
async def test_two_who_open_an_old_database_at_once_migrate_it_once(tmp_path):
    path = tmp_path / "runs.db"
    old_database(path, 1)
    began = time.monotonic()
    async with Runtime(store=SQLiteStore(path)) as first, Runtime(store=SQLiteStore(path)) as second:
        assert await first.store.count_runs(EVERYTHING) == 20
        assert await second.store.count_runs(EVERYTHING) == 20
    assert time.monotonic() - began < 60
