"""Names and refusals of serializers, what goes by which, and errors that are hard to keep."""

import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from asynctask import plain_data, serializers
from asynctask.errors import AsyncTaskError, FailedRun, OptionError, SerializationError
from asynctask.serializers import (
    DEFAULT,
    decode,
    decode_error,
    encode,
    encode_error,
    register_serializer,
    serializer_of,
)


class Upper:
    def __init__(self, name: str = "upper") -> None:
        self.name = name

    def dumps(self, value: Any, /) -> bytes:
        return str(value).upper().encode()

    def loads(self, data: bytes, /) -> Any:
        return data.decode()


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A registry of this test's own."""
    own: dict[str, Any] = {}
    monkeypatch.setattr(serializers, "_registered", own)
    return own


# -- which serializer ------------------------------------------------------------------------------------------------


def test_plain_data_goes_by_msgpack_and_everything_else_by_pickle() -> None:
    assert encode({"a": [1]}) == ("msgpack", b"\x81\xa1a\x91\x01")
    name, data = encode((1, 2))
    assert name == "pickle"
    assert decode(name, data) == (1, 2)


def test_not_naming_a_serializer_is_the_same_as_the_default() -> None:
    assert serializer_of(None) is DEFAULT
    assert serializer_of(DEFAULT) is DEFAULT
    assert DEFAULT.name == "msgpack"
    assert encode({1, 2}, DEFAULT)[0] == "pickle"


@pytest.mark.parametrize("name", ["msgpack", "json", "compressed/msgpack"])
def test_a_serializer_that_was_named_does_not_go_over_to_another(name: str) -> None:
    with pytest.raises(SerializationError, match="of type tuple"):
        encode((1, 2), serializer_of(name))


def test_pickle_takes_functions_and_classes_by_value() -> None:
    factor = 3

    class Local:
        def times(self, number: int) -> int:
            return number * factor

    name, data = encode(Local(), serializer_of("pickle"))
    assert decode(name, data).times(2) == 6
    assert decode(*encode(lambda: factor))() == 3


