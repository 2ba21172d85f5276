"""Results and errors as bytes, and back.

1. What a serializer takes comes back equal and of the same type; anything else it refuses, before a byte is kept. It
   refuses with `SerializationError`, which says where in the value, and what to do.
2. Unless the user named a serializer, plain data goes by msgpack, and what msgpack refuses goes by pickle.
3. The name of the serializer is kept beside the bytes, and it alone decides how they are read. Reading fails with
   `SerializationError` and nothing else.
4. `pickle` runs what it reads: bytes for it, and for `decode_error`, come here only after `stores.payloads` has checked
   that this store wrote them.
5. An error is never lost: one that does not survive pickling comes back as a `FailedRun` that describes it.
"""

from __future__ import annotations

import copy
import importlib
from typing import Annotated, Any, Final, Protocol

import msgspec

from . import pickles
from .errors import FailedRun, OptionError, SerializationError
from .plain_data import JSON, MSGPACK, PlainData, of_type
from .redact import shown


class Serializer(Protocol):
    """How results become bytes: an object with these three. What `dumps` cannot take, it refuses by raising."""

    @property
    def name(self) -> str:
        """Kept beside the bytes; not one of the built-in names, and the same in every process that reads them."""
        ...

    def dumps(self, value: Any, /) -> bytes: ...

    def loads(self, data: bytes, /) -> Any: ...


# -- the kinds ------------------------------------------------------------------------------------------------------


class _Pickle:
    """Nearly anything."""

    __slots__ = ("name",)

    def __init__(self) -> None:
        self.name = "pickle"

    def dumps(self, value: Any, /) -> bytes:
        return pickles.dumps(value)

    def loads(self, data: bytes, /) -> Any:
        return pickles.loads(data)


class _Compressed:
    """Another serializer's bytes, compressed."""

    __slots__ = ("_algorithm", "_inner", "name")

    def __init__(self, name: str, algorithm: str, inner: Serializer) -> None:
        self.name = name
        self._algorithm = algorithm
        self._inner = inner

    def dumps(self, value: Any, /) -> bytes:
        data: bytes = _compressor(self._algorithm).compress(_dump(self._inner, value))
        return data

    def loads(self, data: bytes, /) -> Any:
        module = _compressor(self._algorithm)
        # The modules' own `decompress` lets pass what follows the end, and bz2's takes no data at all for a whole.
        decompressor: Any = getattr(module, DECOMPRESSORS[self._algorithm])()
        content: bytes = decompressor.decompress(data)
        if not decompressor.eof or decompressor.unused_data:
            raise ValueError(f"{len(data):,} bytes are not one whole {self._algorithm} stream")
        return self._inner.loads(content)


#: By algorithm, the class or function of the module of that name that reads one stream.
DECOMPRESSORS: Final = {"zlib": "decompressobj", "lzma": "LZMADecompressor", "bz2": "BZ2Decompressor"}
_PREFIX: Final = "compressed/"
#: Stands beside the bytes of an error where beside those of a value the serializer's name stands.
ERROR: Final = "error"


def _compressor(algorithm: str) -> Any:
    return importlib.import_module(algorithm)  # 3 to 6 ms; Python may have been built without one


_PICKLE: Final = _Pickle()
#: What a task gets that names no serializer: `encode` goes on to pickle where it refuses.
DEFAULT: Final[Serializer] = copy.copy(MSGPACK)
_BUILT_IN: Final[dict[str, Serializer]] = {each.name: each for each in (MSGPACK, JSON, _PICKLE)}
_registered: dict[str, Serializer] = {}


# -- names -----------------------------------------------------------------------------------------------------------


def serializer_of(option: str | Serializer | None) -> Serializer:
    """The serializer that `result_serializer=` means; an object of the user's is also registered.

    Raises `OptionError`, which lists what there is.
    """
    if option is None:
        return DEFAULT
    if isinstance(option, str):
        found = _find(option)
        if found is None:
            raise OptionError(f"result_serializer must be {_what_there_is()}, not {shown(option)}")
        return found
    if not isinstance(option, (PlainData, _Pickle, _Compressed)):
        register_serializer(option)
    return option


