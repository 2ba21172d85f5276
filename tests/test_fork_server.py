"""What is true of workers that a fork server starts, beside all that `test_processes.py` shows of both kinds."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import numpy
import pytest

from asynctask import ProcessPoolTaskRunner, Runtime, task
from asynctask.errors import OptionError, WorkerLostError
from asynctask.stores.memory import MemoryStore
from testkit import until


def on_forks(workers: int = 1, **options: Any) -> Runtime:
    runner = ProcessPoolTaskRunner(workers, start_method="forkserver", **options)
    return Runtime(store=MemoryStore(), task_runner=runner)


@task
def whose() -> tuple[int, int]:
    return os.getpid(), os.getppid()


@task
def stuck_in_c(path: str) -> None:
    """Not even the thread that watches the lifeline gets to run."""
    Path(path).write_text(f"{os.getpid()}\n")
    ctypes.PyDLL(None).sleep(600)


async def told(path: Path) -> int:
    """The pid of a body that has written it."""

    def pid() -> int:
        return int(path.read_text()) if path.exists() and path.read_text().endswith("\n") else 0

    await until(pid)
    return pid()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_workers_are_forked_by_one_process_that_has_one_thread():
    async with on_forks(max_tasks_per_child=1):
        (first, server), (second, again) = await whose.submit(), await whose.submit()
        assert len({first, second, server, os.getpid()}) == 4
        assert server == again
        assert len(os.listdir(f"/proc/{server}/task")) == 1


async def test_leaving_the_runtime_leaves_no_server_and_a_runner_may_be_used_again():
    runner = ProcessPoolTaskRunner(1, start_method="forkserver")
    servers = []
    for _ in range(2):
        async with Runtime(store=MemoryStore(), task_runner=runner):
            servers.append((await whose.submit())[1])
        assert not is_running(servers[-1])
    assert servers[0] != servers[1]


async def test_a_worker_that_begins_later_finds_the_environment_folder_and_output_of_that_time(tmp_path, monkeypatch):
    def look() -> tuple[Any, ...]:
        os.write(1, b"seen\n")
        return os.environ.get("NEW"), os.environ.get("OLD"), os.getcwd()

    monkeypatch.setenv("OLD", "1")
    look_around = task(look, name="look")
    async with on_forks(max_tasks_per_child=1):
        assert await look_around.submit() == (None, "1", os.getcwd())
        monkeypatch.delenv("OLD")
        monkeypatch.setenv("NEW", "2")
        monkeypatch.chdir(tmp_path)
        kept, output = os.dup(1), os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.close(output)
        try:
            assert await look_around.submit() == ("2", None, str(tmp_path))
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    assert (tmp_path / "output").read_bytes() == b"seen\n"


async def test_each_worker_imports_what_bodies_need_and_draws_random_numbers_of_its_own():
    """A server that had imported numpy would have threads, and workers that all draw the same."""
    draw = task(lambda: numpy.random.random(), name="draw")
    async with on_forks(max_tasks_per_child=1):
        assert len({await draw.submit() for _ in range(3)}) == 3


async def test_a_worker_has_the_descriptors_that_a_spawned_one_has_and_nothing_of_others(tmp_path):
    def held() -> list[str]:
        numbers = [number for number in os.listdir("/proc/self/fd") if int(number) > 2]
        links = [Path(f"/proc/self/fd/{number}") for number in numbers]  # that of the listing is there no more
        return sorted(re.sub(r"\d+|asynctask-\w+", "", os.readlink(link)) for link in links if link.is_symlink())

    def wait(path: str) -> list[str]:
        Path(path).write_text(f"{os.getpid()}\n")
        while not os.path.exists(f"{path}-go"):
            time.sleep(0.001)
        return held()

    look = task(held, name="look")
    spawned = await look.with_options(task_runner=ProcessPoolTaskRunner(1)).submit()
    async with on_forks(2):
        earlier = task(wait, name="wait").submit(str(tmp_path / "pid"))
        await told(tmp_path / "pid")
        assert await look.submit() == spawned
        (tmp_path / "pid-go").touch()
        assert await earlier == spawned


async def test_a_worker_finds_signals_as_a_new_interpreter_does():
    def look() -> list[Any]:
        numbers = sorted(signal.valid_signals())
        return [signal.set_wakeup_fd(-1), signal.pthread_sigmask(signal.SIG_BLOCK, []), *map(signal.getsignal, numbers)]

    spawned = task(look, name="look", task_runner=ProcessPoolTaskRunner(1))
    async with on_forks():
        assert await task(look, name="look").submit() == await spawned.submit()


async def test_the_end_of_a_worker_is_told_also_where_the_program_blocks_its_signals():
    """As one does that waits for them in a thread of their own: what is started meanwhile blocks them too."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        async with on_forks():
            with pytest.raises(WorkerLostError, match="ended with exit code 7"):
                await task(lambda: os._exit(7), name="leave").submit()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


