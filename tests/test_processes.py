"""Bodies in worker processes: what travels, what comes back, and what becomes of those that die."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy
import pytest

from asynctask import ProcessPoolTaskRunner, Runtime, ThreadPoolTaskRunner, flow, get_client, get_run_logger, tags, task
from asynctask.errors import CancelledRun, OptionError, SerializationError, TaskTimeoutError, WorkerLostError
from asynctask.runtime import flow_run, task_run
from asynctask.stores.memory import MemoryStore
from asynctask.stores.sqlite import SQLiteStore
from testkit import fail, limit_of, set_limit, until

#: Shared by the tests of this file: a worker takes 0.2 s to start.
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["spawn", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> str:
    """For what depends on how a worker begins or ends; what travels to it does not."""
    return request.param


def on_processes(workers: int = 1, **options: Any) -> Runtime:
    return Runtime(store=MemoryStore(), task_runner=ProcessPoolTaskRunner(workers, **options))


@task
def pid(*_: object) -> int:
    return os.getpid()


@task
async def async_pid() -> int:
    await anyio.sleep(0)
    return os.getpid()


@task
def squares(count: int) -> Iterator[int]:
    for number in range(count):
        yield number**2


@task
def give(value: Any) -> Any:
    return value


async def test_sync_and_async_bodies_and_generators_run_in_another_process(start_method):
    async with on_processes(start_method=start_method) as runtime:
        first = await pid.submit()
        assert first != os.getpid()
        assert await async_pid.submit() == first, "the worker serves the next one as well"
        future = squares.submit(4)
        assert [value async for value in future] == await future == [0, 1, 4, 9]
        assert pid() == os.getpid(), "a call runs here, as any does"
        assert not runtime.runs


@task
def waiting(folder: str, count: int) -> Iterator[int]:
    """Each value is given only when the one before has arrived."""
    for number in range(count):
        while number and not has_arrived(folder, number - 1):
            time.sleep(0.001)
        yield number


@task
async def async_waiting(folder: str, count: int) -> AsyncIterator[int]:
    for number in range(count):
        while number and not has_arrived(folder, number - 1):
            await anyio.sleep(0.001)
        yield number


def has_arrived(folder: str, number: int) -> bool:
    return Path(folder, str(number)).exists()


def arrived(folder: str, number: int) -> None:
    Path(folder, str(number)).touch()


@pytest.mark.parametrize("body", [waiting, async_waiting], ids=["sync", "async"])
async def test_the_values_of_a_generator_are_there_while_it_runs(body, tmp_path):
    def in_plain_code(future: Any, folder: str) -> list[int]:
        taken = []
        for value in future:
            taken.append(value)
            arrived(folder, value)
        return taken

    first, second = str(tmp_path), tempfile.mkdtemp(dir=tmp_path)
    async with on_processes():
        future = body.submit(first, 4)
        taken = []
        async for value in future:
            taken.append(value)
            arrived(first, value)
        assert taken == await future == [0, 1, 2, 3]
        assert [value async for value in future] == taken, "once more, from the start"
        future = body.submit(second, 2)
        assert await anyio.to_thread.run_sync(in_plain_code, future, second) == [0, 1]


@task
def first_some(count: int, then: str) -> Iterator[Any]:
    yield from range(count)
    if then == "fail":
        raise LookupError("after the last")
    if then == "give what cannot be sent":
        yield threading.Lock()


async def take(future: Any, taken: list[Any]) -> None:
    async for value in future:
        taken.append(value)


async def test_many_values_of_a_generator_are_complete_and_end_as_it_does():
    async with on_processes():
        assert [value async for value in first_some.submit(20_000, "end")] == list(range(20_000))
        for then, error in (("fail", LookupError), ("give what cannot be sent", TypeError)):
            future = first_some.with_options(retries=1).submit(300, then)
            taken = []
            with pytest.raises(error):
                await take(future, taken)
            assert taken == list(range(300)) or then != "fail"
            assert future.run.run_count == 1 or then != "fail", "who has taken some is not to get them again"
        assert await squares.submit(3) == [0, 1, 4]


class Refusal(Exception):
    def __init__(self, who: str, *, code: int) -> None:
        super().__init__(f"{who} was refused")
        self.code = code


async def test_an_exception_is_of_its_class_at_home_whatever_its_class_takes_to_make_one():
    class Local(Refusal):
        pass

    def refuse(kind: type[Refusal], together: bool) -> None:
        error = kind("somebody", code=7)
        raise ExceptionGroup("several", [error, ValueError()]) if together else error

    async with on_processes():
        refusing = task(refuse, name="refusing")
        for kind in (Refusal, Local):
            with pytest.raises(kind) as one:
                await refusing.submit(kind, False)
            assert (str(one.value), one.value.code) == ("somebody was refused", 7)
        with pytest.raises(ExceptionGroup) as several:
            await refusing.submit(Refusal, True)
        assert [type(error) for error in several.value.exceptions] == [Refusal, ValueError]


async def test_lambdas_closures_and_local_classes_travel():
    offset = 5

    class Pair:
        def __init__(self, a: int) -> None:
            self.a = a

    add = task(lambda x: x + offset, name="add")
    make = task(lambda x: Pair(x), name="make")
    async with on_processes():
        assert await add.submit(1) == 6
        pair = await make.submit(3)
        assert isinstance(pair, Pair)
        assert pair.a == 3


async def test_bodies_that_submit_to_processes_again_and_again_do_not_start_more_at_each_level():
    @task(task_runner=ProcessPoolTaskRunner(2))
    def split(depth: int) -> set[int]:
        halves = split.map([depth - 1] * 2).result() if depth else []
        return {os.getpid()}.union(*halves)

    async with on_processes(2):
        pids = await split.submit(4)
    assert 5 <= len(pids) <= 10, "two at the top, and one below each worker; not 31"


@pytest.mark.parametrize("kind", [ProcessPoolTaskRunner, ThreadPoolTaskRunner])
async def test_a_body_that_travels_takes_along_tasks_with_runners_of_their_own(kind):
    class Shop:  # goes by value, and its tasks with it
        @task(task_runner=kind(max_workers=1))
        def price(self, item: int) -> int:
            return 10 * item

    inner = task(lambda x: (x + 1, os.getpid()), name="inner", task_runner=kind(max_workers=1))
    outer = task(lambda x: (inner.submit(x).result(), os.getpid()), name="outer")
    async with on_processes():
        (value, there), here = await outer.submit(1)
        assert value == 2
        assert (there == here) is (kind is ThreadPoolTaskRunner), "its runner is of the same kind there"
        on_workers = Shop.price.with_options(task_runner=ProcessPoolTaskRunner(1))
        assert await on_workers.submit(Shop(), 4) == 40


async def test_large_bytes_and_buffers_come_back_equal_and_writable():
    array = numpy.arange(300_000)
    data = os.urandom(1_000_000)
    async with on_processes():
        assert await give.submit(data) == data
        assert await give.submit(bytearray(data)) == data
        assert await give.submit({"in": [data]}) == {"in": [data]}
        back = await give.submit(array)
        assert (back == array).all()
        back[0] = 7  # an array made of bytes could not be written to


@task
def look_around() -> list[Any]:
    return [
        task_run.id, task_run.name, task_run.tags, task_run.run_count, task_run.task_name, task_run.flow_run_id,
        flow_run.id, flow_run.name, flow_run.flow_name,
    ]  # fmt: skip


async def test_a_body_finds_the_run_that_it_is_of():
    @flow
    async def around() -> Any:
        with tags("a", "b"):
            future = look_around.submit()
        return [future.run.id, future.run.name, flow_run.id, flow_run.name, await future]

    async with on_processes():
        run_id, name, flow_id, flow_name, seen = await around()
    assert seen == [run_id, name, ["a", "b"], 1, "look_around", flow_id, flow_id, flow_name, "around"]


@task(log_prints=True)
def talk(number: int) -> None:
    print("printed", number)
    get_run_logger().warning("logged %s", number)
    print("again")


async def test_what_a_body_prints_and_logs_comes_home_in_order(caplog):
    caplog.set_level(logging.INFO)
    async with on_processes():
        future = talk.submit(3)
        await future
        async with get_client() as client:
            kept = await client.read_logs(future.task_run_id)
    expected = [("INFO", "printed 3"), ("WARNING", "logged 3"), ("INFO", "again")]
    assert [(logging.getLevelName(one.level), one.message) for one in kept] == expected
    records = [one for one in caplog.records if one.name == "asynctask.task_runs" and one.levelname != "DEBUG"]
    assert [(one.levelname, one.getMessage()) for one in records] == expected
    assert {one.task_run_name for one in records} == {future.name}  # type: ignore[attr-defined]


async def test_an_exception_comes_home_with_its_cause_its_notes_and_where_it_was_raised():
    async with on_processes():
        with pytest.raises(ValueError, match="outer") as caught:
            await fail.submit()
    assert "KeyError: 'inner'" in str(caught.value.__cause__)
    assert caught.value.__notes__[0] == "a note"
    assert "testkit.py" in caught.value.__notes__[-1]
    assert "in fail" in caught.value.__notes__[-1]


async def test_an_error_of_the_operating_system_in_a_body_is_its_own_and_its_worker_lives_on(tmp_path):
    async with on_processes():
        before = await pid.submit()
        opening = task(lambda path: Path(path).read_text(), name="opening").submit(str(tmp_path / "missing"))
        with pytest.raises(FileNotFoundError, match="missing"):
            await opening
        with pytest.raises(EOFError, match="of its own"):
            await task(end_of_file).submit()
        assert await pid.submit() == before


def end_of_file() -> None:
    raise EOFError("of its own")


@pytest.mark.parametrize(
    ("raised", "ended"),
    [
        (lambda: SystemExit(3), "Crashed('ended by an exit (code 3)')"),
        (KeyboardInterrupt, "Crashed('ended by an interrupt')"),
        (asyncio.CancelledError, "Cancelled('cancelled by its caller')"),
    ],
    ids=["exit", "interrupt", "cancellation"],
)
async def test_what_is_no_ordinary_exception_ends_a_run_as_it_does_on_a_thread(raised, ended):
    @task(retries=2)
    def end() -> None:
        raise raised()

    async with on_processes():
        for each in (end, end.with_options(task_runner=ThreadPoolTaskRunner(1))):
            future = each.submit()
            assert str(await future.wait_async()) == ended
            assert future.run.run_count == 1
        assert await give.submit(1) == 1


async def test_a_handler_here_that_raises_costs_neither_the_result_nor_the_ones_after_it(caplog):
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.getMessage() == "logged 3":
                raise ZeroDivisionError
            return True

    caplog.set_level(logging.INFO)
    broken = Broken()
    logging.getLogger("asynctask.task_runs").addFilter(broken)
    try:
        async with on_processes():
            give_back = task(lambda number: talk.fn(number) or number, name="give_back")
            assert [await give_back.submit(number) for number in (3, 4)] == [3, 4]
    finally:
        logging.getLogger("asynctask.task_runs").removeFilter(broken)
    assert "logged 4" in caplog.messages
    assert any("could not be logged here" in text for text in caplog.messages)


async def test_what_cannot_be_pickled_is_refused_with_the_name_of_the_argument():
    async with on_processes():
        with pytest.raises(SerializationError, match=r"task 'give': argument 'value' \(<.*lock.*cannot be sent"):
            await give.submit(threading.Lock())
        assert await give.submit(1) == 1
        with pytest.raises(TypeError, match=r"the result, of type lock"):
            await task(lambda: threading.Lock(), name="lock").submit()


@task
def stuck(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while True:
        time.sleep(10)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_timeout_kills_the_body_and_no_other(tmp_path):
    async with on_processes(2):
        other = await pid.submit()
        slow = stuck.with_options(timeout_seconds=3).submit(str(tmp_path / "pid"))
        fast = task(lambda: time.sleep(1) or os.getpid(), name="fast").submit()
        with pytest.raises(TaskTimeoutError):
            await slow
        assert slow.state.name == "TimedOut"
        killed = int((tmp_path / "pid").read_text())
        await until(lambda: not is_running(killed))
        assert await fast not in (killed, os.getpid())
        assert await pid.submit() != killed
        assert other


async def test_a_cancelled_body_is_killed_and_the_next_run_finds_a_worker(tmp_path, start_method):
    async with on_processes(start_method=start_method):
        future = stuck.submit(str(tmp_path / "pid"))
        await until((tmp_path / "pid").exists)
        await until((tmp_path / "pid").read_text)
        waiting = pid.submit()
        future.cancel()
        with pytest.raises(CancelledRun):
            await future
        killed = int((tmp_path / "pid").read_text())
        assert await waiting != killed
        await until(lambda: not is_running(killed))


@task
def die(how: str, counter: str) -> None:
    with open(counter, "a") as file:
        file.write("x")
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("how", "said"), [("exit", "ended with exit code 7"), ("kill", "was killed by SIGKILL")])
async def test_a_lost_worker_ends_its_run_crashed_and_no_other(tmp_path, how, said, start_method):
    async with on_processes(2, start_method=start_method):
        others = [task(lambda: time.sleep(0.05) or 1, name="other").submit() for _ in range(6)]
        future = die.submit(how, str(tmp_path / "count"))
        with pytest.raises(WorkerLostError, match=said):
            await future
        assert future.state.is_crashed()
        assert said in (future.state.message or "")
        assert [await one for one in others] == [1] * 6


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (9, 3)])
async def test_a_lost_attempt_is_retried_while_retries_remain_but_not_after_three_in_a_row(
    tmp_path, retries, attempts, start_method
):
    counter = tmp_path / "count"
    async with on_processes(start_method=start_method):
        future = die.with_options(retries=retries, retry_on=[KeyError]).submit("exit", str(counter))
        with pytest.raises(WorkerLostError):
            await future
    assert counter.read_text() == "x" * attempts
    assert future.run.run_count == attempts


@task
def note(number: int, path: str) -> int:
    """Short, so that many are sent together; one of them kills its worker, the first time."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    marker = f"{path}-killed"
    if number == 150 and not os.path.exists(marker):
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


