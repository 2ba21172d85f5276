"""All that a run of the field found, as data for JSON; and the files that are made of it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from asynctask.measuring.machine import this_machine, versions

from . import charts, tables
from .peers import Peer
from .results import WORKS, Cell, as_data

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"


def report(
    peers: list[Peer], cells: list[Cell], its_versions: dict[str, dict[str, str]], *, rounds: int, budget: float
) -> dict[str, Any]:
    """Everything, with when and on what it was measured."""
    machine = this_machine()
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": str(machine),
        "versions": versions(),
        "rounds": rounds,
        "budget_seconds": budget,
        "peers": [
            {
                "name": peer.name,
                "title": peer.title,
                "about": peer.about,
                "variants": peer.variants,
                "requirements": peer.requirements,
                "versions": its_versions[peer.name],
            }
            for peer in peers
        ],
        "cells": [as_data(cell) for cell in cells],
        "budgets": [],
    }


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def cells_of(found: dict[str, Any]) -> list[Cell]:
    return [Cell(**each) for each in found["cells"]]


def write(found: dict[str, Any], folder: Path) -> None:
    """`field.json`, `field.md` and the plots."""
    cells = cells_of(found)
    works = [work for work in WORKS if any(cell.work == work and not cell.is_absent for cell in cells)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "field.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "field.md").write_text(document(found, cells, works))
    (folder / "field.svg").write_text(charts.overview(cells, works))
    for work in works:
        (folder / tables.picture(work)).write_text(charts.bars(cells, work))


def document(found: dict[str, Any], cells: list[Cell], works: list[str]) -> str:
    measured = tables.measured_with(found)
    parts = [
        "# The field",
        "Written by `python benchmarks/field.py`; docs/benchmarks.md says how to read it.",
        measured,
    ]
    parts += ["![everybody](field.svg)", tables.overview(cells, works)]
    parts += ["## Each work", tables.of_each_work(cells, works)]
    parts += ["## Who was measured", "\n".join(tables.who_was_measured(found))]
    if found["budgets"]:
        parts += ["## Our own budgets", tables.budgets(found["budgets"])]
    return "\n\n".join(parts) + "\n"


def write_page(found: dict[str, Any], page: Path = PAGE) -> None:
    """Put the tables into the page of the documentation; a report without budgets leaves those that are there."""
    cells = cells_of(found)
    works = [work for work in WORKS if any(cell.work == work and not cell.is_absent for cell in cells)]
    text = page.read_text()
    parts = [tables.overview(cells, works), "![everybody, by work](../benchmarks/results/field.svg)"]
    text = tables.between_marks(text, "table", "\n\n".join([*parts, tables.measured_with(found)]))
    if found["budgets"]:
        text = tables.between_marks(text, "budgets", tables.budgets(found["budgets"]))
    page.write_text(text)
