"""How long commands take to start, against a trivial command of cyclopts: `python benchmarks/cli.py [--rounds N]`.

All of them are started in turn, again and again, in one run: what else the machine does falls on all alike. What is
compared is the processor time of the process, its threads included, which other people's work disturbs least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRIVIAL = """
from cyclopts import App

app = App(name="trivial")


@app.command
def hello(name: str = "world"):
    print(name)


app()
"""
RECORDED = """
from asynctask import task


@task
def double(number):
    return number * 2


for number in range(100):
    double(number)
"""
#: The bar for `version` and `runs ls`, as a ratio to the trivial command.
BAR = 1.5


def cost_of(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of the processor, and of the clock."""
    start = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command} ended with {child.returncode}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        trivial = Path(folder, "trivial.py")
        trivial.write_text(TRIVIAL)
        recorded = Path(folder, "recorded.py")
        recorded.write_text(RECORDED)
        environment = {
            **os.environ,
            "ASYNCTASK_STORE_URL": f"sqlite:///{folder}/runs.db",
            # Bytecode is kept, whatever this environment says: a package being worked on must not pay for compiling.
            "PYTHONPYCACHEPREFIX": f"{folder}/bytecode",
            "PYTHONDONTWRITEBYTECODE": "",
        }
        subprocess.run([sys.executable, str(recorded)], env=environment, check=True)
        ours = [sys.executable, "-m", "asynctask"]
        commands = {
            "a trivial command of cyclopts": [sys.executable, str(trivial), "hello"],
            "a bare interpreter": [sys.executable, "-c", "pass"],
            "import asynctask": [sys.executable, "-c", "import asynctask"],
            "asynctask version": [*ours, "version"],
            "asynctask runs ls": [*ours, "runs", "ls"],
            "asynctask runs ls, no store yet": [*ours, "runs", "ls"],
            "asynctask runs ls --json": [*ours, "runs", "ls", "--json"],
            "asynctask config view": [*ours, "config", "view"],
            "asynctask --help": [*ours, "--help"],
        }
        nowhere = {**environment, "ASYNCTASK_STORE_URL": f"sqlite:///{folder}/none.db"}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(cost_of(command, nowhere if "no store" in name else environment))
    base = statistics.median(cost for cost, _ in times["a trivial command of cyclopts"])
    print(f"{'':<34}{'processor':>13}{'ratio':>7}{'clock':>10}")
    for name, found in times.items():
        cost = statistics.median(cost for cost, _ in found)
        clock = statistics.median(clock for _, clock in found)
        bar = f"  (at most {BAR})" if name in ("asynctask version", "asynctask runs ls") else ""
        print(f"{name:<34}{cost * 1000:10.0f} ms{cost / base:7.2f}{clock * 1000:7.0f} ms{bar}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
