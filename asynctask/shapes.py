"""What a value consists of, for hashing: a head of bytes, the values inside it, and whether their order counts.

1. Two values of different types, or with different contents, never have the same head and the same children.
2. The type counts: `True`, `1`, `1.0` and `"1"` are four values, and so is a subclass of each.
3. Functions and classes that can be imported are their names; others (lambdas, closures, what `__main__` and functions
   define) are their code: bytecode, constants, names, defaults, closed-over values. A class of `__main__` is its name.
4. An object without a rule of its own is what it would be rebuilt from (`__reduce_ex__`, or cloudpickle's way). It is
   not the bytes that pickle writes: those change with which equal parts are one object, and with the order of sets.
5. What cannot be taken apart raises; `hashing` says whose argument it was.
"""

# It looks into values of every type, so what pyright does not know of them is no news.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import copyreg
import enum
import functools
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import msgspec

from .arrays import PIECE, parts_of
from .errors import HashError
from .redact import text_of
from .runs import Handle, Run
from .specs import MAIN, TaskSpec, public_module

#: How the children of a shape are joined: as they stand, sorted, or as pairs sorted by their first halves.
ORDERED, SORTED, PAIRED = 0, 1, 2

Shape = tuple[bytes, Iterable[Any], int]

#: A text or bytes up to this length is written into what holds it; a longer one is hashed where it lies.
LONG = 4096

_PLAIN: frozenset[type] = frozenset((int, bool, type(None)))
_encode = msgspec.json.Encoder(order="deterministic").encode


def atom(value: Any) -> bytes | None:
    """The whole of a small value, told apart from every other and self-delimiting; None if it is not that simple."""
    kind = type(value)
    if kind is str:
        return _text(value) if len(value) <= LONG else None
    if kind is int:
        return b"i%x;" % value
    if kind is float:
        return b"d%b;" % repr(value).encode()  # every NaN is "nan": which bits it has depends on how it came about
    if value is None:
        return b"n"
    if kind is bool:
        return b"t" if value else b"f"
    if kind is bytes and len(value) <= LONG:
        return b"b%d:%b" % (len(value), value)
    return None


def is_plain(values: Iterable[Any]) -> bool:
    """Whether all are atoms that JSON tells apart: it writes null for NaN and infinity, and `1` is not `1.0`."""
    for value in values:
        kind = type(value)
        if kind is str:
            if len(value) > LONG:
                return False
        elif kind is float:
            if value - value != 0.0:  # NaN or infinite
                return False
        elif kind not in _PLAIN:
            return False
    return True


def shape_of(value: Any) -> Shape:
    """What any value consists of. Raises `HashError` if it is not known, and whatever its own methods raise."""
    kind = type(value)
    describe = _DESCRIBED.get(kind) or _described_by_base(kind)
    if describe is not None:
        return describe(value)
    parts = parts_of(value)
    if parts is not None:
        return *parts, ORDERED
    return _rebuilt(value, kind)


def code_of(fn: Any) -> Any:
    """The code of a function, for hashing; where it has none (it is not written in Python), the function."""
    return getattr(fn, "__code__", fn)


# Containers -----------------------------------------------------------------------------------------------------------


def _sequence(value: Any) -> Shape:
    head = b"list " if type(value) is list else b"tuple "
    if is_plain(value):
        try:
            if len(value) <= PIECE:
                return head + _encode(value), (), ORDERED
            return head + _digest(_encode(value[at : at + PIECE]) for at in range(0, len(value), PIECE)), (), ORDERED
        except (OverflowError, ValueError):  # an int that is too long, half a surrogate pair
            pass
    return head, value, ORDERED


def _dict(value: dict[Any, Any]) -> Shape:
    if len(value) <= PIECE and all(type(key) is str for key in value) and is_plain(value) and is_plain(value.values()):
        try:
            return b"dict " + _encode(value), (), ORDERED
        except (OverflowError, ValueError):  # an int that is too long, half a surrogate pair
            pass
    return b"dict", list(chain.from_iterable(value.items())), PAIRED


def _set(value: Any) -> Shape:
    kind = type(value)
    if kind is set or kind is frozenset:
        return kind.__name__.encode(), list(value), SORTED
    return b"set of a kind", [kind, getattr(value, "__dict__", None), frozenset(value)], ORDERED


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


def _long_text(value: str) -> Shape:
    pieces = (value[at : at + (1 << 20)].encode("utf-8", "surrogatepass") for at in range(0, len(value), 1 << 20))
    return b"text " + _digest(pieces), (), ORDERED


