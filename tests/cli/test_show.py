"""How commands print: into pipes, onto terminals, and whatever a run is called."""

import json
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from asynctask.cli.show import cleaned, document, fields, length_of, out, size_of, table, time_of
from testkit import running

CORPUS = ["[/]", "\x1b]0;x\x07", "[link=http://x]y[/link]", "[bold]", "a\x9bb", "a\u202eb", "\ud800", "é漢", "{x}"]


@pytest.mark.parametrize("text", CORPUS)
def test_a_cell_is_shown_without_control_characters_and_without_being_read_as_markup(capsys, text):
    table(("NAME", "STATE"), [(text, "x")])
    shown = capsys.readouterr().out.splitlines()[1]
    wanted = "".join(one for one in text if one.isprintable())
    assert shown == f"{wanted:<{max(4, len(wanted))}}  x"


@pytest.mark.parametrize("text", CORPUS)
def test_a_document_gives_back_each_text_as_it_was(capsys, text):
    document({"name": text})
    assert json.loads(capsys.readouterr().out) == {"name": text}


def test_a_line_break_is_a_space_in_a_cell_and_stays_in_lines():
    assert cleaned("a\nb\tc\r\nd") == "a b c  d"
    assert cleaned("a\nb\tc\r\nd", lines=True) == "a\nb\tc \nd"


def test_columns_are_aligned_and_nothing_trails(capsys):
    table(("A", "B"), [("long", ""), ("x", "y")])
    assert capsys.readouterr().out == "A     B\nlong\nx     y\n"


def test_a_value_of_several_lines_is_indented_to_its_column(capsys):
    fields([("a", "1\n2"), ("long", 3)])
    assert capsys.readouterr().out == "a:    1\n      2\nlong: 3\n"


DRAW = f"""
from asynctask.cli.show import table
rows = [(text, "Failed") for text in {CORPUS!r}]
table(("NAME", "STATE"), rows, styles=["red"] * len(rows))
"""


def on_a_terminal(*words, **environment):
    """What a process writes to a terminal of 100 columns."""
    ours, its = pty.openpty()
    with running(
        [sys.executable, *words],
        stdout=its, stderr=its, stdin=its,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40", **environment},
    ) as child:  # fmt: skip
        os.close(its)
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
            parts.append(part)
    os.close(ours)
    assert child.returncode == 0, b"".join(parts)
    return b"".join(parts).decode()


def test_on_a_terminal_states_are_coloured_and_names_are_only_text():
    text = on_a_terminal("-c", DRAW)
    assert "\x1b[31mFailed" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n")
    assert all(one.isprintable() or one == "\n" for one in plain)
    for name in ("[/]", "]0;x", "[link=http://x]y[/link]", "[bold]", "ab", "é漢", "{x}"):
        assert re.search(rf"^{re.escape(name)} +Failed", plain, re.MULTILINE), name


def test_no_color_is_respected():
    assert "\x1b[31m" not in on_a_terminal("-c", DRAW, NO_COLOR="1")


def test_what_a_locale_cannot_write_is_escaped():
    code = "from asynctask.cli.show import out; out('caf\\u00e9')"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "caf\\xe9\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0123, "12.3 ms"),
        (1.5, "1.50 s"),
        (59.999, "1 m 0 s"),
        (61, "1 m 1 s"),
        (3600, "1 h 0 m"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds, text):
    assert length_of(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_500_000, "2.5 MB"), (3 * 10**15, "3000.0 TB")]
)
def test_a_size_has_one_unit(count, text):
    assert size_of(count) == text


def test_a_time_is_local_and_nothing_where_there_is_none():
    assert time_of(None) == ""
    moment = datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert time_of(moment) == moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def test_lines_keep_their_order_across_the_two_streams(capfd):
    out("one")
    assert capfd.readouterr().out == "one\n"
