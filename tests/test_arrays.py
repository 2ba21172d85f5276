"""Arrays and frames as arguments: hashed by what is in them, in any process, and not copied."""

import copy
import os
import pathlib
import subprocess
import sys
import tracemalloc
import types
from collections.abc import Callable
from typing import Any

import numpy
import pandas
import pytest

from asynctask.hashing import digest, inputs_digest

GRID = numpy.arange(12).reshape(3, 4)
FRAME = pandas.DataFrame({"a": [1, 2, 3], "b": ["x", None, "z"]})
ARRAYS: list[Any] = [
    *(GRID, GRID.T, GRID.astype("i4"), GRID.astype(float), GRID.astype(">i8"), GRID.reshape(4, 3), GRID.ravel()),
    *(numpy.asfortranarray(GRID), GRID.tolist(), GRID.astype(object), GRID.astype(str), GRID.astype("S2")),
    *(GRID.astype("M8[D]"), GRID.astype("M8[s]"), GRID.astype("m8[s]"), GRID.astype(complex), GRID.astype(bool)),
    *(GRID.astype("g"), numpy.array(1), numpy.array([1]), numpy.array([[1]]), numpy.array(1.0), numpy.array("a")),
    *(numpy.array([]), numpy.zeros((0, 3)), numpy.zeros((3, 0)), numpy.array([None, "a", 1], dtype=object)),
    *(numpy.array([None, "a", 1.0], dtype=object), numpy.array(["a", "b"], dtype=numpy.dtypes.StringDType())),
    *(numpy.array([(1, 2.0)], dtype=[(first, "i4"), ("b", "f8")]) for first in "ac"),
    *(numpy.ma.array([1, 2], mask=[0, 1]), numpy.ma.array([1, 2], mask=[1, 0]), numpy.rec.array([(1,)], names=["a"])),
    *(numpy.dtype("i4"), numpy.dtype("i8"), numpy.float32(1), numpy.bool_(True), numpy.random.default_rng(1)),
    *(FRAME, FRAME.rename(columns={"a": "c"}), FRAME.set_index("a"), FRAME[["b", "a"]], FRAME.astype({"a": float})),
    *(FRAME.astype({"b": object}), FRAME.astype({"b": "category"}), FRAME.astype({"a": "Int64"}), FRAME.iloc[:2]),
    *(FRAME.set_index(pandas.Index([5, 6, 7])), FRAME.set_index(pandas.Index([5, 6, 7], name="n")), FRAME.T),
    *(FRAME.assign(a=[1, 2, 4]), FRAME["a"], FRAME["a"].rename("c"), FRAME["b"], FRAME["b"].array),
    *(FRAME.index, FRAME.columns),
    *(pandas.Series([1, None, 3], dtype="Int64"), pandas.Series([1, 0, 3], dtype="Int64"), pandas.NaT, pandas.NA),
    *(pandas.date_range("2024", periods=3), pandas.date_range("2024", periods=3, tz="UTC"), pandas.DataFrame()),
    *(pandas.period_range("2024", periods=3, freq="M"), pandas.interval_range(0, 3), pandas.Categorical(["a", "b"])),
    *(pandas.Categorical(["a", "b"], categories=["b", "a"]), pandas.Categorical(["a", "b"], ordered=True)),
    *(pandas.MultiIndex.from_product([[1, 2], list("ab")]), pandas.MultiIndex.from_product([[1, 2], list("ac")])),
]  # fmt: skip

PROGRAM = """
import sys
sys.path[:0] = {path!r}
from test_arrays import *
for value in ARRAYS:
    print(inputs_digest({{"x": value}}))
"""


