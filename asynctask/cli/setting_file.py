"""`asynctask.toml` with one setting changed: comments, order and other lines stay as they are.

1. The new text is proved before it is written: read as TOML it must say what the old one said, but for that setting.
   Where no edit of one line does that, the file is left alone and the user is told to edit it.
2. A file is replaced as a whole or not at all: written beside, flushed to disk, then renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from ..errors import UsageError

FILE = "asynctask.toml"


def with_setting(name: str, value: object) -> str:
    """The file's text with `name` set. Raises `UsageError` when it takes more than an edit of one line."""
    text = _read()
    wanted = {**_parsed(text), name: value}
    line = f"{name} = {toml_of(value)}"
    for before, old, after in _assignments(text, name):
        new = f"{before}{line}{_comment(old)}{after}"
        if _says(new, wanted):
            return new
    newline = "\r\n" if "\r\n" in text else "\n"
    end = "" if not text or text.endswith("\n") else newline
    # At the end; or, where the file ends in a [table], before its first line.
    for new in (f"{text}{end}{line}{newline}", f"{line}{newline}{text}"):
        if _says(new, wanted):
            return new
    raise UsageError(f"{FILE} cannot be changed safely: set {line!r} in it by hand")


def without_setting(name: str) -> str:
    """The file's text without the lines that set `name`. Raises `UsageError` as `with_setting` does."""
    text = _read()
    wanted = {key: value for key, value in _parsed(text).items() if key != name}
    for before, _, after in _assignments(text, name):
        if _says(before + after, wanted):
            return before + after
    raise UsageError(f"{FILE} cannot be changed safely: take {name!r} out of it by hand")


def toml_of(value: object) -> str:
    """A setting's value as TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(map(toml_of, value))}]"  # pyright: ignore[reportUnknownArgumentType]
        case _:
            raise UsageError(f"{value!r} cannot be written to {FILE}; use `asynctask config unset`")


def write(text: str) -> None:
    """Put `text` in the file's place (rule 2), with the permissions and through the links of the old one."""
    import tempfile  # 5 ms, for this command alone

    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{FILE} holds text in UTF-8, which half of a surrogate pair is not: {error}") from error
    path = os.path.realpath(FILE)
    handle, beside = tempfile.mkstemp(prefix=f".{FILE}-", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, _mode(path))
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode & 0o7777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _read() -> str:
    try:
        with open(FILE, "rb") as file:
            return file.read().decode()
    except FileNotFoundError:
        return ""


def _parsed(text: str) -> dict[str, Any]:
    import tomllib  # 2 ms

    return tomllib.loads(text)


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return _parsed(text) == wanted
    except ValueError:  # TOMLDecodeError is one
        return False


def _assignments(text: str, name: str) -> Iterator[tuple[str, str, str]]:
    """Each place that may set `name`: what is before it, its lines, what is after. Not all are (rule 1 finds out)."""
    lines = re.findall(r"[^\n]*\n|[^\n]+\Z", text)
    start = re.compile(rf"[ \t]*(?:{re.escape(name)}|\"{re.escape(name)}\"|'{re.escape(name)}')[ \t]*=")
    for first, line in enumerate(lines):
        if not start.match(line):
            continue
        for last in range(first + 1, len(lines) + 1):  # a list or a text may go over several lines
            try:
                found = _parsed("".join(lines[first:last]))
            except ValueError:
                continue
            if list(found) == [name]:
                yield "".join(lines[:first]), "".join(lines[first:last]), "".join(lines[last:])
            break


def _comment(assignment: str) -> str:
    """What stands behind the value: blanks and a comment, if there is one, and the end of the line."""
    value = _parsed(assignment)
    for found in re.finditer("#", assignment):
        kept = assignment[: found.start()]
        if _says(kept, value):  # else that # is inside of the value
            return assignment[len(kept.rstrip(" \t")) :]
    return assignment[len(assignment.rstrip("\r\n")) :]
