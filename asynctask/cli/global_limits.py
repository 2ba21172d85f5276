"""`asynctask global-concurrency-limit`: limits with a name, for `concurrency` and `rate_limit`."""

from __future__ import annotations

from functools import partial

from ..errors import UsageError
from ..limit_records import GlobalConcurrencyLimit
from .limit_view import check, follow, show
from .opened import at, opened
from .show import document, note, out, table

KIND = "global concurrency limit"


def create(
    name: str,
    /,
    *,
    limit: int,
    slot_decay_per_second: float = 0.0,
    disable: bool = False,
    json: bool = False,
    store: str | None = None,
) -> int:
    """Make a limit with a name. Replaces the one that has it.

    Args:
        name: The name, as concurrency() and rate_limit() have it.
        limit: How many slots it has.
        slot_decay_per_second: How many slots come back by themselves each second.
        disable: Take it out of force until it is enabled.
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store, to_write=True) as client:
        made = at(client, name, kind=KIND).create_global_concurrency_limit(
            name, limit, slot_decay_per_second, active=not disable
        )
    return _told(made, json)


def update(
    name: str,
    /,
    *,
    limit: int | None = None,
    slot_decay_per_second: float | None = None,
    enable: bool = False,
    disable: bool = False,
    json: bool = False,
    store: str | None = None,
) -> int:
    """Change a limit: what is given, and nothing else.

    Args:
        name: The name of the limit.
        limit: How many slots it has.
        slot_decay_per_second: How many slots come back by themselves each second.
        enable: Put it in force again.
        disable: Take it out of force until it is enabled.
        json: Print a JSON document.
        store: The URL of the store.
    """
    if enable and disable:
        raise UsageError("--enable and --disable exclude each other")
    active = enable if enable or disable else None
    if limit is None and slot_decay_per_second is None and active is None:
        raise UsageError("say what to change: --limit, --slot-decay-per-second, --enable or --disable")
    with opened(store) as client:
        changed = at(client, name, kind=KIND).update_global_concurrency_limit(
            name, limit=limit, slot_decay_per_second=slot_decay_per_second, active=active
        )
    return _told(changed, json)


def delete(name: str, /, *, json: bool = False, store: str | None = None) -> int:
    """Remove a limit; who waits for it goes on.

    Args:
        name: The name of the limit.
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store) as client:
        at(client, name, kind=KIND).delete_global_concurrency_limit_by_name(name)
    if json:
        document({"deleted": 1})
    else:
        out(f"limit {name!r} is deleted")
    return 0


def inspect(
    name: str,
    /,
    *,
    watch: bool = False,
    timeout: float | None = None,
    json: bool = False,
    store: str | None = None,
) -> int:
    """Show a limit, who holds its slots, and who stands in line.

    Args:
        name: The name of the limit.
        watch: Go on showing it as it changes, until Ctrl-C.
        timeout: With --watch: end after so many seconds.
        json: Print a JSON document; with --watch one a line, whenever something has changed.
        store: The URL of the store.
    """
    check(watch, timeout)
    with opened(store) as client:
        client = at(client, name, kind=KIND)
        read = partial(client.read_global_concurrency_limit_by_name, name)
        return follow(read, timeout, json=json) if watch else show(read(), json=json)


def ls(*, json: bool = False, store: str | None = None) -> int:
    """List the limits that have a name; `asynctask concurrency-limit ls` lists those of tags.

    Args:
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store) as client:
        found = [] if client is None else client.read_global_concurrency_limits()
    if json:
        document({"items": found, "next": None})
    elif not found:
        note("asynctask: there are no global limits; `asynctask concurrency-limit ls` lists those of tags")
    else:
        table(
            ("NAME", "LIMIT", "IN USE", "WAITING", "BACK A SECOND", "ACTIVE"),
            [
                (
                    one.name,
                    one.limit,
                    one.active_slots,
                    one.waiting,
                    f"{one.slot_decay_per_second:g}" if one.slot_decay_per_second else "",
                    "yes" if one.active else "no",
                )
                for one in found
            ],
        )
    return 0


def enable(name: str, /, *, json: bool = False, store: str | None = None) -> int:
    """Put a limit in force again.

    Args:
        name: The name of the limit.
        json: Print a JSON document.
        store: The URL of the store.
    """
    return _set_active(name, True, json, store)


def disable(name: str, /, *, json: bool = False, store: str | None = None) -> int:
    """Take a limit out of force until it is enabled; who waits for it goes on.

    Args:
        name: The name of the limit.
        json: Print a JSON document.
        store: The URL of the store.
    """
    return _set_active(name, False, json, store)


def _set_active(name: str, active: bool, json: bool, store: str | None) -> int:
    with opened(store) as client:
        changed = at(client, name, kind=KIND).update_global_concurrency_limit(name, active=active)
    return _told(changed, json)


def _told(limit: GlobalConcurrencyLimit, json: bool) -> int:
    if json:
        document(limit)
        return 0
    slots = f"{limit.limit} {'slot' if limit.limit == 1 else 'slots'}"
    decay = f", of which {limit.slot_decay_per_second:g} a second come back" if limit.slot_decay_per_second else ""
    out(f"limit {limit.name!r}: {slots}{decay}{'' if limit.active else '; disabled, so that it limits nothing'}")
    return 0
