"""Pickles: nearly any value as bytes, and back, also what the program defines in its own file.

1. Classes and functions of `__main__` go by value (cloudpickle): any process can read them. A process that has the same
   program as its own takes its own instead. With copies of them nothing that was kept would be equal to what it was: a
   dataclass, an enum and `isinstance` ask for the very class.
2. What would come back as something else is refused.
3. An exception is made anew without its own `__init__`: what that took is not what it passed on to `Exception`, and
   only this does Python keep.
"""

from __future__ import annotations

import functools
import importlib
import io
import sys
import types
from collections import ChainMap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from .specs import MAIN, main_module


def dumps(value: Any, beside: Callable[[Any], object] | None = None, /) -> bytes:
    """`beside` is called with each large buffer (protocol 5), which is then not in the pickle."""
    buffer = io.BytesIO()
    # Every Python that may share the store reads 5.
    _pickler()(buffer, protocol=5, buffer_callback=beside).dump(value)
    return buffer.getvalue()


def loads(data: bytes, beside: Iterable[Any] | None = None, /) -> Any:
    return _unpickler()(io.BytesIO(data), buffers=beside).load()


def own_or_made(module: str, name: str, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The reader's own class or function of that name, or a copy. Pickles that are kept name this function."""
    own = _own(module, name)
    return make(*arguments) if own is None else own


def fill(made: Any, kept: tuple[str, str, Callable[[Any, Any], Any], Any]) -> None:
    """Give a copy its content; the reader's own has one. Pickles that are kept name this function."""
    module, name, fill_copy, state = kept
    if _own(module, name) is not made:
        fill_copy(made, state)


def reduced_error(error: BaseException) -> Any:
    """How to make an exception anew, for a pickle, if its class has an `__init__` and no way of its own (rule 3).

    Nor slots, which Python does not keep: its `__init__` may set them again.
    """
    kind = type(error)
    is_plain = isinstance(kind.__reduce__, types.MethodDescriptorType) and kind.__reduce_ex__ is object.__reduce_ex__
    has_slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    if not is_plain or has_slots or not isinstance(kind.__init__, types.FunctionType):
        return NotImplemented
    reduced: Any = error.__reduce__()
    return error_made, (kind, reduced[1]), *reduced[2:]


def error_made(kind: type[BaseException], arguments: tuple[Any, ...]) -> BaseException:
    """An exception with these arguments. Pickles that are kept name this function."""
    made = kind.__new__(kind, *arguments)
    for base in kind.__mro__:
        begin = vars(base).get("__init__")
        if begin is not None and not isinstance(begin, types.FunctionType):  # Python's own
            begin(made, *arguments)
            break
    return made


def _own(module: str, name: str) -> Any:
    """What this program calls so: as the script that it is, or having imported that."""
    found: Any = sys.modules.get("__main__" if module == main_module() else module)
    for step in name.split("."):
        found = getattr(found, step, None)
    return found if isinstance(found, (type, types.FunctionType)) else None


@functools.cache
def _pickler() -> Any:
    cloudpickle = importlib.import_module("cloudpickle")  # 20 ms
    base: Any = cloudpickle.Pickler
    if "__mp_main__" in sys.modules:  # cloudpickle knows `__main__` alone, and would have others import this name
        cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])
    # It makes a copy of the content of a file that is open for reading, and bytes of a view.
    refused = dict.fromkeys((io.TextIOWrapper, memoryview), _refuse)

    def reducer_override(self: Any, value: Any) -> Any:
        if isinstance(value, BaseException):
            return reduced_error(value)
        reduced: Any = base.reducer_override(self, value)
        if reduced is NotImplemented or len(reduced) != 6 or value.__module__ not in MAIN:
            return reduced
        module, name = main_module(), value.__qualname__
        if _own(module, name) is not value:
            return reduced
        make, arguments, state, _, _, fill_copy = reduced
        return own_or_made, (module, name, make, arguments), (module, name, fill_copy, state), None, None, fill

    members = {"dispatch_table": ChainMap(refused, base.dispatch_table), "reducer_override": reducer_override}
    return type("Pickler", (base,), members)


@functools.cache
def _unpickler() -> Any:
    import pickle  # 4 ms

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            # Kept by who had imported the script that is run here: not to be imported, and run, once more.
            is_main = module in MAIN or (module not in sys.modules and module == main_module())
            return super().find_class("__main__" if is_main else module, name)

    return Unpickler


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"cannot pickle {type(value).__name__!r} object")
