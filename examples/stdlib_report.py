"""Analyse every module of the interpreter's own standard library, as tasks, and show what was found.

Each module is one run of `analyse`, which calls three tasks: `read` (retried, and only so many files open at once),
`parse` (in 20 seconds, or not at all) and `measure`. While they run you see them; then you see the findings. Some
modules of Python's own tests are no valid Python on purpose: their runs fail, and the others go on.

    python examples/stdlib_report.py            the standard library
    python examples/stdlib_report.py FOLDER     any other Python code
    python examples/stdlib_report.py --flaky    reads fail now and then, to see retries
"""

import argparse
import ast
import logging
import random
import sys
import sysconfig
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asynctask import as_completed, flow, get_client, task
from asynctask.live import live

MOST_OPEN_FILES = 2
MOST_MODULES_AT_ONCE = 4
MOST_ROWS = 6
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)


@dataclass
class Function:
    name: str
    module: str
    lines: int
    complexity: int


@dataclass
class Module:
    name: str
    lines: int = 0
    classes: int = 0
    functions: list[Function] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)

    @property
    def complexity(self) -> int:
        return sum(function.complexity for function in self.functions)


@dataclass
class Findings:
    modules: list[Module]
    failures: dict[str, str]


@task(tags=["open-files"], retries=3, retry_delay_seconds=[0.05, 0.1, 0.2], retry_jitter_factor=0.5, retry_on=[OSError])
def read(path: Path, flaky: bool) -> bytes:
    """The source of a module. A file system may be busy for a moment: try again, with growing delays."""
    with path.open("rb") as file:
        if flaky and random.random() < 0.1:
            raise OSError(f"{path.name} is busy (as --flaky asked)")
        return file.read()


@task(timeout_seconds=20)
def parse(source: bytes, name: str) -> ast.Module:
    """The syntax tree; a file that is no valid Python fails this task, and nothing else."""
    return ast.parse(source, name)


@task
def measure(tree: ast.Module, source: bytes, name: str) -> Module:
    """Functions with their length and cyclomatic complexity (McCabe: 1 + branches), classes and imports."""
    module = Module(name, lines=source.count(b"\n"))
    to_visit: list[tuple[ast.AST, Function | None, str]] = [(tree, None, "")]
    while to_visit:
        node, function, prefix = to_visit.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            function = Function(f"{prefix}{node.name}", name, lines, 1)
            prefix = f"{function.name}."
            module.functions.append(function)
        elif isinstance(node, ast.ClassDef):
            prefix = f"{prefix}{node.name}."
            module.classes += 1
        elif isinstance(node, ast.Import):
            module.imports.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module.imports.add(node.module.split(".")[0])
        elif function is not None and isinstance(node, BRANCHES):
            function.complexity += 1
        elif function is not None and isinstance(node, ast.BoolOp):
            function.complexity += len(node.values) - 1
        to_visit += [(child, function, prefix) for child in ast.iter_child_nodes(node)]
    return module


@task(tags=["modules"], task_run_name="{name}")
def analyse(path: Path, name: str, flaky: bool) -> Module:
    """One module, from file to numbers: three tasks, called like functions."""
    source = read(path, flaky)
    return measure(parse(source, name), source, name)


@flow
def survey(folder: Path, flaky: bool = False) -> Findings:
    """All modules below `folder`, side by side; those that fail are findings as well."""
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit("open-files", MOST_OPEN_FILES)
        client.create_concurrency_limit("modules", MOST_MODULES_AT_ONCE)  # a syntax tree takes megabytes
    names = {analyse.submit(path, name, flaky): name for path, name in modules_below(folder)}
    findings = Findings([], {})
    for future in as_completed(names):
        result = future.result(raise_on_failure=False)
        if isinstance(result, Module):
            findings.modules.append(result)
        else:
            findings.failures[names[future]] = f"{type(result).__name__}: {result}"
    return findings


def modules_below(folder: Path) -> list[tuple[Path, str]]:
    """Each module with its dotted name; what pip installed is not part of the standard library."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if not {"site-packages", "dist-packages", "__pycache__"} & set(parts):
            found.append((path, ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)))
    return found


def show(findings: Findings, seconds: float) -> None:
    console = Console()
    modules, functions = findings.modules, [one for module in findings.modules for one in module.functions]
    if not modules:
        console.print("no Python module found")
        return
    imports = Counter(name for module in modules for name in module.imports)
    lines = sum(module.lines for module in modules)
    totals: dict[str, object] = {
        "modules": len(modules),
        "lines": lines,
        "classes": sum(module.classes for module in modules),
        "functions": len(functions),
        "lines a second": round(lines / seconds),
        "not analysed": len(findings.failures),
    }
    longest = sorted(functions, key=lambda one: -one.lines)[:MOST_ROWS]
    hardest = sorted(functions, key=lambda one: -one.complexity)[:MOST_ROWS]
    branching = sorted(modules, key=lambda one: -one.complexity)[:MOST_ROWS]
    tables = [
        table("Longest functions", "lines", {f"{one.module}: {one.name}": one.lines for one in longest}),
        table("Most complex functions", "branches", {f"{one.module}: {one.name}": one.complexity for one in hardest}),
        table("Most complex modules", "branches", {one.name: one.complexity for one in branching}),
        table("Most imported", "by modules", dict(imports.most_common(MOST_ROWS))),
        table("In all", "count", totals),
    ]
    if findings.failures:
        tables.append(table("Not analysed", "why", dict(sorted(findings.failures.items())[:MOST_ROWS])))
    abreast = 2 if console.width >= 120 else 1
    page = Table.grid(padding=(1, 4, 0, 0))
    for place in range(0, len(tables), abreast):
        page.add_row(*tables[place : place + abreast])
    console.print(page)


def table(title: str, heading: str, rows: dict[str, object]) -> Table:
    made = Table(title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False)
    made.add_column("", max_width=38, overflow="ellipsis", no_wrap=True)
    made.add_column(heading, max_width=38, overflow="ellipsis", no_wrap=True)
    for name, value in rows.items():
        made.add_row(Text(name), Text(f"{value:,}", justify="right") if isinstance(value, int) else Text(str(value)))
    return made


def main() -> int:
    asked = argparse.ArgumentParser(description="Analyse the modules of the standard library, as tasks.")
    asked.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    asked.add_argument("--flaky", action="store_true", help="let one read in ten fail")
    options = asked.parse_args()
    logging.getLogger("asynctask").setLevel(logging.CRITICAL)  # failures are findings here, shown at the end
    warnings.simplefilter("ignore")  # SyntaxWarnings of the code that is read
    began = time.perf_counter()
    with live():
        findings = survey(options.folder, options.flaky)
    show(findings, time.perf_counter() - began)
    return 0 if findings.modules else 1


if __name__ == "__main__":
    sys.exit(main())
