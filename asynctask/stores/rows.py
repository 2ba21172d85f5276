"""Runs as rows, and rows as records of runs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

import msgspec

from ..records import TaskRun, attempts, began, ended, retry_in, seconds_running
from ..redact import safe_text
from ..runs import Trace
from ..specs import TaskSpec
from ..states import State, StateType
from .sql import COLUMNS, LEAST, LONGEST, SHAPES, TAGGED, USUAL, Query, Shape, clean, upsert

#: Rows in one statement: the library runs it in one step, without our interpreter's lock. A statement may have 32,766
#: values (SQLite) or 65,535 (PostgreSQL).
ROWS_AT_ONCE = 1_000


class Numbers:
    """The small numbers that stand for tasks and kinds of states in rows, as far as this process knows them."""

    def __init__(self) -> None:
        #: By key, name and whether it is a flow.
        self.tasks: dict[tuple[str, str, bool], int] = {}
        #: By type, name and whether it is a flow's.
        self.kinds: dict[tuple[str, str, bool], int] = {}
        #: What these two say of the specs that were met: the task, and by the name of a state its type and kind.
        #: No dict with types as keys: to hash an enum member runs Python code.
        self._by_spec: dict[TaskSpec, tuple[int, dict[str, tuple[StateType, int]]]] = {}

    def copy(self) -> Numbers:
        other = Numbers()
        other.tasks, other.kinds = dict(self.tasks), dict(self.kinds)
        return other

    def missing(self, traces: Iterable[Trace]) -> tuple[set[tuple[str, str, bool]], set[tuple[str, str, bool]]]:
        """The tasks and kinds among `traces` that have no number yet."""
        tasks: set[tuple[str, str, bool]] = set()
        kinds: set[tuple[str, str, bool]] = set()
        known = self._by_spec
        for trace in traces:
            spec = trace.spec
            last = trace.states[-1]
            found = known.get(spec)
            kind = None if found is None else found[1].get(last.name)
            if kind is None or kind[0] is not last.type:
                tasks.add((spec.key, spec.name, spec.is_flow))
                kinds.add((last.type.value, last.name, spec.is_flow))
        return tasks - self.tasks.keys(), kinds - self.kinds.keys()

    def of(self, spec: TaskSpec, last: State) -> tuple[int, int]:
        """The numbers of a run's task, and of the kind of its last state."""
        found = self._by_spec.get(spec)
        if found is None:
            if len(self._by_spec) > 10_000:  # specs made in a loop
                self._by_spec.clear()
            found = self._by_spec[spec] = (self.tasks[spec.key, spec.name, spec.is_flow], {})
        task, kinds = found
        kind = kinds.get(last.name)
        if kind is None or kind[0] is not last.type:
            kind = kinds[last.name] = (last.type, self.kinds[last.type.value, last.name, spec.is_flow])
        return task, kind[1]


_encode = msgspec.json.encode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_decode_parameters = msgspec.json.Decoder(dict[str, str]).decode
_decode_states = msgspec.json.Decoder(list[State]).decode


def insert_runs(traces: Iterable[Trace], numbers: Numbers, owner: str) -> Iterator[Query]:
    """Statements that insert the rows of `traces`, or replace them.

    `owner`, the name of this process, stands in a row until its run is over.
    """
    rows: dict[Shape, list[Any]] = {shape: [] for shape in SHAPES}
    for trace in traces:
        shape = _add_row(rows, trace, numbers, owner)
        values = rows[shape]
        if len(values) == ROWS_AT_ONCE * len(shape):
            rows[shape] = []
            yield Query(upsert(shape, ROWS_AT_ONCE), values)
    for shape, values in rows.items():
        start, size = 0, ROWS_AT_ONCE
        while left := len(values) // len(shape) - start:
            while size > left:  # few different sizes, because each is a statement to prepare
                size = size // 5 or 1
            yield Query(upsert(shape, size), values[start * len(shape) : (start + size) * len(shape)])
            start += size


