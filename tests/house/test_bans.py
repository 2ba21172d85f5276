"""What no file of the package may do, and the one line that lifts two of the bans.

Names that may not be used are rows of BANS; what takes more than a name is in `breach_of`. An `except BaseException`
that does not raise again, and an `id()`, are allowed on a line that ends in `# deliberate: <why>`, three words or more:

    except BaseException as error:  # deliberate: it becomes the outcome of the run
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "asynctask"


class Ban(NamedTuple):
    names: str  # a pattern over the full dotted name of what is used; `?` stands for what no import explains
    allowed: str  # the files, or folders, that may
    instead: str


BANS = (
    Ban(r"asyncio(\.tasks)?\.wait_for", "", "it loses cancellations on 3.11; use a timeout of waiting.py"),
    Ban(
        r"(.*\.)?(create_task|ensure_future)",
        "loops stores/database stores/desk stores/recorder stores/slots_table stores/sqlite",
        "spawn through loops.py, which keeps a strong reference",
    ),
    Ban(r"uuid\.uuid[1345]", "clocks", "ids come from clocks.py; a uuid4 takes 2.7 us"),
    # (a body that returns `Completed()` has been handed no clock)
    Ban(r"time\.(time|time_ns)", "clocks states", "ask the clock that was handed in"),
    Ban(r"datetime\.(datetime|date)\.(now|utcnow|today)", "clocks", "ask the clock that was handed in"),
    Ban(
        r"(time|asyncio|trio|anyio)\.sleep",
        "bodies cli clocks loops measuring runner_contract stores waiting witnesses",
        "only waiting.py, stores, measurements, commands and what ships for tests sleep",
    ),
    Ban(r"random\.[a-z]\w*|secrets\.\w+|os\.urandom", "clocks", "use the random numbers that were handed in"),
    # (the fork server has one thread, and counts before it forks)
    Ban(r"os\.fork(pty)?", "fork_server", "a fork copies locks that nobody in it will ever release"),
    Ban(r"multiprocessing\.(Process|Pool|Queue)", "", "these fork on Linux; use get_context('spawn')"),
    Ban(r"(.*\.)?ProcessPoolExecutor", "", "one killed child fails all of it"),
    Ban(
        r"signal\.signal|(.*\.)?add_signal_handler",
        "cli fork_server measuring/child",
        "signals belong to the program; only commands take them",
    ),
    Ban(r"pickle\.loads?", "serializers", "what was pickled is checked before it is loaded"),
)
BROAD = {"BaseException", "CancelledError", "Cancelled", "KeyboardInterrupt", "SystemExit", "get_cancelled_exc_class"}
BUILTINS = {"builtins": "builtins", "__builtins__": "builtins"}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "types", "_internal"}
SQL = re.compile(  # in capitals, as it is written here: `select one from` is also English
    r"\s*(SELECT\b.+\bFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\b.+\bSET|DELETE\s+FROM|PRAGMA"
    r"|(CREATE|DROP|ALTER)\s+(TABLE|INDEX|VIEW))\b",
    re.DOTALL,
)
#: Where statements are put together, from words of ours; what users give is bound everywhere.
SQL_FILES = {"stores/sql", "stores/lists", "stores/database"}


def breaches(file: str, source: str) -> list[str]:
    """What the file does that is banned, as `file:line: what, and what to do instead`."""
    tree = ast.parse(source)
    found = [*banned_names(file, tree), *print_replaced(file, tree)]
    for node in ast.walk(tree):
        if SQL.match(built_text(node)) and file not in SQL_FILES:
            found.append((node, "SQL is never put together from values: bind them"))
        elif problem := breach_of(node, source.splitlines()):
            found.append((node, problem))
    if vague := VAGUE & set(file.split("/")):
        found.append((tree, f"no file is called {vague.pop()}: it belongs to the noun it serves"))
    return [f"{file}:{getattr(node, 'lineno', 1)}: {text}" for node, text in found]


def breach_of(node: ast.AST, lines: list[str]) -> str | None:
    match node:
        case ast.ExceptHandler() if swallows(node) and not deliberate(lines, node):
            return "ends what must go on: raise again, or say why in `# deliberate: ...`"
        case ast.Call(func=ast.Name(id="id"), args=[_]) if not deliberate(lines, node):
            return "an id() is used again after its object: hold the object, use `is`"
        case ast.Call(func=ast.Name() | ast.Attribute() as func, args=args, keywords=keywords):
            if last_name(func) == "suppress" and any(last_name(error) in BROAD for error in args):
                return "suppresses what must go on"
            if last_name(func) in ("get_context", "set_start_method"):
                match [*args, *(keyword.value for keyword in keywords)]:
                    case [ast.Constant(value="spawn" | "forkserver"), *_]:
                        return None
                return "a start method is named, and is not fork"
    return None


def banned_names(file: str, tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Uses by full name, whatever the import called it; `from x import y` counts where it stands."""
    origins: dict[str, str] = {}
    used: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origins |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            used += [(node, f"{node.module}.{alias.name}") for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.append((node, dotted(node, origins)))
    for node, name in used:
        for ban in BANS:
            if re.fullmatch(ban.names, name) and not {file, file.split("/")[0]} & set(ban.allowed.split()):
                yield node, f"{name}: {ban.instead}"


def dotted(node: ast.expr, origins: dict[str, str]) -> str:
    match node:
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value, origins)}.{attr}"
        case ast.Name(id=name):
            return origins.get(name, "?")
    return "?"


def last_name(node: ast.expr | None) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=func):
            return last_name(func)
    return ""


