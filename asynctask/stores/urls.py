"""Which store a URL means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from ..errors import OptionError
from ..late import late
from ..redact import shown
from ..secrets import masked_url
from ..settings import settings
from .base import Store
from .memory import MemoryStore


def _sqlite(path: str) -> Store:
    store: Store = late("stores.sqlite").SQLiteStore(path)
    return store


#: What makes the store of a path, by scheme.
SCHEMES: dict[str, Callable[[str], Store]] = {"sqlite": _sqlite}

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
    scheme, path = _file_of(url)
    key = f"{scheme}:{os.path.realpath(path)}"
    found = _stores.get(key)
    if found is None:
        found = _stores.setdefault(key, SCHEMES[scheme](path))
    return found


def adopt(url: str, store: Store) -> None:
    """From now on, `url` means that store in this process."""
    _stores[url] = store


def forget(url: str) -> None:
    """`url` means nothing any more that this process would know."""
    _stores.pop(url, None)


def missing_file(store: str | None) -> str | None:
    """The file of the store that a URL means (None: the settings' one) if it is not there yet. Opens nothing."""
    url = store or settings.values.store_url or default_url()
    if url.startswith("memory://"):
        return None
    path = os.path.abspath(_file_of(url)[1])
    try:
        os.stat(path)
    except FileNotFoundError:
        return path
    except OSError:
        pass  # nobody can say what is there: who opens it is told why
    return None


def store_at(folder: str | os.PathLike[str]) -> Store:
    """The store of results in a folder of its own."""
    return open_store(f"sqlite:///{os.path.join(os.fspath(folder), 'results.db')}")


class StoresAt:
    """The stores of results in folders of their own, kept open for one runtime."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}
        #: Each for every time that it is held: threads that come at one moment hold it several times.
        self._holds: list[Store] = []

    def find(self, folder: str | os.PathLike[str]) -> Store:
        name = os.fspath(folder)
        store = self._stores.get(name)
        if store is None:
            store = store_at(name)
            store.hold()
            self._holds.append(store)
            self._stores[name] = store
        return store

    async def release(self) -> None:
        holds, self._holds, self._stores = self._holds, [], {}
        for store in holds:
            await store.release()


def default_url() -> str:
    """Where runs are kept when nothing is said: a file in the user's data folder, or in ASYNCTASK_HOME."""
    home = settings.values.home
    if home is None:
        import platformdirs  # 3 ms

        home = platformdirs.user_data_dir("asynctask", appauthor=False)
    return f"sqlite:///{os.path.join(os.path.expanduser(home), 'asynctask.db')}"


def _file_of(url: str) -> tuple[str, str]:
    """The scheme, and the path in `sqlite:///relative`, `sqlite:////absolute`, or one with ~. Raises `OptionError`."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:///..." for name in SCHEMES)
        raise OptionError(f"store {masked_url(url)!r} cannot be opened: there are memory://, memory://NAME and {known}")
    match = re.fullmatch(r"///(.+)", rest)
    if match is None or "\0" in url:
        raise OptionError(
            f"store {masked_url(url)!r} must name a file: sqlite:///runs.db in this folder, sqlite:////var/runs.db"
        )
    return scheme, os.path.expanduser(match[1])


def empty_stores() -> None:
    """In a forked child: stores with nothing open, and memory stores with the limits as they were set and no runs."""
    for url, store in _stores.items():
        copy = getattr(store, "empty_copy", None)
        if copy is not None:
            _stores[url] = copy()
