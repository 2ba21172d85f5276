"""The same works for us, for our peers and for the floor under all: python benchmarks/field.py

Each peer runs in an environment of its own, made at first and kept; `uv` makes it in seconds where it is on the path.
Rounds go over all peers in turn. docs/benchmarks.md says what is measured, how, and what came of it.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from comparison.environments import NotInstalled, python_of
from comparison.peers import FOLDER, Peer, PeerError, read_peers
from comparison.results import WORKS, Cell, cell_of
from comparison.rounds import Order, Told, measure

#: What `--quick` measures: what needs no environment of its own, small.
QUICK = Order(budget=0.02, most=100, limit=30.0)


def main() -> int:
    """0 when every peer was tried, 2 for wrong use. That a peer breaks is a result like any other."""
    given = read_options()
    try:
        peers = chosen(read_peers(given.peers), given)
    except PeerError as error:
        print(error, file=sys.stderr)
        return 2
    order = QUICK if given.quick else Order(budget=given.budget, limit=given.limit)
    told, _versions = run(peers, given.workload or list(WORKS), 1 if given.quick else given.rounds, order)
    for cell in cells_of(peers, told, given.workload or list(WORKS)):
        print(cell)
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--peer", action="append", metavar="NAME", help="only this one, as its file is called; repeat")
    parser.add_argument(
        "--workload", action="append", choices=list(WORKS), metavar="NAME", help="only this one; repeat"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each work is measured (3)")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for one work in one round, about (0.5)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a work is killed (60)")
    parser.add_argument("--quick", action="store_true", help="one small round of what is installed here: us, floors")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go; by default benchmarks/results")
    parser.add_argument("--peers", type=Path, default=FOLDER, metavar="FOLDER", help="other files of peers")
    return parser.parse_args()


def chosen(peers: list[Peer], given: argparse.Namespace) -> list[Peer]:
    names = {peer.name.partition("_")[2]: peer for peer in peers} | {peer.name: peer for peer in peers}
    for name in given.peer or []:
        if name not in names:
            raise PeerError(f"there is no peer {name!r}; there are {', '.join(peer.name for peer in peers)}")
    wanted = [names[name] for name in given.peer] if given.peer else peers
    return [peer for peer in wanted if not given.quick or peer.requirements is None]


def run(
    peers: list[Peer], works: list[str], rounds: int, order: Order
) -> tuple[dict[tuple[str, str, str], list[Told]], dict[str, dict[str, str]]]:
    """Round after round over all peers. What each told by peer, variant and work; and the versions of its packages."""
    told: dict[tuple[str, str, str], list[Told]] = defaultdict(list)
    versions: dict[str, dict[str, str]] = {peer.name: {} for peer in peers}
    pythons: dict[str, Path] = {}
    for peer in peers:
        try:
            pythons[peer.name] = python_of(peer)
        except NotInstalled as error:
            print(f"{peer.title}: not installed: {error}", file=sys.stderr, flush=True)
            for variant, its in peer.works.items():
                for work in its:
                    told[peer.name, variant, work].append(Told(work, why=f"not installed: {error}"))
    for turn in range(1, rounds + 1):
        for peer in peers:
            for variant, its in peer.works.items():
                wanted = [work for work in its if work in works]
                if peer.name not in pythons or not wanted:
                    continue
                print(f"round {turn} of {rounds}: {peer.label(variant)}", file=sys.stderr, flush=True)
                for each in measure(peer, variant, wanted, pythons[peer.name], order, versions[peer.name]):
                    told[peer.name, variant, each.work].append(each)
    return told, versions


def cells_of(peers: list[Peer], told: dict[tuple[str, str, str], list[Told]], works: list[str]) -> list[Cell]:
    return [
        cell_of(peer, variant, work, told.get((peer.name, variant, work), []))
        for work in works
        for peer in peers
        for variant in peer.variants
        if work != "import" or variant == next(iter(peer.variants))
    ]


if __name__ == "__main__":
    sys.exit(main())
