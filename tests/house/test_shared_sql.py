"""What SQL stores share is in words of SQLite and PostgreSQL alike; what only one has is in files of its own."""

import ast
import re
from pathlib import Path

import pytest

STORES = Path(__file__).parents[2] / "asynctask" / "stores"
SHARED = ("sql.py", "rows.py")
OWN = re.compile(
    r"INSERT OR |REPLACE INTO|INDEXED BY|\bGLOB\b|\bMATCH\b|\browid\b|PRAGMA|AUTOINCREMENT|json_each|json_extract|"
    r"\binstr\(|\bifnull\(|\bstrftime\(|\bjulianday\(|\?\d|\bsqlite_|`"
)


def breaches(source: str) -> list[str]:
    """Pieces of statements that only SQLite understands."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    statements = [
        text
        for text in texts
        if isinstance(text, str) and re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|WHERE|FROM)\b", text)
    ]
    return [f"{found[0]!r} in {text!r}" for text in statements if (found := OWN.search(text))]


@pytest.mark.parametrize("file", SHARED)
def test_shared_statements_are_in_words_of_both(file):
    assert breaches((STORES / file).read_text()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT OR REPLACE INTO logs VALUES (?)",
        "SELECT id FROM runs INDEXED BY runs_by_task",
        "SELECT id FROM runs WHERE id = ?1",
        "DELETE FROM run_tags WHERE tag IN (SELECT value FROM json_each(?))",
        "SELECT id FROM runs WHERE name GLOB ?",
    ],
)
def test_a_statement_of_one_alone_is_found(statement):
    assert len(breaches(f"TEXT = {statement!r}")) == 1
