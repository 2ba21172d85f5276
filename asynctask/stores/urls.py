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
        if isinstance(url, type) or not hasattr(url, "read_run"):
            raise OptionError(f"store must be a URL such as 'memory://', or a store, not {url!r}")
        return url
    if not url.startswith("memory://"):
        raise OptionError(f"store {url!r} cannot be opened: this version has only memory:// (and memory://NAME)")
    return _stores.setdefault(url, MemoryStore())


def empty_stores() -> None:
    """In a forked child: memory stores with the limits as they were set, and none of the parent's runs in them."""
    for url, store in _stores.items():
        if isinstance(store, MemoryStore):
            _stores[url] = store.empty_copy()
