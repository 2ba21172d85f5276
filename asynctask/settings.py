"""Process-wide settings, read once: environment, then asynctask.toml, then [tool.asynctask] of pyproject.toml."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import msgspec

from .errors import SettingsError
from .redact import shown, shown_as

PREFIX = "ASYNCTASK_"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting with its default. The environment variable of `x` is `ASYNCTASK_X`; durations are in seconds."""

    #: Where data is kept; None: the user's data folder, as the system has it.
    home: str | None = None
    #: None: the file `asynctask.db` in `home`.
    store_url: str | None = None
    #: Ended runs older than so many days, or beyond so many, are deleted from a store on disk; None: none are.
    store_keep_days: float | None = None
    store_keep_runs: int | None = None
    #: Results that a process keeps in memory, so that a cached one needs no disk.
    cache_entries_in_memory: int = 1_000
    cache_bytes_in_memory: int = 64 * 1024 * 1024
    tasks_refresh_cache: bool = False
    task_default_retries: int = 0
    task_default_retry_delay_seconds: float | list[float] = 0.0
    flow_default_retries: int = 0
    flow_default_retry_delay_seconds: float | list[float] = 0.0
    blocking_warning_seconds: float = 0.1
    thread_pool_max_workers: int = 64
    shutdown_timeout: float = 30.0
    history_size: int = 10_000
    #: The level of the logger `asynctask`; None leaves it as Python's logging has it.
    logging_level: str | None = None
    logging_log_prints: bool = False
    #: From which level on what runs log is kept with them.
    logging_keep_level: str = "INFO"


def values_in(path: str) -> dict[str, Any]:
    """The settings that a file holds, as they stand there; none if there is no such file."""
    if not os.path.isfile(path):
        return {}
    import tomllib  # 2 ms, which most programs need not spend

    is_ours = os.path.basename(path) != "pyproject.toml"
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, ValueError) as error:  # also what is not UTF-8
        if not is_ours:  # somebody else's file, perhaps in the middle of an edit
            return {}
        raise SettingsError(f"{os.path.abspath(path)} cannot be read: {error}") from error
    found = content if is_ours else content.get("tool", {}).get("asynctask", {})
    if not isinstance(found, dict):
        raise SettingsError(f"{os.path.abspath(path)}: [tool.asynctask] must be a table, not {shown(found)}")
    return cast("dict[str, Any]", found)


def read_sources() -> dict[str, dict[str, Any]]:
    """What each source sets, by the name of the source; a later one goes before an earlier one."""
    variables = {field: os.environ.get(PREFIX + field.upper()) for field in Settings.__struct_fields__}
    return {
        "pyproject.toml": values_in("pyproject.toml"),
        "asynctask.toml": values_in("asynctask.toml"),
        "environment": {field: decoded(text) for field, text in variables.items() if text is not None},
    }


def read_settings() -> Settings:
    """The settings of this process. Raises `SettingsError`, naming the variable or key, for a wrong value."""
    values: dict[str, Any] = {}
    for found in read_sources().values():
        values |= found
    return checked(values)


def decoded(text: str) -> Any:
    """What the text of a variable or a command says: a list if it is one in JSON, else itself."""
    if text[:1] == "[":
        try:
            return msgspec.json.decode(text.encode())
        except msgspec.DecodeError:
            return text
    return text


def checked(values: dict[str, Any]) -> Settings:
    """The settings with these values, the others by default. Raises `SettingsError` for the first that is wrong."""
    hints = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    for name, value in values.items():
        if name not in hints:
            raise SettingsError(f"there is no setting {name!r}; there are: {', '.join(sorted(hints))}")
        try:
            msgspec.convert(value, hints[name], strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(
                f"setting {name!r} ({PREFIX}{name.upper()}): {error}, got {shown_as(name, value)}"
            ) from error
    found = msgspec.convert(values, Settings, strict=False)
    for name in hints:
        value = getattr(found, name)
        least = 1 if name == "thread_pool_max_workers" else 0
        numbers = cast("list[object]", value) if isinstance(value, list) else [value]
        if any(isinstance(number, (int, float)) and not number >= least for number in numbers):  # nan is not either
            wanted = "at least 1" if least else "not negative"
            text = shown_as(name, cast("object", value))
            raise SettingsError(f"setting {name!r} ({PREFIX}{name.upper()}) must be {wanted}, not {text}")
    for name in ("logging_level", "logging_keep_level"):
        level: str | None = getattr(found, name)
        if level is not None and level not in LEVELS:
            raise SettingsError(
                f"setting {name!r} ({PREFIX}{name.upper()}) must be one of {', '.join(LEVELS)}, not {shown(level)}"
            )
    return found


class CurrentSettings:
    """The settings in force, read at first use: `settings.shutdown_timeout`."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: Settings | None = None

    @property
    def values(self) -> Settings:
        if self._values is None:
            self._values = read_settings()
        return self._values

    def take_over(self, values: Settings) -> None:
        """In a worker process: have those of the process that started it."""
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name in Settings.__struct_fields__:
            return getattr(self.values, name)
        raise AttributeError(f"there is no setting {name!r}; there are: {', '.join(Settings.__struct_fields__)}")


settings = CurrentSettings()


@contextmanager
def temporary_settings(**changes: Any) -> Generator[Settings, None, None]:
    """Change settings, in the whole process, for the length of a `with` block. Meant for tests."""
    before = settings.values
    settings._values = checked({**msgspec.structs.asdict(before), **changes})  # pyright: ignore[reportPrivateUsage]
    try:
        yield settings.values
    finally:
        settings._values = before  # pyright: ignore[reportPrivateUsage]
