"""Arguments with a simple range, checked: what was given, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

__all__ = [
    "finite_positive",
    "natural",
    "non_negative",
    "number",
    "one_of",
    "positive_integer",
    "probability",
    "seed_in_range",
]

T = TypeVar("T")


def one_of(name: str, value: T, allowed: Sequence[T]) -> T:
    """Return ``value`` if it is among ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
    return value


def non_negative(name: str, value: float) -> float:
    """Return a finite number ≥ 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number ≥ 0, got {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")
    return value


def probability(name: str, value: float) -> float:
    """Return a number in [0, 1)."""
    if non_negative(name, value) >= 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return value


def finite_positive(name: str, value: float) -> float:
    """Return a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a positive number, got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return float(value)


def positive_integer(name: str, value: object) -> int:
    """Return an integer ≥ 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a positive integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return value


def natural(name: str, value: object) -> int:
    """Return an integer ≥ 0."""
    return 0 if value == 0 and not isinstance(value, bool) else positive_integer(name, value)


def number(name: str, value: float) -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def seed_in_range(seed: int) -> int:
    """Return an integer seed."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    return seed