async def test_of_short_calls_that_were_sent_together_only_the_one_that_killed_its_worker_is_tried_again(
    tmp_path, start_method
):
    path = tmp_path / "notes"
    async with on_processes(2, start_method=start_method):
        await note.submit(-1, str(path))
        futures = note.with_options(retries=1).map(range(300), str(path))
        assert await futures == list(range(300))
        assert [one.run.run_count for one in futures] == [1] * 150 + [2] + [1] * 149
    noted = Counter(map(int, path.read_text().split()))
    assert noted == {**dict.fromkeys(range(-1, 300), 1), 150: 2}


async def test_a_run_that_is_cancelled_after_it_was_sent_with_others_changes_nothing_for_them(tmp_path):
    nap = task(lambda seconds: time.sleep(seconds) or seconds, name="nap")
    async with on_processes():
        for _ in range(30):
            await nap.submit(0)  # it is known to be short
        futures = [nap.submit(0.2), *nap.map([0] * 20), nap.submit(30), *nap.map([0] * 20)]
        futures[21].cancel()
        with anyio.fail_after(20):
            assert [(await one.wait_async()).name for one in futures] == (
                ["Completed"] * 21 + ["Cancelled"] + ["Completed"] * 20
            )


async def test_a_worker_that_cannot_start_fails_the_attempt_and_says_why(start_method):
    def initialize(value: int) -> None:
        raise RuntimeError(f"not with {value}")

    async with on_processes(initializer=initialize, initargs=(3,), start_method=start_method):
        with pytest.raises(RuntimeError, match="not with 3"):
            await pid.submit()


