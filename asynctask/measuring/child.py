"""One round of one cell, in a process of its own: `asynctask.measuring.child.main`, started by `rounds`.

1. The order comes on standard input, which stays open: when it ends, so does this process, within seconds.
2. Answers are JSON lines on what was standard output. What the works print goes where errors go.
3. Ctrl-C is the business of who started it. The setup, the load and the teardown are inside one runtime.
"""

from __future__ import annotations

import gc
import os
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

import anyio
import msgspec

from ..cli.targets import bench_target
from ..clocks import Clock
from ..errors import BenchmarkError
from ..loops import here
from ..pickles import loads
from ..scopes import Runtime
from ..settings import Settings, settings
from .calls import call_first, call_of, nothing, runner_of, start_workers
from .figures import Progress, Round
from .gauges import Gauge
from .histogram import Histogram, merged
from .loads import ClosedLoop, CountedWork, OpenLoop, Window, clock, picks
from .pacing import arrivals
from .plans import Cell, Closed, Plan
from .run_counts import RunCounter
from .scenarios import Scenario

#: Seconds between two words on the progress, and those that this process gets to end by itself when it is to.
TELL_SECONDS, END_SECONDS = 0.25, 3.0
#: How long the calls are that do nothing, and how many those of an open loop.
EMPTY_SECONDS, EMPTY_CALLS = 0.05, 1000


class Order(msgspec.Struct, kw_only=True):
    """What one child is to do."""

    cell: Cell
    plan: Plan
    #: The same for the same round of each cell.
    seed: int
    settings: Settings
    path: list[str]
    folder: str
    #: The module that the program is, for those who ask.
    main: str
    #: The scenario, pickled; or where it is found, with the arguments of its only work, as they were written.
    scenario: bytes | None = None
    target: str | None = None
    args: list[str] = []


class Answer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of what a child tells: that the setup is done, how it is going, what came of it, or why nothing did."""

    is_ready: bool = False
    progress: Progress | None = None
    round: Round | None = None
    failed: str | None = None


def main() -> None:
    """The life of the process."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, _ignore)  # not SIG_IGN, which what the works start would inherit
    order = read_order(sys.stdin.buffer)

    def tell(answer: Answer) -> None:
        answers.write(msgspec.json.encode(answer) + b"\n")

    try:
        _set_up(order)
        options = {"use_uvloop": True} if order.cell.loop == "uvloop" else {}
        backend = "trio" if order.cell.loop == "trio" else "asyncio"
        found = anyio.run(_measured, order, tell, backend=backend, backend_options=options)
    except BaseException as error:  # deliberate: it is told at home, whatever it is
        tell(Answer(failed="".join(traceback.format_exception(error)).rstrip()))
        sys.stderr.flush()
        os._exit(1)
    tell(Answer(round=found))


def write_order(order: Order, stream: Any) -> None:
    """Send it to a child's standard input."""
    data = msgspec.msgpack.encode(order)
    stream.write(struct.pack("!I", len(data)) + data)
    stream.flush()


def read_order(stream: BinaryIO) -> Order:
    size: int = struct.unpack("!I", stream.read(4))[0]
    return msgspec.msgpack.decode(stream.read(size), type=Order)


def _ignore(number: int, frame: object) -> None:
    """Ctrl-C goes to all processes of a terminal; who started this one ends it."""


def _set_up(order: Order) -> None:
    sys.path[:] = order.path
    os.chdir(order.folder)
    module = sys.modules["__main__"]
    module.__file__, module.__spec__ = f"{order.main}.py", None  # tasks have the keys that they have at home
    settings.take_over(order.settings)


def _end_with_parent(stop: Callable[[], object]) -> None:
    sys.stdin.buffer.read(1)  # nobody writes: it returns when the parent is gone, or wants no more
    stop()
    time.sleep(END_SECONDS)
    os._exit(1)


