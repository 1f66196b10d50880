"""JSON taken for what it should be: an object's entries, by name and kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = [
    "Facts",
    "entry",
    "flag",
    "integer",
    "list_of",
    "mapping",
    "mapping_of",
    "natural",
    "number",
    "optional",
    "text",
]

Facts = dict[str, Any]  # what JSON holds
T = TypeVar("T")
Kind = Callable[[object], T]
_MOST = 1 << 63


def entry(facts: Mapping[str, Any], name: str, kind: Kind[T]) -> T:
    """Return an entry.

    Raises:
        ValueError: If there is none, or it is of another kind.
    """
    if name not in facts:
        raise ValueError(f"it lacks {name!r}")
    try:
        return kind(facts[name])
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def text(value: object) -> str:
    """Take a string."""
    if not isinstance(value, str):
        raise _wrong("a string", value)
    return value


def flag(value: object) -> bool:
    """Take a truth value."""
    if not isinstance(value, bool):
        raise _wrong("true or false", value)
    return value


def integer(value: object) -> int:
    """Take an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong("an integer", value)
    return value


def natural(value: object) -> int:
    """Take an integer from 0 to 2⁶³."""
    if not 0 <= (given := integer(value)) < _MOST:
        raise _wrong("an integer ≥ 0", value)
    return given


def number(value: object) -> float:
    """Take a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong("a number", value)
    if not abs(value) < math.inf or abs(value) > 1.8e308:
        raise _wrong("a finite number", value)
    return float(value)


def mapping(value: object) -> Facts:
    """Take an object."""
    if not isinstance(value, dict):
        raise _wrong("an object", value)
    return value


def list_of(kind: Kind[T]) -> Kind[list[T]]:
    """Take a list of what is of one kind."""

    def taken(value: object) -> list[T]:
        if not isinstance(value, (list, tuple)):  # a tuple where nothing was written to a disk
            raise _wrong("a list", value)
        return [kind(one) for one in value]

    return taken


def mapping_of(kind: Kind[T]) -> Kind[dict[str, T]]:
    """Take an object whose entries are of one kind."""

    def taken(value: object) -> dict[str, T]:
        held = mapping(value)
        return {name: entry(held, name, kind) for name in held}

    return taken


def optional(kind: Kind[T]) -> Kind[T | None]:
    """Take what is of a kind, or null."""
    return lambda value: None if value is None else kind(value)


def _wrong(wanted: str, value: object) -> ValueError:
    shown = repr(value)
    return ValueError(f"{wanted} was expected, not {shown[:60]}{'…' if len(shown) > 60 else ''}")
