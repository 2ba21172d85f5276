"""The law of imports: the table in `docs/architecture.md` and the package say the same, and imports point one way.

1. Every file of the package is in the table, and every file in the table exists. `__init__` files are not listed: the
   package's own is the roof, which sees all and is imported by none; that of a folder holds a docstring and no more.
2. A file imports only from its own floor or from earlier ones.
3. No file imports itself, by whatever way round.
4. Imports of our own modules stand at the top level of a file: in no function, no `try`, no `if TYPE_CHECKING`.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOF = "__init__"

#: What type checkers alone import.
KEYWORDS = "keywords"


def read_floors(page: str) -> dict[str, int]:
    """The floor of each file, from the table whose first heading is `floor`."""
    floors: dict[str, int] = {}
    number = 0
    rows = iter(page.splitlines())
    for row in rows:
        if re.match(r"\|\s*floor\s*\|", row):
            break
    for row in rows:
        if not row.startswith("|"):
            break
        floor, file, *_ = (cell.strip() for cell in row.strip("|").split("|"))
        if set(floor + file) <= set("-: "):
            continue
        if named := re.match(r"\d+", floor):
            assert int(named[0]) > number, f"floor {floor} is out of order"
            number = int(named[0])
        name = re.fullmatch(r"`([a-z_/]+)`", file)
        assert name, f"each row names one file in backticks: {row}"
        assert name[1] not in floors, f"`{name[1]}` is in the table twice"
        floors[name[1]] = number
    assert floors, "docs/architecture.md has no table that begins with `| floor |`"
    return floors


def read_package(package: Path) -> dict[str, ast.Module]:
    """The tree of each file, by its path inside the package: `engine`, `stores/base`, `__init__`."""
    return {
        path.relative_to(package).with_suffix("").as_posix(): ast.parse(path.read_text(), str(path))
        for path in sorted(package.rglob("*.py"))
    }


def own_imports(file: str, tree: ast.AST, files: set[str]) -> Iterator[tuple[ast.stmt, str]]:
    """Each import of one of our own files, and that file."""
    home = ".".join(["asynctask", *file.split("/")[:-1]])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "late":  # see late.py
            wanted = [(f"asynctask.{ast.literal_eval(node.args[0])}", "")]
        elif isinstance(node, ast.Import):
            wanted = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), home)
            wanted = [(origin, alias.name) for alias in node.names]
        else:
            continue
        for origin, name in wanted:
            if origin.split(".")[0] != "asynctask":
                continue
            path = "/".join(origin.split(".")[1:])
            yield node, next((each for each in (f"{path}/{name}".strip("/"), path) if each in files), ROOF)


def broken_laws(package: Path, floors: dict[str, int]) -> list[str]:
    trees = read_package(package)
    files = {file for file in trees if not file.endswith(ROOF)}
    broken = [f"{file}: not in the table" for file in sorted(files - floors.keys())]
    broken += [f"{file}: in the table, but there is no such file" for file in sorted(floors.keys() - files)]
    graph: dict[str, set[str]] = {}
    for file, tree in trees.items():
        if file.endswith(f"/{ROOF}"):
            if any(not isinstance(node, ast.Expr) for node in tree.body):
                broken.append(f"{file}: the __init__ of a folder holds a docstring and no more")
            continue
        for node, target in own_imports(file, tree, files):
            where = f"{file}:{node.lineno}"
            graph.setdefault(file, set()).add(target)
            if target == ROOF:
                broken.append(f"{where}: imports the package itself; import the file that defines the name")
            elif file != ROOF and floors.get(target, 0) > floors.get(file, 99):
                broken.append(f"{where}: floor {floors[file]} imports {target} of floor {floors[target]}")
            if node not in tree.body and target != KEYWORDS and file != ROOF and not isinstance(node, ast.Call):
                broken.append(f"{where}: the import of {target} is not at the top level of the file")
        broken += [f"{file}:{line}: imports our own modules by name" for line in imports_by_name(tree)]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        broken.append("cycle: " + " <- ".join(error.args[1]))
    return broken


def imports_by_name(tree: ast.AST) -> Iterator[int]:
    """`import_module("asynctask.x")` and its kin: a hidden edge."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=target), *_]):
                if name in ("import_module", "__import__") and re.match(r"\.|asynctask\b", str(target)):
                    yield node.lineno


def test_the_package_keeps_the_law() -> None:
    floors = read_floors((ROOT / "docs" / "architecture.md").read_text())
    broken = broken_laws(ROOT / "asynctask", floors)
    assert not broken, "\n".join(broken)


FLOORS = {"words": 1, "stores/base": 3, "stores/memory": 3, "engine": 4, "tasks": 6}
LAWFUL = {
    "__init__": "from .tasks import task\nfrom asynctask import engine",
    "words": "import asyncio",
    "stores/__init__": '"""Stores."""',
    "stores/base": "from asynctask.words import State\nfrom .. import words",
    "stores/memory": "from .base import Store\nfrom asynctask.stores import base",
    "engine": "import asynctask.words\ndef run():\n    import rich",
    "tasks": "from . import engine, words",
}


def build(folder: Path, changes: dict[str, str]) -> Path:
    for file, source in (LAWFUL | changes).items():
        path = folder / "asynctask" / f"{file}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder / "asynctask"


def test_a_lawful_package_passes(tmp_path: Path) -> None:
    assert broken_laws(build(tmp_path, {}), FLOORS) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"extra": ""}, "extra: not in the table"),
        ({"engine": "from .tasks import task"}, "engine:1: floor 4 imports tasks of floor 6"),
        ({"engine": "import asynctask.tasks as t"}, "engine:1: floor 4 imports tasks of floor 6"),
        ({"stores/base": "from .. import engine"}, "stores/base:1: floor 3 imports engine of floor 4"),
        ({"stores/base": "from .memory import Memory"}, "cycle: stores/"),
        ({"words": "from asynctask import task"}, "words:1: imports the package itself"),
        ({"tasks": "def f():\n    from . import words"}, "tasks:2: the import of words is not at the top level"),
        (
            {"tasks": "if TYPE_CHECKING:\n    from .engine import run"},
            "tasks:2: the import of engine is not at the top level",
        ),
        ({"tasks": 'import_module("asynctask.words")'}, "tasks:1: imports our own modules by name"),
        ({"stores/__init__": "from .base import Store"}, "stores/__init__: the __init__ of a folder"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value.values())) or "no import",
)
def test_each_breach_is_told(tmp_path: Path, changes: dict[str, str], told: str) -> None:
    breaches = broken_laws(build(tmp_path, changes), FLOORS)
    assert breaches[0].startswith(told)
    assert all(each.startswith("cycle: ") for each in breaches[1:])  # a step upwards may also close a ring


def test_a_row_without_a_file_is_told(tmp_path: Path) -> None:
    [breach] = broken_laws(build(tmp_path, {}), FLOORS | {"worker": 7})
    assert breach == "worker: in the table, but there is no such file"


def test_the_table_is_read_as_it_is_written() -> None:
    page = "| name |\n\n| floor | file | job |\n| --- | --- | --- |\n| 1 words | `a` | x |\n| | `b/c` | y |\n"
    page += "| 3 world | `d` | |\n\n| 9 another table | `e` | |\n"
    assert read_floors(page) == {"a": 1, "b/c": 1, "d": 3}
