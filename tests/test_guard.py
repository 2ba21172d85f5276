"""Locks that die with their process: taken by real processes, which are killed, stopped and forked."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from asynctask.errors import StoreBusy, StoreError
from asynctask.stores.guard import FileLock, KeyLocks, Presence, is_alive, loses_commits, remove, taken
from testkit import until

#: What each child process begins with; `say` tells the test, `wait` waits to be killed.
BEGIN = """
import multiprocessing, os, sys, threading, time
from asynctask.stores.guard import FileLock, KeyLocks, Presence, is_alive, remove, taken
path = sys.argv[1]
say = lambda *words: print(*words, flush=True)
wait = lambda: time.sleep(60)
"""
FORK = "pid = os.fork()\nif not pid: wait()\nsay(pid)\n"
FORK_BY_MULTIPROCESSING = """
child = multiprocessing.get_context("fork").Process(target=wait)
child.start()
say(child.pid)
"""
TAKE = {
    "file lock": "lock = FileLock(path)\nassert lock.try_take()\n",
    "key": "locks = KeyLocks(path)\nassert locks.try_take('key')\n",
    "presence": "presence = Presence(path)\n",
}


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@contextlib.contextmanager
def running(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A child process that runs the code, until it is killed or the block ends."""
    command = [sys.executable, "-c", BEGIN + code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def run(code: str, path: Path) -> str:
    """What a child process prints, which must end well."""
    with running(code, path) as child:
        assert child.stdout is not None
        printed = child.stdout.read().strip()
        child.wait()
    assert child.returncode == 0, printed
    return printed


@contextlib.contextmanager
def closed(*locks: FileLock | KeyLocks | Presence) -> Iterator[None]:
    try:
        yield
    finally:
        for lock in locks:
            lock.close()


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def is_free(kind: str, path: Path) -> bool:
    """Whether what a child has taken, as in TAKE, is free."""
    if kind == "presence":
        [name] = os.listdir(path)
        return not is_alive(path, name)
    if kind == "key":
        locks = KeyLocks(path)
        with closed(locks):
            return locks.try_take("key")
    lock = FileLock(path)
    with closed(lock):
        return lock.try_take()


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TAKE)
async def test_what_a_killed_process_held_is_free_at_once(kind: str, tmp_path: Path) -> None:
    with running(TAKE[kind] + "say('taken')\nwait()", tmp_path / "lock") as child:
        assert line(child) == "taken"
        assert not is_free(kind, tmp_path / "lock")
        child.kill()
        await until(lambda: is_free(kind, tmp_path / "lock"))


@pytest.mark.parametrize("fork", [FORK, FORK_BY_MULTIPROCESSING], ids=["os.fork", "multiprocessing"])
@pytest.mark.parametrize("kind", TAKE)
async def test_a_forked_child_does_not_keep_what_its_killed_parent_held(kind: str, fork: str, tmp_path: Path) -> None:
    with running(TAKE[kind] + fork + "wait()", tmp_path / "lock") as parent:
        forked = int(line(parent))
        try:
            assert not is_free(kind, tmp_path / "lock")
            parent.kill()
            await until(lambda: is_free(kind, tmp_path / "lock"))
        finally:
            os.kill(forked, signal.SIGKILL)  # it is there, or this raises


@pytest.mark.parametrize(
    ("kind", "release"),
    [
        ("file lock", "lock.give()\nlock.close()"),
        ("key", "locks.give('key')\nlocks.close()"),
        ("presence", "presence.close()"),
    ],
)
def test_a_forked_child_cannot_release_what_its_parent_holds(kind: str, release: str, tmp_path: Path) -> None:
    code = TAKE[kind] + f"if not os.fork():\n    {release.replace(chr(10), chr(10) + '    ')}\n    os._exit(0)\n"
    with running(code + "os.wait()\nsay('released')\nwait()", tmp_path / "lock") as child:
        assert line(child) == "released"
        assert not is_free(kind, tmp_path / "lock")


@pytest.mark.parametrize("kind", TAKE)
async def test_what_a_stopped_process_holds_is_not_free(kind: str, tmp_path: Path) -> None:
    with running(TAKE[kind] + "say('taken')\nwait()", tmp_path / "lock") as child:
        line(child)
        child.send_signal(signal.SIGSTOP)
        await until(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "T")
        assert not is_free(kind, tmp_path / "lock")


