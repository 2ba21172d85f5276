"""Values as short text that is safe to show: bounded, printable, and without secrets.

1. The work depends on the length of the text, not on the size of the value: of a container only the first elements
   are looked at, of a string only the beginning, of an array nothing but its shape.
2. The text is printable: it holds no NUL, no terminal escape and no lone surrogate, so that it can be encoded.
3. What stands under the name of a secret (a parameter, a key, a field) shows as a mask; so do passwords in URLs.
4. A `__repr__` that an author wrote by hand says what is shown of the object; one that was generated does not.
5. Nothing here raises, whatever the value does.
"""

# It looks into values of every type, so what pyright does not know of them is no news.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import re
import sys
from collections import UserList, deque
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from enum import Enum
from functools import partial
from itertools import islice
from types import MappingProxyType, MethodType, SimpleNamespace
from typing import Any

import msgspec

from .secrets import MASK, MASKED, Secret, is_secret_name, masked, masked_url

__all__ = [
    "MASK",
    "Secret",
    "is_secret_name",
    "masked_url",
    "safe_text",
    "shown",
    "shown_as",
    "shown_parameters",
    "text_of",
]

#: At most so many parameters of a call are shown.
MOST_PARAMETERS = 50
#: Containers inside containers are shown down to here; deeper ones, and those inside themselves, as "...".
_MOST_DEPTH = 8
#: Less room than this is not worth beginning an element in.
_LEAST = 12
#: So far beyond what is shown we read, so that a URL is seen to have a password before it is cut in the middle of it.
_AHEAD = 300
#: A value that takes more bytes is named by its type only: its repr could be as long.
_MOST_BYTES = 100_000
_UNSET: Any = object()
#: Types whose own repr is safe and has 24 characters at most.
_SHORT = frozenset((float, bool, type(None)))
_SHORT_NUMBER = 10**15


def shown(value: object, limit: int = 200) -> str:
    """A text for `value`, of at most `limit` characters (and never less than 16)."""
    kind = type(value)
    if kind is str:
        if len(value) <= limit - 2:  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            text = repr(value if "=" not in value and ":" not in value else masked(value))  # type: ignore[operator, arg-type]  # pyright: ignore[reportOperatorIssue, reportArgumentType]
            if len(text) <= limit:
                return text
    elif (kind in _SHORT and limit >= 24) or (kind is int and -_SHORT_NUMBER < value < _SHORT_NUMBER):  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
        return repr(value)
    limit = max(limit, 16)
    text = _text(value, limit, 0)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown_as(name: str, value: object, limit: int = 200) -> str:
    """A text for the value that goes by this name: a mask, if the name is that of a secret."""
    return MASKED if value is not None and is_secret_name(name) else shown(value, limit)


def shown_parameters(parameters: Mapping[str, Any], limit: int = 200) -> dict[str, str]:
    """The arguments of a call, each as a text of at most `limit` characters; secrets masked by their names."""
    texts = {_label(name): shown_as(name, value, limit) for name, value in islice(parameters.items(), MOST_PARAMETERS)}
    if len(parameters) > MOST_PARAMETERS:
        texts["..."] = f"({len(parameters) - MOST_PARAMETERS:,} more)"
    return texts


def text_of(error: BaseException) -> str:
    """The message of an exception, in at most 1000 characters; its line breaks are kept."""
    try:
        text = str(error)
    except Exception as broken:
        return f"(its message cannot be shown: {_name(type(broken))})"
    return safe_text(text, 1000, kept="\n\t")


# -- texts -------------------------------------------------------------------------------------------------------


def safe_text(text: str, limit: int, kept: str = "") -> str:
    """`text` masked, printable but for the characters of `kept`, and cut."""
    window = text[: limit + _AHEAD]
    is_cut = len(window) < len(text)
    window = masked(window, is_cut=is_cut)
    if not window.isprintable():
        window = "".join(one if one.isprintable() or one in kept else repr(one)[1:-1] for one in window)
    return window if len(window) <= limit and not is_cut else window[: limit - 3] + "..."


