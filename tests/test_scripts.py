"""Whole programs: what becomes of runs when the program, its loop or its main function ends."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from testkit import running


@pytest.fixture
def script(tmp_path: Path):
    """Runs a program in an interpreter of its own, with warnings as errors; its output, and what it complained of."""

    def run(text: str) -> tuple[list[str], str]:
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(text))
        done = subprocess.run(
            [sys.executable, "-W", "error", str(file)],
            env={**os.environ, "ASYNCTASK_BLOCKING_WARNING_SECONDS": "60"},  # a slow machine is no complaint
            cwd=tmp_path, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    return run


def test_a_script_whose_main_ends_with_work_submitted_finishes_the_work(script):
    out, err = script(
        """
        import asyncio, time
        from asynctask import task

        @task
        def sync_work():
            time.sleep(0.1)
            print("sync done", flush=True)
            return 3

        @task
        async def async_work(x):
            await asyncio.sleep(0.05)
            print("async done", x, flush=True)

        if __name__ == "__main__":
            async_work.submit(sync_work.submit())
            print("main ends", flush=True)
        """
    )
    assert (out, err) == (["main ends", "sync done", "async done 3"], "")


def test_a_script_that_fails_still_finishes_the_work_it_submitted(tmp_path):
    text = """
        import time
        from asynctask import task

        @task
        def work():
            time.sleep(0.05)
            print("done", flush=True)

        work.submit()
        raise SystemExit(3)
        """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text)],
        cwd=tmp_path, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, "done\n", "")


def test_a_script_that_is_interrupted_cancels_the_work_it_submitted_and_ends_at_once(tmp_path):
    text = """
        import time
        from asynctask import task

        @task
        def work():
            print("begins", flush=True)
            while True:
                time.sleep(0.01)

        work.submit().result()
        """
    with running(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text)],
        env={**os.environ, "ASYNCTASK_SHUTDOWN_TIMEOUT": "600"},
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "begins\n"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGINT
    assert err.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_main_that_ends_with_work_submitted_crashes_it_without_a_warning(script, backend):
    out, err = script(
        f"""
        import anyio
        from asynctask import task

        futures = []

        @task(on_crashed=lambda task, run, state: print("told:", state.name))
        async def work():
            await anyio.sleep(60)

        @task
        def in_thread():
            while True:
                pass

        async def main():
            futures.append(work.submit())
            futures.append(in_thread.submit())
            await anyio.sleep(0.05)
            futures.append(work.submit())

        anyio.run(main, backend={backend!r})
        print(*[future.wait(20).name for future in futures])
        """
    )
    assert out[-1] == "Crashed Crashed Crashed"
    assert out.count("told: Crashed") == 2
    for word in ("Traceback", "never awaited", "destroyed", "never retrieved", "Warning"):
        assert word not in err


def test_a_runtime_in_an_async_main_finishes_the_work(script):
    out, err = script(
        """
        import asyncio
        from asynctask import Runtime, task

        @task
        async def work(x):
            await asyncio.sleep(0.02)
            print("done", x)

        async def main():
            async with Runtime():
                work.map([1, 2])

        asyncio.run(main())
        """
    )
    assert (sorted(out), err) == (["done 1", "done 2"], "")


def test_cells_of_a_notebook_share_a_loop_that_runs_all_the_time(script):
    """Each cell is run by a loop that runs already; sync flows in it, work left to the next cell, top-level await."""
    out, err = script(
        """
        import ast, asyncio, inspect, textwrap

        cells = [
            '''
                from asynctask import flow, task
                import asyncio
                @task
                async def double(x):
                    await asyncio.sleep(0.01)
                    return x * 2
                @task
                def triple(x):
                    return x * 3
                @flow
                def both(x):
                    return [double.submit(x).result(), triple.submit(x).result(), double.map([1, 2]).result()]
                print(both(2))
                ''',
            "future = double.submit(21)",
            "print(future.done() or await future)",
            '''
                try:
                    double.submit(1).result()
                except RuntimeError as error:
                    print(type(error).__name__)
                ''',
            "print(both(3))",
            "async def main(): return await double(5)\\nprint(await main())",
        ]

        async def kernel():
            names = {"__name__": "__main__"}
            for cell in cells:
                code = compile(textwrap.dedent(cell), "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                made = eval(code, names)
                if inspect.isawaitable(made):
                    await made
                await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(kernel())
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()
        """
    )
    assert out == ["[4, 6, [2, 4]]", "42", "BlockingWaitError", "[6, 9, [2, 4]]", "10"]
    assert err == ""


@pytest.mark.parametrize(
    ("run", "state"),
    [
        ("sync_work()", "Crashed"),
        ("trio.run(async_work)", "Crashed"),
        ("asyncio.run(async_work())", "Cancelled"),  # asyncio turns Ctrl-C into a cancellation of the main task
    ],
)
def test_control_c_ends_a_flow_and_its_runs_and_reaches_the_program(script, run, state):
    out, err = script(
        f"""
        import asyncio, logging, signal, threading
        import anyio, trio
        from asynctask import flow, get_client, task

        logging.disable()

        @task
        async def child(started):
            try:
                started.set()
                await anyio.sleep(30)
            finally:
                print("child cleans up", flush=True)
                ended.set()

        ended = threading.Event()

        def control_c(started):
            started.wait(10)
            # Again if need be: one that comes just before a loop goes to sleep does not wake it, in asyncio's runner.
            while True:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                if ended.wait(20):
                    break

        def begin():
            started = threading.Event()
            threading.Thread(target=control_c, args=(started,)).start()
            return child.submit(started)

        @flow
        def sync_work():
            begin().result()

        @flow
        async def async_work():
            begin()
            await anyio.sleep(30)

        try:
            {run}
        except KeyboardInterrupt:
            print("interrupted")
        with get_client(sync_client=True) as client:
            print([one.state_name for one in client.read_flow_runs() + client.read_task_runs()])
        """
    )
    assert (out, err) == (["child cleans up", "interrupted", f"['{state}', 'Cancelled']"], "")


def test_a_forked_child_begins_anew_with_the_limits_as_they_were_set(script):
    out, err = script(
        """
        import os, threading, warnings
        from asynctask import get_client, runtime, task

        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on: this process has threads

        @task(tags=["one"])
        def forks():
            child = os.fork()
            if child:
                return os.waitpid(child, 0)[1]
            print(runtime.task_run.id, work.submit(2).result(timeout=20), flush=True)
            with get_client(sync_client=True) as client:
                limit = client.read_concurrency_limit_by_tag("one")
                runs = client.read_task_runs()
            print(limit.concurrency_limit, limit.active_slots, [run.state_name for run in runs], flush=True)
            os._exit(0)

        @task(tags=["one"])
        async def work(x):
            return x

        with get_client(sync_client=True) as client:
            client.create_concurrency_limit("one", 1)
        print(work.submit(1).result(), flush=True)
        print(forks.submit().result(), work.submit(3).result())  # the parent goes on as before
        """
    )
    assert (out, err) == (["1", "None 2", "1 [] ['Completed']", "0 3"], "")


def test_runners_that_were_used_before_a_fork_have_threads_and_workers_of_their_own_in_the_child(script):
    out, err = script(
        """
        import os, time, warnings
        from asynctask import ProcessPoolTaskRunner, ThreadPoolTaskRunner, task

        warnings.simplefilter("ignore", DeprecationWarning)

        @task(task_runner=ThreadPoolTaskRunner(max_workers=1))
        def on_thread(x):
            return x

        @task(task_runner=ProcessPoolTaskRunner(max_workers=1))
        def spawned(x):
            return x, os.getppid()

        @task(task_runner=ProcessPoolTaskRunner(max_workers=1, start_method="forkserver"))
        def forked(x):
            return x

        def work():
            value, parent = spawned.submit(2).result(timeout=20)
            print(on_thread.submit(1).result(timeout=20), value, parent == os.getpid(),
                  forked.submit(3).result(timeout=20), flush=True)

        if __name__ == "__main__":
            for _ in range(2):
                work()
                child = os.fork()
                if not child:
                    work()
                    break
                assert os.waitpid(child, 0)[1] == 0
            else:
                work()
        """
    )
    assert (out, err) == (["1 2 True 3"] * 5, "")


def test_a_worker_ends_with_its_program_although_a_forked_child_of_that_lives_on(script):
    out, err = script(
        """
        import os, time, warnings
        from asynctask import ProcessPoolTaskRunner, task

        warnings.simplefilter("ignore", DeprecationWarning)

        @task(task_runner=ProcessPoolTaskRunner(max_workers=1))
        def worker():
            return os.getpid()

        def is_there(pid):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
            with open(f"/proc/{pid}/stat") as file:  # it may have ended, and wait for somebody to ask how
                return file.read().rpartition(")")[2].split()[0] != "Z"

        if __name__ == "__main__":
            theirs, ours = os.pipe()
            program = os.fork()
            if not program:
                pid = worker.submit().result(timeout=20)
                if os.fork():
                    os.kill(os.getpid(), 9)
                while is_there(pid):
                    time.sleep(0.01)
                os.write(ours, b"gone")
                os._exit(0)
            os.waitpid(program, 0)
            print(os.read(theirs, 4))
        """
    )
    assert (out, err) == (["b'gone'"], "")


def test_what_its_parent_has_submitted_does_not_run_in_a_forked_child(script):
    out, err = script(
        """
        import os, threading, warnings
        from asynctask import ThreadPoolTaskRunner, task

        warnings.simplefilter("ignore", DeprecationWarning)
        is_queued = threading.Event()
        program = os.getpid()

        one_thread = ThreadPoolTaskRunner(max_workers=1)

        @task(task_runner=one_thread)
        def forks():
            is_queued.wait()
            child = os.fork()
            if child:
                return os.waitpid(child, 0)[1]
            work.submit().result(timeout=20)  # its thread waits, so that the pool may have another one
            os._exit(0)

        @task
        async def work():
            return 1

        queued = task(lambda: print(os.getpid() == program, flush=True), task_runner=one_thread)
        first, second = forks.submit(), queued.submit()
        while not one_thread.executor()._calls:
            pass
        is_queued.set()
        print(first.result(timeout=20), second.wait(timeout=20).name)
        """
    )
    assert (out, err) == (["True", "0 Completed"], "")


def test_a_run_of_the_parent_is_not_waited_for_in_a_forked_child(script):
    out, _ = script(
        """
        import asyncio, os, threading, warnings
        from asynctask import TaskFutureList, as_completed, task
        from asynctask.errors import BlockingWaitError

        warnings.simplefilter("ignore", DeprecationWarning)
        go = threading.Event()

        @task
        def waits():
            go.wait()
            return 1

        @task
        def passed(x):
            return x

        async def awaited(what):
            return await what()

        over, future = passed.submit(0), waits.submit()
        over.wait()
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            go.set()
            print(future.result(timeout=20))
        else:
            print(over.result())
            for wait in (
                lambda: future.result(),
                lambda: future.wait(timeout=20),
                lambda: list(as_completed([future])),
                lambda: passed.submit(future).result(timeout=20),
                lambda: asyncio.run(awaited(lambda: future)),
                lambda: asyncio.run(awaited(lambda: TaskFutureList([future]))),
            ):
                try:
                    print(wait())
                except BlockingWaitError as error:
                    print(str(error).partition("in the process")[2], flush=True)
        """
    )
    why = " that this one was forked from, and ends there; wait for it there, or submit it here as well"
    assert out == ["0", *[why] * 6, "1"]


def test_an_exit_raised_in_a_done_callback_is_logged_and_everybody_else_is_told(script):
    out, err = script(
        """
        import sys, threading
        from asynctask import task

        go = threading.Event()

        @task
        def work():
            go.wait()
            return 1

        future = work.submit()
        future.add_done_callback(lambda future: sys.exit(3))
        told = threading.Event()
        future.add_done_callback(lambda future: told.set())
        go.set()
        print(future.result(timeout=20), told.wait(20), work.submit().result(timeout=20))
        """
    )
    assert out == ["1 True 1"]
    assert "Callback" in err
    assert "SystemExit: 3" in err


def test_an_exit_in_a_task_of_asyncios_own_ends_the_loop_in_a_thread_and_the_next_run_gets_another(script):
    out, _ = script(
        """
        import asyncio, os, sys, threading
        from asynctask import task

        def say(text):  # in one piece, from whatever thread
            os.write(1, f"{text}\\n".encode())

        threading.excepthook = lambda args: say(args.exc_type.__name__)

        @task
        async def exits():
            async def inner():
                sys.exit(3)
            await asyncio.create_task(inner())

        @task
        async def work():
            return 1

        loop_thread = []

        @task
        async def where():
            loop_thread.append(threading.current_thread())

        where.submit().result(timeout=20)
        say(exits.submit().wait(timeout=20).name)
        loop_thread[0].join()
        say(work.submit().result(timeout=20))
        """
    )
    assert sorted(out) == ["1", "Crashed", "SystemExit"]


def test_a_run_whose_loop_was_closed_under_it_is_not_waited_for(script):
    out, _ = script(
        """
        import asyncio
        from asynctask import task
        from asynctask.errors import BlockingWaitError

        @task
        async def work():
            await asyncio.sleep(30)

        async def start():
            return work.submit()

        async def awaited(future):
            await future

        loop = asyncio.new_event_loop()
        future = loop.run_until_complete(start())
        loop.close()
        for wait in (future.result, future.wait, lambda: asyncio.run(awaited(future))):
            try:
                wait()
            except BlockingWaitError as error:
                print(str(error).partition(";")[0].partition("will")[2])
        """
    )
    assert out == [" never end: its event loop was closed under it"] * 3
