"""The table "Where do I go?" of CONTRIBUTING.md names what there is, and every file of the package."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Files that nobody goes to with a change in mind: what they hold is decided elsewhere.
NOT_ASKED_FOR = {"__init__", "cli/__init__", "measuring/__init__", "stores/__init__", "stores/base", "stores/memory"}


def rows() -> list[tuple[list[str], list[str]]]:
    """The files and the tests of each row."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Where do I go?")[1].split("\n## ")[0]
    found = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [(re.findall(r"`([^`]+)`", files), re.findall(r"`([^`]+)`", tests)) for _, files, tests in found[1:]]


def test_every_file_and_test_that_it_names_exists() -> None:
    named = rows()
    assert len(named) > 20
    for files, tests in named:
        for file in files:
            assert (ROOT / "asynctask" / file).exists(), file
        for test in tests:
            assert (ROOT / "tests" / test).exists() or (ROOT / test).exists(), test


def test_every_file_of_the_package_is_in_it() -> None:
    named = {file.removesuffix(".py") for files, _ in rows() for file in files}
    package = ROOT / "asynctask"
    files = {path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py")}
    assert files - named - NOT_ASKED_FOR == set()
