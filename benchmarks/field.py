"""The same works for us, for our peers and for the floor under all: python benchmarks/field.py

Each peer runs in an environment of its own, made at first and kept; `uv` makes it in seconds where it is on the path.
Rounds go over all peers in turn. The results are in benchmarks/results; docs/benchmarks.md has the table, and says what
is measured and how.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from comparison import budgets, reports, tables
from comparison.environments import NotInstalled, python_of
from comparison.peers import FOLDER, Peer, PeerError, read_peers
from comparison.results import WORKS, Cell, cell_of
from comparison.rounds import Order, Told, measure

#: What each peer told of each work of each variant, round by round; and the versions of its packages.
Tellings = dict[tuple[str, str, str], list[Told]]
Versions = dict[str, dict[str, str]]
#: Works that are measured in the first round only: each process of theirs is new, so there is nothing to wait out.
ONCE = ("asleep", "import")
#: What `--quick` measures: small, and only what needs no environment of its own.
QUICK = Order(budget=0.02, most=100, limit=30.0)


def main() -> int:
    """0 when every peer was tried, 2 for wrong use. That a peer breaks is a result like any other."""
    given = read_options()
    if given.again:
        found = reports.read(reports.RESULTS / "field.json")
        reports.write(found, reports.RESULTS)
        reports.write_page(found)
        return 0
    try:
        peers = chosen(read_peers(given.peers), given)
    except PeerError as error:
        print(error, file=sys.stderr)
        return 2
    works = given.workload or [work for work in WORKS if not (given.quick and work.startswith("asleep"))]
    order = QUICK if given.quick else Order(budget=given.budget, limit=given.limit)
    rounds = 1 if given.quick else given.rounds
    told, versions = run(peers, works, rounds, order)
    cells = cells_of(peers, told, works)
    print(tables.plain(cells, works))
    is_whole = not (given.peer or given.workload or given.quick or given.peers != FOLDER)
    if given.out or is_whole:
        found = reports.report(peers, cells, versions, rounds=rounds, budget=order.budget)
        if given.budgets == "yes" or (is_whole and given.budgets is None):
            found["budgets"] = budgets.measure(quick=False)
        reports.write(found, given.out or reports.RESULTS)
        if not given.out:
            reports.write_page(found)
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--peer", action="append", metavar="NAME", help="only this one, say prefect; may be repeated")
    parser.add_argument("--workload", action="append", choices=list(WORKS), metavar="NAME", help="only this; repeat")
    parser.add_argument("--rounds", type=int, default=3, help="how often each work is measured (3)")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds for one work in one round, about (0.3)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a work is killed (60)")
    parser.add_argument("--quick", action="store_true", help="one small round of what is installed here: us, floors")
    parser.add_argument(
        "--budgets", choices=["yes", "no"], help="our own budgets too; by default with all of the field"
    )
    parser.add_argument("--again", action="store_true", help="measure nothing: tables and plots of the last results")
    parser.add_argument("--peers", type=Path, default=FOLDER, metavar="FOLDER", help="where the files of peers are")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where results go; by default benchmarks/results for all, else nowhere",
    )
    return parser.parse_args()


def chosen(peers: list[Peer], given: argparse.Namespace) -> list[Peer]:
    names = {peer.name.partition("_")[2]: peer for peer in peers} | {peer.name: peer for peer in peers}
    for name in given.peer or []:
        if name not in names:
            known = ", ".join(peer.name.partition("_")[2] for peer in peers)
            raise PeerError(f"there is no peer {name!r}; there are {known}")
    wanted = [names[name] for name in given.peer] if given.peer else peers
    return [peer for peer in wanted if not given.quick or peer.requirements is None]


def run(peers: list[Peer], works: list[str], rounds: int, order: Order) -> tuple[Tellings, Versions]:
    """Round after round over all peers."""
    told: Tellings = defaultdict(list)
    versions: Versions = {peer.name: {} for peer in peers}
    pythons: dict[str, Path] = {}
    for peer in peers:
        try:
            pythons[peer.name] = python_of(peer)
        except NotInstalled as error:
            say(f"{peer.title}: not installed: {error}")
            for variant, its in peer.works.items():
                for work in its:
                    told[peer.name, variant, work].append(Told(work, why=f"not installed: {error}"))
    for turn in range(1, rounds + 1):
        for peer in peers:
            for variant, its in peer.works.items():
                wanted = [work for work in its if work in works and (turn == 1 or not work.startswith(ONCE))]
                if peer.name not in pythons or not wanted:
                    continue
                say(f"round {turn} of {rounds}: {peer.label(variant)}")
                for each in measure(peer, variant, wanted, pythons[peer.name], order, versions[peer.name]):
                    told[peer.name, variant, each.work].append(each)
    return told, versions


def cells_of(peers: list[Peer], told: Tellings, works: list[str]) -> list[Cell]:
    return [
        cell_of(peer, variant, work, told.get((peer.name, variant, work), []))
        for work in works
        for peer in peers
        for variant in peer.variants
        if work != "import" or variant == next(iter(peer.variants))
    ]


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
