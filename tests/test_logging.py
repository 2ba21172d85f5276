"""Loggers of runs, `print` into them, and the log of transitions."""

import builtins
import contextvars
import io
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asynctask import Runtime, flow, get_client, get_run_logger, task, temporary_settings
from asynctask.runtime import flow_run, task_run
from asynctask.stores.memory import MemoryStore

RUNS = "asynctask.task_runs"
FLOWS = "asynctask.flow_runs"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "asynctask")
    return caplog


def said(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What was logged at INFO: by which run or logger, and what."""
    return [
        (getattr(record, "task_name", record.name), record.getMessage())
        for record in log.records
        if record.levelno == logging.INFO
    ]


# -- get_run_logger ------------------------------------------------------------------------------------------------


async def test_records_carry_the_ids_and_names_of_the_run_and_its_flow(log):
    wanted: dict[str, Any] = {}

    @task
    async def work() -> None:
        wanted.update(task_run_id=str(task_run.id), task_run_name=task_run.name, task_name="work")
        get_run_logger(customer=7).info("hello %s", "world", extra={"more": 8})

    @flow
    async def parent() -> None:
        wanted.update(flow_run_id=str(flow_run.id), flow_run_name=flow_run.name, flow_name="parent")
        await work.submit()
        get_run_logger().info("from the flow")

    await parent()
    of_task, of_flow = (record for record in log.records if record.levelno == logging.INFO)
    assert (of_task.name, of_task.getMessage(), of_task.customer, of_task.more) == (RUNS, "hello world", 7, 8)
    assert {name: getattr(of_task, name) for name in wanted} == wanted
    assert (of_flow.name, of_flow.flow_run_id) == (FLOWS, wanted["flow_run_id"])


async def test_the_logger_works_in_threads_generators_and_hooks(log):
    @task
    def in_thread() -> None:
        get_run_logger().info("thread")

    @task(on_completion=lambda task, run, state: get_run_logger().info("hook"))
    def values() -> Iterator[int]:
        get_run_logger().info("generator")
        yield 1

    async with Runtime(store=MemoryStore()):
        await in_thread.submit()
        assert list(values()) == [1]
    assert said(log) == [("in_thread", "thread"), ("values", "generator"), ("values", "hook")]


def test_outside_a_run_it_is_the_plain_logger(log):
    get_run_logger(source="script").info("plain")
    assert [(record.name, record.getMessage(), record.source) for record in log.records] == [
        ("asynctask", "plain", "script")
    ]


# -- log_prints ----------------------------------------------------------------------------------------------------


@task(log_prints=True)
def printing(*values: Any, **options: Any) -> None:
    print(*values, **options)


def test_prints_go_to_the_log_of_the_run_and_not_to_the_terminal(log, capsys):
    printing("a", 1, sep="-")
    printing("a", 1, sep="", end="")
    printing("to stderr", file=sys.stderr)
    assert said(log) == [("printing", text) for text in ("a-1", "a1", "to stderr")]
    assert capsys.readouterr() == ("", "")


def test_a_record_of_a_print_names_the_line_that_printed(log):
    printing("where")
    (record,) = log.records
    line = printing.fn.__code__.co_firstlineno + 2
    assert (record.pathname, record.funcName, record.lineno) == (__file__, "printing", line)


def test_a_print_into_a_file_is_left_alone(log):
    file = io.StringIO()
    printing("kept", file=file, end="")
    assert (file.getvalue(), said(log)) == ("kept", [])


def test_outside_runs_and_in_tasks_that_did_not_ask_print_is_as_ever(log, capsys):
    @task
    def quiet() -> None:
        print("as ever")

    printing("logged")
    quiet()
    print("outside", 1, sep="|", end="!\n")
    assert capsys.readouterr().out == "as ever\noutside|1!\n"
    assert said(log) == [("printing", "logged")]


def test_print_is_the_same_object_before_during_and_after_runs(log):
    before = builtins.print
    during: list[Any] = []

    @task(log_prints=True)
    def look() -> None:
        during.append(builtins.print)

    @flow(log_prints=True)
    def parent() -> None:
        futures = [look.submit() for _ in range(5)]
        look()
        for future in futures:
            future.result()

    parent()
    assert all(one is before for one in [builtins.print, *during])


def test_tasks_inherit_the_choice_of_their_flow_and_may_opt_out(log, capsys):
    def body() -> None:
        print(task_run.task_name)

    inherits, opts_out = task(name="inherits")(body), task(name="opts out", log_prints=False)(body)

    @flow(log_prints=True)
    def outer() -> None:
        inherits()
        inherits.submit().result()
        opts_out()
        subflow()
        quiet_subflow()

    @flow
    def subflow() -> None:
        inherits()

    @flow(log_prints=False)
    def quiet_subflow() -> None:
        inherits()

    outer()
    assert said(log) == [("inherits", "inherits")] * 3
    assert capsys.readouterr().out == "opts out\ninherits\n"


async def test_overlapping_runs_print_each_to_its_own_log_or_to_the_terminal(log, capsys):
    together = threading.Barrier(2)

    def body(name: str) -> None:
        together.wait(20)
        print(name)
        together.wait(20)
        print(name)

    logged, shown = task(name="logged", log_prints=True)(body), task(name="shown")(body)
    async with Runtime(store=MemoryStore()):
        futures = [logged.submit("one"), shown.submit("two")]
        for future in futures:
            await future

        @task(log_prints=True)
        async def interleaved(name: str) -> None:
            for _ in range(3):
                print(name)
                await anyio.sleep(0)

        await interleaved.with_options(name="x").submit("x")
        await interleaved.map(["a", "b"])
    assert said(log).count(("logged", "one")) == 2
    assert sorted(said(log)[2:]) == [("interleaved", "a")] * 3 + [("interleaved", "b")] * 3 + [("x", "x")] * 3
    assert capsys.readouterr().out == "two\ntwo\n"


def test_between_the_steps_of_a_generator_print_is_the_consumers(log, capsys):
    @task(log_prints=True)
    def values() -> Iterator[int]:
        for number in range(2):
            print("inside", number)
            yield number

    for number in values():
        print("outside", number)
    assert said(log) == [("values", "inside 0"), ("values", "inside 1")]
    assert capsys.readouterr().out == "outside 0\noutside 1\n"


def test_the_setting_is_the_default_for_tasks_that_do_not_say(log, capsys):
    with temporary_settings(logging_log_prints=True):

        @task
        def by_setting() -> None:
            print("logged")

        by_setting()
    by_setting()
    assert (said(log), capsys.readouterr().out) == ([("by_setting", "logged")], "logged\n")


@pytest.mark.parametrize("why", ["no handler", "level"])
def test_a_print_that_no_log_would_show_is_shown_as_usual(why, capsys, caplog, monkeypatch):
    if why == "no handler":
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
    caplog.set_level(logging.INFO if why == "no handler" else logging.WARNING, "asynctask")
    printing("not lost")
    assert capsys.readouterr().out == "not lost\n"


def test_a_broken_str_raises_in_the_body_as_in_any_print(log):
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("cannot be shown")

    with pytest.raises(RuntimeError, match="cannot be shown"):
        printing(Broken())


# -- transitions ---------------------------------------------------------------------------------------------------


async def test_failures_are_logged_at_error_retries_at_warning_and_nothing_else_at_info(caplog):
    caplog.set_level(logging.INFO, "asynctask")

    @task(retries=1)
    async def fails() -> None:
        raise ValueError("no")

    @task
    async def works() -> None:
        pass

    async with Runtime(store=MemoryStore()):
        await works()
        await fails(return_state=True)
    assert [(record.name, record.levelname) for record in caplog.records] == [(RUNS, "WARNING"), (RUNS, "ERROR")]
    assert "AwaitingRetry" in caplog.records[0].getMessage()
    assert "ValueError: no" in caplog.records[1].getMessage()
    assert caplog.records[1].task_name == "fails"


async def test_every_transition_is_logged_at_debug(caplog):
    caplog.set_level(logging.DEBUG, "asynctask")

    @task
    async def works() -> None:
        pass

    @flow
    async def parent() -> None:
        await works()

    async with Runtime(store=MemoryStore()):
        await parent()
    told = [(record.name, record.getMessage()) for record in caplog.records if record.levelno == logging.DEBUG]
    assert [name for name, _ in told] == [FLOWS, RUNS, RUNS, FLOWS]
    assert "is Running()" in told[1][1]
    assert "finished in state Completed()" in told[2][1]


def test_the_level_can_be_set_by_the_settings(log, caplog):
    logger = logging.getLogger("asynctask")
    with temporary_settings(logging_level="ERROR"):
        Runtime(store=MemoryStore())
    assert logger.level == logging.ERROR
    caplog.set_level(logging.INFO, "asynctask")
    Runtime(store=MemoryStore())  # no level in the settings: left as it is
    assert logger.level == logging.INFO


def test_a_log_handler_that_prints_does_not_send_its_print_to_the_log_again(capsys, log):
    class Shouting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("heard", record.getMessage())

    shouting = Shouting()
    logging.getLogger(RUNS).addHandler(shouting)
    try:
        task(name="work", log_prints=True)(lambda: print("hello"))()
    finally:
        logging.getLogger(RUNS).removeHandler(shouting)

    assert said(log) == [("work", "hello")]
    assert capsys.readouterr().out == "heard hello\n"


# -- what is kept with the run (more of it, over every store, is in contracts/test_store_logs.py) -----------------


async def kept(run_id: Any) -> list[tuple[int, str]]:
    async with get_client() as client:
        return [(line.level, line.message) for line in await client.read_logs(run_id)]


@pytest.mark.parametrize("level", ["CRITICAL", "DEBUG"])
async def test_what_is_kept_does_not_depend_on_who_listens(caplog, level):
    """The logger's own level is about handlers; `logging_keep_level` is about what is kept."""
    caplog.set_level(level, "asynctask")

    @task
    def work() -> None:
        for number in (logging.DEBUG, logging.INFO, logging.ERROR):
            get_run_logger().log(number, "at %d", number)

    async with Runtime(store=MemoryStore()):
        future = work.submit()
        await future
        assert await kept(future.task_run_id) == [(logging.INFO, "at 20"), (logging.ERROR, "at 40")]


async def test_what_threads_retries_hooks_and_generators_log_is_kept_in_order(log):
    def hook(task: Any, run: Any, state: Any) -> None:
        get_run_logger().info("hook %s", state.name)

    @task(retries=1, on_running=hook, on_completion=hook)
    def work() -> None:
        attempt = task_run.run_count
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(get_run_logger().info, "in a thread %d", attempt))
        thread.start()
        thread.join()
        if attempt == 1:
            raise ValueError("again")

    @task(log_prints=True)
    def steps() -> Iterator[int]:
        for number in range(2):
            print("step", number)
            yield number

    async with Runtime(store=MemoryStore()):
        future = work.submit()
        await future
        texts = [text for _, text in await kept(future.task_run_id)]
        assert texts == ["hook Running", "in a thread 1", "hook Retrying", "in a thread 2", "hook Completed"]
        stepped = steps.submit()
        await stepped
        assert [text for _, text in await kept(stepped.task_run_id)] == ["step 0", "step 1"]