def test_a_child_forked_while_other_threads_lock_inherits_no_descriptor(tmp_path: Path) -> None:
    """Without the lock that forks take, every hundredth child or so has one that no object knows of."""
    code = """
def lock_for_ever():
    lock, keys = FileLock(path), KeyLocks(path + "-keys")
    while True:
        for each in (lock, keys):
            each.try_take("key") if each is keys else each.try_take()
            each.close()

for _ in range(3):
    threading.Thread(target=lock_for_ever, daemon=True).start()
for _ in range(300):
    pid = os.fork()
    if not pid:
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        os._exit(any(os.readlink(link).startswith(path) for link in links if os.path.islink(link)))
    assert os.waitpid(pid, 0)[1] == 0
say("none")
os._exit(0)
"""
    assert run(code, tmp_path / "lock") == "none"


@pytest.mark.parametrize("mask", [0o000, 0o022], ids=["umask 000", "umask 022"])
def test_lock_files_are_ours_alone(mask: int, tmp_path: Path) -> None:
    lock, keys = FileLock(tmp_path / "lock"), KeyLocks(tmp_path / "keys")
    with umask(mask), closed(lock, keys):
        assert lock.try_take()
        assert keys.try_take("key")
        presence = Presence(tmp_path / "processes")
        with closed(presence):
            made = {path: mode(path) for path in tmp_path.rglob("*")}
    folder = tmp_path / "processes"
    assert made == {lock_file: 0o600 for lock_file in made if lock_file != folder} | {folder: 0o700}
    assert len(made) == 4


