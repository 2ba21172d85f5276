"""All rounds of all peers: medians, ratios to the floor, and who is first among those that do the same."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from .peers import KEEPS, Peer
from .rounds import Told

#: How the word begins for what a peer has not.
ABSENT = "- "

#: Variants that never are first: what another loop gains or costs, it would for each peer that runs on it.
OTHER_LOOPS = ("uvloop", "trio")

#: The works, in the order of the tables.
WORKS = {
    "awaited": "await a no-op, one after another",
    "submitted": "submit N no-ops, await all",
    "mapped": "map over N numbers, await all",
    "threads": "N sync no-ops on threads",
    "processes": "N sync no-ops in two processes",
    "megabyte": "1 MB of bytes to another process and back",
    "hit": "a cached result",
    "recorded": "a no-op, recorded on disk to the last one",
    "asleep": "10,000 asleep for 1 s, beyond that second",
    "asleep, 100,000": "100,000 asleep for 3 s, beyond these",
    "limited": "2,000 of 1 ms under a limit of 10",
    "chain": "a chain of 1,000, each of the result before",
    "tree": "a tree of 1,024 leaves, for each leaf",
    "retry": "a retry wrapper, success at once",
    "import": "import, in a new interpreter",
}


class Cell(NamedTuple):
    """One work of one variant of a peer, over all rounds: figures, or a word why there are none."""

    peer: str
    label: str
    variant: str
    keeps: str
    work: str
    why: str = ""
    #: Microseconds for each thing: the median of the rounds' medians, and the least and the greatest of those.
    us: float = 0.0
    low: float = 0.0
    high: float = 0.0
    #: `us` over the floor of the same process, the median of the rounds.
    ratio: float = 0.0
    #: How many things at once; bytes of memory for each, where they were measured.
    count: int = 0
    bytes: int | None = None
    rounds: int = 0

    @property
    def is_ours(self) -> bool:
        return self.peer == "with_asynctask"

    @property
    def is_floor(self) -> bool:
        return self.keeps == "floor"

    @property
    def is_measured(self) -> bool:
        return not self.why

    @property
    def is_absent(self) -> bool:
        """Whether the peer has no such thing; otherwise it is measured, or broke."""
        return self.why.startswith(ABSENT)


def cell_of(peer: Peer, variant: str, work: str, told: list[Told]) -> Cell:
    """What the rounds of one work come to. One that failed in some rounds only is told by those in which it did not."""
    cell = Cell(peer.name, peer.label(variant), variant, peer.variants[variant], work)
    found = [each.figures for each in told if each.figures is not None]
    if not found:
        return cell._replace(
            why=told[-1].why if told else f"{ABSENT}{peer.why_absent(work, variant) or 'not declared'}"
        )
    medians = [statistics.median(figures["us"]) for figures in found]
    # Of one round only, how far the middle half of its repeats is apart.
    repeats = sorted(found[0]["us"])
    spread = medians if len(medians) > 1 else repeats[len(repeats) // 4 : len(repeats) - len(repeats) // 4]
    floors = [statistics.fmean(figures["floor_us"]) for figures in found]
    sizes = [figures["bytes"] for figures in found if "bytes" in figures]
    return cell._replace(
        us=statistics.median(medians),
        low=min(spread),
        high=max(spread),
        ratio=statistics.median(us / floor for us, floor in zip(medians, floors, strict=True)),
        count=found[-1]["count"],
        bytes=round(statistics.median(sizes)) if sizes else None,
        rounds=len(found),
    )


def ranked(cells: list[Cell], work: str) -> list[Cell]:
    """Those that have measured it, fastest first; floors are not among them."""
    return sorted((cell for cell in cells if cell.work == work and cell.is_measured and not cell.is_floor), key=speed)


def floors(cells: list[Cell], work: str) -> list[Cell]:
    return sorted((cell for cell in cells if cell.work == work and cell.is_measured and cell.is_floor), key=speed)


def speed(cell: Cell) -> float:
    return cell.us


def leaders(cells: list[Cell], work: str, *, keeping: str) -> list[Cell]:
    """Who is first of those that keep at least as much of a run: the fastest, and those whose rounds reach into its."""
    enough = list(KEEPS)[: list(KEEPS).index(keeping) + 1]
    rivals = [cell for cell in ranked(cells, work) if cell.keeps in enough and cell.variant not in OTHER_LOOPS]
    return [cell for cell in rivals if cell is rivals[0] or cell.low <= rivals[0].high]


def as_data(cell: Cell) -> dict[str, Any]:
    data = {name: value for name, value in cell._asdict().items() if value is not None}
    if cell.why:
        return {name: data[name] for name in ("peer", "label", "variant", "keeps", "work", "why")}
    data |= {name: round(data[name], 3) for name in ("us", "low", "high", "ratio")}
    return {name: value for name, value in data.items() if name != "why"}
