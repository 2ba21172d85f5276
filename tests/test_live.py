"""The live view: what it counts, what it draws, and that it harms nothing."""

import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from rich.console import Console

from asynctask import Runtime, TaskFuture, flow, get_client, task
from asynctask.live import LiveView, Screen, TaskSummary, live, summary_table
from asynctask.scopes import runtime_here
from asynctask.states import State
from asynctask.stores.memory import MemoryStore
from asynctask.testing import VirtualClock, virtual_time


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("asynctask.task_runs", "asynctask.flow_runs"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.CRITICAL)


@pytest.fixture
def private() -> Iterator[VirtualClock]:
    with virtual_time() as clock:
        yield clock


class Terminal:
    """A terminal that remembers what was written to it."""

    def __init__(self, *, width: int = 100, height: int = 24, encoding: str = "utf-8") -> None:
        self._bytes = io.BytesIO()
        file = io.TextIOWrapper(self._bytes, encoding=encoding, errors="backslashreplace", write_through=True)
        self.console = Console(file=file, force_terminal=True, width=width, height=height, color_system=None)

    @property
    def text(self) -> str:
        return self._bytes.getvalue().decode("utf-8")

    @property
    def frames(self) -> list[str]:
        """What was shown at one time or another; the last is the summary."""
        return re.split(r"(?:\x1b\[2K|\x1b\[1A|\r)+", self.text)

    def wait_for(self, pattern: str, seconds: float = 10) -> str:
        """The first frame with `pattern`, once there is one."""
        end = time.monotonic() + seconds
        while True:
            for frame in self.frames:
                if re.search(pattern, frame):
                    return frame
            assert time.monotonic() < end, f"no frame with {pattern!r} in {self.text!r}"
            time.sleep(0.01)


def plain() -> Console:
    return Console(file=io.StringIO(), width=120)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def counts(view: LiveView) -> dict[str, dict[str, Any]]:
    """The counts that are not 0, by task."""
    fields = [name for name in TaskSummary.__struct_fields__ if name not in ("name", "is_flow", "p50", "p95")]
    return {one.name: {name: getattr(one, name) for name in fields if getattr(one, name)} for one in view.tasks}


# -- what it counts --


def test_each_way_to_end_is_counted_by_task(private: VirtualClock) -> None:
    @task(retries=2)
    def fails() -> None:
        raise ValueError("no")

    @task
    def works(number: object) -> object:
        return number

    @task
    def leaves() -> None:
        raise SystemExit(3)

    @task(tags=["never"])
    def limited() -> None: ...

    with get_client(sync_client=True) as client:
        client.create_concurrency_limit("never", 0)
    with live(console=plain()) as view:
        works(1)
        works.map([1, 2, 3]).wait()
        failed = fails.submit()
        works.submit(failed).wait(timeout=20)
        limited(return_state=True)
        with pytest.raises(SystemExit):
            leaves()
    assert counts(view) == {
        "works": {"completed": 4, "not_ready": 1},
        "fails": {"failed": 1, "retries": 2},
        "limited": {"cancelled": 1},
        "leaves": {"crashed": 1},
    }


async def test_runs_under_way_are_counted_as_they_are() -> None:
    """Pending, in the body, waiting for a slot; and when they are over, as completed."""
    release, entered = anyio.Event(), anyio.Event()

    @task(tags=["one"])
    async def holds(_: object) -> None:
        entered.set()
        await release.wait()

    async with Runtime(store=MemoryStore()):
        async with get_client() as client:
            await client.create_concurrency_limit("one", 1)
        with live(console=plain()) as view:
            first = holds.submit(0)
            await entered.wait()
            second = holds.submit(1)
            third = holds.submit(second)
            await until(lambda: second.state.name == "AwaitingConcurrencySlot")
            assert counts(view) == {"holds": {"running": 1, "waiting": 1, "pending": 1}}
            release.set()
            for future in (first, second, third):
                await future.wait_async()
            assert counts(view) == {"holds": {"completed": 3}}


def test_a_run_whose_hooks_are_at_work_is_counted_once(private: VirtualClock) -> None:
    release, hooked = threading.Event(), threading.Event()
    works = task(lambda: 1, name="works")

    @works.on_completion
    def linger(*_: object) -> None:
        hooked.set()
        release.wait(timeout=20)

    with live(console=plain()) as view:
        thread = threading.Thread(target=works)
        thread.start()
        assert hooked.wait(timeout=20)
        assert counts(view) == {"works": {"completed": 1}}
        release.set()
        thread.join(timeout=20)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not holds():
            await anyio.sleep(0)