@pytest.mark.parametrize("kind", ["file lock", "key", "presence"])
def test_a_planted_symbolic_link_is_refused(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if kind == "presence":
        target.mkdir()
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(StoreError, match="symbolic link"):
        is_taken_here(kind, tmp_path / "lock")
    assert kind == "presence" or not target.exists()


@pytest.mark.parametrize("kind", ["file lock", "key", "presence"])
def test_a_path_that_cannot_be_is_told(kind: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        is_taken_here(kind, tmp_path / "missing" / "lock")


def is_taken_here(kind: str, path: Path) -> None:
    match kind:
        case "file lock":
            FileLock(path).try_take()
        case "key":
            KeyLocks(path).try_take("key")
        case _:
            Presence(path)


@pytest.mark.parametrize("kind", ["file lock", "key"])
def test_a_pipe_in_place_of_the_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(StoreError, match="something else"):
        is_taken_here(kind, tmp_path / "lock")


@pytest.mark.parametrize(
    "block",
    [
        "import anyio\nasync def add():\n    async with taken(FileLock(path)): bump(path)\n"
        "for _ in range(100): anyio.run(add)",
        "locks = KeyLocks(path)\nfor _ in range(100):\n    while not locks.try_take('key'): time.sleep(0.0005)\n"
        "    bump(path)\n    locks.give('key')",
    ],
    ids=["file lock", "key"],
)
def test_eight_processes_lose_no_update(block: str, tmp_path: Path) -> None:
    bump = """
def bump(path):
    with open(path + "-count", "r+") as file:
        number = int(file.read())
        file.seek(0)
        file.write(str(number + 1))
"""
    (tmp_path / "lock-count").write_text("0")
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(running(bump + block, tmp_path / "lock")) for _ in range(8)]
        assert [child.wait() for child in children] == [0] * 8
    assert (tmp_path / "lock-count").read_text() == "800"


# -- FileLock and taken ----------------------------------------------------------------------------------------------


def test_two_locks_of_one_path_exclude_each_other_in_one_process(tmp_path: Path) -> None:
    one, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    with closed(one, other):
        assert one.try_take()
        assert (one.is_held, other.try_take(), other.is_held) == (True, False, False)
        other.give()  # which it does not hold
        assert not other.try_take()
        one.give()
        assert other.try_take()


def test_who_holds_a_lock_cannot_take_it_again(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with closed(lock):
        assert lock.try_take()
        assert not lock.try_take()
        lock.give()
        assert lock.try_take()


def test_of_many_threads_with_one_lock_one_has_it(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            if lock.try_take():
                inside += 1
                most = max(most, inside)
                inside -= 1
                lock.give()

    threads = [threading.Thread(target=work) for _ in range(4)]
    with closed(lock):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1


def test_the_file_is_found_again_after_the_program_changed_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    lock = FileLock("lock")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with closed(lock):
        assert lock.try_take()
    assert (tmp_path / "lock").exists()


def test_a_folder_that_became_something_else_is_told_and_does_not_keep_anything_from_closing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    lock = FileLock(folder / "lock")
    presence = Presence(folder / "processes")
    with closed(lock):
        assert lock.try_take()
        lock.give()
        folder.rename(tmp_path / "elsewhere")
        folder.touch()
        with pytest.raises(StoreError, match=r"lock file '.*lock' cannot be opened: Not a directory"):
            lock.try_take()
        presence.close()
    assert not is_alive(tmp_path / "elsewhere" / "processes", presence.name)


@pytest.mark.parametrize("is_replaced", [False, True], ids=["deleted", "replaced"])
def test_a_lock_whose_file_was_deleted_is_taken_on_the_new_one(is_replaced: bool, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    old, new = FileLock(path), FileLock(path)
    with closed(old, new):
        assert old.try_take()
        old.give()
        path.unlink()
        if is_replaced:
            path.touch()
        assert new.try_take()
        assert not old.try_take()
        new.give()
        assert old.try_take()


def test_a_lock_that_nobody_holds_on_to_is_released(tmp_path: Path) -> None:
    FileLock(tmp_path / "lock").try_take()
    assert is_free("file lock", tmp_path / "lock")


async def test_taken_waits_until_the_lock_is_given(tmp_path: Path) -> None:
    one, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    order: list[str] = []

    async def wait() -> None:
        async with taken(other):
            order.append("taken")

    with closed(one, other):
        async with anyio.create_task_group() as group, taken(one):
            group.start_soon(wait)
            await anyio.sleep(0.02)
            order.append("given")
    assert order == ["given", "taken"]


@pytest.mark.parametrize("timeout", [0, 0.03])
async def test_taken_tells_after_its_timeout_which_file_is_locked(timeout: float, tmp_path: Path) -> None:
    one, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    with closed(one, other):
        assert one.try_take()
        began = anyio.current_time()
        with pytest.raises(StoreBusy, match=f"{tmp_path}/lock.* {timeout} s"):
            async with taken(other, timeout):
                pass
        assert anyio.current_time() - began >= timeout
        assert not other.is_held


async def test_taken_takes_a_free_lock_whatever_the_timeout(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with closed(lock):
        async with taken(lock, 0):
            assert lock.is_held
        assert not lock.is_held


async def test_who_is_cancelled_while_waiting_holds_nothing(tmp_path: Path) -> None:
    one, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    with closed(one, other):
        assert one.try_take()
        with anyio.move_on_after(0.02) as scope:
            async with taken(other):
                pytest.fail("it was not free")
        assert scope.cancelled_caught
        one.give()
        assert not other.is_held
        assert one.try_take()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
async def test_an_error_in_the_block_gives_the_lock(error: type[BaseException], tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with closed(lock):
        with pytest.raises(error):
            async with taken(lock):
                raise error
        assert not lock.is_held
        assert is_free("file lock", tmp_path / "lock")


async def test_who_is_cancelled_inside_the_block_gives_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with closed(lock):
        with anyio.CancelScope() as scope:
            async with taken(lock):
                scope.cancel()
                await anyio.sleep_forever()
        assert is_free("file lock", tmp_path / "lock")


# -- Presence --------------------------------------------------------------------------------------------------------


def test_a_presence_is_alive_until_it_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "processes"
    one, other = Presence(folder), Presence(folder)
    with closed(one, other):
        assert one.name != other.name
        assert (is_alive(folder, one.name), is_alive(folder, other.name)) == (True, True)
        one.close()
        assert (is_alive(folder, one.name), is_alive(folder, other.name)) == (False, True)
        assert os.listdir(folder) == [other.name]
    assert os.listdir(folder) == []


def test_who_never_was_is_dead(tmp_path: Path) -> None:
    assert not is_alive(tmp_path, "never")
    assert not is_alive(tmp_path / "missing", "never")
    remove(tmp_path / "missing", "never")


def test_the_dead_are_removed_and_the_living_not(tmp_path: Path) -> None:
    name = run("presence = Presence(path)\nsay(presence.name)\nos._exit(0)", tmp_path)
    presence = Presence(tmp_path)
    with closed(presence):
        assert sorted(os.listdir(tmp_path)) == sorted([name, presence.name])
        for each in (name, presence.name):
            remove(tmp_path, each)
        assert os.listdir(tmp_path) == [presence.name]
        assert is_alive(tmp_path, presence.name)


def test_two_who_look_at_one_moment_both_see_the_dead(tmp_path: Path) -> None:
    name = run("presence = Presence(path)\nsay(presence.name)\nos._exit(0)", tmp_path)
    with open(tmp_path / name) as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as another process has it while it looks
        assert not is_alive(tmp_path, name)


def test_a_presence_begins_well_while_others_sweep(tmp_path: Path) -> None:
    """A new file that is not locked yet looks like that of a dead process, and is removed as one."""
    sweep = "say('sweeping')\nwhile True:\n    for name in os.listdir(path): remove(path, name)"
    with running(sweep, tmp_path) as one, running(sweep, tmp_path) as other:
        assert (line(one), line(other)) == ("sweeping", "sweeping")
        for _ in range(300):
            presence = Presence(tmp_path)
            with closed(presence):
                assert is_alive(tmp_path, presence.name)
                assert (tmp_path / presence.name).exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", ".", "..", "a\0b", "a/b", "\N{SNOWMAN}"])
def test_a_name_that_leads_out_of_the_folder_is_nobody(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()
    (tmp_path / "secret").touch()
    assert not is_alive(folder, name)
    remove(folder, name)
    assert (tmp_path / "secret").exists()


def test_a_link_planted_under_a_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()
    (tmp_path / "secret").touch()
    (folder / "name").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match="symbolic link"):
        is_alive(folder, "name")


# -- KeyLocks --------------------------------------------------------------------------------------------------------


def test_a_key_is_held_by_one_in_a_process_and_other_keys_are_free(tmp_path: Path) -> None:
    one, other = KeyLocks(tmp_path / "keys"), KeyLocks(tmp_path / "keys")
    with closed(one, other):
        assert one.try_take("a")
        assert (one.try_take("a"), other.try_take("a"), other.try_take("b")) == (False, False, True)
        other.give("a")  # which it does not hold
        assert not other.try_take("a")
        one.give("a")
        assert other.try_take("a")


CHECK = "locks = KeyLocks(path)\nsay(*[key for key in 'abc' if not locks.try_take(key)])"


def test_a_key_is_held_by_one_of_all_processes(tmp_path: Path) -> None:
    locks = KeyLocks(tmp_path / "keys")
    with closed(locks):
        assert locks.try_take("a")
        assert locks.try_take("c")
        assert run(CHECK, tmp_path / "keys") == "a c"
        locks.give("a")
        assert run(CHECK, tmp_path / "keys") == "c"
    assert run(CHECK, tmp_path / "keys") == ""


def test_closing_one_leaves_the_keys_of_another_by_whatever_path(tmp_path: Path) -> None:
    """The system drops a process's locks on a file with the first descriptor of it that is closed."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "way").symlink_to("folder")
    holder = KeyLocks(tmp_path / "folder" / "keys")
    with closed(holder):
        assert holder.try_take("a")
        for path in (tmp_path / "folder" / "keys", tmp_path / "way" / "keys"):
            other = KeyLocks(path)
            assert not other.try_take("a")
            assert other.try_take("b")
            other.close()
            assert run(CHECK, path) == "a"


def test_a_forked_child_holds_no_key_and_takes_its_own(tmp_path: Path) -> None:
    code = """
locks = KeyLocks(path)
locks.try_take("a")
if not (pid := os.fork()):
    os._exit(not (not locks.try_take("a") and locks.try_take("b")))
say(os.waitpid(pid, 0)[1], locks.try_take("b"))
"""
    assert run(code, tmp_path / "keys") == "0 True"


def test_a_key_is_any_text_and_leaves_nothing_behind(tmp_path: Path) -> None:
    keys = ["", "a\0b", "../../etc", "\N{SNOWMAN}" * 3, "\ud800", "x" * 10_000_000, "CON", "con"]
    one, other = KeyLocks(tmp_path / "keys"), KeyLocks(tmp_path / "keys")
    with closed(one, other):
        assert [one.try_take(key) for key in keys] == [True] * len(keys)
        assert [other.try_take(key) for key in keys] == [False] * len(keys)
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("keys", 0)]


def test_keys_taken_before_the_file_was_deleted_are_given_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    locks = KeyLocks(path)
    with closed(locks):
        assert locks.try_take("a")
        path.unlink()
        assert locks.try_take("b")
        assert not locks.try_take("a")
        assert run(CHECK, path) == "b"
        locks.give("a")
        locks.give("b")
        assert run(CHECK, path) == ""
        assert locks.try_take("a")
        assert run(CHECK, path) == "a"


def test_keys_that_nobody_holds_on_to_are_released(tmp_path: Path) -> None:
    KeyLocks(tmp_path / "keys").try_take("a")
    assert run(CHECK, tmp_path / "keys") == ""


# -- which SQLite needs it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "loses"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_versions_that_lose_commits_are_known(version: tuple[int, int, int], loses: bool) -> None:
    assert loses_commits(version) == loses


def test_the_guard_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "{'sqlite3', 'aiosqlite', 'hashlib', 'random', 'asyncio', 'tempfile'}"
    assert run(f"say(*sorted({heavy} & set(sys.modules)))", tmp_path) == ""
