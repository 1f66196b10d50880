"""The pair of a target: A and B, and b where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Pair", "Shapes", "Size"]

Size = tuple[int, ...]
T = TypeVar("T")
U = TypeVar("U")


class Shapes(NamedTuple):
    """The shapes of a pair."""

    A: Size
    B: Size
    b: Size | None = None

    @property
    def numel(self) -> int:
        """How many numbers a pair has."""
        return sum(prod(shape) for shape in self if shape is not None)


@dataclass(frozen=True, eq=False)
class Pair(Generic[T]):
    """A and B, and b or None: Parameters, parts of them, or what belongs to each.

    Iterating meets those there are, in this order.
    """

    A: T
    B: T
    b: T | None = None

    def __iter__(self) -> Iterator[T]:
        yield self.A
        yield self.B
        if self.b is not None:
            yield self.b

    @property
    def grown(self) -> tuple[T, ...]:
        """B, and b where there is one: what is zero in a fresh pair."""
        return (self.B,) if self.b is None else (self.B, self.b)

    def map(self, fn: Callable[[T], U]) -> Pair[U]:
        """Return the pair of a function's answers."""
        return Pair(*map(fn, self))
