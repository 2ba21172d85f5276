"""What a peer's file declares, read without importing it: its libraries are not installed here.

1. `with_NAME.py` is a peer, `bare_NAME.py` a floor, which tracks nothing and competes with nobody.
2. TITLE, VARIANTS, REQUIREMENTS, PACKAGES, IMPORT and ABSENT are literals at the top of the file.
3. Works are functions with `@workload("name")` or `@workload("name", variants=("one",))`.
4. A cell that has no work has a reason in ABSENT, under "work/variant", the work's name, or "others".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / "peers"
#: What a peer may keep of a run, most first. Only those that keep as much do the same.
KEEPS = {"disk": "each run on disk", "runs": "each run's state", "nothing": "nothing", "floor": "nothing, a floor"}


class PeerError(Exception):
    """A peer's file does not say what it has to."""


class Peer(NamedTuple):
    """One file."""

    file: Path
    title: str
    about: str
    #: What each variant keeps of a run, a key of KEEPS. The first one's name is empty where it needs none.
    variants: dict[str, str]
    #: None: it runs in the environment of the command.
    requirements: list[str] | None
    #: Packages whose version is told.
    packages: list[str]
    #: The works of each variant, in the order of the file.
    works: dict[str, list[str]]
    absent: dict[str, str]

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def is_floor(self) -> bool:
        return self.name.startswith("bare_")

    def label(self, variant: str) -> str:
        return f"{self.title}, {variant}" if variant else self.title

    def why_absent(self, work: str, variant: str) -> str | None:
        """The reason why it has no such work, or None where the file owes one."""
        return next((self.absent[key] for key in (f"{work}/{variant}", work, "others") if key in self.absent), None)


def read_peers(folder: Path = FOLDER) -> list[Peer]:
    files = sorted([*folder.glob("bare_*.py"), *folder.glob("with_*.py")])
    if not files:
        raise PeerError(f"{folder} has no bare_*.py and no with_*.py")
    return [read_peer(file) for file in files]


def read_peer(file: Path) -> Peer:
    tree = ast.parse(file.read_text(), str(file))
    found = dict(literals(tree))
    variants = found.get("VARIANTS")
    if not isinstance(variants, dict) or not variants or set(variants.values()) - set(KEEPS):
        raise PeerError(f"{file.name}: VARIANTS must say for each variant what it keeps, of {', '.join(KEEPS)}")
    works: dict[str, list[str]] = {variant: [] for variant in variants}
    for name, only in declared(tree):
        for variant in variants if only is None else only:
            if variant not in works:
                raise PeerError(f"{file.name}: {name!r} is declared for {variant!r}, which VARIANTS does not have")
            works[variant].append(name)
    if "IMPORT" in found:
        works[next(iter(variants))].append("import")
    requirements = found.get("REQUIREMENTS")
    return Peer(
        file=file,
        title=str(found.get("TITLE", file.stem)),
        about=" ".join((ast.get_docstring(tree) or "").split()),
        variants=variants,
        requirements=requirements,
        packages=found.get("PACKAGES") or [re.split(r"[^\w.-]", text)[0] for text in requirements or []],
        works=works,
        absent=found.get("ABSENT", {}),
    )


def literals(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Names in capitals, and their values where those are literals."""
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ) if name.isupper():
                try:
                    yield name, ast.literal_eval(value)
                except ValueError:
                    continue


def declared(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """The name of each work, and the variants that have it; None for all."""
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", []):
            match decorator:
                case ast.Call(func=ast.Name(id="workload"), args=[ast.Constant(value=str(name))], keywords=keywords):
                    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords}
                    yield name, named.get("variants")
