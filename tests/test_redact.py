"""Values as text: bounded in time and size, printable, masked by name, whatever the value is."""

import argparse
import array
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import pathlib
import sys
import time
import types
import uuid
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import attrs
import msgspec
import numpy
import pandas
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctask import Secret, State, TaskFuture, states, task, unmapped
from asynctask.redact import MOST_PARAMETERS, shown, shown_as, shown_parameters, text_of

MASKED = "'**********'"


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = wrap(value)
    return value


def cyclic() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


class Colour(enum.Enum):
    RED = "a value that its name stands for"


@dataclasses.dataclass
class Login:
    user: str
    password: str
    pin: int = dataclasses.field(default=4711, repr=False)


@dataclasses.dataclass(repr=False)
class Quiet(Login):
    more: str = "not in the repr of the class that wrote it"


@dataclasses.dataclass
class ByHand:
    password: str = "said by nobody"

    def __repr__(self) -> str:
        return "ByHand(...)"


class Struct(msgspec.Struct):
    user: str
    api_key: str


@attrs.define
class Attrs:
    user: str
    token: str
    length: str = attrs.field(default="abc", repr=lambda value: str(len(value)))
    pin: int = attrs.field(default=4711, repr=False)


class Model(pydantic.BaseModel, extra="allow"):
    user: str
    client_secret: str
    other: pydantic.SecretStr = pydantic.SecretStr("canary")
    pin: int = pydantic.Field(default=4711, repr=False)


class Plain:
    pass


class Broken:
    def __repr__(self) -> str:
        raise KeyError("no")


class Terminal:
    def __repr__(self) -> str:
        return "\x1b[31mred\0\ud800"


Point = collections.namedtuple("Point", ("x", "passwd"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (-7, "-7"),
        (1.5, "1.5"),
        (1 + 2j, "(1+2j)"),
        ("it's", '"it\'s"'),
        (b"ab", "b'ab'"),
        (bytearray(b"ab"), "bytearray(b'ab')"),
        ([1, "a", None], "[1, 'a', None]"),
        ((1,), "(1,)"),
        ((), "()"),
        (set[int](), "set()"),
        ({1}, "{1}"),
        (frozenset({1}), "frozenset({1})"),
        ({"a": [1, {"b": 2}]}, "{'a': [1, {'b': 2}]}"),
        (collections.OrderedDict(a=1), "OrderedDict({'a': 1})"),
        (collections.Counter("aab"), "Counter({'a': 2, 'b': 1})"),
        (collections.deque([1, 2]), "deque([1, 2])"),
        (collections.UserList([1]), "UserList([1])"),
        ({"a": 1}.items(), "dict_items({'a': 1})"),
        ({"a": 1}.keys(), "dict_keys(['a'])"),
        (range(3), "range(0, 3)"),
        (Colour.RED, "Colour.RED"),
        (datetime.date(2024, 1, 2), "datetime.date(2024, 1, 2)"),
        (pathlib.PurePosixPath("/a/b"), "PurePosixPath('/a/b')"),
        (uuid.UUID(int=1), "UUID('00000000-0000-0000-0000-000000000001')"),
        (decimal.Decimal("1.50"), "Decimal('1.50')"),
        (ValueError("bad", {"a": 1}), "ValueError('bad', {'a': 1})"),
        (numpy.float64(2.5), "np.float64(2.5)"),
        (Secret("canary"), f"Secret({MASKED})"),
        (unmapped(Secret("canary")), f"unmapped(value=Secret({MASKED}))"),
        (int, "<class 'int'>"),
        (states.Failed(message="no"), "Failed('no')"),
    ],
)
def test_a_small_value_shows_as_people_would_write_it(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Login("ada", "canary"), f"Login(user='ada', password={MASKED})"),
        (Quiet("ada", "canary"), f"Quiet(user='ada', password={MASKED})"),
        (Struct("ada", "canary"), f"Struct(user='ada', api_key={MASKED})"),
        (Attrs("ada", "canary"), f"Attrs(user='ada', token={MASKED}, length=3)"),
        (
            Model(user="ada", client_secret="canary", passwd="canary"),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
            f"Model(user='ada', client_secret={MASKED}, other=SecretStr({MASKED}), passwd={MASKED})",
        ),
        (Point(1, "canary"), f"Point(x=1, passwd={MASKED})"),
        (types.SimpleNamespace(token="canary", x=1), f"SimpleNamespace(token={MASKED}, x=1)"),
        (argparse.Namespace(password="canary"), f"Namespace(password={MASKED})"),
        (functools.partial(print, 1, password="canary"), f"partial(print: 1, password={MASKED})"),
        (Login("ada", "canary").__repr__, "<bound method Login.__repr__>"),
        (types.MappingProxyType({"cookie": "canary"}), f"mappingproxy({{'cookie': {MASKED}}})"),
        (collections.ChainMap({"pwd": "canary"}), f"ChainMap({{'pwd': {MASKED}}})"),
        ({"password": "canary"}.items(), f"dict_items({{'password': {MASKED}}})"),
        ([{"a": {"X-Api-Key": "canary"}}], f"[{{'a': {{'X-Api-Key': {MASKED}}}}}]"),
        ({b"authorization": b"canary"}, f"{{b'authorization': {MASKED}}}"),
        ({"password": 1234, "secret": False, "token": ["canary"]}, "{" + f"'password': {MASKED}, 'secret': {MASKED}, "
         f"'token': {MASKED}" + "}"),
        ({"password": None, "max_tokens": 100}, "{'password': None, 'max_tokens': 100}"),
        (ValueError({"password": "canary"}), f"ValueError({{'password': {MASKED}}})"),
    ],
)  # fmt: skip
def test_what_stands_under_the_name_of_a_secret_is_masked(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_repr_that_an_author_wrote_by_hand_is_used() -> None:
    assert shown(ByHand()) == "ByHand(...)"
    future = task(lambda: 1).submit()
    assert isinstance(future, TaskFuture)
    future.wait()
    assert shown(future) == repr(future)
    assert isinstance(future.state, State)
    assert shown([future.state]) == "[Completed()]"


class Environment(dict[str, str]):
    def __repr__(self) -> str:
        return f"Environment({dict.__repr__(self)}, password='canary')"


def test_what_a_repr_by_hand_says_of_a_password_is_masked_too() -> None:
    assert shown(Environment(DB_PASSWORD="canary", a="b")) == (
        f"Environment({{'DB_PASSWORD': {MASKED}, 'a': 'b'}}, password={MASKED})"
    )


@pytest.mark.parametrize(
    "value",
    [
        numpy.full(3, 77.5),
        numpy.array(77.5),
        numpy.array([(77.5,)], dtype=[("password", float)])[0],
        pandas.DataFrame({"a": [77.5]}),
        pandas.Series([77.5]),
        pandas.Index([77.5]),
        pandas.Categorical([77.5]),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'ndim', 0)}",
)
def test_an_array_or_frame_shows_what_it_is_and_nothing_in_it(value: Any) -> None:
    text = shown(value)
    assert text.startswith(f"<{type(value).__name__} shape={value.shape!r}")
    assert "77" not in text


