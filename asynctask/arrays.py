"""What arrays and data frames consist of, for hashing: taken a piece at a time, so that no large one is copied whole.

numpy and pandas are never imported here: who holds an array of theirs has imported them.

1. Bytes count, not how they lie in memory: a slice and its copy are equal. Fortran order is told from C order.
2. What has no bytes of its own (objects, structured types with padding, extension arrays) counts by its elements.
"""

# The arrays are of types that are known only where they are installed.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

#: Elements that are looked at (and, where it must be, copied) at a time.
PIECE = 4096

Parts = tuple[bytes, Iterable[Any]]


def parts_of(value: Any) -> Parts | None:
    """A head and the parts of an array, a frame, a series, an index; None for anything else."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return None
    if _is(value, numpy, "ndarray"):
        return _array(value, numpy)
    pandas: Any = sys.modules.get("pandas")
    if pandas is None:
        return None
    if _is(value, pandas, "DataFrame"):
        names: list[Any] = [getattr(value, name, None) for name in value._metadata]  # a subclass's own attributes
        fixed = [type(value), names, value.attrs, value.flags.allows_duplicate_labels, value.index, value.columns]
        return b"frame", _columns(fixed, value, numpy)
    if _is(value, pandas, "Series"):
        names = [value.name, *(getattr(value, name, None) for name in value._metadata)]
        fixed = [type(value), names, value.attrs, value.flags.allows_duplicate_labels, value.index]
        return b"series", [*fixed, _values(value, numpy)]
    if _is(value, pandas, "RangeIndex"):
        return b"index", [type(value), value.name, value.start, value.stop, value.step]
    if _is(value, pandas, "MultiIndex"):
        return b"index", _levels([type(value), list(value.names)], value)
    if _is(value, pandas, "Index"):
        return b"index", [type(value), value.name, getattr(value, "freqstr", None), _values(value, numpy)]
    api: Any = getattr(getattr(pandas, "api", None), "extensions", None)
    if _is(value, api, "ExtensionArray"):
        return b"extension", _extension(value)
    return None


def _is(value: Any, module: Any, name: str) -> bool:
    return isinstance(value, getattr(module, name, ()))  # which another thread may be importing just now


def _columns(fixed: list[Any], frame: Any, numpy: Any) -> Iterator[Any]:
    yield from fixed
    for place in range(frame.shape[1]):
        yield _values(frame.iloc[:, place], numpy)


def _levels(fixed: list[Any], index: Any) -> Iterator[Any]:
    """By the values of each level: how an index numbers them, and which it keeps unused, is its own affair."""
    yield from fixed
    for level in range(index.nlevels):
        yield index.get_level_values(level)


def _values(column: Any, numpy: Any) -> Any:
    """The array inside a series or an index, without a copy."""
    return column.to_numpy() if isinstance(column.dtype, numpy.dtype) else column.array


def _extension(array: Any) -> Iterator[Any]:
    yield type(array)
    yield array.dtype
    numbers = getattr(array, "asi8", None)  # times and periods: 64-bit numbers, and NaT is one of them
    if numbers is None:
        numbers = getattr(array, "codes", None)  # categories: their numbers; the dtype holds the categories
    if numbers is not None:
        yield numbers
        return
    for start in range(0, len(array), PIECE):
        # None stands for whatever the dtype says is missing, so that a piece is plain data and is encoded at once.
        yield array[start : start + PIECE].to_numpy(dtype=object, na_value=None).tolist()


def _array(array: Any, numpy: Any) -> Parts | None:
    kind, dtype, fixed = type(array), array.dtype, [array.dtype]
    if kind is not numpy.ndarray:
        if kind.__reduce__ is not numpy.ndarray.__reduce__:  # masked arrays: there is more to them than elements
            return None
        attributes = {} if isinstance(array, numpy.memmap) else dict(getattr(array, "__dict__", {}))
        fixed += [kind, attributes]
        array = array.view(numpy.ndarray)
    is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    head = b"array %b %b" % (b"F" if is_fortran else b"C", repr(array.shape).encode())
    if dtype.names is not None:
        return head, _fields(fixed, array, dtype.names)
    if dtype.hasobject or dtype.kind not in "biufcSUmMV" or dtype.char in "gG":
        return head, _elements(fixed, array, dtype)
    return head, [*fixed, _bytes_digest(array.T if is_fortran else array, dtype.itemsize)]


def _fields(fixed: list[Any], array: Any, names: Iterable[str]) -> Iterator[Any]:
    yield from fixed
    for name in names:
        yield array[name]


def _elements(fixed: list[Any], array: Any, dtype: Any) -> Iterator[Any]:
    yield from fixed
    for start in range(0, array.size, PIECE):
        piece = array.flat[start : start + PIECE]
        if dtype.char in "gG":  # long doubles: 10 bytes of 16 are theirs, the rest is what lay there before
            piece = piece.astype(str)
        yield piece.tolist()


def _bytes_digest(array: Any, itemsize: int) -> bytes:
    import hashlib  # 2 ms

    hasher = hashlib.sha256()
    if not itemsize or not array.size:
        return hasher.digest()
    if array.flags.c_contiguous:
        hasher.update(array.reshape(-1).view("u1"))
        return hasher.digest()
    count = max(1, (1 << 20) // itemsize)
    for start in range(0, array.size, count):
        hasher.update(array.flat[start : start + count].view("u1"))
    return hasher.digest()
