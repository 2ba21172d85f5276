"""Digests of values: different for what a function could tell apart, the same everywhere for what it could not."""

import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import os
import pathlib
import re
import subprocess
import sys
import threading
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import numpy
import pandas
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctask import Secret
from asynctask.errors import AsyncTaskError, HashError
from asynctask.hashing import digest, inputs_digest, text_digest


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: Any = 1
    y: Any = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: Any = 1
    y: Any = 2


class Struct(msgspec.Struct):
    x: Any = 1
    y: Any = 2


@attrs.define
class Attrs:
    x: Any = 1
    y: Any = 2


class Model(pydantic.BaseModel):
    x: Any = 1
    y: Any = 2


class Plain:
    def __init__(self, x: Any = 1, y: Any = 2) -> None:
        self.x = x
        self.y = y

    def method(self) -> Any:
        return self.x


class Text(str):
    pass


class Whole(int):
    pass


class Numbers(list[Any]):
    pass


class Tags(set[Any]):
    pass


Pair = namedtuple("Pair", "x y")


def function(x: int) -> int:
    return x


def other_function(x: int) -> int:
    return x


def adder(n: Any) -> Callable[[Any], Any]:
    return lambda x: x + n


def made(n: Any) -> list[Any]:
    """Classes and functions that only this call knows, and objects of these classes."""

    class Local:
        constant = n

        def method(self) -> Any:
            return n

    @dataclasses.dataclass
    class Data:
        x: Any = n

    class Members(enum.Enum):
        ONE = n

    class Fields(msgspec.Struct):
        x: Any = n

    class Checked(pydantic.BaseModel):
        x: Any = n

    @attrs.define
    class Defined:
        x: Any = n

    def inner(y: Any = n) -> Any:
        return n, y

    @functools.lru_cache
    def remembered() -> Any:
        return n

    return [
        *(Local, Local(), Local().method, Data, Data(), Members, Members.ONE, Fields, Fields(), Checked, Checked()),
        *(Defined, Defined(), inner, remembered, functools.partial(inner, 1)),
    ]


JUNE = datetime.datetime(2024, 6, 1, 12, 0)
DIFFERENT: list[Any] = [
    *(1, 1.0, True, "1", b"1", Whole(1), Number.ONE, numpy.int64(1), numpy.float64(1), 1 + 0j, decimal.Decimal(1)),
    *(decimal.Decimal("1.0"), fractions.Fraction(1), 0, 0.0, -0.0, False, None, "", b"", "null", "None", 2**64),
    *(-(2**64), 10**5000, 10**5000 + 1, 1e22, 10**22, 1e16, 10**16),
    *(float("nan"), float("inf"), -float("inf"), "nan", "inf"),
    *((1, 2), [1, 2], {1, 2}, frozenset({1, 2}), deque([1, 2]), Numbers([1, 2]), Tags({1, 2}), range(1, 3), Pair(1, 2)),
    *((), [], {}, set(), frozenset(), [[]], [()], [[[]]], [[], []], [None], [[None]], [float("nan")], ["null"]),
    *("a", b"a", bytearray(b"a"), memoryview(b"a"), Text("a"), "\ud800", "\ud83d\ude00", "😀", "a\0"),
    *("x" * 5000, "y" * 5000, b"x" * 5000, bytearray(b"x" * 5000), memoryview(b"x" * 5000)),
    *({1: 2}, {"1": 2}, {1.0: 2}, {"1": 2.0}, {1: 2, 3: 4}, {1: 4, 3: 2}, {"a": None}, {"a": float("nan")}, {"a": {}}),
    *(OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), {"a": 1, "b": 2}, defaultdict(list, a=1, b=2), Counter("aab")),
    *(Point(), Slotted(), Struct(), Attrs(), Model(), Plain(), {"x": 1, "y": 2}, Point(1, 2.0), Plain(2, 1)),
    *(types.SimpleNamespace(x=1, y=2), Colour.RED, Colour, "RED", Point, Slotted, int, bool, type(None), list[int]),
    *(JUNE, str(JUNE), JUNE.isoformat(), JUNE.date(), JUNE.time(), JUNE.replace(fold=1), pandas.Timestamp(JUNE)),
    *(JUNE.replace(tzinfo=datetime.UTC), datetime.timedelta(1), datetime.timedelta(2), datetime.UTC),
    *(uuid.UUID(int=1), str(uuid.UUID(int=1)), pathlib.Path("a"), pathlib.PurePath("a/b")),
    pathlib.PureWindowsPath("a"),
    *(range(0), range(5, 0), slice(1), slice(1, None), ..., NotImplemented, re.compile("a"), re.compile("a", re.I)),
    *(function, other_function, len, abs, str.upper, "a".upper, [].append, sys, os, Plain.method, Plain().method),
    *(Plain(3).method, functools.partial(function), functools.partial(function, 1), functools.partial(function, x=1)),
    *(lambda x: x.real, lambda x: x.imag),
    *(lambda x: x, lambda x: x + 1, lambda y: y + 1, lambda x: x + 2, lambda x, y=1: x, lambda x, y=2: x),
    *(lambda *, y=1: 0, lambda *, y=2: 0, adder(1), adder(2), adder([1]), Secret("a"), Secret("b")),
    *(ValueError("a"), ValueError("b"), OSError("a"), property(function)),
    *({}.keys(), {}.values(), {"a": 1}.items(), types.MappingProxyType({})),
]  # fmt: skip