def test_of_arrays_the_type_of_the_elements_is_shown() -> None:
    assert shown(numpy.zeros((3, 2), "int16")) == "<ndarray shape=(3, 2) dtype=int16>"


MANY = range(300_000)
HUGE: dict[str, Callable[[], object]] = {
    "list": lambda: list(MANY),
    "tuple": lambda: tuple(MANY),
    "set": lambda: set(MANY),
    "dict": lambda: dict.fromkeys(MANY),
    "counter": lambda: collections.Counter(MANY),
    "deque": lambda: collections.deque(MANY),
    "userlist": lambda: collections.UserList(MANY),
    "view": lambda: dict.fromkeys(MANY).values(),
    "wide and deep": lambda: [["x" * 1000] * 1000] * 1000,
    "text": lambda: "x" * 10_000_000,
    "emoji": lambda: "\U0001f600" * 10_000_000,
    "nuls": lambda: "\0" * 10_000_000,
    "bytes": lambda: b"\xff" * 10_000_000,
    "bytearray": lambda: bytearray(10_000_000),
    "memory": lambda: memoryview(bytes(10_000_000)),
    "number": lambda: 10**100_000,
    "decimal": lambda: decimal.Decimal("7" * 1_000_000),
    "key": lambda: {"x" * 10_000_000: 1},
    "field": lambda: types.SimpleNamespace(**{"x" * 1_000_000: 1}),
    "exception": lambda: ValueError("x" * 10_000_000),
    "lists": lambda: nested(100_000, lambda inner: [inner]),
    "dicts": lambda: nested(100_000, lambda inner: {"a": inner}),
    "tuples": lambda: nested(100_000, lambda inner: (inner,)),
    "structs": lambda: nested(1_000, lambda inner: Struct(inner, "")),
    "cycle": cyclic,
    "urls": lambda: "://:" * 1_000_000,
    "assignments": lambda: "a=" * 1_000_000,
    "one word": lambda: "a" * 1_000_000 + "=",
    "array": lambda: numpy.zeros(10_000_000),
}


@pytest.mark.parametrize("name", HUGE)
def test_the_text_of_a_huge_value_is_short_and_made_without_looking_at_it_all(name: str) -> None:
    """In 50 ms at most, where the repr of most of these takes seconds (or overflows the stack)."""
    value = HUGE[name]()
    for limit in (16, 80, 200, 2000):
        begun = time.thread_time()
        text = shown(value, limit)
        assert time.thread_time() - begun < 0.05
        assert len(text) <= limit


