"""benchmarks/field.py: how peers are declared, timed and compared, and what becomes of one that breaks.

Peers here are small files in a folder of the test's own, beside a copy of the harness; nothing is fetched.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "peers"))

import harness
from comparison import budgets, charts, reports, tables
from comparison.peers import FOLDER, PeerError, read_peer, read_peers
from comparison.results import WORKS, Cell, cell_of, leaders
from comparison.rounds import Told

ROOT = Path(__file__).parents[1]
GOOD = '''"""A peer that works. It keeps nothing."""
from harness import main, workload

TITLE = "Good"
VARIANTS = {"": "runs", "other": "nothing"}
IMPORT = "import json"
ABSENT = {"hit/other": "not that one", "others": "it has little"}

@workload("awaited")
async def awaited(count: int) -> None:
    pass

@workload("hit", variants=("",))
def hit():
    yield lambda count: None

if __name__ == "__main__":
    main()
'''


def field(*arguments: str, peers: Path, out: Path, **variables: str) -> tuple[dict[str, Any], str]:
    """Run the command; what it wrote, and what it said."""
    shutil.copy(FOLDER / "harness.py", peers)
    command = [sys.executable, str(ROOT / "benchmarks" / "field.py"), "--peers", str(peers), "--out", str(out)]
    given = {"PATH": "", "PYTHONPATH": str(ROOT), "ASYNCTASK_FIELD_HOME": str(out / "home"), **variables}
    done = subprocess.run(
        [*command, "--rounds", "1", "--budget", "0.01", *arguments],
        env={**os.environ, **given}, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((out / "field.json").read_text()), done.stdout + done.stderr


def told(found: dict[str, Any], work: str) -> dict[str, str]:
    """Of each peer its word on a work, `measured` where it has figures."""
    return {cell["label"]: cell.get("why", "measured") for cell in found["cells"] if cell["work"] == work}


# -- declarations -----------------------------------------------------------------------------------------------------


def test_every_peer_has_each_work_or_says_why_not() -> None:
    peers = read_peers()
    assert len(peers) >= 10
    owed = [
        f"{peer.name}: {work} of {variant or 'its only variant'}"
        for peer in peers
        for variant, its in peer.works.items()
        for work in WORKS
        if work not in its and work != "import" and peer.why_absent(work, variant) is None
    ]
    assert owed == []


def test_every_peer_says_how_it_is_set_up_and_pins_what_it_needs() -> None:
    for peer in read_peers():
        assert len(peer.about) > 60, peer.name
        assert "import" in peer.works[next(iter(peer.variants))], peer.name
        assert all("==" in requirement for requirement in peer.requirements or []), peer.name


def test_the_tables_have_every_work_of_the_harness() -> None:
    assert list(WORKS) == list(harness.KINDS)


def test_a_peer_is_read_without_being_imported(tmp_path: Path) -> None:
    file = tmp_path / "with_good.py"
    file.write_text(GOOD.replace("from harness", "import what_is_not_there\nfrom harness"))
    peer = read_peer(file)
    assert (peer.title, peer.about) == ("Good", "A peer that works. It keeps nothing.")
    assert peer.works == {"": ["awaited", "hit", "import"], "other": ["awaited"]}
    assert peer.why_absent("hit", "other") == "not that one"
    assert peer.why_absent("tree", "other") == "it has little"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (GOOD.replace('"other": "nothing"', '"other": "secrets"'), "VARIANTS must say"),
        (GOOD.replace("VARIANTS", "KINDS"), "VARIANTS must say"),
        (GOOD.replace('variants=("",)', 'variants=("third",)'), "which VARIANTS does not have"),
    ],
    ids=["keeps what nobody knows", "no variants", "a work of no variant"],
)
def test_a_wrong_declaration_is_refused(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "with_wrong.py").write_text(text)
    with pytest.raises(PeerError, match=word):
        read_peers(tmp_path)


def test_a_folder_without_peers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="has no"):
        read_peers(tmp_path)


# -- sizes: the harness, with a clock that is told what things cost ---------------------------------------------------


def counted(each: float, once: float = 0.0) -> tuple[list[int], Callable[..., Awaitable[float]]]:
    """A work of which each thing takes `each` seconds and each call `once`; and how many it was asked to do."""
    asked: list[int] = []

    async def timed(count: int, seconds: float = 0.0) -> float:
        asked.append(count)
        return once + each * count + seconds

    return asked, timed


@pytest.mark.parametrize(
    ("each", "count"), [(10e-6, 5_000), (0.9e-3, 1_000), (0.05, 10)], ids=["quick", "slower", "slow"]
)
@pytest.mark.asyncio
async def test_a_work_does_as_many_things_as_its_budget_allows(each: float, count: int) -> None:
    asked, timed = counted(each)
    found = await harness.repeated(timed, harness.EACH, 0.5)
    assert found["count"] == count
    assert all(us == pytest.approx(each * 1e6) for us in found["us"])
    assert sum(asked) * each < 4  # seconds, whatever it costs


@pytest.mark.asyncio
async def test_what_is_counted_is_repeated_for_a_median() -> None:
    _, timed = counted(10e-6)
    assert len((await harness.repeated(timed, harness.EACH, 0.5))["us"]) >= 3


@pytest.mark.asyncio
async def test_one_that_takes_seconds_is_measured_once() -> None:
    asked, timed = counted(0.2)
    found = await harness.repeated(timed, harness.EACH, 0.5)
    assert len(found["us"]) == 1
    assert len(asked) == 2  # the first one is the warm-up


@pytest.mark.parametrize(("each", "count"), [(20e-6, 10_000), (5e-3, 1_000), (0.1, 100)])
@pytest.mark.asyncio
async def test_as_many_sleep_as_a_peer_can_start_in_seconds(each: float, count: int) -> None:
    _, timed = counted(each)
    found = await harness.asleep(timed, harness.KINDS["asleep"], 0.5)
    assert found["count"] == count
    assert found["us"] == [pytest.approx(each * 1e6)]


@pytest.mark.asyncio
async def test_more_sleepers_than_a_peer_can_start_are_not_tried() -> None:
    asked, timed = counted(1e-3)
    with pytest.raises(harness.TooSlow, match="100,000 would take about 100 s"):
        await harness.asleep(timed, harness.KINDS["asleep, 100,000"], 0.5)
    assert max(asked) == 100


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_peer_is_measured_in_every_variant(tmp_path: Path) -> None:
    (tmp_path / "with_good.py").write_text(GOOD)
    found, said = field(peers=tmp_path, out=tmp_path / "out")
    assert told(found, "awaited") == {"Good": "measured", "Good, other": "measured"}
    assert told(found, "hit") == {"Good": "measured", "Good, other": "- not that one"}
    assert told(found, "import") == {"Good": "measured"}
    assert "Good, other" in said
    assert {"field.md", "field.svg", "field-awaited.svg"} <= {path.name for path in (tmp_path / "out").iterdir()}
    document = (tmp_path / "out" / "field.md").read_text()
    assert "- **Good** (runs), other (nothing): A peer that works." in document


BAD = """
import os, subprocess, sys, time
from harness import main, workload