async def test_a_worker_is_initialized_once_and_replaced_after_so_many_bodies(start_method):
    def initialize(value: str) -> None:
        os.environ["FROM_INITIALIZER"] = value

    async with on_processes(
        initializer=initialize, initargs=("here",), max_tasks_per_child=2, start_method=start_method
    ):
        read = task(lambda: (os.environ["FROM_INITIALIZER"], os.getpid()), name="read")
        found = [await read.submit() for _ in range(4)]
    assert [value for value, _ in found] == ["here"] * 4
    pids = [number for _, number in found]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_a_run_that_is_cancelled_as_its_answer_comes_costs_no_other_run_an_attempt(caplog):
    """Its worker was killed, but seemed to be free, for the answer was there; and the next run was lost with it."""
    reached, gate = threading.Event(), threading.Event()

    class Slow(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            reached.set()
            return gate.wait(10)

    caplog.set_level(logging.INFO)
    slow = Slow()
    async with on_processes():
        logging.getLogger("asynctask.task_runs").addFilter(slow)
        try:
            first = talk.submit(1)
            await until(reached.is_set)
            await anyio.sleep(0.1)  # the answer comes, while what was logged is still being told
            first.cancel()
            assert (await first.wait_async()).is_cancelled()
            second = pid.submit()
        finally:
            gate.set()
            logging.getLogger("asynctask.task_runs").removeFilter(slow)
        await second
        assert second.run.run_count == 1


async def test_a_worker_that_is_killed_while_it_has_nothing_to_do_costs_nobody_an_attempt():
    async with on_processes():
        killed = await pid.submit()
        os.kill(killed, signal.SIGKILL)
        await until(lambda: os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT | os.WNOHANG))
        future = pid.submit()
        assert await future != killed
        assert future.run.run_count == 1


