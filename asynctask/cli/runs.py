"""`asynctask runs`: what is known of runs, and deleting them."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Any

from ..errors import UsageError
from ..records import TaskRun
from ..states import StateType
from ..stores.base import date_of
from .finding import find_run
from .opened import at, opened
from .records import log_fields, run_fields
from .show import STYLES, document, fields, is_terminal, length_of, note, out, table, time_of
from .times import duration, moment

#: State names that are not types, as they are written.
NAMES = ("Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Retrying", "Cached", "TimedOut", "NotReady", "RolledBack")


def ls(
    *,
    state: str | None = None,
    task: str | None = None,
    tag: list[str] | None = None,
    flow: str | None = None,
    name: str | None = None,
    since: str | None = None,
    before: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    flows: bool = False,
    json: bool = False,
    store: str | None = None,
) -> int:
    """List runs of tasks, or of flows, the newest first.

    Args:
        state: A state type or name, such as running, failed, cached or timedout.
        task: The name of the task (or, with --flows, of the flow).
        tag: A tag that the run has; several times for runs that have them all.
        flow: The run of a flow: only runs inside it.
        name: Text in the run's name.
        since: Only runs made since then: 2h, 7d, or a time such as 2030-01-31T12:00.
        before: Only runs made before then.
        limit: At most so many.
        cursor: The id of the last run of the page before.
        flows: List runs of flows instead.
        json: Print a JSON document.
        store: The URL of the store.
    """
    if limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    filters: dict[str, Any] = {
        **_state_filter(state),
        "task_name": task,
        "tags": tag or (),
        "name": name,
        "since": None if since is None else moment(since, "--since"),
        "before": None if before is None else moment(before, "--before"),
        "limit": limit + 1,  # one more tells whether there is a next page
    }
    with opened(store) as client:
        if client is None:
            found: list[TaskRun] = []
        else:
            filters["cursor"] = None if cursor is None else find_run(client, cursor).id
            filters["flow_run_id"] = None if flow is None else find_run(client, flow).id
            found = (client.read_flow_runs if flows else client.read_task_runs)(**filters)
    has_more = len(found) > limit
    found = found[:limit]
    _print_runs(found, str(found[-1].id) if has_more else None, flows, json)
    return 0


def _print_runs(found: list[TaskRun], following: str | None, flows: bool, json: bool) -> None:
    if json:
        document({"items": [run_fields(run) for run in found], "next": following})
        return
    if not found:
        note(f"asynctask: there are no such runs of {'flows' if flows else 'tasks; --flows lists those of flows'}")
        return
    columns: dict[str, list[object]] = {
        "ID": [str(run.id)[-12:] if is_terminal() else run.id for run in found],
        "NAME": [run.name for run in found],
        "STATE": [run.state_name for run in found],
        "MADE": [time_of(made(run)) for run in found],
        "RUN TIME": [_length(run) for run in found],
        "TAGS": [", ".join(run.tags) for run in found],
    }
    if any(run.waiting_on for run in found):
        columns["WAITS FOR"] = [_in_short(run) for run in found]
    styles = [STYLES.get(run.state_type) for run in found]
    table(tuple(columns), list(zip(*columns.values(), strict=True)), styles=styles)
    if following is not None:
        note(f"asynctask: there are more; go on with --cursor {following}")


def _length(run: TaskRun) -> str:
    """How long its body ran; nothing while an attempt goes on, which is not counted yet."""
    return length_of(run.total_run_time) if run.run_count and run.state_type is not StateType.RUNNING else ""


def made(run: TaskRun) -> datetime:
    """When the run was made, which its id says."""
    return datetime.fromtimestamp((run.id.int >> 80) / 1000, UTC)


def _state_filter(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    plain = text.replace("-", "").replace("_", "").replace(" ", "").lower()
    for type in StateType:
        if plain == type.value.lower():
            return {"state_type": type.value}
    for name in NAMES:
        if plain == name.lower():
            return {"state_name": name}
    if text[:1].isupper() and text.isprintable():  # a body may give its state a name of its own
        return {"state_name": text}
    there_are = ", ".join([*(type.value.title() for type in StateType), *NAMES])
    raise UsageError(f"--state {text!r} is no state; there are: {there_are}")


def inspect(run: str, /, *, json: bool = False, store: str | None = None) -> int:
    """Show all about one run.

    Args:
        run: An id, the beginning or end of one, a name, @last or @last-failed.
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store) as client:
        client = at(client, run)
        found = find_run(client, run)
    if json:
        document(run_fields(found))
        return 0
    pairs: list[tuple[str, object]] = [
        ("id", found.id),
        ("name", found.name),
        ("flow" if found.is_flow else "task", f"{found.task_name} ({found.task_key})"),
        ("state", f"{found.state_name}{f': {found.state.message}' if found.state.message else ''}"),
        ("made", time_of(made(found))),
        ("started", time_of(found.start_time)),
        ("ended", time_of(found.end_time)),
        ("run time", _length(found) and f"{_length(found)} in {found.run_count} attempt{'s' * (found.run_count > 1)}"),
        ("waits for", found.waiting_on or ""),
        ("tags", ", ".join(found.tags)),
        ("flow run", found.flow_run_id or ""),
        ("parent", found.parent_task_run_id or ""),
        ("upstream", "\n".join(map(str, found.upstream_task_run_ids))),
        ("parameters", "\n".join(f"{name} = {value}" for name, value in found.parameters.items())),
        ("result", found.result or ""),
    ]
    fields([(name, value) for name, value in pairs if value != ""])
    out()
    table(
        ("TIME", "STATE", "MESSAGE"),
        [(f"{state.timestamp.astimezone():%H:%M:%S.%f}", state.name, state.message) for state in found.states],
        styles=[STYLES.get(state.type) for state in found.states],
    )
    if found.error:
        out(f"\n{found.error.rstrip()}")
    return 0


