"""What every store must do with what runs log, and with hostile texts anywhere: they stay data, and can be read."""

import logging
import uuid
from typing import Any

import anyio
import pytest

from asynctask import Runtime, flow, get_client, get_run_logger, task
from asynctask.errors import ObjectNotFound
from asynctask.settings import temporary_settings
from asynctask.states import Completed
from asynctask.stores.base import RunFilter
from asynctask.stores.memory import MemoryStore
from testkit import until

EVERYTHING = RunFilter()
#: Each with what must be seen of it again, wherever it was.
HOSTILE = {
    "quotes": ('it\'s "so" `x`', 'it\'s "so" `x`'),
    "sql": ("'; DROP TABLE runs; --", "'; DROP TABLE runs; --"),
    "nul": ("before\0after", "after"),
    "surrogate": ("before \ud800 after", " after"),
    "emoji": ("👩‍👩‍👧 🎉", "🎉"),
    "right to left": ("\u202eevil\u2066 שלום", "שלום"),
    "terminal": ("\x1b[31mred\x1b[0m", "red"),
    "lines": ("one\ntwo\r\nthree", "three"),
    "json": ('{"a": [1, "\\u0000"]}', '{"a": [1, "\\u0000"]}'),
    "percent": ("%s %d %(x)s {} {0} 100%", "%s %d %(x)s {} {0} 100%"),
    "not a character": ("\uffff\ufeff\U0010ffff end", "end"),
}
TEN_MEGABYTES = "ten megabytes " * 750_000


async def test_log_lines_come_back_in_order_as_they_were(store):
    @task(log_prints=True)
    async def work() -> None:
        logger = get_run_logger()
        logger.info("number %d of %s", 1, "two")
        print("printed", 2)
        logger.warning("three")
        logger.debug("not kept")
        try:
            raise KeyError("four")
        except KeyError:
            logger.exception("four")

    async with Runtime(store=store), get_client() as client:
        future = work.submit()
        await future
        lines = await client.read_logs(str(future.task_run_id))
    assert [line.message for line in lines[:3]] == ["number 1 of two", "printed 2", "three"]
    assert [line.level for line in lines] == [logging.INFO, logging.INFO, logging.WARNING, logging.ERROR]
    assert {line.logger for line in lines} == {"asynctask.task_runs"}
    assert lines[3].message.startswith("four\nTraceback (most recent call last):")
    assert lines[3].message.endswith("KeyError: 'four'")
    times = [line.time for line in lines]
    assert times == sorted(times)


async def test_lines_of_a_run_under_way_are_there_and_each_run_has_its_own(store):
    go = anyio.Event()
    ready: list[int] = []

    @task
    async def work(x: int) -> None:
        for part in ("a", "b"):
            get_run_logger().info("%s%d", part, x)
        ready.append(x)
        await go.wait()
        get_run_logger().info("end%d", x)

    @flow
    async def whole() -> None:
        get_run_logger().info("flow")
        futures = [work.submit(number) for number in range(3)]
        await until(lambda: len(ready) == 3)
        for number, future in enumerate(futures):
            seen = [line.message for line in await store.read_logs(future.task_run_id)]
            assert seen == [f"a{number}", f"b{number}"]
        go.set()

    async with Runtime(store=store):
        await whole()
        for run in await store.read_runs(RunFilter(task_name="work"), 10):
            number = run.parameters["x"]
            seen = [line.message for line in await store.read_logs(run.id)]
            assert seen == [f"a{number}", f"b{number}", f"end{number}"]
        (run,) = await store.read_runs(RunFilter(is_flow=True), 10)
        (line,) = await store.read_logs(run.id)
        assert (line.message, line.logger) == ("flow", "asynctask.flow_runs")


async def test_lines_are_kept_from_the_level_of_the_settings_on(store):
    @task
    async def work() -> None:
        for level in (logging.DEBUG, logging.INFO, logging.ERROR):
            get_run_logger().log(level, "at %d", level)

    async with Runtime(store=store):
        for level, count in (("DEBUG", 3), ("INFO", 2), ("ERROR", 1), ("CRITICAL", 0)):
            with temporary_settings(logging_keep_level=level):
                future = work.submit()
                await future
            assert len(await store.read_logs(future.task_run_id)) == count


