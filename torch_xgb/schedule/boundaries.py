"""How far the boosting is, and the rule that ends a booster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch_xgb.checks import integer, positive_integer
from torch_xgb.schedule.per_booster import PerBooster
from torch_xgb.schedule.plateau import LossPolicy

__all__ = ["Boundary", "Every", "FromLoss", "Knots", "Never", "Progress", "boundary"]


@dataclass(frozen=True)
class Progress:
    """How far the boosting is.

    Attributes:
        booster_index: t, the number of boosters merged before the active one.
        booster_step: Optimizer steps taken in the active booster.
        total_steps: Optimizer steps taken in all.
    """

    booster_index: int = 0
    booster_step: int = 0
    total_steps: int = 0

    def stepped(self) -> Progress:
        """Count a step."""
        return Progress(self.booster_index, self.booster_step + 1, self.total_steps + 1)

    def next(self) -> Progress:
        """Go on to the next booster."""
        return Progress(self.booster_index + 1, 0, self.total_steps)


class Boundary(Protocol):
    """Tells when a booster ends."""

    def known(self, t: int) -> int | None:
        """Return after how many steps booster t ends, if that follows from t alone."""

    def __call__(self, progress: Progress) -> bool:
        """Return whether the active booster ends with the step just counted."""


@dataclass(frozen=True)
class Every:
    """End booster t after kappa(t) steps; the paper's κ is one number."""

    kappa: PerBooster[int]

    def known(self, t: int) -> int | None:  # noqa: D102
        return self.kappa(t)

    def __call__(self, progress: Progress) -> bool:  # noqa: D102
        return progress.booster_step >= self.kappa(progress.booster_index)


@dataclass(frozen=True)
class Knots:
    """End boosters after steps τ₁ < τ₂ < … of the whole run; the last one goes on.

    References:
        Chain of LoRA (Xia et al., 2024), section 4.
    """

    knots: tuple[int, ...]

    def known(self, t: int) -> int | None:  # noqa: D102
        return None if t else self.knots[0]

    def __call__(self, progress: Progress) -> bool:  # noqa: D102
        return progress.total_steps in self.knots


@dataclass(frozen=True)
class Never:
    """Keep one booster until it is merged by hand: LoRA (T = 1, kappa = K)."""

    def known(self, t: int) -> int | None:  # noqa: D102
        return None

    def __call__(self, progress: Progress) -> bool:  # noqa: D102
        return False


@dataclass(frozen=True)
class FromLoss:
    """End a booster when a policy that watches the loss says so."""

    policy: LossPolicy

    def known(self, t: int) -> int | None:  # noqa: D102
        return None

    def __call__(self, progress: Progress) -> bool:  # noqa: D102
        return self.policy.ends(progress.booster_step)


def boundary(kappa: object, least: int = 1) -> Boundary:
    """Return the rule for ``kappa``.

    Args:
        kappa: A number of steps, a callable of t giving one, an increasing sequence of knots, a
            policy that watches the loss, or None for a single booster.
        least: How many steps a booster must have.

    Raises:
        TypeError: If it is none of these.
        ValueError: If a number is below ``least``, or the knots do not increase by as much.
    """
    if kappa is None:
        return Never()
    if isinstance(kappa, LossPolicy) and not isinstance(kappa, type):
        return FromLoss(kappa)
    if isinstance(kappa, Sequence) and not isinstance(kappa, str):
        knots = tuple(integer("kappa's knots", knot) for knot in kappa)
        if not knots or any(a >= b for a, b in pairwise((0, *knots))):
            raise ValueError(f"kappa's knots must be increasing steps ≥ 1, got {kappa!r}")
        if min(b - a for a, b in pairwise((0, *knots))) < least:
            raise ValueError(f"kappa's knots {_too_short(least)}, got {kappa!r}")
        return Knots(knots)
    if callable(kappa) and not isinstance(kappa, type):
        return Every(PerBooster("kappa", kappa, _Steps(least)))
    steps = integer(
        "kappa",
        kappa,
        "a positive integer, a callable of the booster's index, a sequence of knots, a policy such "
        "as LossPlateau, or None (one booster)",
    )
    return Every(PerBooster("kappa", steps, _Steps(least)))


@dataclass(frozen=True)
class _Steps:
    """Checks a κ: a positive integer, of the least that a booster must have."""

    least: int

    def __call__(self, value: int) -> int:
        if (given := positive_integer("kappa", value)) < self.least:
            raise ValueError(f"kappa {_too_short(self.least)}, got {value!r}")
        return given


def _too_short(least: int) -> str:
    return f"must give a booster at least {least} steps (init='gradient' spends the first on A)"
