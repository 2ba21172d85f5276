"""Loads and what is noted of them, scenarios, and whole measurements in processes of their own."""

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from asynctask import bench, flow, get_client, task
from asynctask.bench import Cell, Closed, Open, Quiet, Report, Scenario, Work, measure
from asynctask.cache_policies import INPUTS
from asynctask.errors import BenchmarkError, OptionError
from asynctask.measuring.gauges import EVERY, Gauge
from asynctask.measuring.loads import ClosedLoop, CountedWork, OpenLoop, Window, picks
from asynctask.measuring.pacing import arrivals, pacer
from asynctask.runtime import task_run

#: Each round takes a second or two to start where other work is going on.
pytestmark = pytest.mark.timeout(120)
MILLISECOND = 1_000_000
#: What short rounds need.
BRIEF: Any = {"duration": 0.2, "warmup": 0.0, "repeats": 1, "grace": 1.0}


def slower_than(work: CountedWork, seconds: float) -> int:
    """How many calls took longer, as far as the histogram tells."""
    histogram = work.latency
    return sum(histogram.quantile((rank + 0.5) / histogram.count) > seconds * 1e9 for rank in range(histogram.count))


def stalls_once(after: int, seconds: float) -> Callable[[], Any]:
    calls = itertools.count(1)

    async def call() -> None:
        await anyio.lowlevel.checkpoint()
        if next(calls) == after:
            time.sleep(seconds)  # noqa: ASYNC251  # what must not happen on a loop, and does

    return call


def every(milliseconds: int) -> Any:
    return arrivals(Open(1000 / milliseconds, "constant"), seed=0)


# -- loads --


async def test_an_open_loop_shows_a_stall_with_every_call_that_it_made_late():
    """Half a second without a start, at 100 a second: those that were to start in its first half waited as long."""
    window = Window(0.0, 1.0, 5.0)
    work = CountedWork("stalls", stalls_once(10, 0.5), window)
    await OpenLoop(lambda: work, window, every(10), most_in_flight=1000).run()
    assert work.latency.count == 100, "none is left out"
    assert slower_than(work, 0.24) >= 24
    assert work.latency.quantile(0.99) > 0.45e9


async def test_a_closed_loop_shows_a_stall_once_for_each_client():
    window = Window(0.0, 1.0, 5.0)
    work = CountedWork("stalls", stalls_once(10, 0.5), window)
    await ClosedLoop(lambda: work, window, 1).run()
    assert work.latency.greatest >= 0.5e9
    assert work.latency.quantile(0.9) < 0.24e9, "which hides what callers of their own would have seen"


async def test_a_closed_loop_has_so_many_calls_under_way_and_never_more():
    window = Window(0.0, 0.2, 5.0)
    now, most = 0, 0

    async def call() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(0.001)
        now -= 1

    work = CountedWork("sleeps", call, window)
    await ClosedLoop(lambda: work, window, 7).run()
    assert most == 7
    assert work.succeeded > 7


async def test_calls_of_the_warm_up_do_not_count():
    window = Window(0.3, 0.1, 5.0)
    began: list[int] = []

    async def call() -> None:
        began.append(time.monotonic_ns())
        await anyio.sleep(0.001)

    work = CountedWork("sleeps", call, window)
    await ClosedLoop(lambda: work, window, 1).run()
    assert began[0] < window.begin
    assert work.latency.count < len(began)
    assert work.latency.count >= sum(moment > window.begin for moment in began)


async def test_clients_whose_calls_never_wait_let_the_others_have_their_turn():
    window = Window(0.0, 0.2, 5.0)
    seen: set[object] = set()

    async def call() -> None:
        seen.add(anyio.get_current_task().id)

    work = CountedWork("never waits", call, window)
    await ClosedLoop(lambda: work, window, 5).run()
    assert len(seen) == 5


@pytest.mark.parametrize("kind", ["closed", "open"])
async def test_errors_are_counted_by_type_and_the_load_goes_on(kind: str):
    window = Window(0.0, 0.2, 5.0)
    errors = itertools.cycle([ValueError, KeyError, KeyError])

    async def call() -> None:
        await anyio.lowlevel.checkpoint()
        raise next(errors)

    work = CountedWork("fails", call, window)
    if kind == "closed":
        await ClosedLoop(lambda: work, window, 1).run()
    else:
        await OpenLoop(lambda: work, window, every(5), most_in_flight=1000).run()
    assert set(work.errors) == {"ValueError", "KeyError"}
    assert abs(work.errors["KeyError"] - 2 * work.errors["ValueError"]) <= 2
    assert sum(work.errors.values()) == work.latency.count
    assert work.succeeded == 0