async def test_retries_count_while_the_run_still_goes_on() -> None:
    release, second_attempt = anyio.Event(), anyio.Event()

    @task(retries=1)
    async def once_more() -> None:
        if not second_attempt.is_set():
            second_attempt.set()
            raise ValueError
        await release.wait()

    async with Runtime(store=MemoryStore()):
        with live(console=plain()) as view:
            future = once_more.submit()
            await second_attempt.wait()
            await until(lambda: future.state.name == "Retrying")
            assert counts(view) == {"once_more": {"running": 1, "retries": 1}}
            release.set()
            await future
        assert counts(view) == {"once_more": {"completed": 1, "retries": 1}}


def test_durations_are_those_of_the_body_to_one_per_cent(private: VirtualClock) -> None:
    @task
    def takes(seconds: float) -> None:
        private.advance(seconds)

    with live(console=plain()) as view:
        for seconds in range(1, 101):
            takes(seconds)
    [found] = view.tasks
    assert found.p50 == pytest.approx(50, rel=0.01)
    assert found.p95 == pytest.approx(95, rel=0.01)


def test_a_run_that_never_began_has_no_duration(private: VirtualClock) -> None:
    @task(tags=["never"])
    def limited() -> None: ...

    with get_client(sync_client=True) as client:
        client.create_concurrency_limit("never", 0)
    with live(console=plain()) as view:
        limited(return_state=True)
    assert [(one.p50, one.p95) for one in view.tasks] == [(None, None)]


def test_runs_from_before_are_counted_when_they_end_inside_and_those_after_are_not(private: VirtualClock) -> None:
    release = threading.Event()

    @task
    def holds(_: int) -> None:
        release.wait(timeout=20)

    before = holds.submit(0)
    with live(console=plain()) as view:
        assert view.tasks[0].runs == 1
        release.set()
        before.wait()
        holds(1)
    holds(2)
    assert counts(view) == {"holds": {"completed": 2}}
    assert runtime_here().journal.observers == runtime_here().journal.observers[:1], "the view has left"


