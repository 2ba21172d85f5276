"""The store that a command looks at.

1. A command that reads makes no store: where there is none yet, there are no runs; a `--store` that does not exist is
   an error, for it was misspelt.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..client import SyncClient
from ..errors import ObjectNotFound
from ..scopes import Runtime
from ..settings import temporary_settings
from ..stores.urls import missing_file


def using(url: str | None) -> AbstractContextManager[Any]:
    """`--store URL`: the setting `store_url`, for the length of a command."""
    return nullcontext() if url is None else temporary_settings(store_url=url)


@contextmanager
def opened(url: str | None, *, to_write: bool = False) -> Generator[SyncClient | None]:
    """A client of the store that `--store`, or else the settings, name; None if there is no such store yet (rule 1)."""
    with using(url):
        missing = None if to_write else missing_file(None)
        if missing is not None:
            if url is not None:
                raise ObjectNotFound(f"there is no store at {missing}")
            yield None
            return
        runtime = Runtime(name="asynctask-command")
        runtime.open()
        try:
            yield SyncClient(runtime.store)
        finally:
            runtime.close()


def at(client: SyncClient | None, name: str, *, kind: str = "run") -> SyncClient:
    """The client, for a command that needs one. Raises `ObjectNotFound` where there is no store yet."""
    if client is None:
        raise ObjectNotFound(f"there is no {kind} {name!r}: nothing has been kept yet")
    return client