def swallows(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    if not any(error is None or last_name(error) in BROAD for error in caught):
        return False
    return not any(isinstance(node, ast.Raise) for statement in handler.body for node in ast.walk(statement))


def deliberate(lines: list[str], node: ast.ExceptHandler | ast.expr) -> bool:
    return re.search(r"# deliberate: \w+( \S+){2,}$", lines[node.lineno - 1]) is not None  # three words at least


def print_replaced(file: str, tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """`print` is replaced once for the process, in one function of logging.py, never for a run: runs overlap."""
    places = {}
    for scope in tree.body:
        for node in ast.walk(scope):
            match node:
                case ast.Assign(targets=targets):
                    hit = any(dotted(target, BUILTINS) == "builtins.print" for target in targets)
                case ast.Call(func=ast.Name(id="setattr"), args=[target, ast.Constant(value="print"), *_]):
                    hit = dotted(target, BUILTINS) == "builtins"
                case ast.Subscript(value=value, slice=ast.Constant(value="print"), ctx=ast.Store()):
                    hit = dotted(value, BUILTINS) in ("builtins.__dict__", "builtins", "?")
                case _:
                    hit = False
            if hit:
                places[scope] = node
    for count, (scope, node) in enumerate(places.items()):
        if file != "logging" or count or not isinstance(scope, ast.FunctionDef):
            yield node, "print is replaced in one function of logging.py and nowhere else"


def built_text(node: ast.AST) -> str:
    """The constant text of a string that is put together with values, `?` for each value."""
    match node:
        case ast.JoinedStr(values=parts) if any(isinstance(part, ast.FormattedValue) for part in parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in parts)
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod() | ast.Add()):
            return text + "?"
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return text
    return ""


def test_the_package_does_nothing_that_is_banned() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    told = [
        breach
        for path in files
        for breach in breaches(path.relative_to(PACKAGE).with_suffix("").as_posix(), path.read_text())
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("futures", "import asyncio\nasyncio.wait_for(x, 1)"),
        ("futures", "from asyncio import wait_for as patient"),
        ("futures", "import asyncio as a\na.create_task(x)"),
        ("futures", "loop.create_task(x)"),
        ("futures", "asyncio.ensure_future(x)"),
        ("runs", "import uuid\nuuid.uuid4()"),
        ("runs", "import time\ntime.time()"),
        ("runs", "from time import time"),
        ("states", "from datetime import datetime as d\nd.now()"),
        ("engine", "import anyio\nawait anyio.sleep(1)"),
        ("retries", "import random\nrandom.random()"),
        ("runners", "import os\nos.fork()"),
        ("runners", "get_context()"),
        ("runners", "get_context('fork')"),
        ("runners", "import multiprocessing\nmultiprocessing.Process()"),
        ("runners", "multiprocessing.set_start_method(method)"),
        ("runners", "from concurrent.futures import ProcessPoolExecutor"),
        ("scopes", "import signal\nsignal.signal(2, stop)"),
        ("scopes", "loop.add_signal_handler(2, stop)"),
        ("stores/memory", "import pickle\npickle.loads(data)"),
        ("engine", "try: pass\nexcept: pass"),
        ("engine", "try: pass\nexcept BaseException as error: keep(error)"),
        ("engine", "try: pass\nexcept (ValueError, asyncio.CancelledError): pass"),
        ("engine", "try: pass\nexcept anyio.get_cancelled_exc_class(): pass"),
        ("engine", "try: pass\nexcept BaseException:  # deliberate: because\n    pass"),
        ("engine", "with contextlib.suppress(BaseException): pass"),
        ("inputs", "seen = {id(value)}"),
        ("flows", "builtins.print = mine"),
        ("flows", "def f():\n    setattr(builtins, 'print', mine)"),
        ("flows", "def f():\n    builtins.__dict__['print'] = mine"),
        ("logging", "builtins.print = mine"),
        ("logging", "def a():\n    builtins.print = mine\ndef b():\n    builtins.print = old"),
        ("stores/sqlite", "f'SELECT * FROM runs WHERE id = {x}'"),
        ("stores/sqlite", "f'''\n  UPDATE runs\n  SET a = {x}'''"),
        ("stores/sqlite", "'DELETE FROM runs WHERE id = %s' % x"),
        ("stores/sqlite", "'INSERT OR REPLACE INTO runs VALUES ' + x"),
        ("stores/sqlite", "'DROP TABLE {}'.format(x)"),
        ("utils", ""),
        ("stores/common", ""),
    ],
)
def test_each_breach_is_told(file: str, source: str) -> None:
    [breach] = breaches(file, source)
    assert breach.startswith(f"{file}:")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("loops", "loop.create_task(x)"),
        ("clocks", "import time, random\ntime.time()\nrandom.Random()"),
        ("waiting", "import time\ntime.sleep(1)\ntime.monotonic()"),
        ("retries", "from random import Random\ndef delay(random: Random): random.uniform(0, 1)"),
        ("engine", "try: pass\nexcept BaseException:\n    close()\n    raise"),
        ("engine", "try: pass\nexcept BaseException as error:  # deliberate: it becomes the outcome\n    keep(error)"),
        ("engine", "try: pass\nexcept Exception: pass"),
        ("inputs", "hint = id(value)  # deliberate: a hint, proved with `is`"),
        ("runs", "run.id\nself.id(3)"),
        ("runners", "multiprocessing.get_context('spawn')"),
        ("logging", "def install():\n    builtins.print = mine"),
        ("stores/sqlite", "'SELECT * FROM runs WHERE id = ?'"),
        ("errors", "f'select a runner from {names}, or set {x}'.upper()"),
        ("errors", "f'cannot update {x}: set it first'"),
    ],
)
def test_what_is_not_banned_passes(file: str, source: str) -> None:
    assert breaches(file, source) == []