@pytest.mark.parametrize("kind", ["closed", "open"])
async def test_calls_that_never_end_are_given_up_and_count_as_long_as_they_took(kind: str):
    window = Window(0.0, 0.2, 0.1)
    work = CountedWork("for ever", anyio.sleep_forever, window)
    if kind == "closed":
        await ClosedLoop(lambda: work, window, 3).run()
        assert work.unfinished == 3
    else:
        await OpenLoop(lambda: work, window, every(50), most_in_flight=1000).run()
        assert work.unfinished == 4
    assert work.latency.count == work.unfinished
    assert work.latency.greatest >= 0.29e9  # a timer may be some microseconds early


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_work_that_raises_a_cancellation_of_its_own_has_failed_and_its_client_goes_on():
    import asyncio

    async def call() -> None:
        raise asyncio.CancelledError

    window = Window(0.0, 0.1, 1.0)
    work = CountedWork("cancels itself", call, window)
    await ClosedLoop(lambda: work, window, 1).run()
    assert work.errors["CancelledError"] > 10
    window = Window(0.0, 0.1, 1.0)
    work = CountedWork("cancels itself", call, window)
    await OpenLoop(lambda: work, window, every(20), most_in_flight=10).run()
    assert work.errors == {"CancelledError": 5}


async def test_a_cap_on_calls_in_flight_holds_calls_back_and_says_so():
    window = Window(0.0, 0.2, 0.1)
    work = CountedWork("for ever", anyio.sleep_forever, window)
    load = OpenLoop(lambda: work, window, every(10), most_in_flight=2)
    await load.run()
    assert (load.held_back, load.not_started) == (1, 18)
    assert (work.unfinished, work.latency.count) == (20, 20), "what was never started counts with its wait"


async def test_what_is_held_back_counts_from_its_intended_start():
    window = Window(0.0, 0.1, 5.0)

    async def call() -> None:
        await anyio.sleep(0.05)

    work = CountedWork("slow", call, window)
    load = OpenLoop(lambda: work, window, every(10), most_in_flight=1)
    await load.run()
    assert (load.not_started, work.unfinished, work.latency.count) == (0, 0, 10)
    assert work.latency.greatest >= 0.5e9 - 0.09e9 - MILLISECOND, "the tenth began after nine others"
    assert load.held_back == 9


async def test_an_exit_ends_the_load():
    async def leave() -> None:
        raise SystemExit(3)

    window = Window(0.0, 5.0, 1.0)
    work = CountedWork("leaves", leave, window)
    with pytest.raises(SystemExit):
        await OpenLoop(lambda: work, window, every(10), most_in_flight=10).run()
    assert time.monotonic_ns() < window.end


def test_works_are_picked_by_weight_and_the_same_for_the_same_seed():
    window = Window(0.0, 1.0, 1.0)
    works = [CountedWork(name, anyio.sleep_forever, window) for name in "abc"]

    def names(seed: int) -> list[str]:
        pick = picks(works, [6, 3, 1], seed)
        return [pick().name for _ in range(10_000)]

    counts = Counter(names(1))
    assert [round(counts[name] / 1000) for name in "abc"] == [6, 3, 1]
    assert names(1) == names(1) != names(2)


def test_constant_arrivals_are_even_and_random_ones_have_the_rate_and_repeat_by_their_seed():
    even = itertools.islice(arrivals(Open(400, "constant"), seed=1), 4)
    assert list(even) == [0, 2_500_000, 5_000_000, 7_500_000]

    def first(seed: int) -> list[int]:
        return list(itertools.islice(arrivals(Open(400, "poisson"), seed=seed), 10_000))

    assert first(1) == first(1) != first(2)
    assert first(1) == sorted(first(1))
    assert 24 < first(1)[-1] / 1e9 < 26, "ten thousand at four hundred a second"
    gaps = [after - before for before, after in itertools.pairwise(first(1))]
    assert 0.6 < sum(gap < 2_500_000 for gap in gaps) / len(gaps) < 0.66, (
        "1 - 1/e of exponential gaps are below the mean"
    )