def _name(kind: type) -> str:
    return safe_text(str(kind.__name__), 60)


def _label(name: object) -> str:
    """A parameter or field as it stands before its value; most are identifiers, but a dictionary may hold any."""
    if isinstance(name, str) and len(name) <= 60 and name.isprintable():
        return name
    return shown(name, 60)


# -- by type ------------------------------------------------------------------------------------------------------

#: What a container, record or call is made of: a label, the text of the part if that is settled, and the part.
_Part = tuple[str, str | None, Any]


def _text(value: Any, limit: int, depth: int) -> str:
    """A text for `value` of about `limit` characters at most, for what is `depth` containers down."""
    kind = type(value)
    if kind in _SHORT:
        return repr(value)
    try:
        for rule in _RULES_OF.get(kind, _RULES):
            text = rule(value, kind, limit, depth)
            if text is not None:
                return text
        return _own(value, kind, limit)
    except Exception as error:
        return f"<{_name(kind)} whose repr raised {_name(type(error))}>"


def _own(value: Any, kind: type, limit: int) -> str:
    """The object's own repr, without the addresses that nobody can use."""
    if sys.getsizeof(value) > _MOST_BYTES:
        return f"<{_name(kind)}, {sys.getsizeof(value):,} bytes>"
    text = repr(value)
    if " at 0x" in text[:1000]:
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", text[:1000]) + text[1000:]
    return safe_text(text, limit)


def _as_number(value: Any, kind: type, limit: int, depth: int) -> str | None:
    if not issubclass(kind, int) or kind.__repr__ is not int.__repr__:
        return None
    bits = value.bit_length()  # to write 4,300 digits is slow, and more raise
    return repr(value) if bits <= 3 * limit else f"<int of {bits:,} bits>"


