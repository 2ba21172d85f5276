"""An environment for each peer: made once, kept while its requirements and the Python stay the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import platformdirs

from .peers import Peer

#: Seconds in which a peer has to be installed.
INSTALL_SECONDS = 600


class NotInstalled(Exception):
    """A peer's environment could not be made; the message says why, in one line."""


def home() -> Path:
    """Where environments are kept: ASYNCTASK_FIELD_HOME, or a folder among the user's caches."""
    given = os.environ.get("ASYNCTASK_FIELD_HOME")
    return Path(given) if given else platformdirs.user_cache_path("asynctask") / "field"


def python_of(peer: Peer) -> Path:
    """The interpreter that has what the peer needs. Raises `NotInstalled`."""
    if peer.requirements is None:
        return Path(sys.executable)
    wanted = "\n".join([sys.version, *peer.requirements])
    folder = home() / f"{peer.name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    finished = folder / "finished"
    if not finished.exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier attempt left
        folder.parent.mkdir(parents=True, exist_ok=True)
        make(folder, python, peer.requirements)
        finished.write_text(wanted + "\n")
    return python


def make(folder: Path, python: Path, requirements: list[str]) -> None:
    """By uv where it is on the path, which takes seconds; else by the standard library and pip."""
    if uv := shutil.which("uv"):
        run(uv, "venv", "--quiet", "--python", sys.executable, str(folder))
        run(uv, "pip", "install", "--quiet", "--python", str(python), *requirements)
    else:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
        run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)


def run(*command: str) -> None:
    surroundings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            command, env=surroundings, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from error
    if done.returncode != 0:
        lines = [" ".join(line.split()) for line in done.stderr.splitlines()]
        errors = [
            line for line in lines if line.startswith("ERROR")
        ]  # the last one is pip's verdict; uv says it in many
        why = errors[-1] if errors else " ".join(lines).strip()[-300:]
        raise NotInstalled(why or f"{command[0]} ended with {done.returncode}")