TITLE = "Bad"
VARIANTS = {"": "runs"}
ABSENT = {"others": "it has little"}

@workload("chain")
def before(count):
    pass

@workload("hit")
def broken(count):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open(os.environ["PIDS"], "a").write(f"{child.pid} ")
    print("the last words", flush=True)
    BREAK

@workload("tree")
def after(count):
    pass

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("breaking", "word"),
    [
        ("time.sleep(600)", "failed: nothing for 3 s: the last words"),
        ("os._exit(7)", "failed: the process ended with 7: the last words"),
        ("raise ValueError('no  such\\n thing')", "failed: ValueError: no such thing"),
    ],
    ids=["hangs", "dies", "raises"],
)
def test_a_work_that_breaks_is_a_word_and_the_others_go_on(breaking: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "with_bad.py").write_text(BAD.replace("BREAK", breaking))
    pids = tmp_path / "pids"
    found, _ = field("--limit", "3", peers=tmp_path, out=tmp_path / "out", PIDS=str(pids))
    assert told(found, "hit") == {"Bad": word}
    assert told(found, "chain") == told(found, "tree") == {"Bad": "measured"}
    assert pids.read_text().split()
    assert [pid for pid in pids.read_text().split() if is_alive(pid)] == []


def is_alive(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_peer_whose_server_does_not_start_says_so_for_each_work(tmp_path: Path) -> None:
    session = (
        '@session\ndef server():\n    raise RuntimeError("needs a server on the path")\n    yield\n\n@workload("hit"'
    )
    text = GOOD.replace('@workload("hit"', session).replace("import main", "import main, session")
    (tmp_path / "with_bad.py").write_text(text)
    found, _ = field("--workload", "awaited", "--workload", "hit", peers=tmp_path, out=tmp_path / "out")
    word = "failed: RuntimeError: needs a server on the path"
    assert told(found, "awaited") == {"Good": word, "Good, other": word}
    assert told(found, "hit") == {"Good": word, "Good, other": "- not that one"}


def test_a_peer_that_cannot_be_installed_is_a_row_that_says_so(tmp_path: Path) -> None:
    wanted = f'REQUIREMENTS = ["nothing @ {(tmp_path / "nothing-1-py3-none-any.whl").as_uri()}"]\nIMPORT'
    (tmp_path / "with_absent.py").write_text(GOOD.replace("IMPORT", wanted).replace("Good", "Absent"))
    (tmp_path / "with_good.py").write_text(GOOD)
    found, said = field("--workload", "awaited", peers=tmp_path, out=tmp_path / "out")
    words = told(found, "awaited")
    assert words["Good"] == "measured"
    assert words["Absent"].startswith("not installed: ")
    assert words["Absent"] == words["Absent, other"]
    assert "Absent: not installed" in said
    assert "Absent: not installed" in (tmp_path / "out" / "field.md").read_text()


def test_a_peer_that_is_not_there_is_refused() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "field.py"), "--peer", "nobody"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert "no peer 'nobody'" in done.stderr


