"""Arguments with a simple range, checked: what was given, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from torch_xgb.targets import Layer

__all__ = ["check_rank", "non_negative", "one_of", "probability", "seed_in_range"]

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


def seed_in_range(seed: int) -> int:
    """Return an integer seed."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    return seed


def check_rank(r: int, layers: Sequence[Layer]) -> None:
    """Refuse a rank that is no positive integer, or larger than some weight's smaller side."""
    if isinstance(r, bool) or not isinstance(r, int):
        raise TypeError(f"r must be a positive integer, got {r!r}")
    if r < 1:
        raise ValueError(f"r must be a positive integer, got {r!r}")
    narrow = [(t.name, t.shape) for layer in layers for t in layer.targets if r > min(t.shape)]
    if narrow:
        name, shape = narrow[0]
        raise ValueError(
            f"r={r} is larger than the smaller side of {len(narrow)} weights, first {name!r} of "
            f"shape {shape}; choose a smaller r or leave them out with exclude_modules"
        )