async def test_a_pacer_never_wakes_before_the_moment():
    with pacer() as pace:
        for wait in (0, 300_000, 3 * MILLISECOND):
            moment = time.monotonic_ns() + wait
            await pace.until(moment)
            assert time.monotonic_ns() >= moment
        with anyio.move_on_after(0.01) as scope:
            await pace.until(time.monotonic_ns() + 10**12)
        assert scope.cancelled_caught
        await pace.until(time.monotonic_ns() + MILLISECOND)  # which is not the one that was given up


async def test_the_lag_of_the_loop_is_noted_for_every_moment_that_a_stall_made_late():
    begin = time.monotonic_ns()
    gauge = Gauge(begin, begin + 600 * MILLISECOND, lambda now: None)
    async with anyio.create_task_group() as group:
        group.start_soon(gauge.watch)
        await anyio.sleep(0.1)
        time.sleep(0.3)  # noqa: ASYNC251
    lag = gauge.figures.lag
    assert lag.count == 600 * MILLISECOND // EVERY - 1
    assert lag.greatest > 0.28e9
    assert lag.quantile(0.8) > 0.05e9, "a third of all moments were in the stall"
    assert gauge.figures.seconds >= 0.59  # a timer may be some microseconds early
    assert gauge.figures.memory_peak >= gauge.figures.memory_before > 1_000_000


# -- scenarios --


def steps_of(kind: str, noted: list[str]) -> dict[str, Any]:
    """A setup and a teardown of one kind, which note that they were called."""

    def setup() -> str:
        noted.append("setup")
        return "value"

    def teardown(value: str) -> None:
        noted.append(f"teardown {value}")

    async def async_setup() -> str:
        await anyio.lowlevel.checkpoint()
        return setup()

    async def async_teardown(value: str) -> None:
        await anyio.lowlevel.checkpoint()
        teardown(value)

    def generator() -> Any:
        yield setup()
        teardown("value")

    async def async_generator() -> Any:
        yield await async_setup()
        await async_teardown("value")

    return {
        "sync": {"setup": setup, "teardown": teardown},
        "async": {"setup": async_setup, "teardown": async_teardown},
        "generator": {"setup": generator},
        "async generator": {"setup": async_generator},
    }[kind]


KINDS = ("sync", "async", "generator", "async generator")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_teardown_follows_the_setup_also_when_what_is_between_fails(kind: str):
    noted: list[str] = []
    scenario = Scenario(Work(print), **steps_of(kind, noted))
    async with scenario.prepared() as given:
        noted.append(f"load {given}")
    assert noted == ["setup", "load ('value',)", "teardown value"]
    with pytest.raises(ZeroDivisionError):
        async with scenario.prepared():
            1 / 0
    assert noted[3:] == ["setup", "teardown value"]


async def test_an_async_teardown_is_done_in_spite_of_a_cancellation():
    noted: list[str] = []
    with anyio.CancelScope() as scope:
        async with Scenario(Work(print), **steps_of("async", noted)).prepared():
            scope.cancel()
            await anyio.sleep(1)
    assert noted == ["setup", "teardown value"]


async def test_a_setup_that_fails_has_no_teardown_and_one_without_a_value_hands_nothing_on():
    noted: list[str] = []

    def fails() -> None:
        raise OSError("no server")

    with pytest.raises(OSError, match="no server"):
        async with Scenario(print, setup=fails, teardown=lambda: noted.append("teardown")).prepared():
            pass
    assert noted == []
    async with Scenario(print, setup=lambda: None, teardown=lambda: noted.append("teardown")).prepared() as given:
        assert given == ()
    assert noted == ["teardown"]


