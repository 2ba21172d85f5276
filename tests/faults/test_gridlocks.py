"""Runs of several processes that hold each other's slots and wait for each other: one gives up, the others go on."""

import json
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from asynctask.gridlocks import Told, refused, standing
from asynctask.stores.sqlite import SQLiteStore

#: Holds the first tag, waits until everybody holds something, and then for a child with the second tag.
CHILD = """
import json, sys
import anyio
from asynctask import Runtime, task

backend, url, first, second = sys.argv[1:]

@task(tags=[second])
async def child():
    return "ran"

@task(tags=[first])
async def parent():
    print("holds", flush=True)
    await anyio.to_thread.run_sync(sys.stdin.readline)
    return await child.submit()

async def main():
    async with Runtime(store=url):
        state = await parent(return_state=True)
        print(json.dumps([state.name, state.message]), flush=True)

anyio.run(main, backend=backend)
"""


class Party:
    """A process that holds one tag and is to want another."""

    def __init__(self, path: Path, backend: str, first: str, second: str) -> None:
        command = [sys.executable, "-c", CHILD, backend, f"sqlite:///{path}", first, second]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> list[str]:
        out, _ = self.process.communicate(timeout=30)
        return json.loads(out)  # type: ignore[no-any-return]


def set_limits(path: Path, limits: dict[str, int]) -> None:
    async def main() -> None:
        store = SQLiteStore(path)
        for tag, limit in limits.items():
            await store.write_limit(f"tag:{tag}", limit)

    anyio.run(main)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("tags", [["a", "b"], ["a", "b", "c"]], ids=len)
def test_of_processes_that_wait_for_each_other_in_a_ring_one_fails_and_the_others_complete(tmp_path, backend, tags):
    path = tmp_path / "runs.db"
    set_limits(path, dict.fromkeys(tags, 1))
    parties = [Party(path, backend, tag, tags[(place + 1) % len(tags)]) for place, tag in enumerate(tags)]
    assert [party.read() for party in parties] == ["holds\n"] * len(tags)
    for party in parties:
        party.go()
    ends = [party.end() for party in parties]
    assert sorted(name for name, _ in ends) == ["Completed"] * (len(tags) - 1) + ["Failed"]
    (message,) = [text for name, text in ends if name == "Failed"]
    assert message.startswith("DeadlockError: ")
    for party, tag in zip(parties, tags, strict=True):
        assert f'process {party.process.pid} holds tag "{tag}", waits for tag "' in message


@pytest.mark.timeout(60)
def test_who_waits_for_one_that_will_go_on_waits_as_long_as_that_takes(tmp_path):
    """Two processes hold and want crosswise, but a third one has the second slot of one of the tags, and ends."""
    path = tmp_path / "runs.db"
    set_limits(path, {"a": 1, "b": 2, "free": 1})
    third = Party(path, "asyncio", "b", "free")
    assert third.read() == "holds\n"
    parties = [Party(path, "asyncio", "a", "b"), Party(path, "asyncio", "b", "a")]
    assert [party.read() for party in parties] == ["holds\n"] * 2
    for party in parties:
        party.go()
    with pytest.raises(subprocess.TimeoutExpired):  # several looks long
        parties[0].process.wait(2.5)
    assert parties[1].process.poll() is None
    third.go()
    assert [party.end()[0] for party in (third, *parties)] == ["Completed"] * 3


def row(name: str, process: str, needs: list[str] | None, first: float, last: float, since: float = 0.0) -> Told:
    told = None if needs is None else [[(one, since) for one in needs]]
    return Told(name, process, 1, 0 if needs is None else 1, since, told, first, last)


#: Of two lines of one slot each.
ONE = {"a": 1, "b": 1, "c": 1}


def test_what_was_told_at_different_times_proves_nothing():
    assert standing([row("a", "1", ["b"], 1, 5), row("b", "2", ["a"], 4, 6)], ONE) == {"a", "b"}
    assert standing([row("a", "1", ["b"], 1, 3), row("b", "2", ["a"], 4, 6)], ONE) == set()


def test_a_line_moves_when_one_holder_anywhere_goes_on():
    ring = [row("a", "1", ["b"], 1, 9), row("b", "2", ["a"], 1, 9)]
    assert standing(ring, ONE) == {"a", "b"}
    two = {**ONE, "b": 2}
    assert standing(ring, two) == set()  # a slot of b is free
    assert standing([*ring, row("b", "3", None, 1, 9)], two) == set()
    assert standing([*ring, row("b", "3", ["c"], 1, 9)], two) == set()  # nobody has told of c
    assert standing([*ring, row("b", "3", ["c"], 1, 9), row("c", "4", ["a"], 1, 9)], two) == {"a", "b", "c"}


def test_the_one_that_came_last_is_refused_and_no_other():
    ring = [row("a", "1", ["b"], 1, 9, since=3.0), row("b", "2", ["a"], 1, 9, since=4.0)]
    assert refused(ring, ONE, "1") is None
    assert refused(ring, ONE, "2") == "b"
