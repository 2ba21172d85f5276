"""`asynctask config`: every setting with its source, and `asynctask.toml` changed by one line."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..secrets import masked_url
from ..settings import PREFIX, Settings, checked, decoded, read_settings, read_sources, values_in
from ..stores.urls import missing_file
from .setting_file import FILE, toml_of, with_setting, without_setting, write
from .show import cleaned, document, note, out, table


def view(*, json: bool = False) -> int:
    """Show every setting, its value, and where the value comes from.

    Args:
        json: Print a JSON document.
    """
    found = read_settings()
    sources = read_sources()
    rows: list[dict[str, Any]] = []
    for name in Settings.__struct_fields__:
        source = next((source for source in reversed(sources) if name in sources[source]), "default")
        rows.append({"name": name, "value": without_password(getattr(found, name)), "source": source})
    if json:
        document({"items": rows, "next": None})
        return 0
    shown = [(row["name"], _shown(row["value"]), _named(row["source"], row["name"])) for row in rows]
    table(("NAME", "VALUE", "SOURCE"), shown)
    return 0


def without_password(value: Any) -> Any:
    """A store's URL without the password in it; anything else as it is."""
    return masked_url(value) if isinstance(value, str) else value


def _shown(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else toml_of(value)


def _named(source: str, name: str) -> str:
    return f"{source} ({PREFIX}{name.upper()})" if source == "environment" else source


def set_value(name: str, value: str, /, *, json: bool = False) -> int:
    """Write a setting to asynctask.toml in this folder; its other lines stay as they are.

    Args:
        name: The setting; `asynctask config view` lists them.
        value: Its new value.
        json: Print a JSON document.
    """
    name = _setting(name)
    values = {**values_in(FILE), name: decoded(value)}
    new = getattr(checked(values), name)  # the whole file is held against the settings before a line is changed
    if name == "store_url":
        missing_file(new)  # raises for what no store can have
    write(with_setting(name, new))
    new = without_password(new)
    if json:
        document({"name": name, "value": new, "source": FILE})
    else:
        out(f"{FILE}: {name} = {cleaned(_shown(new))}")
    _tell_if_overridden(name)
    return 0


def unset(name: str, /, *, json: bool = False) -> int:
    """Take a setting out of asynctask.toml in this folder; its other lines stay as they are.

    Args:
        name: The setting, which may also be one that no longer exists.
        json: Print a JSON document.
    """
    name = _plain(name)
    if name not in values_in(FILE):
        raise UsageError(f"{FILE} in this folder does not set {name!r}")
    write(without_setting(name))
    if json:
        document({"name": name, "value": None, "source": FILE})
    else:
        out(f"{FILE}: {name} is no longer set")
    _tell_if_overridden(name)
    return 0


def _plain(name: str) -> str:
    """The name of a setting, as it is or as its environment variable has it."""
    return name.lower().removeprefix(PREFIX.lower()).replace("-", "_")


def _setting(name: str) -> str:
    plain = _plain(name)
    if plain not in Settings.__struct_fields__:
        raise UsageError(f"there is no setting {name!r}; there are: {', '.join(sorted(Settings.__struct_fields__))}")
    return plain


def _tell_if_overridden(name: str) -> None:
    if name in read_sources()["environment"]:
        note(f"asynctask: the environment sets it too ({PREFIX}{name.upper()}), and goes before the file")
