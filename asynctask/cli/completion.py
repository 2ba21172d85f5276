"""`asynctask completion`: what makes the Tab key know the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..errors import UsageError
from .main import application
from .show import note, out

Shell = Literal["bash", "zsh", "fish", "powershell"]


def completion(shell: Shell | None = None, /, *, install: bool = False, output: str | None = None) -> int:
    """Print the completion script for a shell, or install it.

    Args:
        shell: The shell; found out if it is left out.
        install: Write the script to where the shell looks for it, and have the shell's startup file load it.
        output: Install the script to this file, and change no startup file.
    """
    from cyclopts.completion import ShellDetectionError

    app = application()
    try:
        if install or output is not None:
            place = None if output is None else Path(output)
            path = app.install_completion(shell=shell, output=place, add_to_startup=output is None)
            note(f"asynctask: completion is in {path}; it works in shells that are opened from now on")
        else:
            out(app.generate_completion(shell=shell))
    except ShellDetectionError as error:
        raise UsageError("this shell is not known: name it, as in `asynctask completion bash`") from error
    return 0
