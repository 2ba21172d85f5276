"""`asynctask store`: where the store is, what it holds, and keeping it small."""

from __future__ import annotations

import msgspec

from ..errors import UsageError
from ..secrets import masked_url
from .opened import opened
from .show import document, fields, note, out, size_of
from .times import duration


def info(*, json: bool = False, store: str | None = None) -> int:
    """Show where the store is and what it holds.

    Args:
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store) as client:
        if client is None:
            note("asynctask: there is no store yet; the first run makes it")
            if json:
                document(None)
            return 0
        found = client.store_info()
    found = msgspec.structs.replace(found, url=masked_url(found.url))
    if json:
        document(found)
        return 0
    fields(
        [
            ("url", found.url),
            ("file", found.path or ""),
            ("size", size_of(found.size_bytes)),
            ("schema", found.schema_version or ""),
            ("library", found.library or ""),
            ("guarded", "yes" if found.is_guarded else "no"),
            ("runs", f"{found.runs:,}"),
            ("results", f"{found.results:,}"),
            ("logs", f"{found.logs:,}"),
        ]
    )
    return 0


def migrate(*, json: bool = False, store: str | None = None) -> int:
    """Bring the store to this version's schema. Opening a store does so as well; this says that it went well.

    Args:
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store, to_write=True) as client:
        assert client is not None
        found = client.store_info()
    if json:
        document({"schema_version": found.schema_version})
    else:
        out(f"the store has schema version {found.schema_version}")
    return 0


def prune(
    *, older_than: str | None = None, keep: int | None = None, json: bool = False, store: str | None = None
) -> int:
    """Delete ended runs, with what they logged and their own results.

    Args:
        older_than: Those that ended longer ago than that, such as 7d.
        keep: All but so many of the newest.
        json: Print a JSON document.
        store: The URL of the store.
    """
    if older_than is None and keep is None:
        raise UsageError("say which runs to delete: --older-than 30d, or --keep 10000")
    if keep is not None and keep < 0:
        raise UsageError(f"--keep must not be negative, not {keep}")
    age = None if older_than is None else duration(older_than, "--older-than")
    with opened(store) as client:
        count = 0 if client is None else client.prune(older_than=age, keep=keep)
    if json:
        document({"deleted": count})
    else:
        out(f"{count} {'run' if count == 1 else 'runs'} deleted")
    return 0
