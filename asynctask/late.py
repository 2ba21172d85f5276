"""Files that are imported when somebody first needs them, because few programs do, or because a database driver comes
with them: `late("results")` is `import asynctask.results`, and counts as that import for the law of floors."""

from __future__ import annotations

import importlib
from typing import Any


def late(file: str) -> Any:
    """The module of one of our files, by its path in the package with dots: "stores.sqlite"."""
    return importlib.import_module(f"asynctask.{file}")