def test_a_shared_list_of_lists_is_not_multiplied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty levels of two are 2**40 lists for msgpack, and forty for pickle."""
    monkeypatch.setattr(plain_data, "MOST_VALUES", 100_000)
    monkeypatch.setattr(plain_data, "MOST_LOOKED_AT", 10_000)
    value: list[Any] = []
    for _ in range(40):
        value = [value, value]
    name, data = encode(value)
    assert (name, len(data) < 1000) == ("pickle", True)
    with pytest.raises(SerializationError, match="may be too large"):
        encode(value, serializer_of("msgpack"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ((1,), "serializer 'msgpack' refuses the result, of type tuple; give back plain data"),
        ({"rows": [1, 2, {"at": (1,)}]}, r"refuses the result\['rows'\]\[2\]\['at'\], of type tuple;"),
        ([{"a": {(1, 2): 3}}], r"refuses a key of the result\[0\]\['a'\], of type tuple;"),
        ([1, 2**70], r"refuses the result\[1\], of type int: can't serialize ints"),
        ({"a": "\ud800"}, r"refuses the result\['a'\], of type str: .*surrogates not allowed"),
        ([datetime(2020, 1, 1)], r"refuses the result\[0\], of type datetime.datetime, with a value that would not"),
        ([Upper()], r"refuses the result\[0\], of type .*test_serializers\.Upper;"),
        ({"k" * 5000: {1}}, r"refuses the result\['k{10,60}.{0,60}\], of type set;"),
    ],
)
def test_a_refusal_says_where_in_the_value_and_what_to_do(value: Any, told: str) -> None:
    with pytest.raises(SerializationError, match=told) as caught:
        encode(value, serializer_of("msgpack"))
    assert str(caught.value).endswith("or say result_serializer='pickle'")
    assert isinstance(caught.value, AsyncTaskError)
    assert isinstance(caught.value, TypeError)
    assert len(str(caught.value)) < 500


def test_a_refusal_does_not_show_the_value() -> None:
    with pytest.raises(SerializationError) as caught:
        encode({"a": ("hunter2",)}, serializer_of("json"))
    assert "hunter2" not in str(caught.value)


def test_what_cannot_be_pickled_is_told_with_its_cause() -> None:
    with pytest.raises(
        SerializationError, match=r"'pickle' refuses the result, of type list: TypeError: cannot pickle"
    ) as caught:
        encode([threading.Lock()])
    assert isinstance(caught.value.__cause__, TypeError)


def test_whatever_a_value_raises_while_it_is_pickled_is_a_refusal() -> None:
    class Worst:
        def __reduce__(self) -> Any:
            raise RuntimeError("no way")

    with pytest.raises(SerializationError, match="RuntimeError: no way"):
        encode(Worst())


def test_an_interrupt_while_a_value_is_pickled_goes_through() -> None:
    class Slow:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(Slow())


def test_what_cannot_be_made_anew_is_told_when_it_is_read() -> None:
    class Worst:
        def __reduce__(self) -> Any:
            return (int, ("not a number",))

    with pytest.raises(SerializationError, match=r"by the serializer 'pickle': ValueError: invalid literal"):
        decode(*encode(Worst()))


# -- names and objects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["yaml", "", "compressed", "compressed/", "compressed/lzma", "compressed/zstd/json"])
def test_an_unknown_name_is_told_with_what_there_is(option: str) -> None:
    with pytest.raises(OptionError, match=r"one of 'json', 'msgpack', 'pickle', 'compressed/\.\.\.' \(zlib\), 'compre"):
        serializer_of(option)


def test_compression_is_not_compressed_again() -> None:
    with pytest.raises(OptionError):
        serializer_of("compressed/compressed/json")


@pytest.mark.parametrize("option", [3, object(), Upper, ["json"], b"json"])
def test_what_is_no_serializer_is_refused(option: Any) -> None:
    with pytest.raises(OptionError, match="an object with name, dumps and loads, not"):
        serializer_of(option)


@pytest.mark.parametrize(
    "name", ["", None, 3, "a\nb", "\ud800", "x" * 201, "msgpack", "pickle", "error", "compressed/mine"]
)
def test_an_object_whose_name_cannot_be_used_is_refused(name: Any) -> None:
    with pytest.raises(OptionError, match="the name of the serializer"):
        serializer_of(Upper(name))


def test_an_object_of_the_users_is_found_by_its_name_when_results_are_read() -> None:
    upper = Upper()
    assert serializer_of(upper) is upper
    assert encode("abc", upper) == ("upper", b"ABC")
    assert decode("upper", b"ABC") == "ABC"
    assert serializer_of("upper") is upper
    compressed = serializer_of("compressed/bz2/upper")
    assert decode(*encode("abc", compressed)) == "ABC"


def test_a_name_that_this_process_does_not_know_is_told_when_results_are_read() -> None:
    for name in ("upper", "compressed/upper"):
        with pytest.raises(SerializationError, match=rf"made by the serializer '{name}'.*register_serializer"):
            decode(name, b"ABC")
    register_serializer(Upper())
    assert decode("upper", b"ABC") == "ABC"


def test_a_newer_object_of_one_class_takes_the_place_of_the_older() -> None:
    first, second = Upper(), Upper()
    register_serializer(first)
    register_serializer(second)
    assert serializer_of("upper") is second


def test_two_classes_cannot_share_a_name() -> None:
    class Other(Upper):
        pass

    register_serializer(Upper())
    with pytest.raises(OptionError, match="two serializers have the name 'upper'"):
        register_serializer(Other())


@pytest.mark.parametrize("given", ["text", bytearray(b"x"), None])
def test_an_object_that_does_not_give_bytes_is_told(given: Any) -> None:
    upper = Upper()
    upper.dumps = lambda value, /: given  # type: ignore[method-assign]
    with pytest.raises(SerializationError, match="dumps of the serializer 'upper' must give bytes, not of type"):
        encode("abc", upper)


def test_an_object_that_raises_is_told_with_its_cause() -> None:
    upper = Upper()
    upper.dumps = upper.loads = lambda value, /: 1 / 0  # type: ignore[method-assign]
    register_serializer(upper)
    with pytest.raises(SerializationError, match="ZeroDivisionError"):
        encode("abc", upper)
    with pytest.raises(SerializationError, match="ZeroDivisionError"):
        decode("upper", b"")


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    code = (
        "import asynctask, sys; before = set(sys.modules); from asynctask import serializers as s;"
        "s.decode(*s.encode([1])); s.serializer_of('compressed/lzma/pickle');"
        "print(sorted({'cloudpickle', 'pickle', 'lzma', 'bz2', 'zlib'} & (set(sys.modules) - before)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- errors ----------------------------------------------------------------------------------------------------------


def back(error: BaseException) -> Exception:
    return decode_error(*encode_error(error))


class Coded(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code


class TwoArguments(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class KeywordOnly(Exception):
    def __init__(self, *, why: str) -> None:
        super().__init__(why)


class Adding(Exception):
    """Made anew as Python does it, it is another one: its message grows each time."""

    def __init__(self, message: str, more: str = "!") -> None:
        super().__init__(message + more)


class Refused(ConnectionError):
    def __init__(self, host: str) -> None:
        super().__init__(111, "Connection refused", host)
        self.host = host


class Undecodable(UnicodeDecodeError):
    def __init__(self, data: bytes) -> None:
        super().__init__("utf-8", data, 0, len(data), "invalid")


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class ReduceRaises(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be reduced")


class ReducesToAnother(Exception):
    def __reduce__(self) -> Any:
        return (ValueError, self.args)


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")


class EverythingRaises(Exception):
    args = property(lambda self: 1 / 0)  # type: ignore[assignment]
    __cause__ = property(lambda self: 1 / 0)  # type: ignore[assignment]
    __notes__ = property(lambda self: 1 / 0)
    __class__ = property(lambda self: 1 / 0)  # type: ignore[assignment]

    def __str__(self) -> str:
        raise RuntimeError("boom")

    __repr__ = __str__


class Unequal:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot be compared")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "boom"


def with_lambda() -> Exception:
    error = ValueError("boom")
    error.callback = lambda: threading.Lock()  # type: ignore[attr-defined]
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    return error


def local() -> Exception:
    class Local(ValueError):
        lock = threading.Lock()

    return Local("boom")


def cyclic() -> Exception:
    one, other = ValueError("boom", threading.Lock()), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def deep_arguments() -> Exception:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return ValueError("boom", value)


def long_chain() -> Exception:
    error: Exception = ValueError("the first")
    for _ in range(1000):
        again = ValueError("boom", threading.Lock())
        again.__cause__ = error
        error = again
    return error


def surrogates() -> Exception:
    error = ValueError("boom \ud800 \0", threading.Lock())
    error.add_note("note \udfff")
    return error


HOSTILE: dict[str, tuple[Callable[[], BaseException], str]] = {
    "__reduce__ raises": (lambda: ReduceRaises("boom"), "ReduceRaises: boom"),
    "__reduce__ makes another": (lambda: ReducesToAnother("boom"), "ReducesToAnother: boom"),
    "a lambda and a lock on it": (with_lambda, "ValueError: boom"),
    "__str__ raises": (
        lambda: StrRaises("boom"),
        "StrRaises: (its __str__ raised RuntimeError; its arguments: ('boom',)",
    ),
    "everything raises": (lambda: EverythingRaises("boom"), "EverythingRaises: (its __str__ raised RuntimeError)"),
    "a cycle of causes": (cyclic, "ValueError: ('boom', <unlocked _thread.lock"),
    "10 MB of message": (lambda: ValueError("boom" * 2_500_000), "ValueError: boomboom"),
    "a local class": (local, "local.<locals>.Local: boom"),
    "a lock among its arguments": (lambda: ValueError("boom", threading.Lock()), "ValueError: ('boom', <unlocked"),
    "an argument that cannot be compared": (lambda: ValueError(Unequal()), "ValueError: boom"),
    "arguments nested 100,000 deep": (deep_arguments, "ValueError: (its __str__ raised RecursionError"),
    "a thousand causes": (long_chain, "ValueError: ('boom', "),
    "lone surrogates": (surrogates, r"ValueError: ('boom \ud800 \x00'"),
    "a group of such": (lambda: ExceptionGroup("boom", [with_lambda()]), "ExceptionGroup: boom (1 sub-exception)"),
    "an exit": (lambda: SystemExit("boom"), "SystemExit: boom"),
    "an interrupt": (lambda: KeyboardInterrupt(), "KeyboardInterrupt"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_error_comes_back_described(kind: str) -> None:
    make, told = HOSTILE[kind]
    name, data = encode_error(make())
    assert (name, len(data) < 300_000) == ("error", True)
    again = decode_error(name, data)
    assert type(again) is FailedRun
    assert told in str(again)
    assert len(str(again)) < 30_000
    traceback.format_exception(again)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_error_that_was_raised_keeps_its_traceback(kind: str) -> None:
    try:
        raise HOSTILE[kind][0]()
    except BaseException as error:
        again = back(error)
    assert any("raise HOSTILE[kind][0]()" in note for note in again.__notes__)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        KeyError("missing"),
        Coded("with a code", 7),
        OSError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        ExceptionGroup("two", [ValueError("one"), TypeError("two")]),
        TwoArguments("boom", "bang"),
        KeywordOnly(why="boom"),
        Adding("boom"),
        Refused("localhost"),
        Undecodable(b"\xff"),
        ExceptionGroup("of such", [TwoArguments("boom", "bang"), Adding("boom")]),
        FailedRun("ours"),
        ValueError(),
    ],
    ids=repr,
)
def test_an_ordinary_error_comes_back_as_itself(error: Exception) -> None:
    error.add_note("a note")
    again = back(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__notes__ == ["a note"]
    assert vars(again) == vars(error)


def test_what_an_error_keeps_in_slots_is_there_again() -> None:
    again = back(Slotted(7))
    assert isinstance(again, Slotted)
    assert again.code == 7


def test_a_local_error_that_can_be_pickled_comes_back_with_its_bases() -> None:
    class Local(KeyError):
        pass

    error = Local("x")
    error.again = lambda: 3  # type: ignore[attr-defined]
    again = back(error)
    assert isinstance(again, KeyError)
    assert type(again).__name__ == "Local"


def test_causes_come_back_described_whichever_way_the_error_did() -> None:
    for make in (ValueError, lambda text: TwoArguments(text, "")):
        try:
            try:
                raise ReduceRaises("the cause")
            except ReduceRaises as cause:
                raise make("the error") from cause
        except Exception as error:
            again = back(error)
        assert type(again.__cause__) is FailedRun
        assert str(again.__cause__).endswith("ReduceRaises: the cause")
        assert any("raise ReduceRaises" in note for note in again.__cause__.__notes__)


@pytest.mark.parametrize(("make", "length"), [(cyclic, 2), (long_chain, 11)], ids=["a cycle", "a thousand"])
def test_so_many_causes_are_described_and_each_once(make: Callable[[], Exception], length: int) -> None:
    chain: list[BaseException] = [back(make())]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert len(chain) == length


def test_a_context_that_was_suppressed_stays_away() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT012
        try:
            raise KeyError("inner")
        except KeyError:
            raise ValueError("outer") from None
    assert caught.value.__context__ is not None
    assert back(caught.value).__cause__ is None


def test_an_error_whose_class_the_reader_lacks_comes_back_described() -> None:
    writer = (
        "import sys; from asynctask.serializers import encode_error\n"
        "class Mine(Exception): pass\n"
        "sys.stdout.buffer.write(encode_error(Mine('boom'))[1])"
    )
    data = subprocess.run([sys.executable, "-c", writer], capture_output=True, check=True).stdout
    again = decode_error("error", data)
    assert type(again) is FailedRun
    assert str(again) == "__main__.Mine: boom"


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\xc4\x00\x90", b"\x92\xa1x\x90", encode([1])[1], b"{}" * 50])
def test_a_damaged_error_is_told(data: bytes) -> None:
    with pytest.raises(SerializationError, match=f"a stored error of {len(data)} bytes cannot be read"):
        decode_error("error", data)
    _, whole = encode_error(ValueError("x"))
    for length in range(len(whole)):
        with pytest.raises(SerializationError):
            decode_error("error", whole[:length])


def test_a_form_of_a_later_version_is_told() -> None:
    with pytest.raises(SerializationError, match="the form 'error/2'"):
        decode_error("error/2", b"")


def test_an_interrupt_while_an_error_is_kept_goes_through() -> None:
    class Slow(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_error(Slow())
