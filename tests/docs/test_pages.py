"""The programs on README.md and docs/guide.md run, and print what the page says after `#>`."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/guide.md")


def programs(page: str) -> Iterator[tuple[str, str]]:
    """The heading and the Python of each section; in README every block is a program of its own."""
    text = (ROOT / page).read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading = section.splitlines()[0]
        blocks = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        if page == "README.md":
            yield from ((f"{heading}, {place}", block) for place, block in enumerate(blocks, 1))
        elif blocks:
            yield heading, "\n".join(blocks)


def promised(program: str) -> list[str]:
    return re.findall(r"^#> ?(.*)$", program, flags=re.MULTILINE)


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "program.py"
    file.write_text(program)
    command = [sys.executable, "-W", "error", str(file)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize(
    "program", [pytest.param(code, id=f"{page}: {heading}") for page in PAGES for heading, code in programs(page)]
)
def test_a_program_on_a_page_prints_what_the_page_says(program: str, tmp_path: Path) -> None:
    assert promised(program), "the page does not say what this prints"
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == promised(program)


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "docs/architecture.md", "docs/benchmarks.md"])
def test_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text())
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing
    assert links or page == "docs/architecture.md"


@pytest.mark.parametrize(
    ("mark", "command"),
    [
        ("main", "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/python examples/stdlib_report.py"),
        ("test", "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/pytest -q"),
    ],
)
def test_the_commands_stand_where_ci_looks_for_them(mark: str, command: str) -> None:
    assert f"\n<!-- ci:{mark} -->\n```bash\n{command}\n```\n" in (ROOT / "README.md").read_text()


def test_every_example_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [path.name for path in (ROOT / "examples").glob("*.py") if path.name not in readme] == []


def test_a_program_that_prints_something_else_is_told(tmp_path: Path) -> None:
    """The check itself can fail: by what is printed, by an error, by a warning."""
    assert run("print(1)\n#> 2", tmp_path).stdout.splitlines() != promised("print(1)\n#> 2")
    assert run("raise ValueError", tmp_path).returncode != 0
    assert run("import warnings; warnings.warn('x')", tmp_path).returncode != 0
