"""The contract of task runners, as users get it, over runners of ours and of theirs; and over some that break it.

Those of clusters are judged where the clusters are: `test_dask_runner`, `test_ray_runner`.
"""

import importlib.util
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from asynctask import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from asynctask.process_pool import CallFuture, ProcessPool
from asynctask.testing import TaskRunnerContract

ROOT = Path(__file__).parents[2]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestThreads(TaskRunnerContract):
    def runner(self) -> ThreadPoolTaskRunner:
        return ThreadPoolTaskRunner(2)


class TestProcesses(TaskRunnerContract):
    shares_memory = False
    kills = True

    def runner(self) -> ProcessPoolTaskRunner:
        return ProcessPoolTaskRunner(2)


class TestForkedProcesses(TestProcesses):
    def runner(self) -> ProcessPoolTaskRunner:
        return ProcessPoolTaskRunner(2, start_method="forkserver")


class TestTheOneOfTheGuide(TaskRunnerContract):
    nests = False
    one_thread = example("own_runner").OneThread

    def runner(self) -> Any:
        return self.one_thread("only")


class ThreadEach(Executor):
    """A thread for each call."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=call, daemon=True).start()
        return future


class TestAnExecutorWithoutAPool(TaskRunnerContract):
    """It has nothing to close, and no place that anybody could wait for."""

    def runner(self) -> Any:
        return Made(ThreadEach)


class Made:
    """A runner of the executors that `make` gives."""

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._executor: Executor | None = None

    def executor(self) -> Executor:
        self._executor = self._executor or self._make()
        return self._executor

    def close(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)


class Losing(ThreadEach):
    """Loses every tenth call."""

    calls = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        return super().submit(fn, *args, **kwargs) if self.calls % 10 else Future()


class Swallowing(ThreadEach):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        def call() -> Any:
            try:
                return fn(*args, **kwargs)
            except Exception:
                return None

        return super().submit(call)


class Wrapping(ThreadEach):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        def call() -> Any:
            try:
                return fn(*args, **kwargs)
            except Exception as error:
                raise RuntimeError("a call failed") from error

        return super().submit(call)


class Silent(ThreadEach):
    """Calls, and never calls back."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        super().submit(fn, *args, **kwargs)
        return Future()


class Forgetful(ThreadEach):
    """Calls without the context."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(*args)


class Twice(ThreadEach):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(lambda: (fn(*args, **kwargs), fn(*args, **kwargs))[0])


class AtOnce(ThreadEach):
    """Calls before it returns."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Mixing(ThreadEach):
    """Gives each caller what the last one asked for."""

    def __init__(self) -> None:
        self._last: Any = None

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        def call() -> Any:
            value, self._last = self._last, fn(*args, **kwargs)
            return self._last if value is None else value

        return super().submit(call)


class Clinging(Made):
    """Keeps an executor that it has shut down."""

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False)


class Patient(Made):
    """Waits for its bodies when it is closed, whatever they are at."""

    def close(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True)


class Deaf(ProcessPoolTaskRunner):
    """Ends no body."""

    def elsewhere(self) -> Any:
        pool: ProcessPool = super().elsewhere()

        class Door:
            blocker = pool.blocker

            def start(self, *call: Any) -> CallFuture:
                return unstoppable(pool.start(*call))

        return Door()


def unstoppable(future: CallFuture) -> CallFuture:
    class Unstoppable:
        def stop(self) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return getattr(future, name)

    return cast("CallFuture", Unstoppable())


