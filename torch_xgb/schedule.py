"""Every setting of a booster as a function of its index t, and the rule that ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Generic, Protocol, TypeVar, cast

from torch_xgb.knots import LossPolicy
from torch_xgb.lowrank import scaling
from torch_xgb.samplers import Sampler, draw
from torch_xgb.settings import finite_positive, integer, positive_integer

__all__ = ["Boundary", "Every", "Knots", "Never", "PerBooster", "Plan", "Progress", "boundary"]

T = TypeVar("T")


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


@dataclass(frozen=True)
class PerBooster(Generic[T]):
    """A setting as a function of t: one value for all, one per booster, or a callable.

    Attributes:
        name: The argument's.
        given: The value, a sequence (its last value goes on), or a callable of t.
        check: Returns a valid value, or raises.
    """

    name: str
    given: T | Sequence[T] | Callable[[int], T]
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
    def plain(self) -> object:
        """What of it goes into a checkpoint."""
        if callable(self.given):
            return "callable"
        return self(0) if self._listed is None else self.values

    @property
    def _listed(self) -> Sequence[T] | None:
        listed = isinstance(self.given, Sequence) and not isinstance(self.given, str)
        return cast("Sequence[T]", self.given) if listed else None

    def _checked(self, value: T, source: str) -> T:
        try:
            return self.check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}{source}") from None


class Boundary(Protocol):
    """Tells when a booster ends."""

    def __call__(self, progress: Progress) -> bool:
        """Return whether the active booster ends with the step just counted."""


@dataclass(frozen=True)
class Every:
    """End booster t after kappa(t) steps; the paper's κ is one number."""

    kappa: PerBooster[int]

    def __call__(self, progress: Progress) -> bool:  # noqa: D102
        return progress.booster_step >= self.kappa(progress.booster_index)


@dataclass(frozen=True)
class Knots:
    """End boosters after steps τ₁ < τ₂ < … of the whole run; the last one goes on.

    References:
        Chain of LoRA (Xia et al., 2024), section 4.
    """

    knots: tuple[int, ...]

    def __call__(self, progress: Progress) -> bool:  # noqa: D102
        return progress.total_steps in self.knots


@dataclass(frozen=True)
class Never:
    """Keep one booster until it is merged by hand: LoRA (T = 1, kappa = K)."""

    def __call__(self, progress: Progress) -> bool:  # noqa: D102
        return False


@dataclass(frozen=True)
class FromLoss:
    """End a booster when a policy that watches the loss says so."""

    policy: LossPolicy

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
class BoosterPlan:
    """The settings of one booster.

    Attributes:
        layers: Indices of the layers it draws, sorted.
        r: Its rank.
        s: Its scaling.
        alpha: α_t, its shrinkage.
    """

    layers: list[int]
    r: int
    s: float
    alpha: float


@dataclass(frozen=True)
class Plan:
    """The settings of every booster, as pure functions of (seed, t).

    Attributes:
        seed: The run's seed.
        num_layers: L, how many layers there are.
        sampler: Draws them.
        layers_per_booster: L_s.
        r: The rank.
        shrinkage: α_t of Eq. 8.
        lora_alpha: Of the scaling s = lora_alpha / r.
    """

    seed: int
    num_layers: int
    sampler: Sampler
    layers_per_booster: PerBooster[int | float | None]
    r: PerBooster[int]
    shrinkage: PerBooster[float]
    lora_alpha: float | None

    def booster(self, t: int) -> BoosterPlan:
        """Return booster t's settings.

        Raises:
            ValueError: If a callable answers out of range, or with more than booster 0 has.
        """
        r, L_s = self.r(t), self._layers(self.layers_per_booster(t))
        for name, value, most in (
            ("r", r, self.most_r),
            ("layers_per_booster", L_s, self.most_L_s),
        ):
            if value > most:
                raise ValueError(
                    f"{name} is {value} for booster {t}, more than the {most} room was made for; a "
                    "callable must not exceed its value at 0, a sequence may grow"
                )
        layers = draw(self.sampler, self.seed, t, self.num_layers, L_s)
        return BoosterPlan(layers, r, scaling(self.lora_alpha, r), self.shrinkage(t))

    @property
    def most_r(self) -> int:
        """The highest rank room is made for."""
        return max(self.r.values)

    @property
    def most_L_s(self) -> int:
        """The largest number of layers room is made for."""
        return max(self._layers(value) for value in self.layers_per_booster.values)

    def _layers(self, value: int | float | None) -> int:
        if value is None:
            return self.num_layers
        if isinstance(value, int):
            return min(value, self.num_layers)
        return max(1, round(value * self.num_layers))


def layers_share(value: object) -> int | float | None:
    """Return a valid ``layers_per_booster``: an integer ≥ 1, a share in (0, 1] or None."""
    allowed = "layers_per_booster must be a positive integer, a float in (0, 1] or None (all)"
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{allowed}, got {value!r}")
    given = int(value) if isinstance(value, Integral) else float(value)
    if not given > 0 or (isinstance(given, float) and given > 1):
        raise ValueError(f"{allowed}, got {value!r}")
    return given


def valid_shrinkage(value: float) -> float:
    """Return a valid α_t: a finite number > 0."""
    return finite_positive("shrinkage", value)


@dataclass(frozen=True)
class PositiveInteger:
    """Checks that a setting is a positive integer; a class, for functions do not pickle."""

    name: str

    def __call__(self, value: int) -> int:
        return positive_integer(self.name, value)


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
