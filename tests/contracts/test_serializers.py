"""What every serializer must do. A new serializer is one more line in NAMES."""

import collections
import enum
import math
import random
import struct
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctask.errors import SerializationError
from asynctask.serializers import Serializer, decode, encode, serializer_of


class Reversed:
    """A user's own: text alone, back to front."""

    name = "reversed"

    def dumps(self, value: Any, /) -> bytes:
        if type(value) is not str:
            raise TypeError("only text")
        return value[::-1].encode()

    def loads(self, data: bytes, /) -> Any:
        return data.decode()[::-1]


PLAIN = ["msgpack", "json"]
BUILT_IN = [*PLAIN, "pickle"]
COMPRESSED = [
    "compressed/pickle",
    *(f"compressed/{how}/{name}" for how in ("zlib", "lzma", "bz2") for name in BUILT_IN),
]
NAMES: list[str | Serializer] = [*BUILT_IN, *COMPRESSED, Reversed()]


@pytest.fixture(params=NAMES, ids=lambda name: name if isinstance(name, str) else name.name)
def serializer(request: pytest.FixtureRequest) -> Serializer:
    return serializer_of(request.param)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down; a nan is the same as one of the same bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, datetime):
        return one == other and (one.tzinfo, one.fold) == (other.tzinfo, other.fold)
    return bool(one == other)


def takes(serializer: Serializer, value: Any) -> bool:
    """Whether it takes the value; if so, the value comes back, in three ways, else it is refused in the one way."""
    try:
        name, data = encode(value, serializer)
    except SerializationError:
        return False
    assert type(data) is bytes
    assert name == serializer.name
    assert same(decode(name, data), value)
    assert same(serializer.loads(serializer.dumps(value)), value)
    return True


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Colour(enum.IntEnum):
    RED = 1


class Text(enum.StrEnum):
    A = "a"


class Point(NamedTuple):
    x: int


class Words(str):
    __slots__ = ()


#: Values, and the plain serializers that take them: both, one, or none.
VALUES: dict[str, tuple[Any, str]] = {
    "None": (None, "json msgpack"),
    "True": (True, "json msgpack"),
    "1": (1, "json msgpack"),
    "the largest that msgpack has": (2**64 - 1, "json msgpack"),
    "the smallest that msgpack has": (-(2**63), "json msgpack"),
    "larger than 64 bits": (2**64, "json"),
    "smaller than 64 bits": (-(2**63) - 1, "json"),
    "600 digits": (10**599, "json"),
    "5,000 digits": (10**4999, ""),
    "4,299 digits, negative": (-(10**4298), ""),
    "-0.0": (-0.0, "json msgpack"),
    "1e16": (1e16, "json msgpack"),
    "the smallest float": (5e-324, "json msgpack"),
    "the largest float": (1.7976931348623157e308, "json msgpack"),
    "nan": (math.nan, "msgpack"),
    "inf": (-math.inf, "msgpack"),
    "inf in a list": ([1, -math.inf], "msgpack"),
    "text": ("äé\0\u2028\ufeff😀\r\n", "json msgpack"),
    "a lone surrogate": ("\ud800", ""),
    "a lone surrogate in a list": (["\udfff"], ""),
    "a lone surrogate as a key": ({"\ud800": 1}, ""),
    "bytes": (b"\0\xff", "msgpack"),
    "bytearray": (bytearray(b"x"), ""),
    "a list": ([1, [], [None, {}]], "json msgpack"),
    "a dict": ({"b": 1, "a": {"": [{}]}}, "json msgpack"),
    "a dict with keys of numbers": ({1: "a", -1: "b"}, "msgpack"),
    "a dict with keys of other atoms": ({b"x": 1, None: 2, True: 3, "t": 4}, "msgpack"),
    "a dict with keys of floats": ({1.5: 1}, ""),
    "a dict with keys of tuples": ({(1, 2): 1}, ""),
    "a dict with a key of an enum": ({Text.A: 1}, ""),
    "a tuple": ((1, 2), ""),
    "a tuple far inside": ([{"a": [1, (2,)]}], ""),
    "a set": ({1, 2}, ""),
    "a frozenset": (frozenset("a"), ""),
    "an enum of numbers": (Colour.RED, ""),
    "an enum of text": ([Text.A], ""),
    "a kind of text": (Words("a"), ""),
    "a kind of dict": (collections.OrderedDict(a=1), ""),
    "a kind of list": (collections.UserList([1]), ""),
    "a named tuple": (Point(1), ""),
    "a complex number": (1j, ""),
    "a moment in UTC": (datetime(1, 1, 1, tzinfo=UTC), "msgpack"),
    "moments in UTC": ([datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)], "msgpack"),
    "a moment nowhere": (datetime(2020, 1, 1), ""),
    "a moment elsewhere": ([datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2)))], ""),
    "a moment in another UTC": (datetime(2020, 1, 1, tzinfo=timezone(timedelta(0), "Z")), ""),
    "a moment that is there twice": (datetime(2020, 1, 1, tzinfo=UTC, fold=1), ""),
    "a date": (date(2020, 1, 1), ""),
    "a duration": (timedelta(1), ""),
    "256 levels": (nested(255), "json msgpack"),
    "257 levels": (nested(256), ""),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_it_was_or_is_refused(serializer: Serializer, name: str) -> None:
    value, plain = VALUES[name]
    kind = serializer.name.split("/")[-1]
    expected = {"pickle": True, "reversed": type(value) is str and value.isprintable()}.get(kind, kind in plain.split())
    if kind == "reversed" and name == "text":
        expected = True
    assert takes(serializer, value) == expected


