"""Which store a URL means."""

from __future__ import annotations

import importlib
import os
import re

from ..errors import OptionError
from ..redact import shown
from ..secrets import masked_url
from ..settings import settings
from .base import Store
from .memory import MemoryStore

#: By scheme: where the class is, and how to install what it needs. They are imported when they are asked for: a
#: database driver takes longer to import than all the rest.
SCHEMES = {"sqlite": ("asynctask.stores.sqlite", "SQLiteStore")}

_stores: dict[str, Store] = {}


def open_store(store: Store | str | None) -> Store:
    """The store for a URL (one per URL in a process), or the store itself. Raises `OptionError`."""
    url = settings.values.store_url or default_url() if store is None else store
    if not isinstance(url, str):
        if isinstance(url, type) or not hasattr(url, "read_run"):
            raise OptionError(
                f"store must be a URL such as 'sqlite:///runs.db' or 'memory://', or a store, not {shown(url)}"
            )
        return url
    if url.startswith("memory://"):
        return _stores.setdefault(url, MemoryStore())
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:///..." for name in SCHEMES)
        raise OptionError(f"store {masked_url(url)!r} cannot be opened: there are memory://, memory://NAME and {known}")
    path = _path_of(url, rest)
    key = f"{scheme}:{os.path.realpath(path)}"
    found = _stores.get(key)
    if found is None:
        module, name = SCHEMES[scheme]
        found = _stores.setdefault(key, getattr(importlib.import_module(module), name)(path))
    return found


def default_url() -> str:
    """Where runs are kept when nothing is said: a file in the user's data folder, or in ASYNCTASK_HOME."""
    home = settings.values.home
    if home is None:
        import platformdirs  # 3 ms

        home = platformdirs.user_data_dir("asynctask", appauthor=False)
    return f"sqlite:///{os.path.join(os.path.expanduser(home), 'asynctask.db')}"


def _path_of(url: str, rest: str) -> str:
    """The path in `sqlite:///relative`, `sqlite:////absolute` or, as people write it, `sqlite:///absolute` with ~."""
    match = re.fullmatch(r"///(.+)", rest)
    if match is None or "\0" in url:
        raise OptionError(
            f"store {masked_url(url)!r} must name a file: sqlite:///runs.db in this folder, sqlite:////var/runs.db"
        )
    return os.path.expanduser(match[1])


def empty_stores() -> None:
    """In a forked child: stores with nothing open, and memory stores with the limits as they were set and no runs."""
    for url, store in _stores.items():
        copy = getattr(store, "empty_copy", None)
        if copy is not None:
            _stores[url] = copy()
