"""The budgets of our own benchmarks, measured by them and told in one table."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
FILES = ("core", "store", "limits", "runners", "streams")
#: Seconds after which one of them is given up.
LIMIT = 1_200


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """A row for each bar of each file; one that cannot be measured is a row that says so."""
    rows: list[dict[str, Any]] = []
    for name in FILES:
        print(f"budgets of {name}.py", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="asynctask-field-") as folder:
            told = Path(folder, "told.json")
            command = [sys.executable, str(FOLDER / f"{name}.py"), "--json", str(told), *(["--quick"] if quick else [])]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
                rows += read(f"{name}.py", json.loads(told.read_text()))
            except (subprocess.TimeoutExpired, OSError, ValueError) as error:
                lines = done.stderr.strip().splitlines() if isinstance(error, OSError) else []
                why = f"failed: {lines[-1] if lines else error}"
                rows.append(row(f"{name}.py", "all", "", "", "", "", why))
    return rows


def read(file: str, told: dict[str, Any]) -> list[dict[str, Any]]:
    """Its rows, which are ratios, and those of its figures that have a bar."""
    rows: list[dict[str, Any]] = []
    for each in told.get("rows", []):
        bar, measured = (f"{each[name]:.3g} x" for name in ("bar", "ratio"))
        rows.append(row(file, each["name"], each["work"], each["against"], bar, measured, each["verdict"]))
    for each in told.get("figures", []):
        if each["bar"] is not None:
            bar, measured = (f"{each[name]:,.3g} {each['unit']}" for name in ("bar", "value"))
            word = "within" if each["value"] <= each["bar"] else "over"
            rows.append(row(file, each["name"], each["what"], "", bar, measured, word))
    return rows


def row(file: str, name: str, what: str, against: str, bar: str, measured: str, word: str) -> dict[str, Any]:
    shown = f"**{word}**" if word.startswith(("over", "failed")) else word
    return {
        "file": file,
        "name": name,
        "what": what,
        "against": against,
        "bar": bar,
        "measured": measured,
        "word": shown,
    }
