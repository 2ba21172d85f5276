"""What commands print: text, tables and JSON documents.

1. What comes from users (names, messages, tracebacks) is shown without its control characters, and is never markup.
2. On a terminal tables are drawn by rich; into a pipe they are aligned text, and rich is not imported (60 ms).
3. With `--json` exactly one document goes to standard output, or one a line; all that is for people goes elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import OutputClosed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: The styles of the cells that say what became of a run.
STYLES = {
    "COMPLETED": "green",
    "FAILED": "red",
    "CRASHED": "bright_red",
    "CANCELLED": "yellow",
    "CANCELLING": "yellow",
    "RUNNING": "cyan",
    "SCHEDULED": "blue",
    "PENDING": "blue",
    "PAUSED": "magenta",
}


def cleaned(text: object, *, lines: bool = False) -> str:
    """`text` without control characters (rule 1); a line break becomes a space, unless `lines`."""
    text = str(text)
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(one if one.isprintable() or one in kept else " " if one.isspace() else "" for one in text)


def out(text: object = "") -> None:
    """Lines for standard output."""
    _write(sys.stdout, cleaned(text, lines=True))


def note(text: object) -> None:
    """Lines for people, beside the output: on standard error."""
    _write(sys.stderr, cleaned(text, lines=True))


def _write(stream: Any, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    try:
        # In an ASCII locale, say, what cannot be written is written as an escape.
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()  # so that lines of the two streams stand in the order in which they were written
    except BrokenPipeError as error:
        raise OutputClosed("nobody reads what is printed") from error


def document(value: object, *, unknown: Callable[[Any], Any] | None = None) -> None:
    """`value` as one JSON document on one line; `unknown` turns what JSON has no form for into what it has."""
    try:
        text = msgspec.json.encode(value, enc_hook=unknown).decode()
    except (UnicodeEncodeError, OverflowError):  # half of a surrogate pair, or 2**70: the standard library writes both
        import json

        text = json.dumps(msgspec.to_builtins(value, enc_hook=unknown, str_keys=True))
    _write(sys.stdout, text)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, styles: Sequence[str | None] = ()) -> None:
    """Rows under their headings; `styles` has a style, or None, for each row, and colours the column `STATE`."""
    cells = [[cleaned(cell) for cell in row] for row in rows]
    if is_terminal():
        screen().print(drawn(columns, cells, styles))
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, *cells):
        out("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def screen(*, stderr: bool = False) -> Console:
    """The terminal, to rich; nothing that is written to it is read as markup."""
    from rich.console import Console  # 60 ms (rule 2)

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str | None] = ()) -> Table:
    """The same as rich draws it; the cells are cleaned already."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        drawn.add_column(Text(column), overflow="fold")
    for place, row in enumerate(rows):
        style = (styles[place] if place < len(styles) else None) or ""
        drawn.add_row(
            *(Text(cell, style=style if column == "STATE" else "") for column, cell in zip(columns, row, strict=True))
        )
    return drawn


def fields(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values, one pair a line, the values in one column; a value of several lines is indented."""
    width = max(len(name) for name, _ in pairs) + 2
    for name, value in pairs:
        lines = cleaned(value, lines=True).split("\n")
        out(f"{name + ':':<{width}}{lines[0]}".rstrip())
        for line in lines[1:]:
            out(" " * width + line)


def time_of(moment: datetime | None) -> str:
    """A moment as people here write it, to the second; nothing for None."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def length_of(seconds: float) -> str:
    """A duration in at most two units."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def size_of(count: int) -> str:
    """A number of bytes, for people."""
    if count < 1000:
        return f"{count} B"
    amount, place = count / 1000, 0
    while amount >= 1000 and place < 3:
        amount, place = amount / 1000, place + 1
    return f"{amount:.1f} {('kB', 'MB', 'GB', 'TB')[place]}"