def _as_string(value: Any, kind: type, limit: int, depth: int) -> str | None:
    written: Any = kind.__repr__
    if written is not str.__repr__ and written is not bytes.__repr__ and written is not bytearray.__repr__:
        return None
    length = len(value)
    window = value[: limit + _AHEAD]
    text = window if isinstance(value, str) else bytes(window).decode("latin-1")
    text = masked(text, is_cut=len(window) < length)
    whole = _quoted(text, kind)
    if len(whole) <= limit and len(window) == length:
        return whole
    told = f"... ({length:,} long)" if limit >= 40 else "..."
    room = max(0, limit - len(told))
    piece = text[:room]
    while True:
        cut = _quoted(piece, kind)
        if len(cut) <= room or not piece:
            return cut + told
        piece = piece[: min(len(piece) - 1, len(piece) * room // len(cut))]


def _quoted(text: str, kind: type) -> str:
    if issubclass(kind, str):
        return repr(text)
    return repr(text.encode("latin-1") if issubclass(kind, bytes) else bytearray(text, "latin-1"))


def _as_enum(value: Any, kind: type, limit: int, depth: int) -> str | None:
    if not issubclass(kind, Enum) or _is_by_hand(kind) or not value.name:
        return None
    return safe_text(f"{kind.__name__}.{value.name}", limit)


def _as_container(value: Any, kind: type, limit: int, depth: int) -> str | None:
    """Lists, tuples, sets, dictionaries, and what is made of them, if it keeps their repr."""
    for row in _CONTAINERS:
        if issubclass(kind, row[0]):
            break
    else:
        return None
    base, opening, closing = row
    if kind is not base and _is_by_hand(kind):
        return None
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        names: tuple[str, ...] = getattr(kind, "_fields")  # noqa: B009  # no tuple that type checkers know has it
        return _joined(f"{_name(kind)}(", _fields(zip(names, value, strict=False)), len(names), ")", limit, depth)
    if kind not in _WITHOUT_NAME:
        opening, closing = f"{_name(kind)}({opening}", f"{closing})"
    count = len(value)
    if not count and issubclass(kind, (set, frozenset)):
        return f"{_name(kind)}()"
    if issubclass(kind, (Mapping, ItemsView)):
        pairs = value if issubclass(kind, ItemsView) else _pairs(value)
        return _joined(opening, _entries(pairs, depth), count, closing, limit, depth)
    if kind is tuple and count == 1:
        closing = ",)"
    each: Iterable[Any] = base.__iter__(value) if base in (list, tuple, set, frozenset) else value
    return _joined(opening, (("", None, one) for one in each), count, closing, limit, depth)


_WITHOUT_NAME = frozenset((dict, list, tuple, set))
_CONTAINERS: tuple[tuple[Any, str, str], ...] = (
    (dict, "{", "}"),
    (list, "[", "]"),
    (tuple, "(", ")"),
    (set, "{", "}"),
    (frozenset, "{", "}"),
    (deque, "[", "]"),
    (UserList, "[", "]"),
    (MappingProxyType, "{", "}"),
    (Mapping, "{", "}"),
    (KeysView, "[", "]"),
    (ValuesView, "[", "]"),
    (ItemsView, "{", "}"),
)


def _pairs(value: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        return iter(dict.items(value))
    return ((key, value[key]) for key in value)


def _entries(pairs: Iterable[tuple[Any, Any]], depth: int) -> Iterator[_Part]:
    for key, value in pairs:
        name = key if isinstance(key, str) else key[:100].decode("latin-1") if isinstance(key, bytes) else ""
        is_hidden = value is not None and bool(name) and is_secret_name(name)
        yield f"{_text(key, 60, depth + 1)}: ", MASKED if is_hidden else None, value


def _fields(pairs: Iterable[tuple[str, Any]]) -> Iterator[_Part]:
    for name, value in pairs:
        if value is not _UNSET:
            is_hidden = value is not None and is_secret_name(name)
            yield f"{_label(name)}=", MASKED if is_hidden else None, value


def _joined(opening: str, parts: Iterable[_Part], count: int, closing: str, limit: int, depth: int) -> str:
    """The first parts, as many as there is room for, and how many there are."""
    if not count:
        return opening + closing
    rest = f"... ({count:,} items)"
    if depth >= _MOST_DEPTH:
        return f"{opening}...{closing}"
    texts: list[str] = []
    used = len(opening) + len(closing)
    for place, (label, text, value) in enumerate(parts):
        is_last = place == count - 1
        room = limit - used - len(label) - (0 if is_last else 2 + len(rest))
        if room < _LEAST:
            texts.append(rest)
            break
        if text is None:
            # Not all of the room to one that is long: those after it tell more than its end.
            text = _text(value, room if is_last else max(room // 2, min(room, 60)), depth + 1)
        texts.append(label + text)
        used += len(label) + len(text) + 2
    return opening + ", ".join(texts) + closing


def _as_record(value: Any, kind: type, limit: int, depth: int) -> str | None:
    """Structs, dataclasses, attrs and pydantic classes, namespaces; without the fields that their repr leaves out."""
    given: dict[str, Any] = {}
    writer: Any = next(one for one in kind.__mro__ if "__repr__" in vars(one))  # it may know less fields than `kind`
    if _is_of("pydantic", "BaseModel", kind):
        if writer.__module__.partition(".")[0] != "pydantic":
            return None
        fields: dict[str, Any] = getattr(kind, "model_fields")  # noqa: B009  # as above
        names = [name for name, field in fields.items() if field.repr]
        given = value.model_extra or {}
    elif _is_by_hand(kind):
        return None
    elif issubclass(kind, msgspec.Struct):
        names = list(kind.__struct_fields__)
    elif hasattr(writer, "__dataclass_fields__"):
        names = [field.name for field in sys.modules["dataclasses"].fields(writer) if field.repr]
    elif "attr" in sys.modules and hasattr(writer, "__attrs_attrs__"):
        said = {one.name: one.repr for one in writer.__attrs_attrs__ if one.repr}
        return _joined(f"{_name(kind)}(", _attrs_fields(value, said, limit), len(said), ")", limit, depth)
    elif issubclass(kind, SimpleNamespace) or _is_of("argparse", "Namespace", kind):
        names, given = [], vars(value)
    else:
        return None
    held = [(name, getattr(value, name, _UNSET)) for name in names] + list(islice(given.items(), limit))
    held = [pair for pair in held if pair[1] is not _UNSET]
    return _joined(f"{_name(kind)}(", _fields(held), len(held), ")", limit, depth)


def _attrs_fields(value: Any, said: dict[str, Any], limit: int) -> Iterator[_Part]:
    """The fields of an attrs class; one may have a function of its own that makes its text."""
    for label, text, held in _fields((name, getattr(value, name, None)) for name in said):
        say = said[label[:-1]]
        yield label, safe_text(str(say(held)), limit) if text is None and callable(say) else text, held


def _as_array(value: Any, kind: type, limit: int, depth: int) -> str | None:
    """Arrays, tensors, series and data frames: never what is in them."""
    if not hasattr(kind, "shape"):  # of the type: a mock has every attribute
        return None
    if _is_of("numpy", "generic", kind) and not _is_of("numpy", "void", kind):
        return None  # one number
    for attribute in ("dtype", "dtypes", "schema"):
        if hasattr(kind, attribute):
            break
    else:
        return None
    shape = _text(tuple(value.shape), limit // 2, depth + 1)
    if attribute == "dtype":
        return safe_text(f"<{_name(kind)} shape={shape} dtype={value.dtype}>", limit)
    return safe_text(f"<{_name(kind)} shape={shape}>", limit)


def _as_call(value: Any, kind: type, limit: int, depth: int) -> str | None:
    """Exceptions, partial functions and methods: what was given to them is cut, and masked by name."""
    if issubclass(kind, BaseException) and kind.__repr__ is BaseException.__repr__:
        arguments = ((("", None, one)) for one in value.args)
        return _joined(f"{_name(kind)}(", arguments, len(value.args), ")", limit, depth)
    if kind is MethodType:
        return safe_text(f"<bound method {value.__func__.__qualname__}>", limit)
    if kind is partial:
        called = getattr(value.func, "__qualname__", None) or _name(type(value.func))
        named = _fields(value.keywords.items())
        parts = [*(("", None, one) for one in islice(value.args, limit)), *islice(named, limit)]
        return _joined(f"partial({safe_text(called, 60)}: ", parts, len(parts), ")", limit, depth)
    return None


def _as_path(value: Any, kind: type, limit: int, depth: int) -> str | None:
    if not _is_of("pathlib", "PurePath", kind) or _is_by_hand(kind):
        return None
    return f"{_name(kind)}({_text(str(value), limit - len(_name(kind)) - 2, depth)})"


_RULES: tuple[Callable[[Any, type, int, int], str | None], ...] = (
    _as_number,
    _as_string,
    _as_enum,
    _as_container,
    _as_record,
    _as_array,
    _as_call,
    _as_path,
)
#: The same for the types that most values have; the others ask them all, in order.
_RULES_OF: dict[type, tuple[Callable[[Any, type, int, int], str | None], ...]] = {
    int: (_as_number,),
    **dict.fromkeys((str, bytes), (_as_string,)),
    **dict.fromkeys((dict, list, tuple, set), (_as_container,)),
}


def _is_of(module: str, name: str, kind: type) -> bool:
    """Whether it is of a class of a module that somebody else must have imported, if so."""
    found = sys.modules.get(module)
    base = getattr(found, name, None)
    return isinstance(base, type) and issubclass(kind, base)


def _is_by_hand(kind: type) -> bool:
    """Whether somebody outside the standard library wrote the `__repr__` of this class, in Python."""
    written: Any = kind.__repr__
    written = getattr(written, "__wrapped__", written)
    code = getattr(written, "__code__", None)
    if code is None or code.co_filename.startswith(("<string>", "<attrs generated")):
        return False
    return str(written.__module__).partition(".")[0] not in sys.stdlib_module_names
