"""Marks that a caller puts around an argument to say how it is to be treated."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")


class Mark(msgspec.Struct, Generic[T], frozen=True):
    """A value with a mark; `unwrap()` gives the value, `rewrap(v)` puts the same mark on another one."""

    value: T

    def unwrap(self) -> T:
        return self.value

    def rewrap(self, value: Any) -> Mark[Any]:
        return type(self)(value)


class unmapped(Mark[T], frozen=True):
    """In `map`: pass the same value to every run instead of mapping over it."""


class allow_failure(Mark[T], frozen=True):
    """Start even if this upstream does not complete; its exception is passed in place of its value."""


class quote(Mark[T], frozen=True):
    """Pass the value exactly as it is: not searched for futures, and a future in it is not waited for."""


class opaque(Mark[T], frozen=True):
    """Wait for this future and pass its value, but do not search the value for more futures."""