KEYS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5)
)
LEAVES = (
    KEYS
    | st.floats()
    | st.characters(categories=["Cs", "Ll"])
    | st.sampled_from([Colour.RED, Text.A, Words("x"), 2**64, -(2**80), bytearray(b"x")])
    | st.frozensets(st.integers())
    | st.datetimes(timezones=st.sampled_from([UTC, None]))
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", BUILT_IN)
@given(value=ANYTHING)
def test_anything_comes_back_as_it_was_or_is_refused(name: str, value: Any) -> None:
    takes(serializer_of(name), value)


@given(value=ANYTHING)
def test_with_no_serializer_anything_comes_back_as_it_was(value: Any) -> None:
    assert same(decode(*encode(value)), value)


def in_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def in_itself_twice() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a"] = [value, value, {"b": value}]
    return value


@pytest.mark.parametrize("make", [in_itself, in_itself_twice, lambda: nested(100_000)])
@pytest.mark.parametrize("name", PLAIN)
def test_what_has_no_bottom_is_refused_and_nothing_overflows(name: str, make: Callable[[], Any]) -> None:
    with pytest.raises(SerializationError, match="nested deeper than 256 levels"):
        serializer_of(name).dumps(make())


UNSERIALISABLE: dict[str, Callable[[], Any]] = {
    "a lock": threading.Lock,
    "a generator": lambda: (number for number in range(3)),
    "a lock far inside": lambda: [{"a": [threading.Lock()]}],
    "nesting that pickle cannot follow": lambda: nested(100_000),
    "a memory view": lambda: memoryview(b"x"),
}


@pytest.mark.parametrize("kind", UNSERIALISABLE)
def test_what_no_serializer_takes_is_refused_in_the_one_way(serializer: Serializer, kind: str) -> None:
    value = UNSERIALISABLE[kind]()
    with pytest.raises(SerializationError, match=r"refuses the result.*(say|make) result_serializer="):
        encode(value, serializer)


def test_an_open_file_is_refused(serializer: Serializer, tmp_path: Any) -> None:
    """cloudpickle alone would take one that is open for reading, and give back a copy of its content."""
    (tmp_path / "file").write_text("content")
    for mode in ("r", "w", "rb"):
        with open(tmp_path / "file", mode) as file, pytest.raises(SerializationError, match=type(file).__name__):
            encode(file, serializer)


def test_damaged_data_is_told_in_the_one_way(serializer: Serializer) -> None:
    """Every shorter form, and noise; a flipped bit may give another value, which is why payloads are signed."""
    name, data = encode("a text" * 10, serializer)
    wrong = [data[:length] for length in range(len(data))] if name != "reversed" else []
    wrong += [b"\xc1\xff\xfe", random.Random(1).randbytes(200)]
    for each in wrong:
        with pytest.raises(SerializationError, match=rf"cannot be read by the serializer '{name}'"):
            decode(name, each)


@pytest.mark.parametrize("name", [*PLAIN, *COMPRESSED])
def test_what_follows_the_data_is_damage(name: str) -> None:
    _, data = encode(["x"], serializer_of(name))
    for rest in (b"x", data):
        with pytest.raises(SerializationError):
            decode(name, data + rest)


@pytest.mark.parametrize("name", [*PLAIN, "compressed/json", "compressed/lzma/json", "compressed/bz2/msgpack"])
def test_a_flipped_bit_raises_nothing_but_the_one_error(name: str) -> None:
    _, data = encode({"a": [1, 2.5, "text", None, {"b": True}]}, serializer_of(name))
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            decode(name, bytes(damaged))
        except SerializationError:
            continue


def test_each_reading_gives_a_new_object(serializer: Serializer) -> None:
    if not takes(serializer, [1]):
        assert serializer.name == "reversed" or pytest.fail("a list is plain data")
        return
    name, data = encode([1], serializer)
    assert decode(name, data) is not decode(name, data)
