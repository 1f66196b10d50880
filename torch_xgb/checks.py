"""Arguments with a simple range, checked: what was given, what is allowed.

NumPy's scalars count as the numbers they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeVar

import torch

__all__ = [
    "device",
    "finite_positive",
    "integer",
    "natural",
    "non_negative",
    "number",
    "one_of",
    "positive_integer",
    "probability",
    "share",
]

T = TypeVar("T")


def one_of(name: str, value: T, allowed: Sequence[T]) -> T:
    """Return ``value`` if it is among ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
    return value


def device(name: str, value: torch.device | str) -> torch.device:
    """Return a device."""
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name} must be a device such as 'cpu' or None (beside the weights), got {value!r}"
        ) from error


def number(name: str, value: object, allowed: str = "a finite number") -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return float(value)


def non_negative(name: str, value: object) -> float:
    """Return a finite number ≥ 0."""
    allowed = "a finite number ≥ 0"
    if (given := number(name, value, allowed)) < 0:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return given


def finite_positive(name: str, value: object) -> float:
    """Return a finite number > 0."""
    allowed = "a finite number > 0"
    if (given := number(name, value, allowed)) <= 0:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return given


def probability(name: str, value: object) -> float:
    """Return a number in [0, 1)."""
    allowed = "a number in [0, 1)"
    if not 0 <= (given := number(name, value, allowed)) < 1:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return given


def share(name: str, value: object) -> float:
    """Return a number in [0, 1]."""
    allowed = "a number in [0, 1]"
    if not 0 <= (given := number(name, value, allowed)) <= 1:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return given


def integer(name: str, value: object, allowed: str = "an integer") -> int:
    """Return an integer."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    return int(value)


def positive_integer(name: str, value: object, allowed: str = "a positive integer") -> int:
    """Return an integer ≥ 1."""
    if (given := integer(name, value, allowed)) < 1:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return given


def natural(name: str, value: object) -> int:
    """Return an integer ≥ 0."""
    allowed = "an integer ≥ 0"
    if (given := integer(name, value, allowed)) < 0:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return given
