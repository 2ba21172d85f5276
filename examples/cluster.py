"""The same script on this machine's processes, and on a cluster: one line says which.

Files of Python's own standard library are compressed, one run for each; a run that needs all the others adds up. With
an address, `DaskTaskRunner("tcp://scheduler:8786")`, the cluster may be one that you have.

    python examples/cluster.py                 # on Dask: pip install 'asynctask[dask]'
    python examples/cluster.py processes
    python examples/cluster.py ray             # pip install 'asynctask[ray]'
"""

import lzma
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from asynctask import DaskTaskRunner, ProcessPoolTaskRunner, RayTaskRunner, flow, task
from asynctask.errors import OptionError
from asynctask.options import TaskRunner

RUNNERS: dict[str, Callable[[], TaskRunner]] = {
    "processes": lambda: ProcessPoolTaskRunner(max_workers=2),
    "dask": lambda: DaskTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}),
    "ray": lambda: RayTaskRunner(init_kwargs={"num_cpus": 2, "include_dashboard": False}),
}


@task(retries=2, task_run_name="compress {path.name}")
def compress(path: Path) -> tuple[str, int, int, int]:
    """Its name, its size before and after, and the process that did it."""
    data = path.read_bytes()
    return path.name, len(data), len(lzma.compress(data)), os.getpid()


@task
def summary(found: list[tuple[str, int, int, int]]) -> str:
    before, after = sum(one[1] for one in found), sum(one[2] for one in found)
    tightest = min(found, key=lambda one: one[2] / one[1])
    share = sorted(Counter(one[3] for one in found).values())
    return (
        f"{len(found)} files, {before / 1e6:.1f} MB, compressed to {after / before:.0%}; best of all {tightest[0]}, to "
        f"{tightest[2] / tightest[1]:.0%}\nby {len(share)} processes: {' and '.join(map(str, share))} files"
    )


def main() -> None:
    name = sys.argv[1] if sys.argv[1:] else "dask"
    console = Console()
    try:
        runner = RUNNERS[name]()  # the one line
    except OptionError as error:
        console.print(f"{error}; on processes meanwhile")
        runner = RUNNERS["processes"]()

    @flow(task_runner=runner)
    def measure(files: list[Path]) -> str:
        return summary.submit(compress.map(files)).result()

    files = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    began = time.monotonic()
    console.print(measure(files))
    console.print(f"on {type(runner).__name__}, in {time.monotonic() - began:.1f} s with its start")


if __name__ == "__main__":  # Dask's workers import this file
    os.environ.setdefault("ASYNCTASK_STORE_URL", "memory://")
    main()