def register_serializer(serializer: Serializer) -> None:
    """Let results kept by a serializer of the user's be read in this process, by its name. Any thread.

    A second one of the same class takes the place of the first. Raises `OptionError` for a name that is taken.
    """
    name: object = getattr(serializer, "name", None)
    if isinstance(serializer, type) or not all(
        callable(getattr(serializer, part, None)) for part in ("dumps", "loads")
    ):
        raise OptionError(f"result_serializer must be {_what_there_is()}, not {shown(serializer)}")
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 200:
        raise OptionError(f"the name of the serializer {shown(serializer)} must be a short text, not {shown(name)}")
    if name in _BUILT_IN or name == ERROR or name.startswith(_PREFIX):
        raise OptionError(f"the name of the serializer {shown(serializer)} must not be {name!r}, which is built in")
    other = type(_registered.setdefault(name, serializer))
    if (other.__module__, other.__qualname__) != (type(serializer).__module__, type(serializer).__qualname__):
        raise OptionError(
            f"two serializers have the name {name!r}, {shown(_registered[name])} and {shown(serializer)}: results"
            " would be read by the wrong one; give one of them another name"
        )
    _registered[name] = serializer  # of a class that was perhaps just reloaded


def _find(name: str) -> Serializer | None:
    if not name.startswith(_PREFIX):
        return _BUILT_IN.get(name) or _registered.get(name)
    rest = name.removeprefix(_PREFIX)
    algorithm, _, inner = rest.partition("/")
    if algorithm not in DECOMPRESSORS or not inner:
        algorithm, inner = "zlib", rest
    found = None if inner.startswith(_PREFIX) else _find(inner)
    return None if found is None else _Compressed(name, algorithm, found)


def _what_there_is() -> str:
    plain = ", ".join(map(repr, sorted([*_BUILT_IN, *_registered])))
    compressed = ", ".join(repr(f"{_PREFIX}{algorithm}/...") for algorithm in DECOMPRESSORS)
    return f"one of {plain}, '{_PREFIX}...' (zlib), {compressed}, or an object with name, dumps and loads"


# -- results ---------------------------------------------------------------------------------------------------------


def encode(value: Any, serializer: Serializer | None = None) -> tuple[str, bytes]:
    """The name of the serializer that took the value, and its bytes. Without one: msgpack, else pickle.

    Raises `SerializationError`.
    """
    if serializer is not None and serializer is not DEFAULT:
        return serializer.name, _dump(serializer, value)
    data = MSGPACK.try_dumps(value)
    return ("msgpack", data) if data is not None else ("pickle", _dump(_PICKLE, value))


def decode(name: str, data: bytes) -> Any:
    """The value that `encode` was given: a new one each time. Raises `SerializationError`."""
    serializer = _BUILT_IN.get(name) or _find(name)
    if serializer is None:
        raise SerializationError(
            f"a stored result was made by the serializer {shown(name)}, which this process does not know: import the"
            " module that defines it and calls register_serializer(...), or the task that uses it"
        )
    try:
        return serializer.loads(data)
    except Exception as error:
        raise SerializationError(
            f"a stored result of {len(data):,} bytes cannot be read by the serializer {name!r}:"
            f" {type(error).__name__}: {_shortened(_text_of(error), 500)}"
        ) from error


def _dump(serializer: Serializer, value: Any) -> bytes:
    try:
        data: object = serializer.dumps(value)
    except SerializationError:
        raise
    except Exception as error:
        raise SerializationError(
            f"serializer {serializer.name!r} refuses the result, {of_type(value)}: {type(error).__name__}:"
            f" {_shortened(_text_of(error), 500)}; give back data, without what belongs to a process (locks, open"
            " files, generators), or make result_serializer= an object of yours with name, dumps and loads"
        ) from error
    if type(data) is not bytes:
        raise SerializationError(f"dumps of the serializer {serializer.name!r} must give bytes, not {of_type(data)}")
    return data


# -- errors ----------------------------------------------------------------------------------------------------------

#: A pickled error larger than this (it has a data frame among its arguments, say) is described instead.
MOST_ERROR_BYTES = 1 << 20
#: A message or a traceback longer than this many characters loses its middle.
MOST_TEXT = 20_000
#: How many causes are described, and how many notes of each.
MOST_CAUSES = 10


