"""Which store a URL means."""

from __future__ import annotations

from ..errors import OptionError
from ..settings import settings
from .base import Store
from .memory import MemoryStore

_stores: dict[str, Store] = {}


def open_store(store: Store | str | None) -> Store:
    """The store for a URL (one per URL in a process), or the store itself. Raises `OptionError`."""
    url = settings.values.store_url if store is None else store
    if not isinstance(url, str):
        return url
    if not url.startswith("memory://"):
        raise OptionError(f"store {url!r} cannot be opened: this version has only memory:// (and memory://NAME)")
    return _stores.setdefault(url, MemoryStore())
