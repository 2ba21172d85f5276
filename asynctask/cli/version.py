"""`asynctask version`."""

from __future__ import annotations

import platform
import sys

from .show import document, out


def version(*, json: bool = False) -> int:
    """Show the version of asynctask, and of what it runs on.

    Args:
        json: Print a JSON document.
    """
    # Read from where it stands: the package itself is the roof, which nothing imports, and asking for the metadata
    # of an installed package takes 20 ms.
    number: str = sys.modules["asynctask"].__version__
    if json:
        document({"version": number, "python": platform.python_version(), "platform": sys.platform})
    else:
        out(f"asynctask {number} (Python {platform.python_version()}, {sys.platform})")
    return 0