def _add_row(rows: dict[Shape, list[Any]], trace: Trace, numbers: Numbers, owner: str) -> Shape:
    """Add a run's row to those of the smallest shape that it fits; 1 us for a run that has nothing special."""
    number = trace.number
    states = trace.states
    spec = trace.spec
    last = states[-1]
    task, kind = numbers.of(spec, last)
    is_final = last.type.is_final or last.is_final()
    name = trace.given_name
    extras = trace.extras
    parameters = failure = None
    if trace.args or trace.kwargs or extras is not None or spec.has_defaults:
        parameters = trace.shown_parameters()
        failure = None if extras is None else extras.failure
    flow, parent, upstream, tags = trace.flow_number, trace.parent_number, trace.upstream, trace.tags
    row = (
        number.to_bytes(16, "big"),
        task,
        kind,
        1 if spec.is_flow else 0,
        number & 0xFFFFFF if name is None else None,
        history(states),
        last.time if is_final else None,
    )
    is_usual = is_final and name is None and extras is None and not upstream
    if is_usual and parent is None and flow is None and not parameters and not tags:
        rows[LEAST].extend(row)
        return LEAST
    more = (
        None if flow is None else flow.to_bytes(16, "big"),
        None if parent is None else parent.to_bytes(16, "big"),
        _encode(parameters).decode() if parameters else None,
    )
    if is_usual:
        values = rows[TAGGED if tags else USUAL]
        values.extend(row)
        values.extend(more)
        if tags:
            values.append(_tags_text(tags))
            return TAGGED
        return USUAL
    rest = (
        _tags_text(tags) if tags else None,
        None if name is None else clean(name),
        _encode([f"{one:032x}" for one in upstream]).decode() if upstream else None,
        error_text(failure) if isinstance(failure, tuple) else failure,
        None if is_final or trace.waiting_on is None else clean(trace.waiting_on),
        None if is_final else owner,
        None if extras is None else extras.result,
    )
    rows[COLUMNS].extend((*row, *more, *rest))
    return COLUMNS


@functools.lru_cache(1_000)
def _tags_text(tags: frozenset[str]) -> str:
    return _encode(sorted(map(clean, tags))).decode()


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


def put_into_words(traces: Iterable[Trace]) -> Iterator[None]:
    """Make texts of the exceptions of failed runs, one at each step: 0.2 to 1 ms each, so not in a transaction, for
    whose end other processes wait 10 seconds."""
    for trace in traces:
        extras = trace.extras
        if extras is not None and isinstance(extras.failure, tuple):
            extras.failure = error_text(extras.failure)
            yield


def error_text(failure: tuple[BaseException, Any]) -> str:
    """The traceback of a failed run, from its body on, without the values of variables."""
    import traceback

    error, trace = failure
    try:
        lines = traceback.TracebackException(type(error), error, trace, limit=50).format()
        return safe_text("".join(lines), LONGEST, kept="\n\t")
    except Exception as broken:  # deliberate: an exception whose text raises is recorded as well
        return f"{type(error).__name__} (its traceback cannot be shown: {type(broken).__name__})"


def crashed(states: str, message: str, now: float) -> tuple[str, float]:
    """A history in JSON that now ends Crashed, and when it ended: never before its last state."""
    before = _decode_states(states)
    ended_at = max(now, before[-1].time + 2e-6)
    return history([*before, State(StateType.CRASHED, "Crashed", ended_at, message)]), ended_at


def record_of(row: Sequence[Any], now: float) -> TaskRun:
    """The run that a row of `sql.READ_RUN` or of a list is; `now` is in seconds since the epoch."""
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
        waiting_on=retry_in(last, now) or values["waiting_on"],
        is_flow=bool(values["is_flow"]),
        error=values["error"],
        result=values["result"],
    )


def default_name(task_name: str, number: int) -> str:
    """The name of a run that was given none."""
    return f"{task_name}-{number & 0xFFFFFF:06x}"


def _uuid(value: bytes | None) -> UUID | None:
    return None if value is None else UUID(bytes=value)
