"""Lists of runs: the statement that gives the newest that fit some filters, as fast on many rows as on few.

1. A list is a union of walks. Each goes along one index, backwards in the order of ids, and stops after as many rows
   as are asked for; so a filter costs the same on a thousand rows and on ten million.
2. With several filters, the first of tags, name, flow, task and state chooses the index, and the others are looked at
   in the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from .base import RunFilter, milliseconds
from .sql import SHOWN, Query, clean, where


class Known(NamedTuple):
    """What a list needs to know of the dictionaries: the kinds of its state filter, the tasks of its name filters."""

    #: The numbers of the kinds that fit; None for all.
    kinds: list[int] | None
    #: The numbers of the tasks that fit `task_name`; None for all.
    tasks: list[int] | None
    #: Where text in names is asked for: tasks whose name contains it, and those whose name ends as it begins.
    named: list[int]
    tailed: list[int]


FIND_KINDS = "SELECT id FROM kinds WHERE (?1 IS NULL OR type = ?1) AND (?2 IS NULL OR name = ?2)"
FIND_TASKS = "SELECT id FROM tasks WHERE name = ?"
ALL_TASKS = "SELECT id, name FROM tasks"
#: More parts than these in one statement are not worth it: then the newest runs are looked through.
_MOST_PARTS = 60


def list_runs(which: RunFilter, known: Known, limit: int, cursor: UUID | None) -> Query:
    """At most `limit` runs that fit, the newest first.

    Each part of the union walks one index backwards, in the order of ids, and stops after `limit` rows; so a filter
    costs the same on a thousand rows and on ten million. With several filters, the first of tags, name, flow, task
    and state chooses the index, and the others are looked at in the rows.
    """
    texts: list[str] = []
    values: list[Any] = []
    for part in _parts(which, known, cursor):
        texts.append(f"SELECT * FROM (SELECT {part.id} {part.where} ORDER BY {part.order} DESC LIMIT ?)")
        values += [*part.values, limit]
    found = " UNION ".join(texts)
    text = f"{SHOWN} FROM ({found} ORDER BY 1 DESC LIMIT ?) AS found JOIN runs ON runs.id = found.id"
    return Query(f"{text} JOIN tasks ON tasks.id = runs.task ORDER BY runs.id DESC", [*values, limit])


def count_runs(which: RunFilter, known: Known) -> Query:
    """How many runs fit."""
    parts = _parts(which, known, None)
    if len(parts) == 1:
        return Query(f"SELECT count(*) {parts[0].where}", parts[0].values)
    found = " UNION ".join(f"SELECT {part.id} {part.where}" for part in parts)
    return Query(f"SELECT count(*) FROM ({found})", [value for part in parts for value in part.values])


class Part(NamedTuple):
    """One walk along an index: a FROM with its WHERE, the id that it gives, and what orders it."""

    where: str
    values: list[Any]
    id: str = "runs.id"
    order: str = "runs.id"


def _parts(which: RunFilter, known: Known, cursor: UUID | None) -> list[Part]:
    """The walks that together give the runs that fit."""
    first, *others = (*sorted(map(clean, which.tags)),) or (None,)
    ident = "runs.id" if first is None else "run_tags.id"
    conditions: list[str] = []
    values: list[Any] = []

    def also(condition: str, *given: Any) -> None:
        conditions.append(condition)
        values.extend(given)

    if cursor is not None:
        also(f"{ident} < ?", cursor.bytes)
    if which.since is not None:
        also(f"{ident} >= ?", _first_id(which.since))
    if which.before is not None:
        also(f"{ident} < ?", _first_id(which.before))
    if which.is_flow is not None:
        # The plus keeps the library from that index where task runs, nearly all there are, are asked for.
        also("runs.is_flow = 1" if which.is_flow else "+runs.is_flow = 0")
    if which.flow_run_id is not None:
        also("runs.flow_id = ?", which.flow_run_id.bytes)
    for tag in others:
        also("EXISTS (SELECT 1 FROM run_tags AS other WHERE other.tag = ? AND other.id = runs.id)", tag)
    is_led = first is not None or which.name is not None or which.flow_run_id is not None
    by_task = not is_led and known.tasks is not None and len(known.tasks) <= _MOST_PARTS
    by_kind = not is_led and not by_task and known.kinds is not None and len(known.kinds) <= _MOST_PARTS
    if known.kinds is not None and not by_kind:
        also(f"+runs.kind IN ({_marks(known.kinds)})", *known.kinds)
    if known.tasks is not None and not by_task:
        also(f"+runs.task IN ({_marks(known.tasks)})", *known.tasks)
    if first is not None:
        if which.name is not None:
            also(f"{_NAME} GLOB ?", glob(which.name))
        found = where("FROM run_tags CROSS JOIN runs ON runs.id = run_tags.id", ["run_tags.tag = ?", *conditions])
        return [Part(found, [first, *values], ident, ident)]
    if which.name is not None:
        return _named_parts(which.name, known, conditions, values)
    if by_task or by_kind:
        column, numbers = ("task", known.tasks) if by_task else ("kind", known.kinds)
        found = where("FROM runs", [f"runs.{column} = ?", *conditions])
        return [Part(found, [number, *values]) for number in numbers or [-1]]
    return [Part(where("FROM runs", conditions), values)]


def _marks(values: list[Any]) -> str:
    return ", ".join("?" * len(values))


#: The name of a run in SQL.
_NAME = (
    "coalesce(runs.name, (SELECT tasks.name FROM tasks WHERE tasks.id = runs.task) || '-' || "
    "lower(substr(hex(runs.id), 27)))"
)


def _named_parts(text: str, known: Known, conditions: list[str], values: list[Any]) -> list[Part]:
    """Runs with `text` in their names: given names by their three-letter pieces, default names by their two halves."""
    digits = text.rpartition("-")[2]
    is_hex = len(digits) <= 6 and all(one in "0123456789abcdef" for one in digits)
    if len(text) < 3 or len(known.named) > _MOST_PARTS or ("-" not in text and is_hex and len(text) < 4):
        # Too short for an index, and so most likely in many names: the newest are looked through.
        return [Part(where("FROM runs", [*conditions, f"{_NAME} GLOB ?"]), [*values, glob(text)])]
    given = "FROM run_names CROSS JOIN runs ON runs.id = run_names.id"
    parts = [Part(where(given, ["run_names.name GLOB ?", *conditions]), [glob(text), *values], order="run_names.rowid")]
    unnamed = ["runs.name IS NULL", *conditions]
    for task in known.named:
        parts.append(Part(where("FROM runs", ["runs.task = ?", *unnamed]), [task, *values]))
    if is_hex and "-" in text:
        low, high = int(digits.ljust(6, "0"), 16), int(digits.ljust(6, "f"), 16)
        tails = ["runs.short BETWEEN ? AND ?", f"+runs.task IN ({_marks(known.tailed)})", *unnamed]
        parts.append(Part(where("FROM runs", tails), [low, high, *known.tailed, *values]))
    elif is_hex:
        inside = f"runs.short IN ({', '.join(map(str, sorted(_shorts(digits))))})"
        parts.append(Part(where("FROM runs", [inside, *unnamed]), values))
    return parts


def _shorts(digits: str) -> set[int]:
    """Every number whose six hexadecimal digits contain `digits`, of which there are at least four."""
    free = 6 - len(digits)
    found: set[int] = set()
    for before in range(free + 1):
        after = free - before
        for head in range(16**before):
            base = (head << (4 * (6 - before))) | (int(digits, 16) << (4 * after))
            found.update(base | tail for tail in range(16**after))
    return found


def glob(text: str) -> str:
    """A pattern for names that contain `text`, in which nothing has a meaning of its own."""
    return f"*{''.join(f'[{one}]' if one in '*?[' else one for one in clean(text))}*"


def _first_id(time: Any) -> bytes:
    return (max(0, milliseconds(time)) << 80).to_bytes(16, "big")


def tasks_named(text: str, every: Iterable[Sequence[Any]]) -> tuple[list[int], list[int]]:
    """Of all tasks, those whose name contains `text`, and those whose name ends with its part before the last dash."""
    tail, dash, _ = text.rpartition("-")
    named: list[int] = []
    tailed: list[int] = []
    for number, name in every:
        if text in f"{name}-":
            named.append(number)
        if dash and name.endswith(tail):
            tailed.append(number)
    return named, tailed