@pytest.mark.parametrize("work", ["awaited", "recorded"])
def test_a_quick_run_measures_us_and_the_floors(work: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "peers")
    found, _ = field("--quick", "--workload", work, peers=tmp_path / "peers", out=tmp_path / "out")
    words = told(found, work)
    assert all(word == "measured" or word.startswith("- ") for word in words.values()), words
    assert words["asynctask, SQLite"] == "measured"
    assert words["standard library" if work == "recorded" else "asyncio"] == "measured"
    assert "tenacity" not in words  # it needs an environment


# -- results and tables -----------------------------------------------------------------------------------------------


def cell(label: str, us: float, *, keeps: str = "runs", work: str = "awaited", **more: Any) -> Cell:
    peer = "with_asynctask" if label.startswith("asynctask") else f"with_{label}"
    variant = label.partition(", ")[2]
    shown = {"low": us, "high": us, "ratio": us / 10, "count": 5_000, "rounds": 3, **more}
    return Cell(peer, label, variant, keeps, work, us=us, **shown)


def names(cells: list[Cell]) -> list[str]:
    return [cell.label for cell in cells]


def test_rounds_come_to_their_median_and_their_spread(tmp_path: Path) -> None:
    (tmp_path / "with_good.py").write_text(GOOD)
    [peer] = read_peers(tmp_path)
    rounds = [Told("awaited", {"us": us, "floor_us": [9.0, 11.0], "count": 7}) for us in ([1, 2, 9], [40], [3, 3])]
    found = cell_of(peer, "", "awaited", [*rounds, Told("awaited", why="failed: once")])
    assert (found.us, found.low, found.high, found.ratio, found.count) == (3, 2, 40, 0.3, 7)
    assert found.rounds == 3
    once = cell_of(peer, "", "awaited", [Told("awaited", {"us": [5, 1, 4, 3, 99], "floor_us": [1, 1], "count": 7})])
    assert (once.us, once.low, once.high) == (4, 3, 5)
    broken = cell_of(peer, "", "awaited", [Told("awaited", why="failed: always")])
    assert (broken.why, broken.is_measured) == ("failed: always", False)


def test_first_is_the_fastest_of_those_that_keep_as_much() -> None:
    cells = [
        cell("asynctask", 5), cell("quick", 2, keeps="nothing"), cell("other", 9), cell("floor", 1, keeps="floor"),
        cell("asynctask, uvloop", 1), cell("durable", 70, keeps="disk"),
    ]  # fmt: skip
    assert names(leaders(cells, "awaited", keeping="nothing")) == ["quick"]
    assert names(leaders(cells, "awaited", keeping="runs")) == ["asynctask"]
    assert names(leaders(cells, "awaited", keeping="disk")) == ["durable"]
    assert tables.who_is_first(cells, "awaited") == "quick; **asynctask** of those that keep runs"


