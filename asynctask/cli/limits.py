"""`asynctask concurrency-limit`: how many runs with a tag may be Running at once."""

from __future__ import annotations

from functools import partial

from .limit_view import check, follow, show
from .opened import at, opened
from .show import document, note, out, table

KIND = "concurrency limit for the tag"


def create(tag: str, concurrency_limit: int, /, *, json: bool = False, store: str | None = None) -> int:
    """Let at most so many runs with a tag be Running at once; with 0, none. Replaces the limit that it has.

    Args:
        tag: A tag of tasks.
        concurrency_limit: How many runs.
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store, to_write=True) as client:
        made = at(client, tag, kind=KIND).create_concurrency_limit(tag, concurrency_limit)
    if json:
        document(made)
    else:
        out(f"tag {tag!r}: at most {made.concurrency_limit} {'run' if made.concurrency_limit == 1 else 'runs'} at once")
    return 0


def delete(tag: str, /, *, json: bool = False, store: str | None = None) -> int:
    """Remove the limit of a tag; runs that wait for it start.

    Args:
        tag: A tag of tasks.
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store) as client:
        at(client, tag, kind=KIND).delete_concurrency_limit_by_tag(tag)
    if json:
        document({"deleted": 1})
    else:
        out(f"tag {tag!r}: no limit any more")
    return 0


def inspect(
    tag: str,
    /,
    *,
    watch: bool = False,
    timeout: float | None = None,
    json: bool = False,
    store: str | None = None,
) -> int:
    """Show the limit of a tag, which runs hold its slots, and which stand in line.

    Args:
        tag: A tag of tasks.
        watch: Go on showing it as it changes, until Ctrl-C.
        timeout: With --watch: end after so many seconds.
        json: Print a JSON document; with --watch one a line, whenever something has changed.
        store: The URL of the store.
    """
    check(watch, timeout)
    with opened(store) as client:
        client = at(client, tag, kind=KIND)
        read = partial(client.read_concurrency_limit_by_tag, tag)
        return follow(read, timeout, json=json) if watch else show(read(), json=json)


def ls(*, json: bool = False, store: str | None = None) -> int:
    """List the limits of tags.

    Args:
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store) as client:
        found = [] if client is None else client.read_concurrency_limits()
    if json:
        document({"items": found, "next": None})
    elif not found:
        note("asynctask: no tag has a limit")
    else:
        rows = [(one.tag, one.concurrency_limit, one.in_use, one.waiting) for one in found]
        table(("TAG", "LIMIT", "IN USE", "WAITING"), rows)
    return 0


def reset(tag: str, /, *, json: bool = False, store: str | None = None) -> int:
    """Free every slot of a tag, whoever holds it; runs that wait for it start, as far as there is room.

    Args:
        tag: A tag of tasks.
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store) as client:
        client = at(client, tag, kind=KIND)
        client.reset_concurrency_limit_by_tag(tag)
        now = client.read_concurrency_limit_by_tag(tag)
    if json:
        document(now)
    else:
        out(f"tag {tag!r}: every slot is free")
    return 0