class _Described(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of one error of a chain; each is the cause of the one before."""

    kind: str
    message: str
    traceback: str
    notes: list[str]


class _Error(msgspec.Struct, frozen=True, array_like=True):
    #: Empty if the error does not survive pickling. Beside it, the description is for a process without its class.
    pickled: bytes
    chain: Annotated[list[_Described], msgspec.Meta(min_length=1)]


def encode_error(error: BaseException) -> tuple[str, bytes]:
    """A name and bytes, for `decode_error`. Takes any error, however hostile; runs its `__reduce__` and `__str__`."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) <= MOST_CAUSES and not any(cause is each for each in chain):
        chain.append(cause)
        cause = _cause_of(cause)
    return ERROR, msgspec.msgpack.encode(_Error(_pickled(error), [_describe(each) for each in chain]))


def decode_error(name: str, data: bytes) -> Exception:
    """The error that `encode_error` was given, or a `FailedRun` that describes it; its causes are described either way.

    Raises `SerializationError`.
    """
    if name != ERROR:
        raise SerializationError(f"a stored error has the form {shown(name)}, which this version does not know")
    try:
        kept = msgspec.msgpack.decode(data, type=_Error)
    except (msgspec.MsgspecError, ValueError) as error:
        raise SerializationError(f"a stored error of {len(data):,} bytes cannot be read: {error}") from error
    found: Exception | None = None
    for each in reversed(kept.chain[1:]):
        found = _failed(each, found)
    if kept.pickled:
        try:
            again = _PICKLE.loads(kept.pickled)
            if isinstance(again, Exception):
                again.__cause__ = found
                return again
        except Exception:
            pass  # its class is not here, or has changed: there is the description
    return _failed(kept.chain[0], found)


def _failed(described: _Described, cause: Exception | None) -> FailedRun:
    failed = FailedRun(f"{described.kind}: {described.message}" if described.message else described.kind)
    for note in described.notes:
        failed.add_note(note)
    if described.traceback:
        failed.add_note(f"It was raised here:\n{described.traceback}")
    failed.__cause__ = cause
    return failed


def _cause_of(error: BaseException) -> BaseException | None:
    try:
        cause: object = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    except Exception:  # a property of the class's own
        return None
    return cause if isinstance(cause, BaseException) else None


def _by_reference(error: object) -> bytes:
    """A pickle as Python makes it by itself. Some libraries (tblib, which comes with Dask) have exceptions pickled in a
    way of their own, process-wide, that loses what some were made with."""
    import copyreg
    import io
    import pickle  # 4 ms, for who fails

    class ByReference(pickle.Pickler):
        def reducer_override(self, value: Any, /) -> Any:
            return pickles.reduced_error(value) if isinstance(value, BaseException) else NotImplemented

    buffer = io.BytesIO()
    pickler = ByReference(buffer, 5)
    known: dict[Any, Any] = copyreg.dispatch_table
    pickler.dispatch_table = {kind: reduce for kind, reduce in known.items() if not issubclass(kind, BaseException)}
    pickler.dump(error)
    return buffer.getvalue()


def _pickled(error: BaseException) -> bytes:
    """The error as pickle, or nothing if another one would come back."""
    if not isinstance(error, Exception):
        return b""  # an interrupt or an exit: nobody is to be handed one from a store
    import pickle  # 4 ms, for who fails

    # By reference first: what comes back in another process is then the class that its `except` names.
    for dumps in (_by_reference, _PICKLE.dumps):
        try:
            data = dumps(error)
            if len(data) <= MOST_ERROR_BYTES:
                again = pickle.loads(data)
                if type(again) is type(error) and str(again) == str(error) and _are_alike(again.args, error.args):
                    return data
        except Exception:
            continue  # it refuses, or cannot be made anew, or compared
    return b""


def _are_alike(some: object, others: object) -> bool:
    """Whether they are equal, or look it: an exception in a group, for one, is equal to nothing but itself."""
    return some == others or repr(some) == repr(others)


def _describe(error: BaseException) -> _Described:
    import traceback  # 9 ms, for who fails

    kind = type(error)
    module: object = kind.__module__
    path = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    try:
        lines = "".join(traceback.format_tb(error.__traceback__))
    except Exception as problem:
        lines = f"(it cannot be shown: {type(problem).__name__})"
    return _Described(_encodable(path), _encodable(_text_of(error)), _encodable(lines), _notes_of(error))


def _notes_of(error: BaseException) -> list[str]:
    try:
        notes: list[object] = list(getattr(error, "__notes__", ()))
    except Exception:  # it is no list
        return []
    return [_encodable(note) for note in notes[:MOST_CAUSES] if isinstance(note, str)]


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:
        raised = f"its __str__ raised {type(problem).__name__}"
    try:
        return f"({raised}; its arguments: {shown(error.args, MOST_TEXT)})"
    except Exception:
        return f"({raised})"


def _encodable(text: str) -> str:
    return _shortened(text, MOST_TEXT).encode("utf-8", "backslashreplace").decode("utf-8")


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit * 3 // 4]}\n... ({len(text) - limit:,} characters left out) ...\n{text[-limit // 4 :]}"