async def test_fifty_threads_that_log_at_once_lose_nothing():
    @task
    def work(number: int) -> None:
        for line in range(20):
            get_run_logger().info("%d-%d", number, line)

    async with Runtime(store=MemoryStore()):
        futures = work.map(range(50))
        await futures.wait_async()
        for number, future in enumerate(futures):
            assert [text for _, text in await kept(future.task_run_id)] == [f"{number}-{line}" for line in range(20)]


class NoText:
    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        (("%d pieces", "x"), "'%d pieces' (it cannot be formatted: TypeError"),
        (("%s %s", 1), "'%s %s' (it cannot be formatted: TypeError"),
        (("%s", NoText()), "'%s' (it cannot be formatted: LookupError"),
        ((NoText(),), "(it cannot be formatted: LookupError"),
        (({"a": 1},), "{'a': 1}"),
        (("100%",), "100%"),
        (("%(a)s", {"a": 1}), "1"),
    ],
    ids=["wrong type", "too few", "argument", "message", "dict", "percent", "mapping"],
)
async def test_a_message_that_cannot_be_formatted_is_kept_as_far_as_it_can_be_shown(call, seen, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # the standard library would write a traceback to stderr
    logging.getLogger("asynctask").addHandler(quiet := logging.NullHandler())

    @task
    async def work() -> str:
        logger = get_run_logger()
        logger.logger.propagate, before = False, logger.logger.propagate
        try:
            logger.error(*call)
        finally:
            logger.logger.propagate = before
        return "went on"

    try:
        async with Runtime(store=MemoryStore()):
            future = work.submit()
            assert await future == "went on"
            ((level, text),) = await kept(future.task_run_id)
    finally:
        logging.getLogger("asynctask").removeHandler(quiet)
    assert level == logging.ERROR
    assert seen in text


async def test_exceptions_are_kept_with_their_tracebacks_however_they_are_given(log):
    @task
    async def work() -> None:
        logger = get_run_logger()
        try:
            raise KeyError("first")
        except KeyError as error:
            logger.exception("one")
            logger.warning("two", exc_info=error)
            logger.info("three", exc_info=(type(error), error, error.__traceback__))
            logger.info("four", exc_info=False)
        logger.info("five", exc_info=True)

    async with Runtime(store=MemoryStore()):
        future = work.submit()
        await future
        texts = [text for _, text in await kept(future.task_run_id)]
    for text, start in zip(texts[:3], ("one", "two", "three"), strict=True):
        assert text.startswith(f"{start}\nTraceback (most recent call last):\n")
        assert text.endswith("KeyError: 'first'")
    assert texts[3] == "four"
    assert texts[4].startswith("five")


async def test_outside_runs_nothing_is_kept_and_logging_works_as_ever(log):
    async with Runtime(store=MemoryStore()) as runtime:
        get_run_logger().info("outside")
        assert (await runtime.store.info()).logs == 0
    assert said(log) == [("asynctask", "outside")]


async def test_prints_of_a_flow_and_of_its_tasks_are_kept_each_with_its_own(log):
    @task
    async def inner() -> None:
        print("from the task")

    @flow(log_prints=True)
    async def outer() -> Any:
        print("from the flow")
        await inner()
        return None

    async with Runtime(store=MemoryStore()), get_client() as client:
        await outer()
        (run,) = await client.read_flow_runs()
        (child,) = await client.read_task_runs()
        assert await kept(run.id) == [(logging.INFO, "from the flow")]
        assert await kept(child.id) == [(logging.INFO, "from the task")]
