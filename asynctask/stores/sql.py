"""The statements that SQL stores share, and rows made of runs and read back.

1. One row per run: its whole history is in it, as JSON, and is written anew whenever it has grown.
2. Every value is a bound parameter. What is put into the text of a statement is made here, of our own words.
3. Ids are 16 bytes that sort by the time they were made, so "newest first" is their order backwards, in every index.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ..records import LogEntry, own_key
from ..runs import Trace
from .base import StoredResult
from .payloads import Sealed

Shape: TypeAlias = "tuple[str, ...]"

#: The columns of a run's row: those that every run has, those that many have, and all. Each that a statement names
#: costs 0.3 us a row, also for NULL.
LEAST: Shape = ("id", "task", "kind", "is_flow", "short", "states", "ended")
USUAL: Shape = (*LEAST, "flow_id", "parent_id", "parameters")
TAGGED: Shape = (*USUAL, "tags")
COLUMNS: Shape = (*TAGGED, "name", "upstream", "error", "waiting_on", "owner", "result")
SHAPES = (LEAST, USUAL, TAGGED, COLUMNS)
#: What may change after a run's row was first written.
_CHANGING = [one for one in COLUMNS if one not in ("id", "task", "is_flow")]
_UPSERT_END = " ON CONFLICT (id) DO UPDATE SET " + ", ".join(f"{one} = excluded.{one}" for one in _CHANGING)

COUNTS = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM results), (SELECT count(*) FROM logs)"
#: The length of a log line, an error or a history message, beyond which it is cut.
LONGEST = 64_000
#: The library has whole numbers of 64 bits.
MOST_LEVEL = 2**31 - 1


class Query(NamedTuple):
    """A statement and its parameters."""

    text: str
    values: list[Any]


def where(source: str, conditions: list[str]) -> str:
    """A statement with its conditions, all of which must hold."""
    return f"{source} WHERE {' AND '.join(conditions)}" if conditions else source


@functools.cache
def upsert(shape: Shape, count: int) -> str:
    """Insert `count` runs with the columns `shape`, or replace what may have changed in them; the others are NULL.

    Takes the columns of one after those of another.
    """
    one = f"({', '.join('?' * len(shape))})"
    return f"INSERT INTO runs ({', '.join(shape)}) VALUES {', '.join([one] * count)}{_UPSERT_END}"


def clean(text: str) -> str:
    """`text` as any database takes it: no NUL, no lone surrogates, not endless."""
    return readable(text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)")


def readable(text: str) -> str:
    """`text` without NUL and lone surrogates; however long it is."""
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text


#: What `rows.record_of` reads.
SHOWN = f"SELECT {', '.join('runs.' + one for one in COLUMNS)}, tasks.key, tasks.name"
READ_RUN = f"{SHOWN} FROM runs JOIN tasks ON tasks.id = runs.task WHERE runs.id = ?"


NEW_TASK = "INSERT INTO tasks (key, name, is_flow) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
FIND_TASK = "SELECT id FROM tasks WHERE key = ? AND name = ? AND is_flow = ?"
NEW_KIND = "INSERT INTO kinds (type, name, is_flow) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
FIND_KIND = "SELECT id FROM kinds WHERE type = ? AND name = ? AND is_flow = ?"


# -- details of runs ----------------------------------------------------------------------------------------------


def new_tags(traces: Iterable[Trace]) -> Iterator[Query]:
    """Statements that insert the tags of `traces`."""
    values = [one for trace in traces for tag in trace.tags for one in (clean(tag), trace.number.to_bytes(16, "big"))]
    start, size = 0, TAGS_AT_ONCE
    while left := len(values) // 2 - start:
        while size > left:  # few different sizes, because each is a statement to prepare
            size = size // 5 or 1
        yield Query(insert_tags(size), values[start * 2 : (start + size) * 2])
        start += size


#: In one statement, which the library carries out in one step.
TAGS_AT_ONCE = 1_000


@functools.cache
def insert_tags(count: int) -> str:
    return f"INSERT INTO run_tags (tag, id) VALUES {', '.join(['(?, ?)'] * count)} ON CONFLICT DO NOTHING"


INSERT_LOG = """INSERT INTO logs (id, number, time, level, logger, message)
    VALUES (?, (SELECT coalesce(max(number), 0) + 1 FROM logs WHERE id = ?), ?, ?, ?, ?)"""
READ_LOGS = "SELECT time, level, logger, message FROM logs WHERE id = ? ORDER BY number"


def log_row(run_number: int, entry: LogEntry) -> tuple[Any, ...]:
    level = min(entry.level, MOST_LEVEL)
    run_id = run_number.to_bytes(16, "big")
    return run_id, run_id, entry.time, level, clean(entry.logger), clean(entry.message)


CRASHED = ("CRASHED", "Crashed")
END_RUN = """UPDATE runs SET states = ?, ended = ?, owner = NULL, waiting_on = NULL,
    kind = (SELECT kinds.id FROM kinds WHERE type = ? AND kinds.name = ? AND kinds.is_flow = runs.is_flow)
    WHERE id = ?"""
APPEAR = "INSERT INTO processes (name, pid, host, started) VALUES (?, ?, ?, ?)"
IS_PRESENT = "SELECT count(*) FROM processes WHERE name = ?"
#: Not while runs say that they are this process's: whoever opens the store next ends them as Crashed.
DISAPPEAR = "DELETE FROM processes WHERE name = ? AND NOT EXISTS (SELECT 1 FROM runs WHERE owner = ?)"

# -- limits -------------------------------------------------------------------------------------------------------

WRITE_LIMIT = """INSERT INTO limits (name, size, decay, is_active) VALUES (?, ?, ?, ?) ON CONFLICT (name)
    DO UPDATE SET size = excluded.size, decay = excluded.decay, is_active = excluded.is_active"""
READ_LIMITS = "SELECT name, size, decay, is_active, resets, full_at FROM limits"
READ_SLOTS = "SELECT name, process, held, wanted, since FROM slots"
WRITE_SLOTS = """INSERT INTO slots (name, process, held, wanted, since) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (name, process) DO UPDATE SET held = excluded.held, wanted = excluded.wanted, since = excluded.since"""
READ_SHARERS = "SELECT DISTINCT process FROM slots WHERE held > 0 OR wanted > 0"
READ_PEOPLE = """SELECT slots.name, slots.process, processes.pid, slots.held, slots.wanted, slots.told, slots.people
    FROM slots JOIN processes ON processes.name = slots.process"""
WRITE_FULL = "UPDATE limits SET full_at = ? WHERE name = ?"
TELL_PEOPLE = "UPDATE slots SET told = ?, people = ? WHERE name = ? AND process = ?"
DELETE_SLOTS = "DELETE FROM slots WHERE name = ? AND process = ?"
TELL_NEEDS = """UPDATE slots SET needs = ?, last_told = ?,
    first_told = CASE WHEN needs = ? THEN first_told ELSE ? END WHERE name = ? AND process = ?"""
READ_NEEDS = "SELECT name, process, held, wanted, since, needs, first_told, last_told FROM slots"
RESET_LIMIT = "UPDATE limits SET resets = resets + 1, full_at = 0 WHERE name = ?"
RESET_SLOTS = "UPDATE slots SET held = 0 WHERE name = ?"

# -- deleting -----------------------------------------------------------------------------------------------------

#: Runs in one transaction.
DELETED_AT_ONCE = 1_000


def prunable(now: float, seconds: float | None, keep: int | None) -> list[Query]:
    """Queries for ids of ended runs that are too old, or too many, the oldest first."""
    queries: list[Query] = []
    if seconds is not None:
        first = (max(0, int((now - seconds) * 1000)) << 80).to_bytes(16, "big")
        text = "SELECT id FROM runs WHERE id < ? AND ended < ? ORDER BY id LIMIT ?"  # none ended before it was made
        queries.append(Query(text, [first, now - seconds, DELETED_AT_ONCE]))
    if keep is not None:
        text = "SELECT id FROM runs WHERE ended IS NOT NULL AND id <= "
        text += "(SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?)"
        queries.append(Query(f"{text} ORDER BY id LIMIT ?", [keep, DELETED_AT_ONCE]))
    return queries


def tags_of(ids: Sequence[bytes]) -> Query:
    """The ids of the runs among `ids` that have tags, and those, as JSON."""
    places = ", ".join("?" * len(ids))
    return Query(f"SELECT id, tags FROM runs WHERE tags IS NOT NULL AND id IN ({places})", list(ids))


def deletions(ids: Sequence[bytes], tags: Iterable[Sequence[Any]]) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """What deletes runs and all that belongs to them, each to be executed for every one of its parameters.

    `tags` is what `tags_of` gives. What finds names is up to the store.
    """
    ones = [(one,) for one in ids]
    own = [(key_digest(own_key(int.from_bytes(one, "big"))),) for one in ids]
    return [
        ("DELETE FROM run_tags WHERE tag = ? AND id = ?", [(tag, one) for one, some in tags for tag in _texts(some)]),
        ("DELETE FROM logs WHERE id = ?", ones),
        ("DELETE FROM results WHERE digest = ?", own),
        ("DELETE FROM runs WHERE id = ?", ones),
    ]


# -- results ------------------------------------------------------------------------------------------------------


_texts = msgspec.json.Decoder(list[str]).decode


def key_digest(key: str) -> bytes:
    """What a result is found by: keys may be long and hold anything."""
    import hashlib

    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).digest()


READ_EPOCH = "SELECT number FROM cache_epoch"
READ_RESULT = """SELECT run_id, task_name, created, expires, serializer, size, mac, file, payload
    FROM results WHERE digest = ?"""
_RESULT = ("digest", "key", "task_name", "run_id", "created", "expires", "serializer", "size", "mac", "file", "payload")
WRITE_RESULT = (
    f"INSERT INTO results ({', '.join(_RESULT)}) VALUES ({', '.join('?' * len(_RESULT))}) "
    f"ON CONFLICT (digest) DO UPDATE SET {', '.join(f'{one} = excluded.{one}' for one in _RESULT[1:])}"
)


def result_row(result: StoredResult, sealed: Sealed) -> tuple[Any, ...]:
    return (
        key_digest(result.key), clean(result.key), clean(result.task_name), result.run_number.to_bytes(16, "big"),
        result.created, result.expires, result.serializer, sealed.size, sealed.mac, sealed.file, sealed.inline,
    )  # fmt: skip


def list_results(task_name: str | None, limit: int) -> Query:
    text = "SELECT key, run_id, task_name, created, expires, serializer, size FROM results"
    text = where(text, [] if task_name is None else ["task_name = ?"])
    return Query(f"{text} ORDER BY created DESC LIMIT ?", [*([] if task_name is None else [clean(task_name)]), limit])


def clear_results(task_name: str | None, key: str | None, expired_at: float | None) -> Query:
    """Deletes the results that fit all that is given."""
    conditions: list[str] = []
    values: list[Any] = []
    for condition, value in (
        ("task_name = ?", None if task_name is None else clean(task_name)),
        ("digest = ?", None if key is None else key_digest(key)),
        ("expires <= ?", expired_at),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    return Query(where("DELETE FROM results", conditions), values)
