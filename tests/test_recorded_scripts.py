"""Whole programs that say nothing of a store: every run is on disk when they have ended, whichever way."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

BEGIN = """
import asyncio, multiprocessing, os, sys, threading, time
from asynctask import Runtime, flow, get_client, task

@task
async def double(x):
    return x * 2

@task
def triple(x):
    return x * 3

@task
async def slow(x):
    await asyncio.sleep(0.05)

@task
def fails():
    raise ValueError("no")

"""

Program = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Runs a program whose store is `runs.db`, warnings being errors; what it printed."""

    def run(text: str, code: int = 0, complains: bool = False) -> str:
        file = tmp_path / "program.py"
        file.write_text(BEGIN + textwrap.dedent(text))
        done = subprocess.run(
            [sys.executable, "-W", "error", str(file)],
            env={**os.environ, "ASYNCTASK_STORE_URL": f"sqlite:///{tmp_path / 'runs.db'}"},
            cwd=tmp_path, capture_output=True, text=True, timeout=50,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert complains or done.stderr == ""
        return done.stdout

    return run


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[], dict[str, int]]:
    """How many runs are in the database, by task and state; and that the program left it in order."""

    def look() -> dict[str, int]:
        assert not (tmp_path / "runs.db-wal").exists()
        with contextlib.closing(sqlite3.connect(tmp_path / "runs.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("SELECT count(*) FROM processes").fetchone() == (0,)
            rows = connection.execute("SELECT tasks.name, states FROM runs JOIN tasks ON tasks.id = task").fetchall()
        return dict(Counter(f"{name} {json.loads(states)[-1][1]}" for name, states in rows))

    return look


def test_sync_calls(program, recorded):
    program("for x in range(500): triple(x)")
    assert recorded() == {"triple Completed": 500}


def test_async_calls_under_asyncio_run(program, recorded):
    program("""
        async def main():
            for x in range(500):
                await double(x)

        asyncio.run(main())
    """)
    assert recorded() == {"double Completed": 500}


def test_several_event_loops_one_after_the_other_and_plain_code_between_them(program, recorded):
    program("""
        import trio

        async def main():
            await double(1)

        for _ in range(3):
            asyncio.run(main())
            triple(1)
            trio.run(main)
    """)
    assert recorded() == {"double Completed": 6, "triple Completed": 3}


def test_work_submitted_and_left(program, recorded):
    program("""
        for x in range(20):
            slow.submit(x)
            triple.submit(x)
    """)
    assert recorded() == {"slow Completed": 20, "triple Completed": 20}


def test_an_exception_that_nobody_handles(program, recorded):
    program("triple(1)\nfails()", code=1, complains=True)
    assert recorded() == {"triple Completed": 1, "fails Failed": 1}


def test_sys_exit_in_the_middle(program, recorded):
    program("""
        @flow
        def leaves():
            triple(2)
            sys.exit(3)

        triple(1)
        leaves()
    """, code=3, complains=True)  # fmt: skip
    assert recorded() == {"triple Completed": 2, "leaves Crashed": 1}


def test_threads_that_go_on_when_the_main_one_has_ended(program, recorded):
    program("""
        def work():
            for x in range(100):
                triple(x)
                time.sleep(0.0005)

        for _ in range(4):
            threading.Thread(target=work).start()
    """)
    assert recorded() == {"triple Completed": 400}


def test_an_atexit_function_of_the_program(program, recorded):
    program("""
        import atexit
        atexit.register(triple, 1)
        triple(2)
    """)
    assert recorded() == {"triple Completed": 2}


def test_old_runs_are_deleted_by_the_setting_as_the_interpreter_ends(program, recorded, monkeypatch):
    program("""
        for x in range(5):
            triple(x)
    """)
    monkeypatch.setenv("ASYNCTASK_STORE_KEEP_RUNS", "2")
    program("triple(5)")
    assert recorded() == {"triple Completed": 2}


def test_a_large_result_that_an_atexit_function_brings_is_cached_for_the_next_process(program, recorded):
    text = """
        import atexit
        from asynctask.cache_policies import INPUTS

        @task(cache_policy=INPUTS)
        def large(x):
            print("body")
            return "x" * 1_000_000

        atexit.register(lambda: print(len(large(1))))
    """
    assert program(text) == "body\n1000000\n"
    assert program(text) == "1000000\n"
    assert recorded() == {"large Completed": 1, "large Cached": 1}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_with_runs_of_their_own(program, recorded, method):
    program(f"""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on: this process has threads

        def work(x):
            for _ in range(20):
                triple(x)
            asyncio.run(main(x))
            slow.submit(x)

        async def main(x):
            for _ in range(20):
                await double(x)

        if __name__ == "__main__":
            triple(0)
            context = multiprocessing.get_context({method!r})
            children = [context.Process(target=work, args=(x,)) for x in range(3)]
            for child in children:
                child.start()
                triple(0)
            for child in children:
                child.join()
                assert child.exitcode == 0
            triple(0)
    """)
    assert recorded() == {"triple Completed": 65, "double Completed": 60, "slow Completed": 3}


def test_the_workers_of_a_process_pool(program, recorded):
    program("""
        from concurrent.futures import ProcessPoolExecutor

        def work(x):
            return triple(x)

        if __name__ == "__main__":
            with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
                assert sum(pool.map(work, range(50))) == 3675
    """)
    assert recorded() == {"triple Completed": 50}


def test_forks_at_any_moment_of_a_busy_recorder(program, recorded):
    """Each child records on its own; neither waits for a lock that a thread which is not there holds."""
    program("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)

        for round in range(40):
            for x in range(200):
                triple(x)
            if round % 4 == 0:
                with get_client(sync_client=True) as client:
                    client.count()
            child = os.fork()
            if child == 0:
                for x in range(100):
                    triple(x)
                sys.exit()
            if round % 5 == 4:
                assert os.waitpid(child, 0)[1] == 0
        try:
            while True:
                assert os.wait()[1] == 0
        except ChildProcessError:
            pass
    """)
    assert recorded() == {"triple Completed": 40 * 300}


def test_a_forked_child_that_outlives_the_store_of_its_parent(program, recorded):
    """The parent, closing as the last one that it knows of, must not take the log from under the child."""
    program("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)

        read, write = os.pipe()
        for x in range(100):
            triple(x)
        with get_client(sync_client=True) as client:
            client.count()
        child = os.fork()
        if child == 0:
            os.close(write)
            for x in range(50):
                triple(x)
            with get_client(sync_client=True) as client:
                client.count()
            os.read(read, 1)  # the parent has closed its store
            for x in range(50):
                triple(x)
            time.sleep(0.1)
            for x in range(50):
                triple(x)
            sys.exit()
        from asynctask import scopes
        time.sleep(0.3)
        scopes.close_default()
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0
    """)
    assert recorded() == {"triple Completed": 250}


def test_a_forked_child_that_goes_on_inside_a_run_of_its_parent(program, recorded):
    out = program("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)

        @task
        def forks():
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
            else:
                triple(1)
            return child

        if forks() == 0:
            triple(2)
            print("child ends")
        else:
            triple(3)
    """)
    assert out == "child ends\n"
    assert recorded() == {"forks Completed": 1, "triple Completed": 3}


def test_a_program_that_logs_at_debug_hears_of_its_own_use_of_aiosqlite_and_not_of_ours(program):
    out = program("""
        import aiosqlite, logging
        from asynctask.scopes import close_default

        class Counts(logging.Handler):
            def emit(self, record):
                heard.append(record.getMessage())
                triple(1)  # which is written as well, and would be heard of, and so on

        async def other():
            async with aiosqlite.connect(":memory:") as connection:
                await connection.execute("select 'theirs'")

        heard = []
        triple(1)
        logging.getLogger("aiosqlite").addHandler(Counts())
        logging.basicConfig(level=logging.DEBUG, handlers=[logging.NullHandler()])
        triple(2)
        close_default()
        print(heard)
        asyncio.run(other())
        print(any("theirs" in text for text in heard))
    """)
    assert out == "[]\nTrue\n"
