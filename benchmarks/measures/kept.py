"""What became of an update: how far weights moved the way they should have."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """What became of an update: its projection on the true one, and the angle between them."""

    retained: float
    cosine: float


def kept(moved: Iterable[Tensor], true: Iterable[Tensor]) -> Kept:
    """Compare how weights moved with how they should have."""
    along = moved_square = true_square = 0.0
    for m, t in zip(moved, true, strict=True):
        along += float((m.double() * t.double()).sum())
        moved_square += float(m.double().square().sum())
        true_square += float(t.double().square().sum())
    both = (moved_square * true_square) ** 0.5
    return Kept(along / true_square, along / both if both else 0.0)