@pytest.mark.parametrize(
    ("value", "end"),
    [
        (list(range(10_000)), ", ... (10,000 items)]"),
        (dict.fromkeys(range(10_000)), ", ... (10,000 items)}"),
        ("x" * 10_000, "xxx'... (10,000 long)"),
        (b"x" * 10_000, "xxx'... (10,000 long)"),
        (10**5000, "<int of 16,610 bits>"),
        (array.array("b", [0]) * 200_000, "<array, 200,080 bytes>"),
        (nested(100, lambda inner: [inner]), "[[[[[[[[[...]]]]]]]]]"),
    ],
    ids=["list", "dict", "text", "bytes", "number", "array", "nested"],
)
def test_what_is_cut_says_how_large_it_is(value: object, end: str) -> None:
    assert shown(value).endswith(end)


def test_a_number_is_cut_as_well() -> None:
    assert shown(-1.2345678901234567e-300, 16) == "-1.2345678901..."


def test_a_long_element_leaves_room_for_those_after_it() -> None:
    assert "'b': 2" in shown({"a": "x" * 10_000, "b": 2})


@pytest.mark.parametrize(
    "value", ["\0\x1b[31m\x9b\r\n\u202e\ud800 \U0001f600", Terminal(), ["\x1b"], {"\x1b]0;": "\0"}, ValueError("\0")]
)
def test_the_text_holds_no_nul_and_no_terminal_escape_and_can_be_encoded(value: object) -> None:
    text = shown(value)
    assert text.isprintable()
    assert text.encode()


def test_type_names_are_escaped_too() -> None:
    hostile = type("\x1b[31m", (), {"__repr__": Broken.__repr__})
    assert shown(hostile()) == r"<\x1b[31m whose repr raised KeyError>"


def test_a_repr_that_raises_says_so() -> None:
    assert shown([Broken()]) == "[<Broken whose repr raised KeyError>]"


def test_addresses_are_left_out_so_that_equal_calls_look_equal() -> None:
    assert shown(Plain()) == f"<{__name__}.Plain object>"
    assert shown(lambda: 0).startswith("<function test_addresses")
    assert " at 0x" not in shown(lambda: 0)


class Interrupting:
    def __repr__(self) -> str:
        raise KeyboardInterrupt


def test_an_interrupt_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        shown(Interrupting())


class Lying(collections.UserDict[str, int]):
    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Any:
        raise OSError("gone")


@pytest.mark.parametrize("value", [Lying(), MagicMock(), MagicMock(spec=dict), sys, sys.settrace, object()])
def test_nothing_that_a_value_does_makes_it_raise(value: object) -> None:
    assert shown(value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
)


@given(ANYTHING, st.integers(16, 300))
def test_any_plain_value_gives_a_printable_text_within_the_limit(value: Any, limit: int) -> None:
    text = shown(value, limit)
    assert len(text) <= limit
    assert text.isprintable()


@given(st.text(min_size=12).filter(lambda text: "*" not in text), ANYTHING)
def test_a_canary_under_a_secret_name_never_shows(canary: str, around: Any) -> None:
    value = {"a": around, "b": [{"password": canary}, Struct("u", canary), Secret(canary)]}
    assert shown(value, 2000) == shown({**value, "b": [{"password": "x"}, Struct("u", "x"), Secret("x")]}, 2000)


def test_the_parameters_of_a_call_are_masked_by_name_and_cut() -> None:
    given_: dict[str, Any] = {"user": "ada", "password": "canary", "count": 3, "config": {"token": "canary"}}
    assert shown_parameters(given_) == {
        "user": "'ada'", "password": MASKED, "count": "3", "config": f"{{'token': {MASKED}}}",
    }  # fmt: skip
    assert shown_as("password", None) == "None"


def test_of_many_parameters_the_first_are_shown_and_the_others_counted() -> None:
    texts = shown_parameters({f"p{number}": "x" * 10_000 for number in range(10_000)})
    assert len(texts) == MOST_PARAMETERS + 1
    assert texts["..."] == "(9,950 more)"
    assert sum(map(len, texts.values())) < (MOST_PARAMETERS + 1) * 201


class Unsayable(Exception):
    def __str__(self) -> str:
        raise KeyError("no")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("two\nlines\tare kept"), "two\nlines\tare kept"),
        (ValueError("\x1b[31m\0\ud800"), r"\x1b[31m\x00\ud800"),
        (ValueError("no route to postgresql://ada:canary@host/db"), "no route to postgresql://ada:***@host/db"),
        (Unsayable(), "(its message cannot be shown: KeyError)"),
    ],
)
def test_the_message_of_an_exception_is_safe_to_show(error: Exception, text: str) -> None:
    assert text_of(error) == text


def test_the_message_of_an_exception_is_cut() -> None:
    assert text_of(ValueError("x" * 10_000_000)) == "x" * 997 + "..."
