"""What `import asynctask` gives and what it takes: every exported name is documented, nothing optional is loaded."""

import inspect
import json
import subprocess
import sys
import types
from typing import Any

import pytest

CORE = {"asynctask", "anyio", "idna", "sniffio", "typing_extensions", "msgspec"}  # anyio, msgspec and what they need
OPTIONAL = {
    *("trio", "uvloop", "rich", "cyclopts", "cloudpickle", "aiosqlite", "sqlite3", "attr", "attrs", "pydantic"),
    *("starlette", "fastapi", "uvicorn", "httpx", "httpx2", "pytest", "hypothesis"),
    *("dask", "distributed", "ray"),
}


def undocumented(module: types.ModuleType) -> list[str]:
    """The names of `__all__` that do not resolve, or whose docstring is missing or not written by hand."""
    missing = []
    for name in module.__all__:
        value: Any = getattr(module, name, None)
        if name.startswith("__") and value is not None:
            continue
        if not (inspect.isroutine(value) or isinstance(value, type | types.ModuleType)):
            value = type(value)  # an instance is documented by its class
        by_hand = value.__doc__ and not value.__doc__.startswith(f"{name}(")  # as a dataclass writes for itself
        if not by_hand or getattr(value, "__module__", "") == "builtins":
            missing.append(name)
    return missing


def run(code: str) -> Any:
    """What the code prints, as JSON, in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_exported_name_resolves_and_is_documented() -> None:
    import asynctask

    assert undocumented(asynctask) == []
    assert len(asynctask.__all__) == len(set(asynctask.__all__))


def test_importing_loads_the_core_and_nothing_else() -> None:
    loaded = run(
        "import json, sys; before = set(sys.modules); import asynctask;"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    assert set(loaded) - set(sys.stdlib_module_names) <= CORE
    assert "asynctask" in loaded
    assert not set(loaded) & OPTIONAL


WITHOUT = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""

PROGRAM = """
import asyncio
from asynctask import flow, task

@task(retries=1)
def double(number):
    return number * 2

@flow
async def total(numbers):
    return sum(await double.map(numbers))

print(asyncio.run(total([1, 2, double(3)])))
"""


def test_a_program_runs_where_nothing_optional_is_installed() -> None:
    assert run(WITHOUT + PROGRAM) == 18


@pytest.mark.parametrize(
    "source",
    [
        "def thing(): pass",
        "class thing: pass",
        "thing = 3",
        "from dataclasses import dataclass\n@dataclass\nclass thing:\n    x: int",
        "class Kind: pass\nthing = Kind()",
        "",
    ],
    ids=["function", "class", "plain value", "dataclass", "instance", "unresolved"],
)
def test_each_breach_is_told(source: str) -> None:
    module = types.ModuleType("toy")
    exec(source + "\n__all__ = ['thing']", module.__dict__)
    assert undocumented(module) == ["thing"]
