"""Command lines that can mean only one thing, read without cyclopts, which takes 65 ms to import.

1. A line is read here only if cyclopts would read it in the same way; what is unusual, wrong or asks for help is not.
2. A command is a function with the annotations of `KINDS` alone: others are left to cyclopts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

#: The annotations that can be read here, as they are written.
KINDS = ("bool", "str", "str | None", "int", "list[str] | None")
HAS_VARIABLE = 0x04 | 0x08  # inspect.CO_VARARGS and CO_VARKEYWORDS


def plain_call(commands: Mapping[tuple[str, ...], tuple[str, str]], tokens: Sequence[str]) -> Callable[[], Any] | None:
    """The call that the line means; None if cyclopts has to say."""
    path = next((path for path in (tuple(tokens[:1]), tuple(tokens[:2])) if path in commands), None)
    if path is None:
        return None
    module, _, name = commands[path][0].partition(":")
    function: Any = getattr(importlib.import_module(module), name)
    return _bound(function, tokens[len(path) :])


def _bound(function: Any, tokens: Sequence[str]) -> Callable[[], Any] | None:
    code, kinds = function.__code__, function.__annotations__
    positional = code.co_varnames[: code.co_argcount]
    named = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    if code.co_flags & HAS_VARIABLE or function.__defaults__:
        return None
    args: list[str] = []
    kwargs: dict[str, Any] = {}
    left = list(tokens)
    while left:
        token = left.pop(0)
        if not token or (token.startswith("-") and not token.startswith("--")):
            return None
        if not token.startswith("--"):
            args.append(token)
            continue
        option, has_value, value = token[2:].partition("=")
        name = option.replace("-", "_")
        kind = kinds.get(name)
        if name not in named or "_" in option or kind not in KINDS:
            return None
        if kind == "bool":
            if has_value or name in kwargs:
                return None
            kwargs[name] = True
            continue
        if not has_value:
            value = left.pop(0) if left else ""
            if value.startswith("-"):
                return None
        if not value or (kind == "int" and not (value.isascii() and value.isdigit())):
            return None
        if kind == "list[str] | None":
            if value[0] in "[{":  # cyclopts takes a list in JSON as well
                return None
            kwargs.setdefault(name, []).append(value)
        elif name in kwargs:
            return None
        else:
            kwargs[name] = int(value) if kind == "int" else value
    if len(args) != len(positional) or any(kinds[name] != "str" for name in positional):
        return None
    if set(named) - kwargs.keys() - (function.__kwdefaults__ or {}).keys():  # one that must be given is not
        return None
    return partial(function, *args, **kwargs)