@task
def inner(x: int) -> int:
    return x + 1


@task
def outer(x: int) -> int:
    return inner(x) + inner.submit(x).result()


async def test_runs_that_a_body_starts_are_runs_like_any_other_in_the_same_store(tmp_path, start_method):
    runner = ProcessPoolTaskRunner(1, start_method=start_method)
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db"), task_runner=runner) as runtime:
        future = outer.submit(1)
        assert await future == 4
        runtime.task_runner.close()  # the worker writes what it has as it ends
        async with get_client() as client:
            runs = await client.read_task_runs(task_name="inner")
    assert [(run.parent_task_run_id, run.state_name) for run in runs] == [(future.task_run_id, "Completed")] * 2


async def test_what_a_body_calls_borrows_the_slot_that_its_run_holds_at_home(tmp_path):
    nested = task(lambda: inner.with_options(tags=["db"])(1), name="nested", tags=["db"])
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db"), task_runner=ProcessPoolTaskRunner(1)) as runtime:
        await set_limit("db", 1)
        assert await nested.submit() == 2
        assert limit_of(runtime, "db").in_use == 0


async def test_leaving_the_runtime_leaves_no_worker(start_method):
    async with on_processes(2, start_method=start_method):
        pids = [await one for one in pid.map(range(8))]
    assert not any(is_running(one) for one in set(pids))


