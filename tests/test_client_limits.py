"""The client's methods for limits, over every store: of tags and with names, made, read, changed and deleted."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest

from asynctask import Runtime, concurrency, get_client, task
from asynctask.client import Client
from asynctask.errors import ObjectNotFound, OptionError
from asynctask.limit_records import ConcurrencyLimit, GlobalConcurrencyLimit
from asynctask.stores.sqlite import SQLiteStore
from testkit import STORES, until


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@asynccontextmanager
async def client_of(kind: str, folder: Path) -> AsyncIterator[Client]:
    async with Runtime(store=STORES[kind](folder, 100)), get_client() as client:
        yield client


async def test_a_limit_with_a_name_is_made_read_listed_and_deleted(kind: str, tmp_path: Path) -> None:
    async with client_of(kind, tmp_path) as client:
        made = await client.create_global_concurrency_limit("mail", 10, 2.5, False)
        assert made == GlobalConcurrencyLimit(
            name="mail", limit=10, active=False, active_slots=0, slot_decay_per_second=2.5
        )
        assert await client.read_global_concurrency_limit_by_name("mail") == made
        plain = await client.create_global_concurrency_limit("api", 3)
        assert (plain.limit, plain.slot_decay_per_second, plain.active) == (3, 0.0, True)
        assert await client.read_global_concurrency_limits() == [plain, made]
        await client.delete_global_concurrency_limit_by_name("mail")
        assert await client.read_global_concurrency_limits() == [plain]


async def test_making_a_limit_again_replaces_all_of_it(kind: str, tmp_path: Path) -> None:
    async with client_of(kind, tmp_path) as client:
        await client.create_global_concurrency_limit("api", 3, 1.5, False)
        again = await client.create_global_concurrency_limit("api", 0)
        assert (again.limit, again.slot_decay_per_second, again.active) == (0, 0.0, True)
        assert await client.read_global_concurrency_limits() == [again]


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        ({"limit": 7}, (7, 1.5, False)),
        ({"limit": 0}, (0, 1.5, False)),
        ({"slot_decay_per_second": 0}, (3, 0.0, False)),
        ({"active": True}, (3, 1.5, True)),
        ({"active": False}, (3, 1.5, False)),
        ({"limit": 2**31 - 1, "slot_decay_per_second": 1e300, "active": True}, (2**31 - 1, 1e300, True)),
    ],
    ids=str,
)
async def test_an_update_changes_what_it_is_given_and_nothing_else(
    kind: str, tmp_path: Path, changes: dict[str, Any], after: tuple[int, float, bool]
) -> None:
    async with client_of(kind, tmp_path) as client:
        other = await client.create_global_concurrency_limit("other", 9)
        await client.create_global_concurrency_limit("api", 3, 1.5, False)
        changed = await client.update_global_concurrency_limit("api", **changes)
        assert (changed.limit, changed.slot_decay_per_second, changed.active) == after
        assert await client.read_global_concurrency_limits() == [changed, other]


async def test_an_update_of_nothing_is_refused(kind: str, tmp_path: Path) -> None:
    async with client_of(kind, tmp_path) as client:
        await client.create_global_concurrency_limit("api", 3)
        with pytest.raises(OptionError, match="'api' must say what to change: limit, slot_decay_per_second, active"):
            await client.update_global_concurrency_limit("api")


async def test_a_tag_and_a_limit_of_the_same_name_have_nothing_in_common(kind: str, tmp_path: Path) -> None:
    async with client_of(kind, tmp_path) as client:
        await client.create_concurrency_limit("db", 1)
        await client.create_concurrency_limit("tag:db", 2)
        named = await client.create_global_concurrency_limit("db", 3)
        tags = [(one.tag, one.concurrency_limit) for one in await client.read_concurrency_limits()]
        assert tags == [("db", 1), ("tag:db", 2)]
        assert await client.read_global_concurrency_limits() == [named]
        await client.update_global_concurrency_limit("db", limit=4)
        assert (await client.read_concurrency_limit_by_tag("db")).concurrency_limit == 1
        await client.delete_concurrency_limit_by_tag("db")
        assert (await client.read_global_concurrency_limit_by_name("db")).limit == 4
        assert [one.tag for one in await client.read_concurrency_limits()] == ["tag:db"]


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "x" * 1001], ids=lambda name: ascii(name)[:20])
async def test_a_name_that_a_database_would_alter_is_refused(kind: str, tmp_path: Path, name: str) -> None:
    async with client_of(kind, tmp_path) as client:
        for make in (client.create_concurrency_limit, client.create_global_concurrency_limit):
            with pytest.raises(OptionError, match="a limit cannot be named"):
                await make(name, 1)
        assert [*await client.read_concurrency_limits(), *await client.read_global_concurrency_limits()] == []


NAMES: list[Any] = ["", None, 3, b"api", ["api"], "tag:db", "tag:"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
async def test_what_can_be_no_name_is_refused_by_every_method(kind: str, tmp_path: Path, name: Any) -> None:
    async with client_of(kind, tmp_path) as client:
        await client.create_concurrency_limit("db", 1)
        told = "create_concurrency_limit" if str(name).startswith("tag:") else "needs a name, a string"
        with pytest.raises(OptionError, match=told):
            await client.create_global_concurrency_limit(name, 1)
        with pytest.raises(OptionError, match=told):
            await client.read_global_concurrency_limit_by_name(name)
        with pytest.raises(OptionError, match=told):
            await client.update_global_concurrency_limit(name, limit=2)
        with pytest.raises(OptionError, match=told):
            await client.delete_global_concurrency_limit_by_name(name)
        assert await client.read_global_concurrency_limits() == []
        assert (await client.read_concurrency_limit_by_tag("db")).concurrency_limit == 1


WRONG: list[dict[str, Any]] = [
    *({"limit": value} for value in (-1, 1.5, True, "1", 2**31, float("inf"))),
    *({"slot_decay_per_second": value} for value in (-0.1, float("nan"), float("inf"), True, "1", 10**400, 1j, [1.0])),
    *({"active": value} for value in (0, 1, "yes", [])),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:60])
async def test_a_wrong_setting_is_refused_by_name_and_nothing_is_changed(
    kind: str, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    [word] = wrong
    async with client_of(kind, tmp_path) as client:
        with pytest.raises(OptionError, match=rf"{word}.* 'new' .*must be .*not "):
            await client.create_global_concurrency_limit("new", **{"limit": 1, **wrong})
        there = await client.create_global_concurrency_limit("api", 3, 0.5, True)
        with pytest.raises(OptionError, match=rf"{word}.* 'api' .*must be .*not "):
            await client.update_global_concurrency_limit("api", **wrong)
        assert await client.read_global_concurrency_limits() == [there]


async def test_a_limit_must_be_given_to_be_made(tmp_path: Path) -> None:
    async with client_of("memory", tmp_path) as client:
        with pytest.raises(OptionError, match=r"the limit 'api' must be a whole number .* not None"):
            await client.create_global_concurrency_limit("api", None)  # type: ignore[arg-type]


async def test_what_does_not_exist_is_not_found_by_its_own_name(kind: str, tmp_path: Path) -> None:
    async with client_of(kind, tmp_path) as client:
        await client.create_concurrency_limit("name", 1)
        await client.create_global_concurrency_limit("tag", 1)
        with pytest.raises(ObjectNotFound, match="'name'"):
            await client.read_global_concurrency_limit_by_name("name")
        with pytest.raises(ObjectNotFound, match="'name'"):
            await client.update_global_concurrency_limit("name", limit=1)
        with pytest.raises(ObjectNotFound, match="'name'"):
            await client.delete_global_concurrency_limit_by_name("name")
        with pytest.raises(ObjectNotFound, match="tag 'tag'"):
            await client.read_concurrency_limit_by_tag("tag")
        with pytest.raises(ObjectNotFound, match="tag 'tag'"):
            await client.reset_concurrency_limit_by_tag("tag")
        with pytest.raises(ObjectNotFound, match="tag 'tag'"):
            await client.delete_concurrency_limit_by_tag("tag")


@pytest.mark.parametrize("tag", ["", None, 3], ids=repr)
async def test_what_can_be_no_tag_is_refused_by_every_method(tmp_path: Path, tag: Any) -> None:
    async with client_of("memory", tmp_path) as client:
        for method in ("read_concurrency_limit_by_tag", "delete_concurrency_limit_by_tag"):
            with pytest.raises(OptionError, match="needs a tag, a string"):
                await getattr(client, method)(tag)
        with pytest.raises(OptionError, match="needs a tag, a string"):
            await client.reset_concurrency_limit_by_tag(tag)


@pytest.mark.parametrize(
    "name", ["é漢 'x'", "a b\nc", "[bold]", "x" * 996, "%", "_"], ids=lambda name: ascii(name)[:20]
)
async def test_any_text_is_a_name_and_a_tag(kind: str, tmp_path: Path, name: str) -> None:
    async with client_of(kind, tmp_path) as client:
        await client.create_concurrency_limit(name, 1)
        await client.create_global_concurrency_limit(name, 2)
        assert (await client.read_concurrency_limit_by_tag(name)).tag == name
        assert (await client.read_global_concurrency_limit_by_name(name)).name == name
        assert [one.tag for one in await client.read_concurrency_limits()] == [name]
        await client.delete_concurrency_limit_by_tag(name)
        assert [one.name for one in await client.read_global_concurrency_limits()] == [name]


async def test_who_holds_a_tag_and_who_waits_for_it_is_told_in_order(kind: str, tmp_path: Path) -> None:
    go = anyio.Event()

    @task(tags=["db"], task_run_name="work-{n}")
    async def work(n: int) -> None:
        await go.wait()

    before = datetime.now(UTC)
    async with client_of(kind, tmp_path) as client:
        await client.create_concurrency_limit("db", 2)
        futures = []
        for n in range(5):  # one after the other: trio begins what is new in no order
            future = work.submit(n)
            await until(lambda future=future: future.state.name in ("Running", "AwaitingConcurrencySlot"))
            futures.append(future)
        limit = await waiting(client, 3)
        after = datetime.now(UTC)
        running = [one for one in futures if one.state.is_running()]
        assert [one.name for one in limit.holders] == ["work-0", "work-1"]
        assert limit.active_slots == [str(one.task_run_id) for one in running]
        assert [one.name for one in limit.line] == ["work-2", "work-3", "work-4"]
        assert (limit.concurrency_limit, limit.in_use, limit.waiting) == (2, 2, 3)
        for one in (*limit.holders, *limit.line):
            assert (one.slots, one.pid) == (1, os.getpid())
            assert before - timedelta(seconds=0.5) <= one.since <= after + timedelta(seconds=0.5)
        assert [one.run_id for one in limit.line] == [UUID(str(one.task_run_id)) for one in futures[2:]]
        go.set()
        for future in futures:
            await future
        rest = await waiting(client, 0)
        assert (rest.active_slots, rest.holders, rest.line, rest.in_use) == ([], [], [], 0)


async def waiting(client: Client, count: int) -> ConcurrencyLimit:
    """The limit of "db" once so many wait for it, and as many hold it as can."""
    with anyio.fail_after(20):
        while True:
            limit = await client.read_concurrency_limit_by_tag("db")
            if limit.waiting == count and (limit.in_use == limit.concurrency_limit or not count):
                return limit
            await anyio.sleep(0.005)


async def test_a_changed_limit_serves_those_who_wait_for_it_at_once(kind: str, tmp_path: Path) -> None:
    """By more slots, by being out of force, and by being deleted."""
    go, inside = anyio.Event(), 0

    async def block() -> None:
        nonlocal inside
        async with concurrency("api"):
            inside += 1
            await go.wait()

    async with client_of(kind, tmp_path) as client, anyio.create_task_group() as group:
        await client.create_global_concurrency_limit("api", 1)
        for _ in range(5):
            group.start_soon(block)
        await until(lambda: inside == 1)
        with anyio.fail_after(20):
            while (limit := await client.read_global_concurrency_limit_by_name("api")).waiting != 4:
                await anyio.sleep(0.005)
        assert (limit.active_slots, len(limit.holders), len(limit.line)) == (1, 1, 4)
        assert {(one.run_id, one.slots, one.pid) for one in (*limit.holders, *limit.line)} == {(None, 1, os.getpid())}
        await client.update_global_concurrency_limit("api", limit=3)
        await until(lambda: inside == 3)
        await client.update_global_concurrency_limit("api", active=False)
        await until(lambda: inside == 5)
        changed = await client.update_global_concurrency_limit("api", limit=1, active=True)
        assert (changed.limit, changed.active_slots) == (1, 5)
        group.start_soon(block)
        with anyio.fail_after(20):
            while not (await client.read_global_concurrency_limit_by_name("api")).waiting:
                await anyio.sleep(0.005)
        assert inside == 5
        await client.delete_global_concurrency_limit_by_name("api")
        await until(lambda: inside == 6)
        go.set()


async def test_a_limit_is_there_for_the_next_runtime_of_a_database(tmp_path: Path) -> None:
    for made in (True, False):
        async with Runtime(store=SQLiteStore(tmp_path / "runs.db")), get_client() as client:
            if made:
                await client.create_concurrency_limit("db", 2)
                await client.create_global_concurrency_limit("api", 3, 0.5, False)
                continue
            assert [(one.tag, one.concurrency_limit) for one in await client.read_concurrency_limits()] == [("db", 2)]
            [there] = await client.read_global_concurrency_limits()
            assert (there.name, there.limit, there.slot_decay_per_second, there.active) == ("api", 3, 0.5, False)


def test_the_sync_client_does_the_same_from_plain_code(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with Runtime(store=STORES[kind](tmp_path, 100)):
            with get_client(sync_client=True) as client:
                made = client.create_global_concurrency_limit("api", 3, slot_decay_per_second=1, active=False)
                assert (made.limit, made.slot_decay_per_second, made.active) == (3, 1.0, False)
                changed = client.update_global_concurrency_limit("api", limit=4, slot_decay_per_second=2, active=True)
                assert (changed.limit, changed.slot_decay_per_second, changed.active) == (4, 2.0, True)
                assert client.read_global_concurrency_limit_by_name("api") == changed
                assert client.read_global_concurrency_limits() == [changed]
                client.delete_global_concurrency_limit_by_name("api")
                assert client.read_global_concurrency_limits() == []

    anyio.run(main)