def test_those_whose_rounds_overlap_are_first_together() -> None:
    cells = [cell("asynctask", 5, low=4.9, high=5.4), cell("other", 5.3, low=5.2), cell("third", 5.6)]
    assert names(leaders(cells, "awaited", keeping="runs")) == ["asynctask", "other"]
    assert tables.who_is_first(cells, "awaited") == "**asynctask and other**"


def test_where_we_are_not_first_the_table_says_who_is() -> None:
    [*_, row] = tables.overview([cell("asynctask", 5), cell("other", 2)], ["awaited"]).splitlines()
    assert row == "| await a no-op, one after another | - | 5.0 | other | other 2.0 |"


def test_what_was_not_measured_stands_there_with_its_reason() -> None:
    broken = Cell("with_x", "x", "", "runs", "awaited", why="failed: ValueError: <no>")
    absent = Cell("with_y", "y", "", "runs", "awaited", why="- it has none")
    assert "x: failed" in tables.overview([broken, absent], ["awaited"])
    shown = tables.of_each_work([broken, absent, cell("asynctask", 5)], ["awaited"])
    assert "- x: failed: ValueError: &lt;no&gt;" in shown
    assert "- y: it has none" in shown


def test_a_figure_of_fewer_than_the_work_is_about_says_so() -> None:
    assert tables.figure(cell("x", 15_000, work="chain", count=100)) == "15,000 (N=100)"
    assert tables.figure(cell("x", 15.06, work="asleep", count=10_000, bytes=1_600)) == "15, 1.6 kB"
    assert tables.figure(cell("x", 55_500, work="import", count=1, bytes=9_900_000)) == "56 ms, 9.9 MB"


def test_plots_show_everybody() -> None:
    cells = [cell("asynctask", 5), cell("<other>", 200), cell("floor", 1, keeps="floor")]
    for plot in (charts.bars(cells, "awaited"), charts.overview(cells, ["awaited"])):
        assert plot.count("asynctask") >= 2  # the key, and its bar or dot
        assert "&lt;other&gt;" in plot
        assert "<other>" not in plot


def test_results_survive_their_file(tmp_path: Path) -> None:
    (tmp_path / "with_good.py").write_text(GOOD)
    cells = [cell("asynctask", 5), Cell("with_x", "x", "", "runs", "awaited", why="- it has none")]
    found = reports.report(read_peers(tmp_path), cells, {"with_good": {"json": "1"}}, rounds=3, budget=0.5)
    reports.write(found, tmp_path / "out")
    assert reports.cells_of(reports.read(tmp_path / "out" / "field.json")) == cells


def test_the_page_gets_its_tables_and_keeps_its_words(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(reports.PAGE.read_text())
    found = {"cells": [], "date": "today", "rounds": 3, "machine": "a machine", "versions": {"python": "3"}}
    reports.write_page({**found, "budgets": []}, page)
    assert "today, 3 rounds, a machine; python 3." in page.read_text()
    row = budgets.row("core.py", "call", "await t()", "create_task", "0.7 x", "0.5 x", "over")
    reports.write_page({**found, "budgets": [row]}, page)
    assert "| core.py | call: await t() | create_task | 0.7 x | 0.5 x | **over** |" in page.read_text()
    assert page.read_text().splitlines()[0] == reports.PAGE.read_text().splitlines()[0]
    with pytest.raises(ValueError, match="field:table"):
        tables.between_marks("no place", "table", "")


def test_budgets_are_read_as_our_benchmarks_write_them() -> None:
    row = {"name": "call", "work": "await t()", "against": "a task", "bar": 0.7, "ratio": 0.523, "verdict": "within"}
    figures = [
        {"name": "pause", "what": "the longest", "value": 31.4159, "unit": "ms", "bar": 20.0},
        {"name": "told", "what": "only", "value": 1.0, "unit": "ms", "bar": None},
    ]
    first, second = budgets.read("store.py", {"rows": [row], "figures": figures})
    assert (first["bar"], first["measured"], first["word"]) == ("0.7 x", "0.523 x", "within")
    assert (second["bar"], second["measured"], second["word"]) == ("20 ms", "31.4 ms", "**over**")