def test_another_process_with_other_hashes_gives_arrays_the_same_digests() -> None:
    program = PROGRAM.format(path=[str(pathlib.Path(__file__).parent)])

    def run(seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert run("1") == run("2") == [inputs_digest({"x": value}) for value in ARRAYS]


def test_arrays_and_frames_differ_by_type_shape_order_index_columns_and_elements() -> None:
    seen: dict[str, Any] = {}
    for value in ARRAYS:
        name = inputs_digest({"x": value})
        assert name not in seen, f"{value!r} and {seen[name]!r}"
        seen[name] = value


def test_arrays_and_frames_are_equal_to_their_copies() -> None:
    for value in ARRAYS:
        assert digest(copy.deepcopy(value)) == digest(value), value


def test_an_array_is_its_elements_however_they_lie_in_memory() -> None:
    wide = numpy.arange(60_000, dtype="i2").reshape(200, 300)
    for view in (wide[::2], wide[:, ::-1], wide[5:, 7:], wide[::3, ::3], wide.T[::2]):
        assert not view.flags.c_contiguous
        assert digest(view) == digest(numpy.ascontiguousarray(view))
    aligned = numpy.zeros(3, dtype=numpy.dtype([("a", "i1"), ("b", "i8")], align=True))
    other = aligned.copy()
    other.view("u1").reshape(3, 16)[:, 1:8] = 255  # padding
    assert digest(aligned) == digest(other)
    objects = numpy.array([[1, 2], [3, 4]], dtype=object)
    assert digest(objects[:, ::-1]) == digest(objects[:, ::-1].copy())


def test_frames_of_equal_content_are_equal_however_they_came_about() -> None:
    grown = pandas.DataFrame({"b": ["x", None, "z"]})
    grown.insert(0, "a", [1, 2, 3])
    assert digest(grown) == digest(FRAME)
    both = pandas.DataFrame(numpy.arange(6).reshape(3, 2), columns=["p", "q"])
    assert digest(both) == digest(pandas.DataFrame({"p": [0, 2, 4], "q": [1, 3, 5]}))
    assert digest(both.iloc[1:]) == digest(both.drop(0).set_index(pandas.RangeIndex(1, 3)))
    pairs = pandas.MultiIndex.from_product([[1, 2], ["a", "b"]])
    assert digest(pairs[:2]) == digest(pandas.MultiIndex.from_product([[1], ["a", "b"]]))
    masked = pandas.array([1, None, 3], dtype="Int64")
    masked._data[1] = 77  # what lies under a missing value
    assert digest(masked) == digest(pandas.array([1, None, 3], dtype="Int64"))
    titled = FRAME.copy()
    titled.attrs["title"] = "a"
    assert digest(titled) != digest(FRAME)


MEGABYTES = 40


@pytest.mark.parametrize(
    "make",
    [
        lambda: bytes(MEGABYTES << 20),
        lambda: bytearray(MEGABYTES << 20),
        lambda: memoryview(bytes(MEGABYTES << 20)),
        lambda: memoryview(bytes(MEGABYTES << 20))[::2],
        lambda: "x" * (MEGABYTES << 20),
        lambda: numpy.zeros(MEGABYTES << 17),
        lambda: numpy.zeros((1024, MEGABYTES << 7), order="F"),
        lambda: numpy.zeros((2048, MEGABYTES << 7))[::2],
        lambda: pandas.DataFrame(numpy.zeros((MEGABYTES << 14, 8))),
        lambda: [bytes(MEGABYTES << 20)],
        lambda: ["x" * (1 << 20) for _ in range(MEGABYTES)],
        lambda: types.SimpleNamespace(x=numpy.zeros(MEGABYTES << 17)),
    ],
    ids=[
        *("bytes", "bytearray", "memoryview", "strided memoryview", "text", "array", "Fortran array", "slice", "frame"),
        *("list of bytes", "list of texts", "attribute"),
    ],
)
def test_large_values_are_not_copied_whole(make: Callable[[], Any]) -> None:
    value = make()
    digest(numpy.zeros(1))  # what is imported at first use is not counted
    digest(pandas.DataFrame({"a": [1.0]}))
    tracemalloc.start()
    try:
        inputs_digest({"x": value})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (8 << 20)