def _bytes(value: bytes | bytearray) -> Shape:
    return b"%b " % type(value).__name__.encode() + _digest((value,)), (), ORDERED


def _buffer(view: memoryview) -> Shape:
    head = b"buffer %b %b " % (view.format.encode(), repr(view.shape).encode())
    if view.c_contiguous:
        return head + _digest((view,)), (), ORDERED
    if view.ndim == 1:
        pieces = (view[at : at + PIECE].tobytes() for at in range(0, len(view), PIECE))
        return head + _digest(pieces), (), ORDERED
    return head + _digest((view.tobytes(),)), (), ORDERED


def _digest(pieces: Iterable[Any]) -> bytes:
    import hashlib  # 2 ms

    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


# Functions and classes ------------------------------------------------------------------------------------------------


def _imported(value: Any) -> str | None:
    """The name under which any process can import this very object; None if there is none."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(name, str) or "<" in name:
        return None
    found: Any = sys.modules.get(module or "builtins")
    for step in name.split("."):
        found = getattr(found, step, None)
    return f"{module}:{name}" if found is value else None


def _function(value: types.FunctionType) -> Shape:
    name = _imported(value)
    if name is not None and value.__module__ not in MAIN:
        return b"name " + name.encode(), (), ORDERED
    cells = [_content(cell) for cell in value.__closure__ or ()]
    children = [value.__code__, value.__defaults__, value.__kwdefaults__, cells, value.__dict__]
    return b"function " + value.__qualname__.encode(), children, ORDERED


def _content(cell: types.CellType) -> Any:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not filled yet
        return ()


def _code(value: types.CodeType) -> Shape:
    counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
    names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
    children = [value.co_code, value.co_exceptiontable, counts, *names, value.co_consts]
    return b"code", children, ORDERED


def _builtin(value: Any) -> Shape:
    owner = value.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        module = value.__module__ or getattr(owner, "__name__", "builtins")
        return b"name " + f"{module}:{value.__qualname__}".encode(), (), ORDERED
    return b"builtin method " + value.__name__.encode(), [owner], ORDERED


#: What Python, or a library, adds to a class as it is used, or in no certain order.
_NOISE = frozenset((
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__",
    "__slotnames__", "__abstractmethods__", "_abc_impl", "__annotations_cache__", "__annotate_func__", "__signature__",
    "__class_getitem__", "__subclasshook__", "__pydantic_core_schema__", "__pydantic_validator__",
    "__pydantic_serializer__", "__pydantic_decorators__", "__pydantic_parent_namespace__",
    "__pydantic_generic_metadata__", "__struct_config__", "__attrs_base_of_slotted__",
))  # fmt: skip


#: Set in `__flags__` of classes that were made at run time; those of C that were not are what their names say.
_HEAP_TYPE = 1 << 9


def _class(value: type) -> Shape:
    if _imported(value) is not None or not value.__flags__ & _HEAP_TYPE:
        return b"class " + f"{public_module(value.__module__)}:{value.__qualname__}".encode(), (), ORDERED
    members = {name: member for name, member in vars(value).items() if name not in _NOISE}
    if not members.get("__annotations__", True):  # it comes into being when somebody asks for it
        del members["__annotations__"]
    fields = (getattr(value, "__struct_fields__", None), getattr(value, "__struct_defaults__", None))
    return b"class here " + value.__qualname__.encode(), [type(value), value.__bases__, members, fields], ORDERED


def _descriptor(value: Any) -> Shape:
    return f"{type(value).__name__} {value.__qualname__}".encode(), (), ORDERED


# Objects --------------------------------------------------------------------------------------------------------------


def _rebuilt(value: Any, kind: type) -> Shape:
    """An object as the call that would make it again, and the state that would be put into it."""
    reduced = _reduced(value, kind)
    if isinstance(reduced, str):
        name = _imported(value)
        is_known = name is not None and name.partition(":")[0] not in MAIN
        inner = getattr(value, "__wrapped__", None)
        if inner is not None and not is_known:  # a function-like object of C around one of Python, as of lru_cache
            return b"wrapper", [kind, inner], ORDERED
        return b"name " + f"{getattr(value, '__module__', None)}:{reduced}".encode(), (), ORDERED
    parts: Any = (*reduced, None, None, None)
    make, arguments, state, items, pairs = parts[:5]
    if type(state) is dict:
        state = {name: part for name, part in state.items() if not _is_cached(kind, name)}
    if make is _NEW and len(arguments) == 1 and items is None and pairs is None:  # most objects: half the time
        return b"made", [*arguments, state], ORDERED
    children = [make, arguments, state]
    if items is not None:
        children.append(list(items))
    if pairs is not None:
        # What a dict of a kind says of itself: in order for those that compare by order.
        children.append(list(pairs) if issubclass(kind, OrderedDict) else dict(pairs))
    return b"object %d %d" % (items is not None, pairs is not None), children, ORDERED


_NEW: Any = vars(copyreg)["__newobj__"]


def _reduced(value: Any, kind: type) -> Any:
    reduce = copyreg.dispatch_table.get(kind)
    if reduce is not None:
        return reduce(value)
    try:
        return value.__reduce_ex__(5)
    except Exception as error:
        import cloudpickle  # type: ignore[import-untyped]  # 20 ms  # pyright: ignore[reportMissingTypeStubs]

        reduce = cloudpickle.CloudPickler.dispatch_table.get(kind)
        if reduce is None or hasattr(kind, "readable"):  # it would read a file that is open, all of it
            raise HashError(f"{type_name(kind)} ({text_of(error) or type(error).__name__})") from error
        return reduce(value)


def _is_cached(kind: type, name: Any) -> bool:
    """Whether an attribute only remembers what follows from the others."""
    if name == "_attrs_cached_hash":
        return True
    return isinstance(name, str) and isinstance(getattr(kind, name, None), functools.cached_property)


def type_name(kind: type) -> str:
    """The full name of a type, for messages."""
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _refused(value: Any) -> Shape:
    raise HashError(f"{type_name(type(value))} (it stands for a run, not for a value)")


def _described_by_base(kind: type) -> Callable[[Any], Shape] | None:
    if not _BASES:
        import pathlib  # 5 ms
        import pickle  # 3 ms

        _DESCRIBED[pickle.PickleBuffer] = lambda value: _buffer(value.raw())
        _BASES.update({pathlib.PurePath: lambda value: (b"path", [type(value), str(value)], ORDERED)})
        _BASES.update(_OWN_BASES)
        if kind is pickle.PickleBuffer:
            return _DESCRIBED[kind]
    for base, describe in _BASES.items():
        if issubclass(kind, base):
            return describe
    return None


def _children(name: bytes, *attributes: str) -> Callable[[Any], Shape]:
    """For a type whose values are no more than these attributes."""
    return lambda value: (name, [getattr(value, attribute) for attribute in attributes], ORDERED)


def _listed(name: bytes, order: int = ORDERED) -> Callable[[Any], Shape]:
    return lambda value: (name, list(value), order)


_DESCRIBED: dict[type, Callable[[Any], Shape]] = {
    list: _sequence,
    tuple: _sequence,
    dict: _dict,
    set: _set,
    frozenset: _set,
    str: _long_text,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _buffer,
    slice: _children(b"slice", "start", "stop", "step"),
    property: _children(b"property", "fget", "fset", "fdel"),
    staticmethod: _children(b"static method", "__func__"),
    classmethod: _children(b"class method", "__func__"),
    functools.cached_property: _children(b"cached property", "func"),
    types.MethodType: _children(b"method", "__func__", "__self__"),
    types.FunctionType: _function,
    types.CodeType: _code,
    types.BuiltinFunctionType: _builtin,
    types.CellType: lambda value: (b"cell", [_content(value)], ORDERED),
    types.ModuleType: lambda value: (b"module " + value.__name__.encode(), (), ORDERED),
    types.MappingProxyType: lambda value: (b"mapping proxy", [dict(value)], ORDERED),
    types.MemberDescriptorType: _descriptor,
    types.GetSetDescriptorType: _descriptor,
    types.WrapperDescriptorType: _descriptor,
    types.MethodDescriptorType: _descriptor,
    types.ClassMethodDescriptorType: _descriptor,
    type({}.keys()): _listed(b"keys", SORTED),
    type({}.values()): _listed(b"values"),
    type({}.items()): _listed(b"items", SORTED),
    TaskSpec: lambda value: (b"task " + value.key.encode(errors="surrogatepass"), (), ORDERED),
}
#: For subclasses; `_BASES` is these and what it takes an import to name.
_OWN_BASES: dict[type, Callable[[Any], Shape]] = {
    type: _class,
    set: _set,
    frozenset: _set,
    enum.Enum: lambda value: (b"member", [type(value), value._name_, value._value_], ORDERED),
    Handle: _refused,
    Run: _refused,
}
_BASES: dict[type, Callable[[Any], Shape]] = {}