async def test_a_setup_that_yields_twice_is_told():
    def twice() -> Any:
        yield 1
        yield 2

    with pytest.raises(OptionError, match="yields twice"):
        async with Scenario(print, setup=twice).prepared():
            pass


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Scenario(), "at least one work"),
        (lambda: Scenario(3), "call must be a task"),  # type: ignore[arg-type]
        (lambda: Scenario(int), "not <class 'int'>"),
        (lambda: Work(print, weight=0), "weight must be a number above 0, not 0"),
        (lambda: Work(print, weight=True), "weight must be .* not True"),
        (lambda: Work(print, weight=float("nan")), "weight must be .* not nan"),
        (lambda: Work(print, "abc"), "args must be a tuple"),
        (lambda: Work(print, each=[]), "each has no values"),
        (lambda: Scenario(print, print), "two works are called 'print'"),
        (lambda: Scenario(print, setup=3), "setup must be a function"),  # type: ignore[arg-type]
        (lambda: Scenario(print, **steps_of("generator", []), teardown=print), "there cannot be another"),
        (lambda: measure(print, concurrency=[0]), "concurrency must be a whole number from 1, not 0"),
        (lambda: measure(print, rate=[-1.0]), "rate must be a number above 0"),
        (lambda: measure(print, rate=[1], arrivals="bursts"), "arrivals must be one of poisson, constant"),  # type: ignore[arg-type]
        (lambda: measure(print, loop=["gevent"]), "there is no event loop 'gevent'"),
        (lambda: measure(print, runner=["dask"]), "there is no runner 'dask'"),
        (lambda: measure(print, runner=[]), "nothing to measure"),
        (lambda: measure(print, duration=0), "duration must be a number above 0"),
        (lambda: measure(print, warmup=-1), "warmup must be a number from 0"),
        (lambda: measure(print, repeats=1.5), "repeats must be a whole number"),  # type: ignore[arg-type]
        (lambda: measure(print, workers=0), "workers must be a whole number"),
    ],
)
def test_what_cannot_be_is_refused_at_once(make: Callable[[], object], told: str):
    with pytest.raises(OptionError, match=told):
        make()


# -- whole measurements --


def note_in(path: Path) -> Callable[[object], None]:
    """What writes a line into a file, from any process."""
    name = str(path)

    def note(text: object) -> None:
        import os

        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{text}\n".encode())
        os.close(file)

    return note


def test_the_works_of_a_scenario_get_what_the_setup_gives_and_their_own_arguments(tmp_path: Path):
    note = note_in(tmp_path / "notes")

    def setup() -> Any:
        note("setup")
        yield "given"
        note("teardown")

    @task
    def work(*args: object, **kwargs: object) -> None:
        note((args, kwargs))

    async def other(*args: object) -> None:
        note(args)
        raise ValueError

    works = (Work(work, (1,), kwargs={"k": 2}, weight=3), Work(other, each=["x", "y"], name="the other"))
    report = measure(Scenario(*works, setup=setup), concurrency=[2], **BRIEF)
    lines = (tmp_path / "notes").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("setup", "teardown")
    assert set(lines[1:-1]) == {"(('given', 1), {'k': 2})", "('given', 'x')", "('given', 'y')"}
    [round] = report.cells[0].rounds
    assert [one.name for one in round.works] == ["work", "the other"]
    assert round.works[0].latency.count > round.works[1].latency.count
    assert round.errors == {"ValueError": round.works[1].latency.count}
    assert round.works[0].succeeded > 0 == round.works[1].succeeded


def test_runs_tell_of_retries_cache_hits_and_what_waited_for_limits():
    async def setup() -> None:
        async with get_client() as client:
            await client.create_concurrency_limit("one", 1)

    @task(retries=1)
    async def fails_first() -> None:
        if task_run.run_count == 1:
            raise OSError("again")

    @task(cache_policy=INPUTS)
    async def cached(number: int) -> int:
        return number

    @task(tags=["one"])
    async def limited() -> None:
        await anyio.sleep(0.005)

    works = (fails_first, Work(cached, (1,)), limited)
    report = measure(Scenario(*works, setup=setup), concurrency=[6], **{**BRIEF, "duration": 0.4})
    [round] = report.cells[0].rounds
    counts = {one.name: one.latency.count for one in round.works}
    runs = round.runs
    assert round.errors == {}
    # A run may begin on the other side of the window's end than its call did.
    assert abs(runs.runs - round.calls) <= 6
    assert runs.retries > 0
    assert abs(runs.retries - counts["fails_first"]) <= 6
    assert counts["cached"] - 7 <= runs.cached < counts["cached"]
    assert runs.seconds_waiting_for_limits > runs.seconds_running > 0.1, "five of six wait for the one that runs"
    assert report.cells[0].figures["cached"].median == runs.cached / runs.runs


