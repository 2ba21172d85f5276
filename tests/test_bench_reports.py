"""Reports: medians, noise, comparisons, JSON, tables and pages, from rounds whose figures are known."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asynctask.bench import (
    Cell,
    Change,
    Closed,
    Gauges,
    Histogram,
    Machine,
    Open,
    Plan,
    Report,
    Round,
    RunFigures,
    WorkFigures,
    compare,
    differences,
    page,
    read_report,
    table,
)
from asynctask.errors import BenchmarkError
from asynctask.measuring.machine import this_machine, versions
from asynctask.measuring.reports import cell_report
from asynctask.measuring.tables import seconds

ONE, EIGHT = Cell("asyncio", "loop", Closed(1)), Cell("asyncio", "loop", Closed(8))
HUNDRED = Cell("trio", "threads", Open(100.0, "poisson"))
MACHINE = Machine(system="Linux", processor="a processor", processors=2, memory_bytes=8_000_000_000, load=0.1)


def round_of(throughput: float, latency: float, **changes: Any) -> Round:
    """A round of one second; all calls but a hundredth took `latency` seconds, those ten times as long."""
    histogram = Histogram()
    for number in range(1000):
        histogram.record(int(latency * 1e9 * (10 if number % 100 == 0 else 1)))
    work = WorkFigures(name="work", latency=histogram, succeeded=round(throughput), errors=changes.pop("errors", {}))
    gauges = Gauges(lag=Histogram(), cpu_seconds=0.5, seconds=1.0, memory_peak=50_000_000)
    gauges.seconds_without_processor = changes.pop("starved", 0.0)
    return Round(
        seconds=1.0,
        works=changes.pop("works", [work]),
        runs=changes.pop("runs", RunFigures()),
        gauges=gauges,
        overhead_seconds=1e-6,
        lateness=Histogram(),
        **changes,
    )


def report_of(*cells: tuple[Cell, list[Round]], **changes: Any) -> Report:
    values: dict[str, Any] = {
        "target": "module:work",
        "date": "2026-11-21T12:00:00+00:00",
        "versions": {"python": "3.11.7", "asynctask": "0.1.0"},
        "machine": MACHINE,
        "plan": Plan(duration=1.0, repeats=len(cells[0][1])),
        "cells": [cell_report(cell, rounds) for cell, rounds in cells],
    }
    return Report(**{**values, **changes})


def steady(factor: float = 1.0, **changes: Any) -> list[Round]:
    """Three rounds within one percent."""
    return [round_of(1000 / factor * near, 0.001 * factor * near, **changes) for near in (0.99, 1.0, 1.01)]


# -- medians, spread, noise --


def test_a_figure_is_the_median_of_the_rounds_and_its_spread_their_quartiles_distance():
    rounds = [round_of(throughput, 0.001) for throughput in (100, 140, 120, 400, 110)]
    figure = cell_report(ONE, rounds).figures["throughput"]
    assert (figure.median, figure.rounds) == (120, [100, 140, 120, 400, 110])
    assert figure.spread == (140 - 110) / 120


def test_a_single_round_has_no_spread_and_no_verdict():
    found = cell_report(ONE, [round_of(100, 0.001)])
    assert (found.figures["throughput"].spread, found.is_noisy) == (None, None)


@pytest.mark.parametrize(
    ("cell", "rounds", "is_noisy"),
    [
        (ONE, steady(), False),
        (ONE, [round_of(rate, 0.001) for rate in (100, 110, 125)], True),
        (ONE, [round_of(100, latency) for latency in (0.001, 0.0011, 0.0013)], True),
        (HUNDRED, [round_of(rate, 0.001) for rate in (80, 100, 120)], False),
        (HUNDRED, [round_of(100, latency) for latency in (0.001, 0.0011, 0.0013)], True),
    ],
    ids=["steady", "throughput varies", "latency varies", "the rate varies by chance", "its latency varies"],
)
def test_a_line_whose_rounds_are_a_tenth_apart_is_noisy(cell: Cell, rounds: list[Round], is_noisy: bool):
    assert cell_report(cell, rounds).is_noisy is is_noisy
    assert ("noisy" in table(report_of((cell, rounds)))) is is_noisy


def test_a_line_whose_processor_others_had_is_told():
    text = table(report_of((ONE, steady(starved=0.2))))
    assert "busy: for over 5 % of the time" in text
    assert "20%" in text
    assert "busy" not in table(report_of((ONE, steady(starved=0.01))))


def test_what_makes_figures_lower_bounds_is_told():
    [closed] = report_of((HUNDRED, [round_of(50, 0.001, held_back=7, not_started=3)] * 2)).cells
    assert closed.notes == [
        "14 of 2,000 calls waited because too many were in flight; their latency has that",
        "the rate was not reached: of 2,000 calls that were to begin, 100 were over in time",
        "6 calls were never started; quantiles are lower bounds",
    ]


def test_errors_are_those_of_all_rounds_and_their_share_is_of_calls():
    report = report_of((ONE, [round_of(900, 0.001, errors={"OSError": 80, "KeyError": 20})] * 3))
    assert report.cells[0].errors == {"OSError": 240, "KeyError": 60}
    assert report.cells[0].figures["errors"].median == 0.1
    assert "300 (10.0%)" in table(report)
    assert "asyncio, loop, 1 client: 240 x OSError, 60 x KeyError" in table(report)


def test_the_table_has_what_runs_tell_and_each_work_of_several():
    runs = RunFigures(runs=200, retries=7, cached=50, seconds_waiting_for_limits=3.0, seconds_running=1.5)
    works = [
        WorkFigures(name=name, latency=round_of(1, 0.001).works[0].latency, succeeded=500) for name in ("read", "write")
    ]
    text = table(report_of((ONE, [round_of(1000, 0.001, runs=runs, works=works)] * 2)))
    of_works = [line.split()[4:6] for line in text.splitlines() if " read " in line or " write " in line]
    assert of_works == [["read", "2,000"], ["write", "2,000"]]
    for told in ("400", "14", "100 (25%)", "6 s", "3 s", "50 MB"):
        assert told in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1e-9, "1 ns"),
        (999.4e-9, "999 ns"),
        (1e-6, "1 us"),
        (12.345e-6, "12.3 us"),
        (0.9996e-3, "1 ms"),
        (0.25, "250 ms"),
        (0.9999, "1 s"),
        (12.34, "12.3 s"),
        (1234.5, "1,234 s"),
    ],
)
def test_a_duration_has_three_digits_and_its_unit(value: float, text: str):
    assert seconds(value) == text


# -- comparisons --


def verdicts(before: list[Round], after: list[Round], cell: Cell = ONE) -> dict[str, Change]:
    found = compare(report_of((cell, before)), report_of((cell, after)))
    return {one.figure: one for one in found}


def test_a_change_beyond_the_noise_of_both_is_better_or_worse():
    found = verdicts(steady(), steady(1.2))
    assert {name: one.verdict for name, one in found.items()} == {
        "throughput": "worse",
        "p50": "worse",
        "p99": "worse",
        "errors": "within the noise",
    }
    assert found["p50"].change == pytest.approx(0.2, abs=0.01)
    assert found["throughput"].change == pytest.approx(-1 / 6, abs=0.01)
    assert {one.verdict for one in verdicts(steady(), steady(0.8)).values()} == {"better", "within the noise"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (steady(), steady()),
        (steady(), steady(1.005)),
        ([round_of(1000, latency) for latency in (0.001, 0.0012, 0.0014)], steady(1.3)),
    ],
    ids=["the same", "rounds overlap", "one side is noisy"],
)
def test_a_change_that_the_rounds_do_not_carry_is_noise(before: list[Round], after: list[Round]):
    assert verdicts(before, after)["p50"].verdict == "within the noise"
    assert verdicts(after, before)["p50"].verdict == "within the noise"


def test_of_a_single_round_nothing_can_be_said():
    found = verdicts(steady(), [round_of(10, 1.0)])
    assert {(one.verdict, one.noise) for one in found.values()} == {("unknown", None)}
    assert not any(one.is_worse_by(0.0) for one in found.values())


def test_only_what_is_worse_by_more_than_is_allowed_counts():
    found = verdicts(steady(), steady(1.2))
    assert found["p50"].is_worse_by(0.1)
    assert not found["p50"].is_worse_by(0.3)
    assert not any(one.is_worse_by(0.1) for one in verdicts(steady(), steady(0.5)).values())


def test_errors_that_were_not_there_before_are_worse_by_their_share():
    found = verdicts(steady(), steady(errors={"OSError": 250}))["errors"]
    assert (found.verdict, found.change, found.before) == ("worse", 0.25, 0.0)
    assert verdicts(steady(errors={"OSError": 250}), steady())["errors"].verdict == "better"


def test_lines_are_compared_by_loop_runner_and_load_and_others_are_told():
    before = report_of((ONE, steady()), (EIGHT, steady()))
    after = report_of((EIGHT, steady()), (HUNDRED, steady()))
    assert {one.cell for one in compare(before, after)} == {EIGHT}
    assert differences(before, after) == ["2 lines are in one of the reports only"]


def test_what_else_is_different_is_told():
    before = report_of((ONE, steady()))
    after = report_of(
        (ONE, steady()),
        machine=msgspec.structs.replace(MACHINE, processors=8, load=3.0),
        versions={"python": "3.12.1", "asynctask": "0.1.0", "trio": "0.35"},
        args={"n": "10"},
        plan=Plan(duration=2.0),
    )
    assert differences(before, before) == []
    assert differences(before, after) == [
        "another machine: processors was 2, is 8",
        "another version: python was 3.11.7, is 3.12.1",
        "another version: trio was none, is 0.35",
        "another target: it was module:work, is module:work(n=10)",
        "another plan: duration was 1.0, is 2.0",
    ]


# -- documents --


def test_a_report_is_the_same_when_it_is_read_again(tmp_path: Path):
    report = report_of((ONE, steady(errors={"OSError": 1})), (HUNDRED, steady()), machine=this_machine())
    (tmp_path / "report.json").write_bytes(report.to_json())
    assert read_report(tmp_path / "report.json") == report
    document = msgspec.json.decode(report.to_json())
    assert document["cells"][1]["cell"] == {
        "loop": "trio",
        "runner": "threads",
        "load": {"kind": "open", "rate": 100.0, "arrivals": "poisson"},
    }
    assert document["cells"][0]["figures"]["throughput"]["median"] == 1000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no report of asynctask bench"),
        ('{"cells": 3}', "is no report of asynctask bench"),
    ],
)
def test_what_is_no_report_is_told(tmp_path: Path, content: str | None, told: str):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(BenchmarkError, match=told):
        read_report(tmp_path / "report.json")


def test_a_report_of_another_format_is_told(tmp_path: Path):
    (tmp_path / "report.json").write_bytes(report_of((ONE, steady()), format=99).to_json())
    with pytest.raises(BenchmarkError, match="has format 99; this version reads 1"):
        read_report(tmp_path / "report.json")


def test_versions_and_machine_are_those_of_this_process():
    import platform

    assert versions()["python"] == platform.python_version()
    assert {"asynctask", "anyio"} <= versions().keys()
    assert this_machine().processors >= 1
    assert this_machine().memory_bytes > 0


class Page(HTMLParser):
    """Reads a page: that every tag is closed, what is drawn, what is written, what it would load."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href") or tag == "script"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def test_the_page_is_whole_loads_nothing_and_has_the_numbers_and_the_plots():
    report = report_of((ONE, steady()), (EIGHT, steady(2)), (HUNDRED, steady(errors={"OSError": 100})))
    source = page(report, compare(report, report))
    found = Page(source)
    assert found.loads == []
    assert "url(" not in source
    assert "@import" not in source
    assert found.tags.count("svg") == 4, "throughput, latency by concurrency and by rate, its distribution"
    for told in (
        "1,000",
        "500",
        "1 ms",
        "2 ms",
        "300 (10.0%)",
        "module:work",
        "within the noise",
        "300 x OSError",
        "8.0 GB",
    ):
        assert any(told in text for text in found.text), told
    assert any("asyncio, loop, 8 clients: 2 ms" in text for text in found.text), "what a point is, when pointed at"


def test_a_name_on_the_page_is_only_text():
    source = page(report_of((ONE, steady()), target="<script>alert(1)</script>", notes=["a & b <i>"]))
    assert "<script" not in source
    assert "a &amp; b &lt;i&gt;" in source
    Page(source)


def test_a_page_of_rounds_in_which_nothing_succeeded_can_be_drawn():
    nothing = WorkFigures(name="work", latency=Histogram())
    Page(page(report_of((ONE, [round_of(0, 0.001, works=[nothing])]), (HUNDRED, [round_of(0, 0.001)]))))