def test_runs_of_many_threads_are_all_counted(private: VirtualClock) -> None:
    @task
    def quick(number: int) -> int:
        return number

    with live(console=plain()) as view:
        threads = [threading.Thread(target=lambda: [quick(number) for number in range(500)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        quick.map(range(500)).wait()
    assert counts(view) == {"quick": {"completed": 4500}}


def test_a_given_runtime_is_watched_and_no_other(private: VirtualClock) -> None:
    @task
    def quick() -> None: ...

    other = Runtime(store=MemoryStore())
    with live(other, console=plain()) as view:
        quick()
    assert view.tasks == []
    other.close()


# -- what it draws --


def test_a_terminal_shows_counters_a_bar_and_the_tree_of_what_runs(private: VirtualClock) -> None:
    release = threading.Event()

    @task
    def inner(number: int) -> None:
        if number >= 2:
            release.wait(timeout=20)

    @flow
    def outer() -> None:
        inner.map(range(12)).wait()

    screen = Terminal()
    with live(console=screen.console):
        thread = threading.Thread(target=in_context(outer))
        thread.start()
        frame = screen.wait_for(r"inner +━+─+ +2/12 +10 running")
        release.set()
        thread.join(timeout=20)
    assert re.search(r"2 of 13 runs finished, 11 running", frame)
    assert re.search(r"outer +─+ +0/1 +1 running", frame)
    assert re.search(r"\n• outer-\w+ .*(\n  • inner-\w+ .*){3}\n    and 7 more inner", frame)
    assert re.search(r"inner +12 +12 +0 +0 ", screen.frames[-1]), "the summary is what stays"
    assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l"), "the cursor is back"


def in_context(function: Callable[[], Any]) -> Callable[[], Any]:
    """`function` in a copy of this context, for a thread."""
    import contextvars

    context = contextvars.copy_context()
    return lambda: context.run(function)


def test_a_view_is_never_higher_than_its_terminal(private: VirtualClock) -> None:
    """Thirty kinds of task, each with runs under way, in twelve lines."""
    release = threading.Event()
    tasks = [task(lambda: release.wait(timeout=20), name=f"kind-{number}") for number in range(30)]
    screen = Terminal(height=12)
    with live(console=screen.console):
        futures: list[TaskFuture[Any]] = [each.submit() for each in tasks for _ in range(2)]
        screen.wait_for(r"60 runs finished, 60 running")
        frame = screen.wait_for(r"and \d+ more tasks")
        release.set()
        for future in futures:
            future.wait()
    assert all(frame.rstrip("\n").count("\n") < 12 for frame in screen.frames[:-1])
    assert "…" in frame


def test_a_deep_chain_of_runs_is_drawn_without_recursing_for_ever(private: VirtualClock) -> None:
    release = threading.Event()

    @task
    def nest(depth: int) -> None:
        if depth:
            nest(depth - 1)
        else:
            release.wait(timeout=20)

    screen = Terminal(height=40)
    with live(console=screen.console):
        future = nest.submit(100)
        frame = screen.wait_for(r"101 running[^\r]*\n {16}• nest")
        release.set()
        future.result()
    assert " " * 18 + "•" not in frame


def test_names_and_messages_can_neither_command_the_terminal_nor_be_read_as_markup(private: VirtualClock) -> None:
    release = threading.Event()
    nasty = "[red]x[/red]\x1b]0;owned\x07\x1b[2J\u202egnp\n\ud800[/nope]"

    @task(name=nasty, task_run_name=nasty.replace("{", ""), retries=1, retry_delay_seconds=0)
    def evil() -> None:
        release.wait(timeout=20)
        raise ValueError(nasty)

    screen = Terminal()
    with live(console=screen.console):
        future = evil.submit()
        screen.wait_for(r"• \[red\]x\[/red\]\]0;owned\[2Jgnp \[/nope\]")
        release.set()
        future.wait()
    assert "[red]x[/red]]0;owned[2Jgnp [/nope]" in screen.frames[-1]
    assert not {"\x07", "\u202e", "\ud800"} & set(screen.text)
    assert "\x1b]0" not in screen.text
    assert "\x1b[2J" not in screen.text


def test_a_terminal_that_knows_only_ascii_gets_a_view_as_well(private: VirtualClock) -> None:
    release = threading.Event()
    screen = Terminal(encoding="ascii")
    waits = task(lambda: release.wait(timeout=20), name="größe")
    with live(console=screen.console):
        future = waits.submit()
        screen.wait_for(r"gr.*-{20}.*1 running")
        release.set()
        future.wait()
    assert re.search(r"gr\S+ +\| +1 \| +1 \|", screen.frames[-1])


def test_what_is_printed_appears_above_the_view(private: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not lost; and when the block is left, standard output is as it was."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen.console.file)
    monkeypatch.setattr(screen.console.file, "isatty", lambda: True, raising=False)
    before = sys.stdout
    with live(console=screen.console):
        print("[bold]hello[/bold] from the body")
        assert sys.stdout is not before
    assert sys.stdout is before
    assert "[bold]hello[/bold] from the body\n" in screen.text


def test_prints_into_a_pipe_still_go_there(private: VirtualClock, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Terminal()
    with live(console=screen.console):
        print("data")
    assert capsys.readouterr().out == "data\n"
    assert "data" not in screen.text


def test_off_a_terminal_there_is_one_summary_in_plain_text(private: VirtualClock) -> None:
    @task(retries=1)
    def fails() -> None:
        raise ValueError

    console = plain()
    with live(console=console):
        fails(return_state=True)
        task(lambda: 1, name="works")()
        assert written(console) == ""
    text = written(console)
    assert "\x1b" not in text
    assert re.search(r"task +runs +completed +failed +retried +p50 +p95", text)
    assert re.search(r"fails +1 +0 +1 +1 ", text)
    assert re.search(r"works +1 +1 +0 +0 ", text)


def test_the_summary_says_what_is_unfinished(private: VirtualClock) -> None:
    release = threading.Event()
    console = plain()
    with live(console=console):
        future = task(lambda: release.wait(timeout=20), name="waits").submit()
    release.set()
    future.wait()
    assert re.search(r"unfinished +retried.*\n.*\n +waits +1 +0 +0 +1 +0 ", written(console))


def test_of_a_narrow_summary_names_lose_their_ends_and_numbers_nothing() -> None:
    long = TaskSummary(name="a_long_name_" * 9, is_flow=False, completed=12_345, failed=6_789, cancelled=22, p50=0.1234)
    short = TaskSummary(name="short", is_flow=True, retries=55_555, completed=1, p50=2.0, p95=61.0)
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table([long, short], 1.0, 80))
    assert re.search(r"\n *a_long_\w*… +19,156 +12,345 +6,789 +22 +0 +123 ms *\n", written(console))
    assert re.search(r"\n *short +1 +1 +0 +0 +55,555 +2.0 s +1 min 01 s *\n", written(console))


def test_by_default_it_writes_to_standard_error(private: VirtualClock, capsys: pytest.CaptureFixture[str]) -> None:
    with live():
        task(lambda: 1, name="works")()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "works" in captured.err


def test_two_views_at_once_both_count_and_one_draws(private: VirtualClock) -> None:
    release = threading.Event()
    waits = task(lambda: release.wait(timeout=20), name="waits")
    first, second = Terminal(), Terminal()
    with live(console=first.console) as outer:
        with live(console=second.console) as inner:
            future = waits.submit()
            first.wait_for("1 running")
            release.set()
            future.wait()
        assert counts(inner) == counts(outer) == {"waits": {"completed": 1}}
    assert "running" not in second.text
    assert "waits" in second.text
    assert "waits" in first.frames[-1]


def test_a_view_can_be_entered_again(private: VirtualClock) -> None:
    view = live(console=plain())
    for _ in range(2):
        with view:
            task(lambda: 1, name="works")()
    assert counts(view) == {"works": {"completed": 2}}


# -- that it harms nothing --


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_an_exception_passes_through_and_the_screen_is_left_in_order(
    error: BaseException, private: VirtualClock
) -> None:
    screen = Terminal()

    def fail() -> None:
        with live(console=screen.console):
            task(lambda: 1, name="works")()
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    assert "works" in screen.frames[-1]
    assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")
    assert not [thread for thread in threading.enumerate() if thread.name == "asynctask-live"]


async def test_it_is_left_in_order_when_its_task_is_cancelled() -> None:
    screen = Terminal()
    async with Runtime(store=MemoryStore()):
        with anyio.move_on_after(0.05) as scope, live(console=screen.console):
            await anyio.sleep(30)
    assert scope.cancelled_caught
    assert "0 runs in" in screen.frames[-1]


@pytest.mark.parametrize("kind", ["closed", "broken"])
def test_a_terminal_that_goes_away_changes_nothing_for_the_runs(
    kind: str, private: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    reading, writing = os.pipe()
    file = os.fdopen(writing, "w", encoding="utf-8")
    console = Screen(file=file, force_terminal=True, width=80, height=24)
    release = threading.Event()
    waits = task(lambda: release.wait(timeout=20), name="waits")
    standard_error = sys.stderr
    with live(console=console) as view:
        os.close(reading)
        if kind == "closed":
            try:
                file.close()
            except BrokenPipeError:
                pass
        future = waits.submit()
        wait_for_log(caplog, "cannot be drawn")
        assert until_true(lambda: sys.stderr is standard_error), "what is printed no longer goes through the view"
        release.set()
        assert future.result(timeout=20) is True
    assert counts(view) == {"waits": {"completed": 1}}
    assert [record.message for record in caplog.records].count(
        "the live view of runs cannot be drawn; the runs are not affected"
    ) == 1
    with pytest.raises(BrokenPipeError) if kind == "broken" else pytest.MonkeyPatch.context():
        file.close()


def wait_for_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    assert until_true(lambda: text in caplog.text), caplog.text


def until_true(holds: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it holds at some time within `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_finished_runs_are_not_kept_alive_by_a_view(private: VirtualClock) -> None:
    """Neither their arguments: a view may stand for a month."""
    import gc
    import weakref

    class Big: ...

    big = Big()
    gone = weakref.ref(big)
    takes = task(lambda value: None, name="takes")
    with live(console=plain()):
        takes(big)
        del big
        assert until_true(lambda: gc.collect() >= 0 and gone() is None)


def test_observers_are_told_of_ends_only(private: VirtualClock) -> None:
    """What a transition costs when a view is on: nothing, unless it is the last."""
    told: list[tuple[str, str]] = []

    class Spy(LiveView):
        def _told(self, run: Any, state: State) -> None:
            told.append((run.spec.name, state.name))
            super()._told(run, state)

    @task(retries=2, retry_delay_seconds=1)
    def fails() -> None:
        raise ValueError

    with Spy(None, plain()):
        fails(return_state=True)
        task(lambda: 1, name="works")()
    assert told == [("fails", "Failed"), ("works", "Completed")]
