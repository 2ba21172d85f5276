"""Commands in a process of their own (`command`), or in this one where many cases are cheap (`here`)."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from asynctask import settings
from asynctask.cli.main import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, with no setting from outside, and a store that is not there yet."""
    for name in [name for name in os.environ if name.startswith("ASYNCTASK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ASYNCTASK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    before = settings._values
    settings._values = None
    yield tmp_path
    settings._values = before


@pytest.fixture
def command(folder: Path) -> Callable[..., Done]:
    """`python -m asynctask ...`, with warnings as errors."""

    def run(*words: str, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "asynctask", *words],
            env={**os.environ, **environment}, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def here(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The same in this process; what a target changes in it is put back."""
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(sys, "argv", ["asynctask"])

    def run(*words: str) -> Done:
        settings._values = None
        known = set(sys.modules)
        try:
            code = main(words)
        finally:
            for name in set(sys.modules) - known:
                if not name.startswith(("asynctask", "cyclopts", "rich", "asyncio", "trio", "aiosqlite", "attr")):
                    file = getattr(sys.modules[name], "__file__", None) or ""
                    if file.startswith(str(folder)):
                        del sys.modules[name]
        told = capsys.readouterr()
        return Done(code, told.out, told.err)

    return run
