"""Files stay under 450 lines and functions under 60 (docstrings not counted), or stand in OVER with their reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "asynctask"
FILE_LINES = 450
FUNCTION_LINES = 60

# "file" or "file:Class.function" -> (lines it may have, why it is better whole)
OVER: dict[str, tuple[int, str]] = {
    "engine:execute": (83, "the life of a run is read from top to bottom, in one place"),
    "engine:stream": (65, "the same life for generators, with the exchange of values in its middle"),
}


def sizes(file: str, source: str) -> Iterator[tuple[str, int, int]]:
    """The name, the lines and the bar of the file and of each function in it."""
    yield file, len(source.splitlines()), FILE_LINES

    def functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, int, int]]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from functions(child, prefix)
                continue
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield f"{file}:{name}", length(child), FUNCTION_LINES
            yield from functions(child, f"{name}.")

    yield from functions(ast.parse(source), "")


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or 0) - function.lineno + 1
    match function.body:
        case [ast.Expr(value=ast.Constant(value=str())) as docstring, *_]:
            lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
    return lines


def told(found: dict[str, tuple[int, int]], over: dict[str, tuple[int, str]]) -> list[str]:
    """What is too long, and what stands in `over` though it need not."""
    problems = []
    for name, (lines, bar) in found.items():
        if lines > over.get(name, (bar, ""))[0]:
            problems.append(f"{name}: {lines} lines, at most {over.get(name, (bar, ''))[0]}")
    for name, (_, reason) in over.items():
        lines, bar = found.get(name, (0, 0))
        if lines <= bar:
            problems.append(f"{name}: no longer over, take it out of OVER")
        if not reason:
            problems.append(f"{name}: OVER needs a reason")
    return problems


def test_nothing_is_longer_than_it_should_be() -> None:
    found: dict[str, tuple[int, int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, lines, bar in sizes(path.relative_to(PACKAGE).with_suffix("").as_posix(), path.read_text()):
            found[name] = (max(lines, found.get(name, (0, 0))[0]), bar)  # overloads share a name
    assert found
    problems = told(found, OVER)
    assert not problems, "\n".join(problems)


LONG = "class A:\n    def f(self):\n        '''Two\n        lines.'''\n" + "        pass\n" * 60


def test_lengths_are_counted_without_docstrings() -> None:
    assert list(sizes("engine", LONG)) == [("engine", 64, FILE_LINES), ("engine:A.f", 61, FUNCTION_LINES)]


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        ({}, "engine:A.f: 61 lines, at most 60"),
        ({"engine:A.f": (60, "a reason")}, "engine:A.f: 61 lines, at most 60"),
        ({"engine:A.f": (61, "")}, "engine:A.f: OVER needs a reason"),
        ({"engine:A.f": (61, "a reason"), "engine": (500, "a reason")}, "engine: no longer over, take it out of OVER"),
    ],
    ids=["too long", "longer than allowed", "no reason", "no longer over"],
)
def test_each_breach_is_told(over: dict[str, tuple[int, str]], problem: str) -> None:
    found = {name: (lines, bar) for name, lines, bar in sizes("engine", LONG)}
    assert told(found, over) == [problem]