def test_whatever_a_function_could_tell_apart_has_another_digest() -> None:
    seen: dict[str, Any] = {}
    for value in DIFFERENT:
        name = inputs_digest({"x": value})
        assert name not in seen, f"{type(value)} {value!r:.100} and {type(seen[name])} {seen[name]!r:.100}"
        assert re.fullmatch("[0-9a-f]{32}", name)
        seen[name] = value
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)
    assert len({digest([value, 0]) for value in DIFFERENT}) == len(DIFFERENT)
    assert len({digest({"a": value}) for value in DIFFERENT}) == len(DIFFERENT)


PROGRAM = """
import sys
sys.path[:0] = {path!r}
from test_hashing import *
class Here:
    def __init__(self): self.x = {{"a", "b"}}
def by_code(x, y={{"q": {{"s", "t"}}}}): return x in {{"u", "v", "w"}}
for value in [*DIFFERENT, *made(7), Here(), Here, by_code, {{"a", "b", ("c", 1)}}, {{frozenset("xyz"): {{1, 2}}}}]:
    print(inputs_digest({{"x": value}}))
"""


def test_another_process_with_other_hashes_gives_the_same_digests(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(path=[str(pathlib.Path(__file__).parent)]))

    def run(seed: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    first, second = run("1"), run("2")
    assert first == second
    assert len(first) > len(DIFFERENT)


def test_equal_values_are_equal_whichever_parts_are_one_object() -> None:
    part = [1, [2], "x" * 5000]
    assert digest([part, part]) == digest([part, copy.deepcopy(part)])
    assert digest({"a": part, "b": part}) == digest({"b": copy.deepcopy(part), "a": part})
    point = Point([1])
    assert digest([point, point]) == digest([point, Point([1])])
    word = "".join(["ab", "cd"])
    assert digest(Plain(word, word)) == digest(Plain("abcd", "".join(["abc", "d"])))


def test_the_order_of_sets_and_dicts_makes_no_difference() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({1: 1, "b": 2, (1, 2): 3}) == digest({(1, 2): 3, "b": 2, 1: 1})
    assert digest({8, 0, 16}) == digest({16, 8, 0})
    assert digest({(1, "a"), "a", None, 1.5}) == digest({None, 1.5, "a", (1, "a")})
    assert inputs_digest({"a": 1, "b": [2]}) == inputs_digest({"b": [2], "a": 1})
    first, second = Plain(), Plain()
    first.a, first.b = 1, 2  # type: ignore[attr-defined]
    second.b, second.a = 2, 1  # type: ignore[attr-defined]
    assert digest(first) == digest(second)


def test_arguments_are_told_apart_by_name_and_salt() -> None:
    assert inputs_digest({"a": 1, "b": 2}) != inputs_digest({"a": 2, "b": 1})
    assert inputs_digest({"a": [1], "b": [2]}) != inputs_digest({"a": [2], "b": [1]})
    for value in (1, [1]):
        assert inputs_digest({"a": value}) != inputs_digest({"b": value})
        assert inputs_digest({"a": value}, salt="x") != inputs_digest({"a": value}, salt="y")
        assert inputs_digest({"a": value}, salt="x") != inputs_digest({"a": value})
    assert inputs_digest(types.MappingProxyType({"a": 1})) == inputs_digest(types.MappingProxyType({"a": 1}))
    assert text_digest("a") != text_digest("b")


def test_every_nan_is_the_same_value() -> None:
    other_bits = float("inf") - float("inf")
    assert digest(float("nan")) == digest(-float("nan")) == digest(other_bits)
    assert inputs_digest({"x": float("nan")}) == inputs_digest({"x": other_bits})


def test_depth_and_sharing_cost_no_more_than_the_values_in_memory() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert digest(deep) != digest([deep])
    chain = None
    for _ in range(20_000):
        chain = Plain(chain)
    digest(chain)
    wide: Any = [set(), 1]
    for _ in range(200):  # 2 ** 200 paths lead through it
        wide = [wide, wide]
    digest(wide)
    while deep:  # freed step by step: a recursive end would need the stack
        deep = deep[0]
    while chain is not None:
        chain = chain.x


def ring(length: int, values: Any = None) -> Any:
    nodes = [Plain(values[place] if values else 0) for place in range(length)]
    for place, node in enumerate(nodes):
        node.y = nodes[(place + 1) % length]
    return nodes


def test_parts_that_lead_back_to_each_other_are_hashed_by_what_they_look_like() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    same: list[Any] = [1]
    same.append(same)
    other: list[Any] = [2]
    other.append(other)
    assert digest(loop) == digest(same)
    assert digest(loop) != digest(other)
    assert digest(loop) != digest([1, [1, []]])
    first, second = ring(3, "abc"), ring(3, "abc")
    assert digest(first[0]) == digest(second[0])
    assert digest(first[0]) != digest(first[1])
    assert digest(first[1]) == digest(ring(3, "bca")[0])
    assert digest([first[0], first[1]]) == digest([first[0], second[1]])
    assert digest([first[0], first[1]]) != digest([first[1], first[0]])
    assert digest(ring(3, "abc")[0]) != digest(ring(4, "abcb")[0])
    crossed = ring(3, "abc")
    crossed[0].y, crossed[1].y = crossed[2], crossed[0]
    assert digest(crossed[0]) != digest(first[0])


def test_a_circle_through_sets_and_keys_does_not_depend_on_their_order() -> None:
    def graph(order: list[int]) -> Any:
        nodes = {value: Plain(value, set()) for value in order}
        for value in order:
            nodes[value].y.update(nodes[other] for other in order if other != value)
        return {nodes[value] for value in order}

    assert digest(graph([1, 2, 3])) == digest(graph([3, 1, 2]))
    assert digest(graph([1, 2, 3])) != digest(graph([1, 2, 4]))


def test_a_graph_of_thousands_is_no_matter_and_an_endless_one_is_refused() -> None:
    many = ring(3000, range(3000))
    assert digest(many) == digest(ring(3000, range(3000)))
    alike = [Plain(0) for _ in range(4000)]
    for before, after in itertools.pairwise(alike):
        before.y = after
        after.x = before
    with pytest.raises(HashError, match="circle of"):
        digest(alike)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=2), st.binary(max_size=2)
)
HASHABLE = st.recursive(LEAVES, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=8,
)


