"""Plain data as bytes, by msgspec: whether a value is of types that come back as they went, and where it is not.

1. What comes back as another type (a tuple as a list, an enum as its value, 1 as a key as "1") is refused, and so is
   what does not come back equal. msgspec alone would take it.
2. Nothing here recurses: data that is nested too deep, or in itself, is refused like any other.
3. Looking is done by type and in bulk, 20 ns for a value of a list; only a refusal looks at single values, for the path
   to the culprit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from .errors import SerializationError
from .redact import shown

#: How deep lists and dicts may lie in each other. msgspec reads some 950 levels of an empty stack, so these it reads
#: wherever a program stands.
MOST_NESTED = 256
#: How many values there may be, one counted as often as it is reached. A list of two lists of two lists..., each the
#: same object, is a few bytes of memory and 2**n of data; this many take 3 s to look at. Pickle copes with both.
MOST_VALUES = 10_000_000
#: How far we look for the culprit, for the text of a refusal: 3 s.
MOST_LOOKED_AT = 2_000_000
#: Python reads integers of at most 4,300 digits, or, where it is told so, of 640: of 2,126 bits.
MOST_JSON_BITS = 2048

_CONTAINERS = frozenset({list, dict})
#: Immutable, and exact: no subclass. msgspec itself refuses large integers and lone surrogates.
_ATOMS = frozenset({type(None), bool, int, float, str, bytes})


class PlainData:
    """A serializer of plain data by msgspec, which would take more than it gives back, and no more."""

    __slots__ = ("_decode", "_encode", "advice", "keys", "name", "scalars")

    def __init__(self, name: str, codec: Any, *, scalars: frozenset[type], keys: frozenset[type], advice: str) -> None:
        self.name = name
        self.scalars = scalars
        self.keys = keys
        self.advice = advice
        self._encode: Callable[[Any], bytes] = codec.Encoder().encode
        self._decode: Callable[[bytes], Any] = codec.Decoder().decode

    def dumps(self, value: Any, /) -> bytes:
        data = self.try_dumps(value)
        if data is None:
            where, why = self._problem(value)
            raise SerializationError(
                f"serializer {self.name!r} refuses {where}, {why}; give back plain data ({self.advice}), or say"
                " result_serializer='pickle'"
            )
        return data

    def try_dumps(self, value: object) -> bytes | None:
        """The bytes, or None for a value that it refuses."""
        kind = type(value)
        if kind in _CONTAINERS:
            if not self._is_plain(value):
                return None
        elif kind not in self.scalars or not self._are_exact((value,), {kind}):
            return None
        try:
            return self._encode(value)
        except Exception:  # an integer too large, a lone surrogate, no memory left
            return None

    def loads(self, data: bytes, /) -> Any:
        return self._decode(data)

    def _is_plain(self, value: Any) -> bool:
        """Whether everything in it is of a type that comes back. Iterative: a cycle is merely too deep."""
        scalars, keys = self.scalars, self.keys
        count = 0
        stack: list[Iterator[Any]] = [iter((value,))]
        while stack:
            container = next(stack[-1], None)
            if container is None:
                stack.pop()
                continue
            items: Collection[Any] = container
            if _kind(container) is dict:
                if not keys.issuperset(map(type, items)):
                    return False
                items = container.values()
            count += len(items) + 1
            kinds = set(map(type, items))
            below = kinds & _CONTAINERS
            if count > MOST_VALUES or not kinds - below <= scalars or not self._are_exact(items, kinds):
                return False
            if below:
                if len(stack) >= MOST_NESTED:
                    return False
                stack.append(iter([item for item in items if type(item) in below]))
        return True

    def _are_exact(self, items: Iterable[Any], kinds: set[type]) -> bool:
        """Whether those of `items` that are of a type which comes back only in part are of that part."""
        return datetime not in kinds or all(type(item) is not datetime or _is_utc(item) for item in items)

    def _problem(self, value: Any) -> tuple[str, str]:
        """Where in a refused value the first problem is, and what it is."""
        looked_at = 0
        stack: list[Iterator[tuple[str, Any]]] = [iter([("the result", value)])]
        while stack and looked_at < MOST_LOOKED_AT:
            where, item = next(stack[-1], END)
            looked_at += 1
            kind = _kind(item)
            if not where:
                stack.pop()
            elif kind in _CONTAINERS and len(stack) > MOST_NESTED:
                return "the result", f"which is nested deeper than {MOST_NESTED} levels, perhaps in itself"
            elif kind is dict:
                for key in item:
                    if type(key) not in self.keys:
                        return f"a key of {where}", of_type(key)
                    if problem := self._unencodable(key):
                        return f"a key of {where}", problem
                stack.append(_entries(where, item.items()))
            elif kind is list:
                elements: list[Any] = item
                stack.append(_entries(where, enumerate(elements)))
            elif kind not in self.scalars:
                return where, of_type(item)
            elif problem := self._unencodable(item):
                return where, problem
        return "the result", f"of which no part alone is wrong among {looked_at:,}: it may be too large"

    def _unencodable(self, item: Any) -> str:
        if not self._are_exact((item,), {type(item)}):
            return f"{of_type(item)}, with a value that would not come back"
        try:
            self._encode(item)
        except Exception as error:
            return f"{of_type(item)}: {error}"
        return ""


#: Not a place in a value: those that are have a name.
END: tuple[str, Any] = ("", None)


def _kind(value: object) -> type:
    return type(value)


def _entries(where: str, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
    return ((f"{where}[{shown(key, 60)}]", item) for key, item in items)


class _Json(PlainData):
    __slots__ = ()

    def _are_exact(self, items: Iterable[Any], kinds: set[type]) -> bool:
        if float in kinds and not all(math.isfinite(item) for item in items if type(item) is float):
            return False  # JSON has neither nan nor inf
        return int not in kinds or all(item.bit_length() <= MOST_JSON_BITS for item in items if type(item) is int)


def _is_utc(moment: datetime) -> bool:
    # The zone comes back as this very one, and the fold (which means nothing in UTC) as 0.
    return moment.tzinfo is UTC and not moment.fold


def of_type(value: object) -> str:
    """The value's type in words: nothing of the value itself, which may be a secret."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"of type {name}"


MSGPACK = PlainData(
    "msgpack",
    msgspec.msgpack,
    scalars=_ATOMS | {datetime},
    keys=_ATOMS - {float},  # a nan is found again only by identity
    advice="None, bool, int of 64 bits, float, str, bytes, datetime in UTC, lists and dicts of these",
)
JSON: PlainData = _Json(
    "json",
    msgspec.json,
    scalars=_ATOMS - {bytes},
    keys=frozenset({str}),
    advice="None, bool, int, float that is finite, str, lists and dicts of these with keys of type str",
)