async def test_a_worker_ends_as_any_interpreter_does(tmp_path, start_method):
    def leave() -> None:
        import atexit

        atexit.register((tmp_path / "at exit").touch)
        threading.Thread(target=lambda: time.sleep(0.1) or (tmp_path / "thread").touch()).start()

    async with on_processes(start_method=start_method):
        await task(leave, name="leave").submit()
    assert (tmp_path / "at exit").exists()
    assert (tmp_path / "thread").exists()


async def test_a_lost_worker_is_noticed_though_a_program_that_it_started_lives_on(tmp_path, start_method):
    def abandon() -> None:
        os.system(f"sleep 600 & echo $! > {tmp_path}/pid")  # which would have the wire, if that were inherited
        os._exit(7)

    async with on_processes(start_method=start_method):
        with pytest.raises(WorkerLostError, match="ended with exit code 7"):
            await task(abandon, name="abandon").submit()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


SCRIPT = """
import os, sys, time
from asynctask import ProcessPoolTaskRunner, Runtime, task

@task
def work():
    os.write(1, f"{os.getpid()} {os.getppid()}\\n".encode())
    time.sleep(60)

with_pool = work.with_options(task_runner=ProcessPoolTaskRunner(2, start_method=sys.argv[1]))
futures = [with_pool.submit() for _ in range(2)]
futures[0].wait()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_and_no_fork_server_outlives_its_program_however_that_ends(tmp_path, how, start_method):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py", start_method], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "ASYNCTASK_SHUTDOWN_TIMEOUT": "0.5"},
    )  # fmt: skip
    assert process.stdout is not None
    pids = [int(pid) for _ in range(2) for pid in process.stdout.readline().split()]
    process.send_signal(how)
    process.wait(30)
    process.stdout.close()
    end = time.monotonic() + 10
    while any(is_running(one) for one in pids):
        assert time.monotonic() < end, "a worker is still there"
        time.sleep(0.01)


def test_a_script_without_a_guard_round_its_last_lines_is_not_run_again_in_workers(tmp_path, start_method):
    script = """
        import sys
        from dataclasses import dataclass
        from asynctask import ProcessPoolTaskRunner, task

        @dataclass
        class Point:
            x: int

        @task(task_runner=ProcessPoolTaskRunner(1, start_method=sys.argv[1]))
        def move(point: Point) -> Point:
            return Point(point.x + 1)

        print(move.submit(Point(1)).result() == Point(2))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    command = [sys.executable, "script.py", start_method]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_workers": 0}, "max_workers must be a whole number from 1, not 0"),
        ({"max_tasks_per_child": True}, "max_tasks_per_child must be a whole number from 1, not True"),
        ({"start_method": "fork"}, "start_method must be 'spawn' or 'forkserver', not 'fork'"),
        ({"initializer": 3}, "initializer must be a function, not 3"),
    ],
)
def test_wrong_options_are_refused_at_once(options, said):
    with pytest.raises(OptionError, match=said):
        ProcessPoolTaskRunner(**options)