def logs(run: str, /, *, json: bool = False, store: str | None = None) -> int:
    """Show what a run logged, in order.

    Args:
        run: An id, the beginning or end of one, a name, @last or @last-failed.
        json: Print a JSON document.
        store: The URL of the store.
    """
    with opened(store) as client:
        client = at(client, run)
        entries = client.read_logs(find_run(client, run).id)
    if json:
        document({"items": [log_fields(entry) for entry in entries], "next": None})
        return 0
    for entry in entries:
        out(f"{time_of(date_of(entry.time))} {logging.getLevelName(entry.level):<8} {entry.message}")
    if not entries:
        note("asynctask: this run logged nothing")
    return 0


def delete(
    *runs: str, older_than: str | None = None, yes: bool = False, json: bool = False, store: str | None = None
) -> int:
    """Delete ended runs, with what they logged and their own results.

    Args:
        runs: Ids, beginnings or ends of ids, names, @last or @last-failed.
        older_than: All that ended longer ago than that, such as 7d.
        yes: Delete more than one run.
        json: Print a JSON document.
        store: The URL of the store.
    """
    if bool(runs) == (older_than is not None):
        raise UsageError("name the runs to delete, or give --older-than")
    age = None if older_than is None else duration(older_than, "--older-than")
    if not yes and (age is not None or len(runs) > 1):
        which = f"{len(runs)} runs" if age is None else f"every run that ended more than {older_than} ago"
        raise UsageError(f"this deletes {which}: add --yes")
    with opened(store) as client:
        if age is not None:
            count = 0 if client is None else client.prune(older_than=age, keep=None)
        else:
            client = at(client, " ".join(runs))
            ids = dict.fromkeys(find_run(client, text).id for text in runs)  # all are there before any is deleted
            for one in ids:
                client.delete_task_run(one)
            count = len(ids)
    if json:
        document({"deleted": count})
    else:
        out(f"{count} {'run' if count == 1 else 'runs'} deleted")
    return 0


def _in_short(run: TaskRun) -> str:
    """What a run waits for, for a column of a table: without who holds the slots."""
    return re.sub(r", held by [^;]*", "", run.waiting_on or "")