def test_runs_that_a_flow_submits_count_as_well():
    @task
    def inner(number: int) -> int:
        return number

    @flow
    def outer() -> list[int]:
        return inner.map(range(4)).result()

    [round] = measure(outer, concurrency=[1], **BRIEF).cells[0].rounds
    assert round.errors == {}
    assert round.calls
    assert round.runs.runs > round.calls  # of the last call, some may have ended after the time was up


def test_bodies_are_where_the_runner_says(tmp_path: Path):
    """Of a task, sync and async, and of a plain function."""
    note = note_in(tmp_path / "notes")

    def where(kind: str, runner: str) -> None:
        thread = threading.current_thread() is threading.main_thread()
        note(f"{kind} {'main' if thread else 'other'} {os.getpid()} {os.getppid()}")

    @task
    def sync_task() -> None:
        where("task", "")

    async def async_function() -> None:
        where("async", "")

    def plain() -> None:
        where("plain", "")

    def found(runner: str) -> dict[str, set[tuple[str, bool]]]:
        (tmp_path / "notes").unlink(missing_ok=True)
        warm = {**BRIEF, "warmup": 0.05}  # each of them is called before that, however slow the machine is
        report = measure(
            Scenario(sync_task, async_function, plain), concurrency=[2], runner=[runner], workers=1, **warm
        )
        assert report.cells[0].errors == {}
        places: dict[str, set[tuple[str, bool]]] = {}
        for line in (tmp_path / "notes").read_text().splitlines():
            kind, thread, _, parent = line.split()
            places.setdefault(kind, set()).add((thread, int(parent) == os.getpid()))
        return places

    here = ("main", True)
    assert found("loop") == {"task": {here}, "async": {here}, "plain": {here}}
    assert found("threads") == {"task": {("other", True)}, "async": {here}, "plain": {("other", True)}}
    away = found("processes")
    assert all(not is_child for places in away.values() for _, is_child in places), away
    assert set(away) == {"task", "async", "plain"}


def test_every_loop_is_the_one_that_the_line_names(tmp_path: Path):
    note = note_in(tmp_path / "notes")

    async def which() -> None:
        import sys

        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            note("trio")
        else:
            asyncio = sys.modules["asyncio"]
            note(type(asyncio.get_running_loop()).__module__)

    names = {"asyncio": "asyncio.unix_events", "uvloop": "uvloop", "trio": "trio"}
    for loop, name in names.items():
        (tmp_path / "notes").unlink(missing_ok=True)
        report = measure(which, concurrency=[1], rate=[50], loop=[loop], **{**BRIEF, "duration": 0.1})
        assert [str(one.cell) for one in report.cells] == [f"{loop}, loop, 1 client", f"{loop}, loop, 50/s poisson"]
        assert set((tmp_path / "notes").read_text().split()) == {name}
        assert report.cells[0].errors == {}


class Seen(Quiet):
    def __init__(self) -> None:
        self.began_: list[tuple[str, int]] = []
        self.progress: list[Any] = []
        self.rounds: list[Any] = []

    def began(self, cell: Cell, number: int) -> None:
        self.began_.append((str(cell.load), number))

    def went_on(self, cell: Cell, progress: Any) -> None:
        self.progress.append(progress)

    def ended(self, cell: Cell, number: int, found: Any) -> None:
        self.rounds.append(found)


def test_rounds_go_by_turns_each_in_a_process_of_its_own(tmp_path: Path):
    note = note_in(tmp_path / "notes")

    def setup() -> None:
        note(os.getpid())

    async def call() -> None:
        await anyio.sleep(0.001)

    seen = Seen()
    options = {**BRIEF, "repeats": 2, "duration": 0.4, "warmup": 0.1}
    report = measure(Scenario(call, setup=setup), concurrency=[1], rate=[100.0], view=seen, **options)
    assert seen.began_ == [("1 client", 1), ("100/s poisson", 1), ("1 client", 2), ("100/s poisson", 2)]
    assert len(set((tmp_path / "notes").read_text().split())) == 4
    assert [one.cell.load for one in report.cells] == [Closed(1), Open(100.0, "poisson")]
    assert [len(one.rounds) for one in report.cells] == [2, 2]
    assert report.is_whole
    assert any(not one.is_warm for one in seen.progress)
    assert any(one.is_warm and one.succeeded for one in seen.progress)
    closed, opened = report.cells[0].rounds[0], report.cells[1].rounds[0]
    assert closed.throughput == sum(one.succeeded for one in closed.works) / 0.4
    assert closed.overhead_seconds > 0 < opened.overhead_seconds
    assert closed.gauges.cpu_seconds > 0
    assert opened.lateness.count == opened.calls > 0 == closed.lateness.count
    different = report.cells[1].rounds
    assert different[0].calls != different[1].calls or different[0].latency != different[1].latency


