"""Files read and hashed on the event loop, on threads and in processes: how many a second, and how fast.

The files are those of Python's own standard library. Hashing leaves the interpreter to others, so threads help.

The second part measures short calls, one in fifty of which holds up the event loop for a fifth of a second. Who calls
in turn (a closed loop) sees it in one call of fifty; calls that come at a rate of their own (an open loop) show what it
does to all that were to begin meanwhile.

    python examples/measure.py [SECONDS OF EACH ROUND]
"""

import hashlib
import itertools
import sys
import tempfile
import time
from pathlib import Path

from asynctask import task
from asynctask.bench import CellReport, Scenario, Work, measure, page, table

FILES = sorted(Path(hashlib.__file__).parent.glob("*.py"), key=lambda path: -path.stat().st_size)[:50]


@task
def digest(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha256(data * 8).hexdigest()


def stalls() -> Scenario:
    """Short calls, of which one in fifty holds up the event loop."""
    turns = itertools.count(1)

    async def short() -> None:
        if next(turns) % 50 == 0:
            time.sleep(0.2)  # noqa: ASYNC251  # what must not be done on a loop, and happens

    return Scenario(Work(short, name="short, but for one in fifty"))


def share_over(one: CellReport, seconds: float) -> float:
    """The share of the calls that took longer."""
    shares = [number / 1000 for number in range(1, 1001)]
    return sum(value > seconds * 1e9 for value in one.latency.quantiles(shares)) / len(shares)


def main() -> None:
    seconds = float(sys.argv[1]) if sys.argv[1:] else 0.5
    hashing = Scenario(Work(digest, each=FILES), name=f"{len(FILES)} files of the standard library, read and hashed")
    runners = ["loop", "threads", "processes"]
    report = measure(hashing, concurrency=[4], runner=runners, duration=seconds, warmup=0.1, repeats=3)
    print(table(report))
    plots = Path(tempfile.gettempdir()) / "asynctask-measure.html"
    plots.write_text(page(report))
    print(f"\nwith plots: {plots}\n")

    print("A stall of 0.2 s after every 49 short calls:")
    stalled = measure(stalls(), concurrency=[1], rate=[100], arrivals="constant", duration=1, warmup=0, repeats=1)
    for one in stalled.cells:
        print(f"  {one.cell.load!s:<15} {share_over(one, 0.05):6.1%} of the calls took over 50 ms")


if __name__ == "__main__":
    main()