async def test_a_server_keeps_nothing_of_workers_that_have_ended():
    async with on_forks(max_tasks_per_child=1):
        counts = [len(os.listdir(f"/proc/{(await whose.submit())[1]}/fd")) for _ in range(4)]
        assert max(counts) - min(counts) <= 1  # the leash of a worker that is ending


async def test_ctrl_c_which_reaches_all_of_a_terminal_ends_neither_server_nor_worker():
    async with on_forks():
        pids = await whose.submit()
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        assert await whose.submit() == pids


async def test_bodies_start_programs_like_anywhere():
    async def run() -> int:
        return (await anyio.run_process([sys.executable, "-c", "exit(3)"], check=False)).returncode

    async with on_forks():
        assert await task(run, name="run").submit() == 3
        assert (
            await task(lambda: subprocess.run([sys.executable, "-c", "exit(4)"]).returncode, name="call").submit() == 4
        )


async def test_a_body_that_is_stuck_in_c_is_killed_when_it_is_cancelled(tmp_path):
    async with on_forks():
        future = stuck_in_c.submit(str(tmp_path / "pid"))
        stuck = await told(tmp_path / "pid")
        future.cancel()
        assert (await future.wait_async()).name == "Cancelled"
        await until(lambda: not is_running(stuck))
        assert (await whose.submit())[0] != stuck


async def test_when_the_server_is_killed_its_workers_die_and_the_next_run_finds_another(tmp_path):
    async with on_forks(max_tasks_per_child=1):
        server = (await whose.submit())[1]
        future = stuck_in_c.submit(str(tmp_path / "pid"))
        stuck = await told(tmp_path / "pid")
        os.kill(server, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="was lost together with its fork server"):
            await future
        await until(lambda: not is_running(stuck))
        assert (await whose.submit())[1] not in (server, os.getpid())


def site(folder: Path, code: str) -> None:
    """What each interpreter that starts from now on does first."""
    (folder / "sitecustomize.py").write_text(code)


async def test_a_server_that_cannot_start_fails_the_attempt_and_the_next_one_is_tried_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    site(tmp_path, "import os\nos._exit(3)\n")
    async with on_forks():
        future = whose.submit()
        with pytest.raises(WorkerLostError, match="could not start: its fork server ended with exit code 3"):
            await future
        assert future.state.is_crashed()
        site(tmp_path, "")
        assert await whose.submit()


async def test_nothing_is_forked_from_a_process_that_has_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    site(tmp_path, "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n")
    async with on_forks():
        with pytest.raises(WorkerLostError, match=r"its fork server has 2 threads, .* use start_method='spawn'"):
            await whose.submit()


SCRIPT = """
import ctypes, os, sys
from asynctask import ProcessPoolTaskRunner, task

@task
def work():
    os.write(1, f"{os.getpid()} {os.getppid()}\\n".encode())
    ctypes.PyDLL(None).sleep(600)

work.with_options(task_runner=ProcessPoolTaskRunner(1, start_method="forkserver")).submit().wait()
"""


def test_a_body_that_is_stuck_in_c_does_not_outlive_its_killed_program(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    assert process.stdout.read() == "", "it ends when nobody holds its other end any more"
    process.stdout.close()
    end = time.monotonic() + 10
    while any(is_running(one) for one in pids):  # descriptors are closed before a process is gone
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_system_that_cannot_fork_has_no_fork_server(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(OptionError, match="start_method 'forkserver' needs a system that forks processes"):
        ProcessPoolTaskRunner(start_method="forkserver")
    ProcessPoolTaskRunner(start_method="spawn")