def test_async_works_have_no_line_for_threads_and_a_note_instead():
    async def call() -> None:
        await anyio.sleep(0.001)

    report = measure(call, concurrency=[1], runner=["loop", "threads"], **BRIEF)
    assert [one.cell.runner for one in report.cells] == ["loop"]
    assert report.notes == ["call is async: its body runs on the event loop, not on threads"]
    with pytest.raises(OptionError, match="call is async: its bodies run on the event loop"):
        measure(call, concurrency=[1], runner=["threads"], **BRIEF)


def test_what_is_exported_is_there_and_documented():
    for name in bench.__all__:
        value = getattr(bench, name)
        assert value.__doc__, name
        assert not value.__doc__.startswith(f"{name}("), name


def test_a_rate_that_cannot_be_had_is_told():
    """Each call holds up the loop for 20 ms, and a hundred a second are to begin."""

    def slow() -> None:
        import time

        time.sleep(0.02)

    [line] = measure(slow, rate=[100], arrivals="constant", **{**BRIEF, "duration": 0.5}).cells
    assert line.notes[0].startswith("the rate was not reached: of 50 calls that were to begin, ")
    assert line.rounds[0].latency.greatest > 0.4e9, "the last one waited for those before"


def failing(report: Callable[[], Report]) -> str:
    with pytest.raises(BenchmarkError) as failure:
        report()
    return str(failure.value)


def test_a_round_that_cannot_be_measured_is_told_with_its_reason():
    def no_server() -> None:
        raise ConnectionError("no server")

    def die() -> None:
        import os
        import signal

        print("the last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def leave() -> None:
        raise SystemExit(3)

    told = failing(lambda: measure(Scenario(print, setup=no_server), concurrency=[1], **BRIEF))
    assert "asyncio, loop, 1 client: the round failed" in told
    assert "ConnectionError: no server" in told
    assert "in no_server" in told
    told = failing(lambda: measure(die, concurrency=[1], **BRIEF))
    assert "the process that measured it was killed by SIGKILL; the last that it printed:\nthe last words" in told
    assert "SystemExit: 3" in failing(lambda: measure(leave, concurrency=[1], **BRIEF))
    lock = threading.Lock()
    told = failing(lambda: measure(lambda: lock, concurrency=[1], **BRIEF))
    assert "cannot be sent to the processes that measure it" in told
    assert "let its setup make what cannot be pickled" in told


def test_works_that_never_end_do_not_hold_up_the_measurement():
    @task
    async def for_ever() -> None:
        await anyio.sleep_forever()

    report = measure(for_ever, concurrency=[2], **{**BRIEF, "grace": 0.1})
    [round] = report.cells[0].rounds
    assert (round.unfinished, round.calls, round.throughput) == (2, 2, 0.0)
    assert report.cells[0].notes == ["2 of 2 calls were given up before their end; quantiles are lower bounds"]


def test_a_child_ends_with_the_process_that_started_it(tmp_path: Path):
    """Killed, so that it can do nothing about it."""
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(
        "import os, anyio\n"
        "from asynctask.bench import Scenario, measure\n"
        "async def call(): await anyio.sleep(0.01)\n"
        f"def setup(): open({str(tmp_path / 'child')!r}, 'w').write(str(os.getpid()))\n"
        f"def teardown(): open({str(tmp_path / 'over')!r}, 'w').close()\n"
        "if __name__ == '__main__':\n"
        "    measure(Scenario(call, setup=setup, teardown=teardown), concurrency=[1], duration=60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(program)])
    try:
        wait_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text() != "")
        child = int((tmp_path / "child").read_text())
        parent.send_signal(signal.SIGKILL)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not is_there(child))
    assert (tmp_path / "over").exists(), "and it has torn down what it had set up"


def is_there(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(holds: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
