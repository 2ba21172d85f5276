"""Process-wide settings, read once: environment, then asynctask.toml, then [tool.asynctask] of pyproject.toml."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import msgspec

from .errors import SettingsError

PREFIX = "ASYNCTASK_"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting with its default. The environment variable of `x` is `ASYNCTASK_X`; durations are in seconds."""

    store_url: str = "memory://"
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


def _file_values() -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path in ("pyproject.toml", "asynctask.toml"):
        if not os.path.isfile(path):
            continue
        import tomllib  # 2 ms, which most programs need not spend

        try:
            with open(path, "rb") as file:
                content = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError) as error:
            if path == "pyproject.toml":  # somebody else's file, perhaps in the middle of an edit
                continue
            raise SettingsError(f"{os.path.abspath(path)} cannot be read: {error}") from error
        found = content.get("tool", {}).get("asynctask", {}) if path == "pyproject.toml" else content
        if not isinstance(found, dict):
            raise SettingsError(f"{os.path.abspath(path)}: [tool.asynctask] must be a table, not {found!r}")
        values.update(cast("dict[str, Any]", found))
    return values


def read_settings() -> Settings:
    """The settings of this process. Raises `SettingsError`, naming the variable or key, for a wrong value."""
    values = _file_values()
    for field in Settings.__struct_fields__:
        text = os.environ.get(PREFIX + field.upper())
        if text is not None:
            values[field] = _decoded(text)
    return _checked(values)


def _decoded(text: str) -> Any:
    if text[:1] == "[":
        try:
            return msgspec.json.decode(text.encode())
        except msgspec.DecodeError:
            return text
    return text


def _checked(values: dict[str, Any]) -> Settings:
    hints = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    for name, value in values.items():
        if name not in hints:
            raise SettingsError(f"there is no setting {name!r}; there are: {', '.join(sorted(hints))}")
        try:
            msgspec.convert(value, hints[name], strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"setting {name!r} ({PREFIX}{name.upper()}): {error}, got {value!r}") from error
    found = msgspec.convert(values, Settings, strict=False)
    for name in hints:
        value = getattr(found, name)
        least = 1 if name == "thread_pool_max_workers" else 0
        numbers = cast("list[object]", value) if isinstance(value, list) else [value]
        if any(isinstance(number, (int, float)) and not number >= least for number in numbers):  # nan is not either
            wanted = "at least 1" if least else "not negative"
            raise SettingsError(f"setting {name!r} ({PREFIX}{name.upper()}) must be {wanted}, not {value!r}")
    if found.logging_level is not None and found.logging_level not in LEVELS:
        raise SettingsError(
            f"setting 'logging_level' ({PREFIX}LOGGING_LEVEL) must be one of {', '.join(LEVELS)}, "
            f"not {found.logging_level!r}"
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

    def __getattr__(self, name: str) -> Any:
        if name in Settings.__struct_fields__:
            return getattr(self.values, name)
        raise AttributeError(f"there is no setting {name!r}; there are: {', '.join(Settings.__struct_fields__)}")


settings = CurrentSettings()


@contextmanager
def temporary_settings(**changes: Any) -> Generator[Settings, None, None]:
    """Change settings, in the whole process, for the length of a `with` block. Meant for tests."""
    before = settings.values
    settings._values = _checked({**msgspec.structs.asdict(before), **changes})  # pyright: ignore[reportPrivateUsage]
    try:
        yield settings.values
    finally:
        settings._values = before  # pyright: ignore[reportPrivateUsage]