def test_sync_code_submits_to_processes_too():
    assert pid.with_options(task_runner=ProcessPoolTaskRunner(1)).submit().result() != os.getpid()


def test_a_file_in_the_current_folder_is_not_taken_for_a_module_of_the_library(tmp_path):
    (tmp_path / "socket.py").write_text("raise SystemExit('the wrong one')\n")
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "script.py").write_text(
        "from asynctask import ProcessPoolTaskRunner, task\n"
        "print(task(lambda: 3, task_runner=ProcessPoolTaskRunner(1)).submit().result())\n"
    )
    done = subprocess.run(
        [sys.executable, str(folder / "script.py")], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr


async def test_one_flow_has_its_runs_wherever_each_of_them_says():
    threads = ThreadPoolTaskRunner(1)
    on_thread = pid.with_options(task_runner=threads)

    @flow(task_runner=ProcessPoolTaskRunner(1))
    async def around() -> list[int]:
        plain, threaded, awaited = pid.submit(), on_thread.submit(), async_pid.submit()
        return [await plain, await threaded, await awaited, pid(), await async_pid()]

    async with Runtime(store=MemoryStore()):
        plain, threaded, awaited, called, called_async = await around()
    assert plain == awaited != os.getpid()
    assert threaded == called == called_async == os.getpid()


async def test_runs_in_processes_are_streamed_like_any_other():
    async with on_processes(2):
        assert [number async for number in give.stream(range(30), concurrency=4, ordered=True)] == list(range(30))