async def test_a_run_that_is_not_there_has_no_log(store):
    async with Runtime(store=store):
        with pytest.raises(ObjectNotFound):
            await store.read_logs(uuid.uuid4())

        @task
        async def silent() -> None: ...

        future = silent.submit()
        await future
        assert await store.read_logs(future.task_run_id) == []


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_text_stays_data_and_can_be_read_wherever_it_is(store, kind):
    """In names of tasks, runs, tags and states, parameters, messages, log lines, errors, cache keys and results."""
    text, seen = HOSTILE[kind]

    key = f"key {text}".encode("utf-8", "backslashreplace").decode()  # others make no key, as test_cache_keys.py has it
    template = f"run {text}".replace("{", "{{").replace("}", "}}")

    @task(name=f"task {text}", tags=[f"tag {text}"], task_run_name=template)
    async def work(value: Any) -> Any:
        get_run_logger().info("%s", f"log {text}")
        return Completed(name=f"state {text}", message=f"message {text}", data=value)

    @task(name=f"task {text}", cache_key_fn=lambda context, parameters: key)
    async def cached(value: str) -> str:
        return value

    @task
    async def fails() -> None:
        raise ValueError(f"error {text}")

    async with Runtime(store=store):
        await work({text: [text]})
        assert await cached(text) == await cached(text) == text
        await fails(return_state=True)
        failed, again, first, run = await store.read_runs(EVERYTHING, 10)
        for shown in (run.name, run.task_name, run.state_name, run.state.message, run.tags[0], failed.state.message):
            assert seen.replace("\n", "") in shown.replace("\n", "")
            shown.encode(errors="surrogatepass" if isinstance(store, MemoryStore) else "strict")  # it keeps them as is
        (line,) = await store.read_logs(run.id)
        assert seen in line.message
        assert all(" ".join(run.parameters.values()).isprintable() for run in (run, first))
        assert (again.state_name, first.state_name) == ("Cached", "Completed")
        for which in (
            RunFilter(name=f"run {text}"),
            RunFilter(task_name=f"task {text}", state_name=f"state {text}"),
            RunFilter(tags=frozenset({f"tag {text}"})),
            RunFilter(state_name=f"state {text}"),
        ):
            assert [one.id for one in await store.read_runs(which, 10)] == [run.id], which
            assert await store.count_runs(which) == 1
        (entry,) = await store.read_cache(f"task {text}", 10)
        assert seen in entry.key
        assert await store.clear_cache(f"task {text}", key, False) == 1
        await store.delete_run(run.id)
        assert await store.count_runs(RunFilter(name=f"run {text}")) == 0
        assert await store.count_runs(EVERYTHING) == 3


async def test_ten_megabytes_of_text_anywhere_are_cut_or_kept_but_never_in_the_way(store):
    @task(tags=["big"], task_run_name=TEN_MEGABYTES)
    async def work(value: str) -> Any:
        get_run_logger().info(TEN_MEGABYTES)
        return Completed(message=TEN_MEGABYTES)

    @task(cache_key_fn=lambda context, parameters: "big")
    async def cached() -> str:
        return TEN_MEGABYTES

    @task
    async def fails() -> None:
        raise ValueError(TEN_MEGABYTES)

    async with Runtime(store=store):
        await work(TEN_MEGABYTES)
        assert await cached() == await cached() == TEN_MEGABYTES
        await fails(return_state=True)
        failed, again, _, run = await store.read_runs(EVERYTHING, 10)
        assert again.state_name == "Cached"
        assert len(failed.state.message) < 2_000
        assert run.name.startswith("ten megabytes ten")
        assert run.state.message.startswith("ten megabytes ten")
        assert len(run.parameters["value"]) <= 200
        (line,) = await store.read_logs(run.id)
        assert line.message.startswith("ten megabytes ten")
        assert await store.count_runs(RunFilter(name="ten megabytes ten")) == 1
        assert await store.count_runs(RunFilter(name=f"{TEN_MEGABYTES}!")) == 0


async def test_a_tag_and_a_task_name_of_ten_megabytes_are_filters_too(store):
    async with Runtime(store=store):
        await task(name=TEN_MEGABYTES, tags=[TEN_MEGABYTES])(lambda: 1).submit()
        for which in (RunFilter(task_name=TEN_MEGABYTES), RunFilter(tags=frozenset({TEN_MEGABYTES}))):
            assert await store.count_runs(which) == 1
