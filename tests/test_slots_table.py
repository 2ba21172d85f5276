"""The rows by which stores share slots: what happens while they are read and written."""

import time
from typing import Any

import anyio

from asynctask import Runtime, loops, task
from asynctask.stores import slots_table
from asynctask.stores.sqlite import SQLiteStore
from testkit import set_limit


async def test_a_slot_given_back_while_its_store_learns_that_another_waits_goes_there(tmp_path, monkeypatch):
    """The store had planned to keep it, since it was in use; there is nothing else to make it plan anew."""
    monkeypatch.setattr(slots_table, "IDLE", 1_000.0)  # else it is given back after a second, for not being used
    is_held, may_end = anyio.Event(), anyio.Event()
    loop = loops.here()

    @task(tags=["db"])
    async def holder() -> None:
        is_held.set()
        await may_end.wait()

    @task(tags=["db"])
    async def waiter() -> str:
        return "in"

    async with Runtime(store=SQLiteStore(tmp_path / "runs.db")) as one:
        await set_limit("db", 1)
        held = holder.submit()
        await is_held.wait()
        line, table = one.limits.lines["tag:db"], one.store._slots  # type: ignore[attr-defined]
        write, written = table._write, []

        def write_after_the_release(connection: Any, work: Any) -> None:
            """In the library's thread, between the plan and the end of the transaction."""
            if work.shares[line].foreign is not None and not written:
                written.append(work.shares[line])
                loop.call_soon(may_end.set)
                while line.used:
                    time.sleep(0.001)
            write(connection, work)

        monkeypatch.setattr(table, "_write", write_after_the_release)
        async with Runtime(store=SQLiteStore(tmp_path / "runs.db")):
            with anyio.fail_after(20):
                assert await waiter.submit() == "in"
        await held
    assert [share.held for share in written] == [1]
