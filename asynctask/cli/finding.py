"""Which run a text means: an id, the beginning or the end of one, a name, `@last` or `@last-failed`.

1. An exact name goes before a piece of an id. What fits several runs is refused, and they are listed.
2. Pieces of ids, of four digits or more, are looked for among the newest `MOST` runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from uuid import UUID

from ..client import SyncClient
from ..errors import ObjectNotFound, UsageError
from ..records import TaskRun
from ..states import CRASHED, FAILED

PAGE = 1000
MOST = 20_000


def find_run(client: SyncClient, text: str) -> TaskRun:
    """The run of a task or flow. Raises `ObjectNotFound`, and `UsageError` if the text could mean several."""
    if text.startswith("@"):
        return _by_sign(client, text)
    if re.fullmatch(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        return client.read_task_run(UUID(text))
    found = [run for run in every_run(client, name=text) if run.name == text]
    piece = text.lower().replace("-", "")
    if not found and re.fullmatch(r"[0-9a-f]{4,31}", piece):
        newest = islice(every_run(client), MOST)
        found = [run for run in newest if run.id.hex.startswith(piece) or run.id.hex.endswith(piece)]
    if not found:
        raise ObjectNotFound(f"no run has the id or name {text!r}, nor an id that begins or ends so")
    if len(found) > 1:
        shown = ", ".join(f"{run.id} ({run.name})" for run in found[:5])
        more = f", and {len(found) - 5} more" if len(found) > 5 else ""
        raise UsageError(f"{text!r} could mean {len(found)} runs; write more of the id: {shown}{more}")
    return found[0]


def _by_sign(client: SyncClient, text: str) -> TaskRun:
    if text == "@last":
        newest = [*client.read_task_runs(limit=1), *client.read_flow_runs(limit=1)]
        nothing = "there are no runs yet"
    elif text == "@last-failed":
        newest = [
            run
            for state_type in (FAILED, CRASHED)
            for read in (client.read_task_runs, client.read_flow_runs)
            for run in read(state_type=state_type, limit=1)
        ]
        nothing = "no run has failed or crashed"
    else:
        raise UsageError(f"{text!r} means nothing; there are @last and @last-failed")
    if not newest:
        raise ObjectNotFound(nothing)
    return max(newest, key=lambda run: run.id)


def every_run(client: SyncClient, *, name: str | None = None) -> Iterator[TaskRun]:
    """Runs of tasks and flows page by page, the newest tasks first, then flows; `name` is text in their names."""
    for read in (client.read_task_runs, client.read_flow_runs):
        cursor: UUID | None = None
        while True:
            page: list[TaskRun] = read(name=name, limit=PAGE, cursor=cursor)
            yield from page
            if len(page) < PAGE:
                break
            cursor = page[-1].id