def canonical(value: Any) -> Any:
    """A text that two values share if no function could tell them apart."""
    if isinstance(value, dict):
        return f"dict{sorted((canonical(key), canonical(item)) for key, item in value.items())}"
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(canonical, value))}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{list(map(canonical, value))}"
    return repr(value)


@given(VALUES, VALUES)
def test_digests_are_equal_exactly_where_values_are(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (canonical(one) == canonical(other))
    assert (inputs_digest({"x": one}) == inputs_digest({"x": other})) == (canonical(one) == canonical(other))
    assert digest(copy.deepcopy(one)) == digest(one)


@given(st.lists(LEAVES, min_size=1, max_size=4), st.lists(LEAVES, min_size=1, max_size=4))
def test_atoms_in_several_arguments_are_equal_exactly_where_they_are(one: Any, other: Any) -> None:
    names = "abcd"
    first, second = dict(zip(names, one, strict=False)), dict(zip(names, other, strict=False))
    assert (inputs_digest(first) == inputs_digest(second)) == (canonical(one) == canonical(other))


def test_long_lists_count_to_their_last_element() -> None:
    numbers = list(range(10_000))
    changed = [*numbers[:-1], 0]
    assert digest(numbers) == digest(list(numbers)) != digest(changed)
    assert digest([*numbers, 2**70]) != digest([*numbers, 2**71])
    assert digest([*numbers, None]) != digest([*numbers, float("nan")])
    assert digest(dict.fromkeys(numbers)) != digest(dict.fromkeys(changed))


# Functions and classes ------------------------------------------------------------------------------------------------


def test_functions_that_cannot_be_imported_are_their_code_and_what_they_close_over() -> None:
    assert digest(adder(1)) == digest(adder(1))
    assert digest(adder([1])) == digest(adder([1]))
    assert digest(adder({1: {2}})) != digest(adder({1: {3}}))

    def countdown(n: int) -> int:
        return n and countdown(n - 1)

    digest(countdown)  # it closes over itself


@pytest.mark.parametrize("place", range(len(made(0))))
def test_what_a_function_defines_is_told_apart_by_what_is_in_it(place: int) -> None:
    first, same, other = made(1)[place], made(1)[place], made(2)[place]
    before = digest(first)
    assert before == digest(same) == digest(first)  # nor does it matter that it was hashed before
    assert before != digest(other)


def test_asking_a_class_for_its_annotations_changes_nothing() -> None:
    class Local:
        table = numpy.arange(3)

    before = digest(Local)
    assert Local.__annotations__ == {}
    assert digest(Local) == before


def test_a_function_of_a_script_is_its_code_and_a_class_of_one_its_name(tmp_path: pathlib.Path) -> None:
    def run(number: int) -> list[str]:
        program = tmp_path / "program.py"
        program.write_text(
            "from asynctask.hashing import digest\n"
            "class Here: pass\n"
            f"def f(x): return x + {number}\n"
            "print(digest(f), digest(Here))\n"
        )
        return subprocess.run([sys.executable, program], capture_output=True, text=True).stdout.split()

    first, same, other = run(1), run(1), run(2)
    assert first == same
    assert first[0] != other[0]
    assert first[1] == other[1] != first[0]


def test_attributes_that_only_remember_make_no_difference() -> None:
    class Circle:
        def __init__(self, radius: float) -> None:
            self.radius = radius

        @functools.cached_property
        def area(self) -> float:
            return self.radius**2 * 3

    @attrs.frozen(cache_hash=True, slots=False)
    class Key:
        name: str

    asked, fresh = Circle(1), Circle(1)
    before = digest(fresh)
    assert asked.area
    assert digest(asked) == before
    key = Key("a")
    before = digest(key)
    hash(key)
    assert digest(key) == before == digest(Key("a"))


def test_secrets_count_by_their_value() -> None:
    assert digest(Secret("a")) == digest(Secret("a"))
    assert digest(Secret([1])) != digest(Secret([2]))


# What cannot be hashed ------------------------------------------------------------------------------------------------


class Broken:
    def __reduce__(self) -> Any:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (threading.Lock(), "_thread.lock"),
        ({"deep": [(threading.Lock(),)]}, "_thread.lock"),
        ((number for number in ()), "generator"),
        (Plain(threading.Lock()), "_thread.lock"),
        (adder(threading.Lock()), "_thread.lock"),
        (Broken(), "Broken (not today)"),
        (sys._getframe(), "frame"),
    ],
    ids=["lock", "inside", "generator", "attribute", "closure", "raises", "frame"],
)
def test_the_error_names_the_argument_the_type_and_what_to_do(value: Any, told: str) -> None:
    with pytest.raises(HashError) as caught:
        inputs_digest({"number": 1, "job": value, "other": [2]})
    text = str(caught.value)
    assert "argument 'job'" in text
    assert told in text
    assert "INPUTS - 'job'" in text
    assert "cache_key_fn" in text
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, AsyncTaskError)
    assert caught.value.__cause__ is not None
    with pytest.raises(HashError, match=r"flow parameter 'job'.*without FLOW_PARAMETERS"):
        inputs_digest({"job": value}, of_flow=True)
    with pytest.raises(HashError, match=re.escape(told)):
        digest(value)


def test_a_value_that_breaks_as_it_is_read_is_named_too() -> None:
    class Shifting(dict[str, Any]):
        def __reduce_ex__(self, protocol: Any) -> Any:
            return dict, (), None, None, iter([(1,)])

    with pytest.raises(HashError, match=r"argument 'job'.*Shifting apart raised"):
        inputs_digest({"job": Shifting()})


def test_an_open_file_is_refused_and_not_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    with path.open() as file, pytest.raises(HashError, match="TextIOWrapper"):
        inputs_digest({"file": file})


def test_importing_and_hashing_texts_and_numbers_loads_nothing_heavy() -> None:
    code = (
        "import sys; import asynctask.cache_keys; loaded = set(sys.modules);"
        "assert not loaded & {'hashlib', 'pickle', 'cloudpickle', 'numpy', 'pandas'}, loaded;"
        "from asynctask.hashing import inputs_digest; inputs_digest({'x': 1}); inputs_digest({'x': [1, {2}]});"
        "assert not set(sys.modules) & {'cloudpickle', 'numpy', 'pandas'}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
