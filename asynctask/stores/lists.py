"""Lists of runs: the statement that gives the newest that fit some filters, as fast on many rows as on few.

1. A list is a union of walks. Each goes along one index, backwards in the order of ids, and stops after as many rows
   as are asked for; so a filter costs the same on a thousand rows and on ten million.
2. With several filters, the first of tags, name, flow, task and state chooses the index, and the others are looked at
   in the rows.
3. This is SQLite's: its full-text search, and its ways to say which index. What other databases share is in `sql`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from ..runs import Trace
from .base import RunFilter, milliseconds
from .schema import NUMBER_SHIFT, first_number, name_number
from .sql import SHOWN, Query, clean, readable, where


class Known(NamedTuple):
    """What a list needs to know of the dictionaries: the kinds of its state filter, the tasks of its name filters.

    Only kinds and tasks of what is asked for: of task runs, of flow runs, or of both.
    """

    #: The numbers of the kinds that fit; None for all.
    kinds: list[int] | None
    #: The numbers of the tasks that fit `task_name`; None for all.
    tasks: list[int] | None
    #: Where text in names is asked for: tasks whose name contains it, and those whose name ends as it begins.
    named: list[int]
    tailed: list[int]


FIND_KINDS = """SELECT id FROM kinds
    WHERE (?1 IS NULL OR type = ?1) AND (?2 IS NULL OR name = ?2) AND (?3 IS NULL OR is_flow = ?3)"""
FIND_TASKS = "SELECT id FROM tasks WHERE name = ?1 AND (?2 IS NULL OR is_flow = ?2)"
ALL_TASKS = "SELECT id, name FROM tasks WHERE ?1 IS NULL OR is_flow = ?1"
#: Of `name_row`, and of the number and the id of a run.
INSERT_NAME = "INSERT OR REPLACE INTO run_names (rowid, name, id) VALUES (?, ?, ?)"
DELETE_NAME = "DELETE FROM run_names WHERE rowid = ? AND id = ?"
#: More parts than these in one statement are not worth it: then the newest runs are looked through.
_MOST_PARTS = 60


def name_row(trace: Trace) -> tuple[int, str, bytes]:
    """The row by which text in a given name finds the run."""
    run_id = trace.number.to_bytes(16, "big")
    return name_number(run_id), clean(trace.given_name or ""), run_id


def list_runs(which: RunFilter, known: Known, limit: int, cursor: UUID | None) -> Query:
    """At most `limit` runs that fit, the newest first."""
    texts: list[str] = []
    values: list[Any] = []
    for part in parts_of(which, known, cursor):
        walk = part.walk(limit)
        texts.append(walk.text)
        values += walk.values
    found = " UNION ".join(texts)
    text = f"{SHOWN} FROM ({found} ORDER BY 1 DESC LIMIT ?) AS found JOIN runs ON runs.id = found.id"
    return Query(f"{text} JOIN tasks ON tasks.id = runs.task ORDER BY runs.id DESC", [*values, limit])


def count_runs(which: RunFilter, known: Known) -> Query:
    """How many runs fit."""
    parts = parts_of(which, known, None)
    if len(parts) == 1:
        return Query(f"SELECT count(*) {parts[0].where}", parts[0].values)
    found = " UNION ".join(f"SELECT {part.id} {part.where}" for part in parts)
    return Query(f"SELECT count(*) FROM ({found})", [value for part in parts for value in part.values])


class Part(NamedTuple):
    """One walk along an index: a FROM with its WHERE, and the id that it gives and is ordered by."""

    where: str
    values: list[Any]
    id: str = "runs.id"
    #: For a walk in an order that is nearly that of ids: what it is ordered by, and all that is equal to the last one.
    order: str | None = None

    def walk(self, limit: int) -> Query:
        """The first `limit` rows; or a few more, where its order is not quite that of the ids."""
        if self.order is None:
            text = f"SELECT {self.id} {self.where} ORDER BY {self.id} DESC LIMIT ?"
            return Query(f"SELECT * FROM ({text})", [*self.values, limit])
        last = f"SELECT {self.order} {self.where} ORDER BY {self.order} DESC LIMIT 1 OFFSET ?"
        whole = f"{self.order} >= coalesce(({last}) >> {NUMBER_SHIFT} << {NUMBER_SHIFT}, 0)"
        return Query(f"SELECT {self.id} {self.where} AND {whole}", [*self.values, *self.values, max(limit - 1, 0)])


def parts_of(which: RunFilter, known: Known, cursor: UUID | None) -> list[Part]:
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
    if which.flow_run_id is not None:
        also("runs.flow_id = ?", which.flow_run_id.bytes)
    for tag in others:
        also("EXISTS (SELECT 1 FROM run_tags AS other WHERE other.tag = ? AND other.id = runs.id)", tag)
    is_led = first is not None or which.name is not None or which.flow_run_id is not None
    by_task = not is_led and known.tasks is not None and len(known.tasks) <= _MOST_PARTS
    by_kind = not is_led and not by_task and known.kinds is not None and len(known.kinds) <= _MOST_PARTS
    # A plus keeps the library from an index that we do not lead it along. Many numbers are one value, as it takes few.
    if known.kinds is not None and not by_kind:
        also("+runs.kind IN (SELECT value FROM json_each(?))", str(known.kinds))
    if known.tasks is not None and not by_task:
        also("+runs.task IN (SELECT value FROM json_each(?))", str(known.tasks))
    if which.name is not None and first is None:
        return [*_given_parts(which, conditions, values, cursor), *_default_parts(which, known, conditions, values)]
    if which.is_flow is not None and not by_task and not by_kind:  # these know the one from the other
        also("runs.is_flow = 1" if which.is_flow else "+runs.is_flow = 0")
    if first is not None:
        if which.name is not None:
            also(f"instr({_NAME}, ?) > 0", readable(which.name))
        found = where("FROM run_tags CROSS JOIN runs ON runs.id = run_tags.id", ["run_tags.tag = ?", *conditions])
        return [Part(found, [first, *values], ident)]
    if by_task or by_kind:
        column, numbers = ("task", known.tasks) if by_task else ("kind", known.kinds)
        found = where("FROM runs", [f"runs.{column} = ?", *conditions])
        return [Part(found, [number, *values]) for number in numbers or [-1]]
    return [Part(where("FROM runs", conditions), values)]


#: The name of a run in SQL.
_NAME = (
    "coalesce(runs.name, (SELECT tasks.name FROM tasks WHERE tasks.id = runs.task) || '-' || "
    "lower(substr(hex(runs.id), 27)))"
)


def _given_parts(which: RunFilter, conditions: list[str], values: list[Any], cursor: UUID | None) -> list[Part]:
    """Runs with the text in the names they were given, by the three-letter pieces of it."""
    text = readable(which.name or "")
    also = ["instr(run_names.name, ?) > 0"]
    bounds: list[Any] = [text]
    # For the index: a piece in which nothing has a meaning of its own. Given one of two letters, it finds nothing.
    piece = max(re.split(r"[*?[]", text), key=len)[:100]
    if len(piece) >= 3:
        also.append("run_names.name GLOB ?")
        bounds.append(f"*{piece}*")
    if cursor is not None:
        also.append("run_names.rowid < ?")
        bounds.append(first_number((cursor.int >> 80) + 1))
    if which.before is not None:
        also.append("run_names.rowid < ?")
        bounds.append(first_number(milliseconds(which.before)))
    if which.since is not None:
        also.append("run_names.rowid >= ?")
        bounds.append(first_number(milliseconds(which.since)))
    if which.is_flow is not None:
        conditions = [*conditions, f"+runs.is_flow = {int(which.is_flow)}"]
    found = where("FROM run_names CROSS JOIN runs ON runs.id = run_names.id", [*also, *conditions])
    return [Part(found, [*bounds, *values], order="run_names.rowid")]


def _default_parts(which: RunFilter, known: Known, conditions: list[str], values: list[Any]) -> list[Part]:
    """Runs without a given name and with the text in what they have instead: their task's, a dash, six digits.

    The indexes by task and by number hold both, so that nothing but what fits is looked at in the rows.
    """
    text = readable(which.name or "")
    _, dash, digits = text.rpartition("-")
    is_hex = 1 <= len(digits) <= 6 and all(one in "0123456789abcdef" for one in digits)
    of_any_task = conditions
    if which.is_flow is not None:
        of_any_task = [f"+runs.task IN (SELECT id FROM tasks WHERE is_flow = {int(which.is_flow)})", *conditions]
    if (is_hex and len(digits) < 3 and not dash) or len(known.named) > _MOST_PARTS:
        # In so many names, as the last digits of runs in a row are all different, that the newest are looked through.
        found = where("FROM runs", ["runs.short IS NOT NULL", *of_any_task, f"instr({_NAME}, ?) > 0"])
        return [Part(found, [*values, text])]
    of_task = "FROM runs INDEXED BY runs_by_task"
    by_number = "FROM runs INDEXED BY runs_by_short"
    walk = where(of_task, ["runs.task = ?", "runs.short IS NOT NULL", *conditions])
    parts = [Part(walk, [task, *values]) for task in known.named]
    if not is_hex or (dash and not known.tailed):
        return parts
    if not dash:
        walk = where(by_number, ["runs.short IN (SELECT value FROM json_each(?))", *of_any_task])
        return [*parts, Part(walk, [str(sorted(_shorts(digits))), *values])]
    bounds = [int(digits.ljust(6, "0"), 16), int(digits.ljust(6, "f"), 16)]
    if len(digits) < 3 and len(known.tailed) <= _MOST_PARTS:
        walk = where(of_task, ["runs.task = ?", "runs.short BETWEEN ? AND ?", *conditions])
        return parts + [Part(walk, [task, *bounds, *values]) for task in known.tailed]
    inside = "+runs.task IN (SELECT value FROM json_each(?))"
    walk = where(by_number, ["runs.short BETWEEN ? AND ?", inside, *conditions])
    return [*parts, Part(walk, [*bounds, str(known.tailed), *values])]


def _shorts(digits: str) -> set[int]:
    """Every number whose six hexadecimal digits contain `digits`, of which there are at least three."""
    free = 6 - len(digits)
    found: set[int] = set()
    for before in range(free + 1):
        after = free - before
        for head in range(16**before):
            base = (head << (4 * (6 - before))) | (int(digits, 16) << (4 * after))
            found.update(base | tail for tail in range(16**after))
    return found


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
