"""The statements that SQL stores share, and rows made of runs and read back.

1. One row per run: its whole history is in it, as JSON, and is written anew whenever it has grown.
2. Every value is a bound parameter. What is put into the text of a statement is made here, of our own words.
3. Ids are 16 bytes that sort by the time they were made, so "newest first" is their order backwards, in every index.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from ..records import LogEntry, TaskRun, attempts, began, ended, own_key, seconds_running
from ..redact import safe_text
from ..runs import Trace
from ..states import State, StateType
from .base import StoredResult
from .payloads import Sealed
from .schema import name_number

COLUMNS = (
    "id", "task", "kind", "is_flow", "name", "short", "flow_id", "parent_id", "upstream", "tags", "states", "ended",
    "parameters", "error", "waiting_on", "owner", "result",
)  # fmt: skip
#: What may change after a run's row was first written.
_CHANGING = [one for one in COLUMNS if one not in ("id", "task", "is_flow", "short")]
_UPSERT_END = " ON CONFLICT (id) DO UPDATE SET " + ", ".join(f"{one} = excluded.{one}" for one in _CHANGING)
#: Rows in one statement.
ROWS_AT_ONCE = 250

COUNTS = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM results), (SELECT count(*) FROM logs)"
#: The length of a log line, an error or a history message, beyond which it is cut.
LONGEST = 64_000


class Query(NamedTuple):
    """A statement and its parameters."""

    text: str
    values: list[Any]


def where(source: str, conditions: list[str]) -> str:
    """A statement with its conditions, all of which must hold."""
    return f"{source} WHERE {' AND '.join(conditions)}" if conditions else source


_ONE_ROW = f"({', '.join('?' * len(COLUMNS))})"


def inserts(rows: list[tuple[Any, ...]]) -> Iterator[Query]:
    """Statements that insert or replace `rows`, many in one: the library then works without our interpreter's lock."""
    size = ROWS_AT_ONCE
    while rows:
        while size > len(rows):  # few different sizes, because each is a statement to prepare
            size = size // 5 or 1
        for start in range(0, len(rows) - size + 1, size):
            yield Query(_upsert(size), [value for row in rows[start : start + size] for value in row])
        rows = rows[len(rows) - len(rows) % size :]


@functools.cache
def _upsert(count: int) -> str:
    return f"INSERT INTO runs ({', '.join(COLUMNS)}) VALUES {', '.join([_ONE_ROW] * count)}{_UPSERT_END}"


