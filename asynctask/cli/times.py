"""Times and durations as people write them: `2h`, `7d`, `2030-01-31`, `2030-01-31T12:00Z`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from ..clocks import Clock
from ..errors import UsageError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def duration(text: str, option: str) -> timedelta:
    """`90s`, `15m`, `2h`, `7d`, `1w`, or several: `1d12h`. Raises `UsageError`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f"{option} must be a duration such as 90s, 15m, 2h or 7d, not {text!r}")
    try:
        return timedelta(seconds=sum(float(number) * UNITS[unit] for number, unit in parts))
    except OverflowError as error:
        raise UsageError(f"{option} {text!r} is longer than can be counted") from error


def moment(text: str, option: str) -> datetime:
    """A time in ISO 8601 (local, if it does not say), or so long ago. Raises `UsageError`."""
    try:
        if re.fullmatch(r"[\d.]+[smhdw].*", text):
            return datetime.fromtimestamp(Clock().now(), UTC) - duration(text, option)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        if isinstance(error, UsageError):
            raise
        wanted = "a time such as 2030-01-31 or 2030-01-31T12:00, or one ago such as 2h or 7d"
        raise UsageError(f"{option} must be {wanted}, not {text!r}") from error
