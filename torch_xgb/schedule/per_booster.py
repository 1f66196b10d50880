"""A setting as a function of the booster's index t."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar, cast

from torch_xgb.checks import positive_integer

__all__ = ["Given", "PerBooster", "PositiveInteger"]

T = TypeVar("T")
Given: TypeAlias = T | Sequence[T] | Callable[[int], T]


@dataclass(frozen=True)
class PerBooster(Generic[T]):
    """A setting as a function of t: one value for all, one per booster, or a callable.

    Attributes:
        name: The argument's.
        given: The value, a sequence (its last value goes on), or a callable of t.
        check: Returns a valid value, or raises.
    """

    name: str
    given: Given[T]
    check: Callable[[T], T]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.name} as a schedule needs at least one value, got []")

    def __call__(self, t: int) -> T:
        """Return booster t's value.

        Raises:
            TypeError: If it is of the wrong type.
            ValueError: If it is out of range.
        """
        listed = self._listed
        if listed is not None:
            return self._checked(listed[min(t, len(listed) - 1)], f" in {list(listed)!r}")
        if callable(self.given):
            return self._checked(self.given(t), f" from {self.given!r} for booster {t}")
        return self.check(cast("T", self.given))

    @property
    def values(self) -> list[T]:
        """Every value a sequence holds; of a callable, booster 0's."""
        listed = self._listed
        return [self(t) for t in range(1 if listed is None else len(listed))]

    @property
    def _listed(self) -> Sequence[T] | None:
        listed = isinstance(self.given, Sequence) and not isinstance(self.given, str)
        return cast("Sequence[T]", self.given) if listed else None

    def _checked(self, value: T, source: str) -> T:
        try:
            return self.check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}{source}") from None


@dataclass(frozen=True)
class PositiveInteger:
    """Checks that a setting is a positive integer; a class, for functions do not pickle."""

    name: str

    def __call__(self, value: int) -> int:  # noqa: D102
        return positive_integer(self.name, value)