#: Runners that break their word; which promise that is, and what is said of it.
BROKEN: dict[str, tuple[Callable[[], Any], str, str]] = {
    "loses a call": (
        lambda: Made(Losing),
        "test_every_one_of_many_runs_ends_with_its_own_result",
        r"not within .*await body\.map\(range\(200\)\)",
    ),
    "never calls back": (
        lambda: Made(Silent),
        "test_bodies_of_every_kind_run_and_give_their_results",
        r"not within .*await future",
    ),
    "mixes results up": (
        lambda: Made(Mixing),
        "test_every_one_of_many_runs_ends_with_its_own_result",
        "the results of 200 runs",
    ),
    "swallows exceptions": (
        lambda: Made(Swallowing),
        "test_what_a_body_raises_is_what_its_run_raises",
        "raised nothing, and gave None",
    ),
    "wraps exceptions": (
        lambda: Made(Wrapping),
        "test_what_a_body_raises_is_what_its_run_raises",
        "RuntimeError.*, and not .*ValueError",
    ),
    "drops the context": (
        lambda: Made(Forgetful),
        "test_a_body_knows_its_run_and_its_flow",
        r"what a body saw of its run: \[None, None, \[\], 0",
    ),
    "drops the logs with it": (
        lambda: Made(Forgetful),
        "test_what_bodies_log_and_print_comes_home_in_order",
        "what is kept of what a run logged",
    ),
    "calls twice": (
        lambda: Made(Twice),
        "test_what_bodies_log_and_print_comes_home_in_order",
        "what is kept of what a run logged",
    ),
    "calls at once": (
        lambda: Made(AtOnce),
        "test_the_event_loop_goes_on_while_a_body_runs",
        r"not within .*await witness\.until\(1\)",
    ),
    "calls in the caller's thread": (
        lambda: Made(AtOnce),
        "test_bodies_of_every_kind_run_and_give_their_results",
        "in the thread of the event loop",
    ),
    "has no thread for a body that others wait for": (
        lambda: Made(lambda: ThreadPoolExecutor(2)),
        "test_bodies_may_wait_for_bodies_at_any_depth",
        r"not within .*await witnesses\.spread\.submit",
    ),
    "takes nothing after it was closed": (
        lambda: Clinging(lambda: ThreadPoolExecutor(2)),
        "test_it_can_be_closed_at_any_time_and_then_be_used_again",
        "cannot schedule new futures after shutdown",
    ),
    "waits for a stuck body when it is closed": (
        lambda: Patient(lambda: ThreadPoolExecutor(2)),
        "test_a_run_whose_body_is_stuck_ends_on_time_and_holds_nobody_up",
        "not within|still stuck when the runtime had been left: 0",
    ),
    "ends no body": (
        lambda: Deaf(1),
        "test_a_cancellation_ends_the_run_and_its_body",
        r"not within .*await witness\.until\(0\)",
    ),
    "loses a call of plain code": (
        lambda: Made(Losing),
        "test_plain_code_uses_it_as_well",
        "what a run, a flow and a stream gave",
    ),
    "loses a call of one of several threads": (
        lambda: Made(Losing),
        "test_threads_loops_and_flows_share_it",
        "what two flows gave in each of several threads",
    ),
    "runs bodies elsewhere, and says otherwise": (
        lambda: ProcessPoolTaskRunner(1),
        "test_bodies_of_every_kind_run_and_give_their_results",
        r"was in this process \(self\.shares_memory=True\): False, and not True",
    ),
}


#: The same with workers, which take a while to start; the second one does not wait for all of that time.
SLOW = {"ends no body": 6.0, "runs bodies elsewhere, and says otherwise": 30.0}


@pytest.mark.parametrize("how", BROKEN)
def test_a_runner_that_breaks_its_word_is_refused_and_told_which(how: str, tmp_path: Path) -> None:
    make, promise, said = BROKEN[how]

    class Judged(TaskRunnerContract):
        patience = SLOW.get(how, 1.0)

        def runner(self) -> Any:
            return make()

    given = {"backend": "asyncio", "tmp_path": tmp_path}
    judge = getattr(Judged(), promise)
    with pytest.raises((AssertionError, RuntimeError), match=re.compile(said, re.DOTALL)):
        judge(**{name: given[name] for name in inspect.signature(judge).parameters})


@pytest.fixture
def guide() -> str:
    """The programs of the guide's section on runners of one's own."""
    text = (ROOT / "docs" / "guide.md").read_text()
    section = text.split("\n## A runner of your own\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL))


def test_the_runner_of_the_guide_is_that_of_the_example(guide: str) -> None:
    source = (ROOT / "examples" / "own_runner.py").read_text()
    runner = re.search(r"^class OneThread:\n(?:(?:    .*)?\n)+", source, flags=re.MULTILINE)
    assert runner is not None
    assert runner[0].strip() in guide
    assert len(runner[0].strip().splitlines()) <= 20


def test_the_tests_of_the_guide_are_run_by_a_pytest_without_plugins_or_configuration(
    guide: str, tmp_path: Path
) -> None:
    (tmp_path / "test_own.py").write_text(guide)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    done = subprocess.run(
        [*command, "-p", "no:anyio", "-p", "no:timeout", "-k", "every or plain or home"],
        cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert re.search(r"^[1-9]\d* passed, \d+ deselected", done.stdout, flags=re.MULTILINE), done.stdout + done.stderr
    assert done.returncode == 0


def test_testing_imports_no_pytest_and_nothing_else_that_is_optional() -> None:
    code = "import sys, asynctask.testing; print({'pytest', 'trio', 'distributed', 'ray', 'sqlite3'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "set()\n"


def test_what_a_runner_cannot_promise_is_not_asked_of_it() -> None:
    def promises(contract: type[TaskRunnerContract]) -> set[str]:
        return {name for name in dir(contract) if name.startswith("test_") and callable(getattr(contract, name))}

    nesting = "test_bodies_may_wait_for_bodies_at_any_depth"
    shared = "test_an_executor_that_is_shut_down_fails_its_runs_until_the_runner_is_closed"
    far = {"test_what_cannot_travel_is_refused_by_name", "test_a_lost_worker_fails_its_own_attempt_and_no_other"}
    everything = promises(TaskRunnerContract)
    assert {nesting, shared, *far} < everything
    assert promises(TestThreads) == everything - far
    assert promises(TestTheOneOfTheGuide) == everything - far - {nesting}
    assert promises(TestProcesses) == everything - {shared}

    class Nesting(TestTheOneOfTheGuide):
        nests = True

    assert promises(Nesting) == everything - far


def test_a_contract_without_a_runner_says_what_is_missing(tmp_path: Path) -> None:
    class Empty(TaskRunnerContract):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty must have a method runner\(\)"):
        Empty().test_plain_code_uses_it_as_well()