async def _measured(order: Order, tell: Callable[[Answer], None]) -> Round:
    scenario = loads(order.scenario) if order.scenario is not None else bench_target(order.target or "", order.args)
    with anyio.CancelScope() as scope:
        loop = here()
        stop = (lambda: loop.call_soon(scope.cancel),)
        threading.Thread(target=_end_with_parent, args=stop, name="asynctask-lifeline", daemon=True).start()
        runner = runner_of(order.cell.runner, order.plan.workers)
        # What is under way when the load is over was given up.
        runtime = Runtime(store=order.plan.store, task_runner=runner, shutdown_timeout=0.2)
        async with runtime, scenario.prepared() as given:
            await start_workers(runner, order.plan.workers)
            tell(Answer(is_ready=True))
            overhead = await _overhead(order.cell)
            gc.collect()
            return await _under_load(order, scenario, given, runtime, overhead, tell)
    raise BenchmarkError("the measurement was broken off")


async def _under_load(
    order: Order,
    scenario: Scenario,
    given: tuple[Any, ...],
    runtime: Runtime,
    overhead: float,
    tell: Callable[[Answer], None],
) -> Round:
    cell, plan = order.cell, order.plan
    runner = runtime.task_runner if cell.runner != "loop" else None
    calls = [(work.name, call_of(work, given, runner)) for work in scenario.works]
    if plan.warmup:
        await call_first([call for _, call in calls], runner, plan.workers)
    window = Window(plan.warmup, plan.duration, plan.grace)
    works = [CountedWork(name, call, window) for name, call in calls]
    pick = picks(works, [work.weight for work in scenario.works], order.seed)
    begin = Clock().now() + (window.begin - clock()) / 1e9
    counter = RunCounter(runtime.journal, begin, begin + window.seconds)
    gauge = Gauge(window.begin, window.end, _teller(window, works, tell))
    load: ClosedLoop | OpenLoop
    if isinstance(cell.load, Closed):
        load = ClosedLoop(pick, window, cell.load.clients)
    else:
        load = OpenLoop(pick, window, arrivals(cell.load, seed=order.seed), most_in_flight=plan.most_in_flight)
    async with anyio.create_task_group() as group:
        group.start_soon(gauge.watch)
        await load.run()
    return Round(
        seconds=window.seconds,
        works=[work.figures() for work in works],
        runs=counter.figures(),
        gauges=gauge.figures,
        overhead_seconds=overhead,
        lateness=getattr(load, "lateness", Histogram()),
        held_back=getattr(load, "held_back", 0),
        not_started=getattr(load, "not_started", 0),
    )


async def _overhead(cell: Cell) -> float:
    """Processor time that the load itself takes for each call, by calls that do nothing."""
    is_closed = isinstance(cell.load, Closed)
    window = Window(0.0, EMPTY_SECONDS if is_closed else 3600.0, 1.0)
    empty = CountedWork("nothing", nothing, window)
    load: ClosedLoop | OpenLoop
    if is_closed:
        load = ClosedLoop(lambda: empty, window, 1)
    else:
        load = OpenLoop(lambda: empty, window, iter([0] * EMPTY_CALLS), most_in_flight=EMPTY_CALLS)
    began = time.thread_time()
    await load.run()
    return (time.thread_time() - began) / max(1, empty.latency.count)


def _teller(window: Window, works: list[CountedWork], tell: Callable[[Answer], None]) -> Callable[[int], None]:
    """What tells of the progress, every quarter of a second."""
    due = window.start

    def each(now: int) -> None:
        nonlocal due
        if now < due:
            return
        due = now + int(TELL_SECONDS * 1e9)
        latency = merged(work.latency for work in works)
        p50, p99 = latency.quantiles([0.5, 0.99])
        tell(
            Answer(
                progress=Progress(
                    share=min(1.0, (now - window.start) / (window.end - window.start)),
                    is_warm=now >= window.begin,
                    succeeded=sum(work.succeeded for work in works),
                    seconds=max(0.0, (now - window.begin) / 1e9),
                    p50=p50 / 1e9,
                    p99=p99 / 1e9,
                    failed=sum(sum(work.errors.values()) for work in works),
                )
            )
        )

    return each