def clean(text: str) -> str:
    """`text` as any database takes it: no NUL, no lone surrogates, not endless."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text):,} characters)"
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text


class Numbers(NamedTuple):
    """The small numbers that stand for tasks and kinds of states in rows, as far as this process knows them."""

    tasks: dict[tuple[str, str, bool], int]
    kinds: dict[tuple[str, str], int]


_encode = msgspec.json.encode
_decode_states = msgspec.json.Decoder(list[State]).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_decode_parameters = msgspec.json.Decoder(dict[str, str]).decode


def history(states: Sequence[State]) -> str:
    """States as JSON: lists of type, name, time and message."""
    try:
        text = _encode(states).decode()
    except UnicodeEncodeError:
        text = ""
    if not text or len(text) > LONGEST or "\\u0000" in text:
        cleaned = [State(one.type, clean(one.name), one.time, clean(one.message)) for one in states]
        text = _encode(cleaned).decode()
    return text


def row_of(trace: Trace, numbers: Numbers, owner: str) -> tuple[Any, ...]:
    """A run as a row. `owner`, the name of this process, stands in it until the run is over."""
    number = trace.number
    states = trace.states
    last = states[-1]
    spec = trace.spec
    is_final = last.is_final()
    parameters = trace.shown_parameters()
    return (
        number.to_bytes(16, "big"),
        numbers.tasks[spec.key, spec.name, spec.is_flow],
        numbers.kinds[last.type, last.name],
        1 if spec.is_flow else 0,
        None if trace.given_name is None else clean(trace.given_name),
        number & 0xFFFFFF,
        None if trace.flow_number is None else trace.flow_number.to_bytes(16, "big"),
        None if trace.parent_number is None else trace.parent_number.to_bytes(16, "big"),
        _encode([f"{one:032x}" for one in trace.upstream]).decode() if trace.upstream else None,
        _encode(sorted(map(clean, trace.tags))).decode() if trace.tags else None,
        history(states),
        last.time if is_final else None,
        _encode(parameters).decode() if parameters else None,
        None if trace.failure is None else error_text(trace.failure),
        None if is_final else trace.waiting_on,
        None if is_final else owner,
        trace.result,
    )  # fmt: skip


def error_text(failure: tuple[BaseException, Any]) -> str:
    """The traceback of a failed run, from its body on, without the values of variables."""
    import traceback

    error, trace = failure
    try:
        lines = traceback.TracebackException(type(error), error, trace, limit=50).format()
        return safe_text("".join(lines), LONGEST, kept="\n\t")
    except Exception as broken:  # deliberate: an exception whose text raises is recorded as well
        return f"{type(error).__name__} (its traceback cannot be shown: {type(broken).__name__})"


#: What `record_of` reads.
SHOWN = f"SELECT {', '.join('runs.' + one for one in COLUMNS)}, tasks.key, tasks.name"
READ_RUN = f"{SHOWN} FROM runs JOIN tasks ON tasks.id = runs.task WHERE runs.id = ?"


def record_of(row: Sequence[Any]) -> TaskRun:
    """The run that a row of `READ_RUN` or of a list is."""
    values = dict(zip(COLUMNS, row, strict=False))
    task_key, task_name = row[len(COLUMNS) :]
    states = _decode_states(values["states"])
    number = int.from_bytes(values["id"], "big")
    last = states[-1]
    return TaskRun(
        id=UUID(int=number),
        name=values["name"] or default_name(task_name, number),
        task_key=task_key,
        task_name=task_name,
        flow_run_id=_uuid(values["flow_id"]),
        parent_task_run_id=_uuid(values["parent_id"]),
        upstream_task_run_ids=[UUID(one) for one in _decode_texts(values["upstream"] or "[]")],
        tags=_decode_texts(values["tags"] or "[]"),
        parameters=_decode_parameters(values["parameters"] or "{}"),
        state=last,
        state_type=last.type,
        state_name=last.name,
        states=states,
        run_count=attempts(states),
        start_time=began(states),
        end_time=ended(states),
        total_run_time=seconds_running(states),
        waiting_on=values["waiting_on"],
        is_flow=bool(values["is_flow"]),
        error=values["error"],
        result=values["result"],
    )


def default_name(task_name: str, number: int) -> str:
    """The name of a run that was given none."""
    return f"{task_name}-{number & 0xFFFFFF:06x}"


def _uuid(value: bytes | None) -> UUID | None:
    return None if value is None else UUID(bytes=value)


NEW_TASK = "INSERT INTO tasks (key, name, is_flow) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
FIND_TASK = "SELECT id FROM tasks WHERE key = ? AND name = ? AND is_flow = ?"
NEW_KIND = "INSERT INTO kinds (type, name) VALUES (?, ?) ON CONFLICT DO NOTHING"
FIND_KIND = "SELECT id FROM kinds WHERE type = ? AND name = ?"


# -- details of runs ----------------------------------------------------------------------------------------------


def new_tags(traces: Iterable[Trace]) -> list[tuple[str, bytes]]:
    return [(clean(tag), trace.number.to_bytes(16, "big")) for trace in traces for tag in trace.tags]


def name_row(trace: Trace) -> tuple[int, str, bytes]:
    """The row by which text in a given name finds the run."""
    run_id = trace.number.to_bytes(16, "big")
    return name_number(run_id), clean(trace.given_name or ""), run_id


INSERT_LOG = """INSERT INTO logs (id, number, time, level, logger, message)
    VALUES (?1, (SELECT coalesce(max(number), 0) + 1 FROM logs WHERE id = ?1), ?2, ?3, ?4, ?5)"""
READ_LOGS = "SELECT time, level, logger, message FROM logs WHERE id = ? ORDER BY number"


def log_row(run_number: int, entry: LogEntry) -> tuple[Any, ...]:
    return run_number.to_bytes(16, "big"), entry.time, entry.level, clean(entry.logger), clean(entry.message)


def crashed(states: str, message: str, now: float) -> tuple[str, float]:
    """A history in JSON that now ends Crashed, and when it ended: never before its last state."""
    before = _decode_states(states)
    ended_at = max(now, before[-1].time + 2e-6)
    return history([*before, State(StateType.CRASHED, "Crashed", ended_at, message)]), ended_at


END_RUN = "UPDATE runs SET states = ?, ended = ?, kind = ?, owner = NULL, waiting_on = NULL WHERE id = ?"
WRITE_LIMIT = "INSERT INTO limits (tag, size) VALUES (?, ?) ON CONFLICT (tag) DO UPDATE SET size = excluded.size"

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


def deletions(ids: Sequence[bytes]) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """What deletes runs and all that belongs to them, each to be executed for every one of its parameters."""
    ones = [(one,) for one in ids]
    own = [(key_digest(own_key(int.from_bytes(one, "big"))),) for one in ids]
    numbers = [(name_number(one), one) for one in ids]
    tags = "DELETE FROM run_tags WHERE id = ?1 AND tag IN "
    tags += "(SELECT value FROM json_each((SELECT tags FROM runs WHERE id = ?1)))"
    return [
        (tags, ones),
        ("DELETE FROM run_names WHERE rowid = ? AND id = ?", numbers),
        ("DELETE FROM logs WHERE id = ?", ones),
        ("DELETE FROM results WHERE digest = ?", own),
        ("DELETE FROM runs WHERE id = ?", ones),
    ]


# -- results ------------------------------------------------------------------------------------------------------


def key_digest(key: str) -> bytes:
    """What a result is found by: keys may be long and hold anything."""
    import hashlib

    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).digest()


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
