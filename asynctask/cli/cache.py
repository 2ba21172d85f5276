"""`asynctask cache`: kept results, listed and deleted."""

from __future__ import annotations

from ..errors import UsageError
from .opened import opened
from .show import document, note, out, size_of, table, time_of


def ls(*, task: str | None = None, limit: int = 50, json: bool = False, store: str | None = None) -> int:
    """List kept results, the newest first.

    Args:
        task: Only results of the task of this name.
        limit: At most so many.
        json: Print a JSON document.
        store: The URL of the store.
    """
    if limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    with opened(store) as client:
        found = [] if client is None else client.read_cache(task_name=task, limit=limit)
    if json:
        document({"items": found, "next": None})
    elif not found:
        note("asynctask: no results are kept")
    else:
        table(
            ("KEY", "TASK", "MADE", "EXPIRES", "SIZE", "SERIALIZER"),
            [
                (one.key, one.task_name, time_of(one.created), time_of(one.expires), size_of(one.size), one.serializer)
                for one in found
            ],
        )
    return 0


def clear(
    *,
    task: str | None = None,
    key: str | None = None,
    expired: bool = False,
    yes: bool = False,
    json: bool = False,
    store: str | None = None,
) -> int:
    """Delete kept results: those that fit all that is given.

    Args:
        task: Results of the task of this name.
        key: The result of this key.
        expired: Results that have expired.
        yes: Delete every kept result, if nothing else is given.
        json: Print a JSON document.
        store: The URL of the store.
    """
    if task is None and key is None and not expired and not yes:
        raise UsageError("this deletes every kept result: add --yes, or say which with --task, --key or --expired")
    with opened(store) as client:
        count = 0 if client is None else client.clear_cache(task_name=task, key=key, expired=expired)
    if json:
        document({"deleted": count})
    else:
        out(f"{count} {'result' if count == 1 else 'results'} deleted")
    return 0
