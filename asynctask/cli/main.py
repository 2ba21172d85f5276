"""The command `asynctask`: which commands there are, and what becomes of their errors.

1. A command is a plain function of its own module, named here by text: `asynctask --help` imports none of them.
2. It gives its exit code: 0 done, 1 failed. What is asked wrongly is an error, and 2. Ctrl-C is 130.
3. cyclopts reads the command line, and costs 65 ms of import. A line that can mean only one thing is read without it
   (`shortcut`); `--help`, mistakes and everything unusual go to cyclopts.
4. `--store URL` may also stand before the command, for those that use a store.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import AsyncTaskError, OptionError, OutputClosed, SettingsError, UsageError
from .shortcut import plain_call
from .show import note

if TYPE_CHECKING:
    from cyclopts import App

GLOBAL = "global-concurrency-limit"
#: Groups with a short name as well.
ALIASES = {"gcl": GLOBAL}
#: Each command: where its function is, and its line in `--help`.
COMMANDS: dict[tuple[str, ...], tuple[str, str]] = {
    ("run",): ("asynctask.cli.run:run", "Run a flow or task of a file or module."),
    ("runs", "ls"): ("asynctask.cli.runs:ls", "List runs, the newest first."),
    ("runs", "inspect"): ("asynctask.cli.runs:inspect", "Show all about one run."),
    ("runs", "logs"): ("asynctask.cli.runs:logs", "Show what a run logged."),
    ("runs", "watch"): ("asynctask.cli.watch:watch", "Follow a run to its end."),
    ("runs", "delete"): ("asynctask.cli.runs:delete", "Delete ended runs."),
    ("cache", "ls"): ("asynctask.cli.cache:ls", "List kept results, the newest first."),
    ("cache", "clear"): ("asynctask.cli.cache:clear", "Delete kept results."),
    ("concurrency-limit", "create"): ("asynctask.cli.limits:create", "Give a tag a limit, or another one."),
    ("concurrency-limit", "delete"): ("asynctask.cli.limits:delete", "Remove the limit of a tag."),
    ("concurrency-limit", "inspect"): ("asynctask.cli.limits:inspect", "Show a limit, who holds slots and who waits."),
    ("concurrency-limit", "read"): ("asynctask.cli.limits:inspect", "The same as inspect."),
    ("concurrency-limit", "ls"): ("asynctask.cli.limits:ls", "List the limits of tags."),
    ("concurrency-limit", "reset"): ("asynctask.cli.limits:reset", "Free every slot of a tag."),
    (GLOBAL, "create"): ("asynctask.cli.global_limits:create", "Make a limit with a name, or replace it."),
    (GLOBAL, "update"): ("asynctask.cli.global_limits:update", "Change a limit."),
    (GLOBAL, "delete"): ("asynctask.cli.global_limits:delete", "Remove a limit."),
    (GLOBAL, "inspect"): ("asynctask.cli.global_limits:inspect", "Show a limit, who holds slots and who waits."),
    (GLOBAL, "ls"): ("asynctask.cli.global_limits:ls", "List the limits that have a name."),
    (GLOBAL, "enable"): ("asynctask.cli.global_limits:enable", "Put a limit in force again."),
    (GLOBAL, "disable"): ("asynctask.cli.global_limits:disable", "Take a limit out of force."),
    ("store", "info"): ("asynctask.cli.store:info", "Show where the store is and what it holds."),
    ("store", "migrate"): ("asynctask.cli.store:migrate", "Bring the store to this version's schema."),
    ("store", "prune"): ("asynctask.cli.store:prune", "Delete old ended runs."),
    ("config", "view"): ("asynctask.cli.config:view", "Show every setting and where its value comes from."),
    ("config", "set"): ("asynctask.cli.config:set_value", "Write a setting to asynctask.toml in this folder."),
    ("config", "unset"): ("asynctask.cli.config:unset", "Take a setting out of asynctask.toml in this folder."),
    ("bench",): ("asynctask.cli.bench:bench", "Measure a task, flow, function or scenario under load."),
    ("completion",): ("asynctask.cli.completion:completion", "Print or install completion for your shell."),
    ("version",): ("asynctask.cli.version:version", "Show the version."),
}
GROUPS = {
    "runs": "Look at runs, follow and delete them.",
    "cache": "Look at kept results and delete them.",
    "concurrency-limit": "Limit how many runs with a tag may be Running at once.",
    GLOBAL: "Limits with a name, for concurrency() and rate_limit().",
    "store": "Look after the store.",
    "config": "Look at settings and change them.",
}


def main(tokens: Sequence[str] | None = None) -> int:
    """Do what the command line says and give the exit code."""
    given = list(sys.argv[1:] if tokens is None else tokens)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, `>&-`; and the next file opened would take its number
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        given = _store_behind(given)
        if given[:1] == ["--version"]:
            given[0] = "version"
        given[:1] = [ALIASES.get(word, word) for word in given[:1]]
        call = plain_call(COMMANDS, given)
        result = by_cyclopts(given) if call is None else call()
        return result if isinstance(result, int) else 0
    except (UsageError, OptionError, SettingsError) as error:
        note(f"asynctask: {error}")
        return 2
    except (OutputClosed, BrokenPipeError):  # `asynctask runs ls | head`: whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains as it flushes
        return 1
    except (AsyncTaskError, OSError) as error:
        note(f"asynctask: {error}")
        return 1
    except KeyboardInterrupt:  # deliberate: it becomes exit code 130
        note("asynctask: interrupted")
        return 130


def program() -> NoReturn:
    """The process `asynctask`: `main`, without what the collector would cost a short one."""
    is_short = not {"run", "bench"} & set(sys.argv)  # which run programs of the user's
    if is_short:
        gc.disable()
    code = main()
    if is_short:
        gc.freeze()  # the interpreter would look through all modules once more as it ends: 15 of 130 ms for `runs ls`
    sys.exit(code)


def by_cyclopts(tokens: list[str]) -> Any:
    """What the command gives, or None where cyclopts did it itself, as with `--help`."""
    from cyclopts import CycloptsError

    try:
        return application()(tokens, result_action="return_value", exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UsageError(str(error).strip()) from error


def application() -> App:
    """All commands, for cyclopts."""
    from cyclopts import App, Parameter  # 65 ms (rule 3)

    options: dict[str, Any] = {
        "default_parameter": Parameter(negative=(), show_default=False, converter=_value_of),
        "version_flags": (),
        "help_format": "plaintext",
        "suppress_keyboard_interrupt": False,
    }
    app = App("asynctask", "Run tasks and flows, and look at what became of them.", **options)
    for name, text in GROUPS.items():
        short = [alias for alias, whole in ALIASES.items() if whole == name]
        app.command(App(name, text, alias=short, **options))
    for (*group, name), (place, text) in COMMANDS.items():
        parent: App = app[group[0]] if group else app
        parent.command(place, name=name, help=text)
    return app


def _value_of(kind: type, tokens: Sequence[Any]) -> Any:
    """What was written, as `kind`: cyclopts alone rounds 3.5 to 4, and knows no answer to 1.e999."""
    import cyclopts  # imported by now

    convert: Any = cyclopts.convert
    if kind is int:
        for token in tokens:
            if not re.fullmatch(r"[+-]?(\d+|0x[0-9a-f]+|0o[0-7]+|0b[01]+)", token.value, re.ASCII | re.IGNORECASE):
                raise ValueError(f"a whole number is needed, not {token.value!r}")
    return convert(kind, tokens)


def _store_behind(tokens: list[str]) -> list[str]:
    """`--store URL` from before the command to behind it (rule 4)."""
    if tokens[:1] == ["--store"] and len(tokens) > 2:
        moved, rest = tokens[:2], tokens[2:]
    elif tokens and tokens[0].startswith("--store=") and len(tokens) > 1:
        moved, rest = tokens[:1], tokens[1:]
    else:
        return tokens
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *moved, *rest[end:]]
