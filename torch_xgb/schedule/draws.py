"""What each booster is: its layers, rank, scaling, shrinkage and ρ, pure in (seed, t)."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

from torch_xgb.checks import finite_positive, integer
from torch_xgb.formulas.lowrank import scaling
from torch_xgb.schedule.carried import carried
from torch_xgb.schedule.per_booster import PerBooster, PositiveInteger
from torch_xgb.schedule.samplers import Sampler, draw, sampler
from torch_xgb.settings import Settings

__all__ = ["Draw", "Draws", "draws"]


@dataclass(frozen=True)
class Draw:
    """The settings of one booster.

    Attributes:
        layers: Indices of the layers it draws, sorted.
        r: Its rank.
        s: Its scaling.
        alpha: α_t, its shrinkage.
        rho: ρ_t, how much of their last pairs its targets take up; None if none does.
    """

    layers: list[int]
    r: int
    s: float
    alpha: float
    rho: float | None = None


@dataclass(frozen=True)
class Draws:
    """The settings of every booster, as pure functions of (seed, t).

    Attributes:
        seed: The run's seed.
        num_layers: L, how many layers there are.
        sampler: Draws them.
        layers_per_booster: L_s.
        r: The rank.
        shrinkage: α_t of Eq. 8.
        lora_alpha: Of the scaling s = lora_alpha / r.
        carry: ρ_t, if pairs are taken up.
    """

    seed: int
    num_layers: int
    sampler: Sampler
    layers_per_booster: PerBooster[int | float | None]
    r: PerBooster[int]
    shrinkage: PerBooster[float]
    lora_alpha: float | None
    carry: PerBooster[float] | None = None

    def booster(self, t: int) -> Draw:
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
        rho = None if self.carry is None else self.carry(t)
        return Draw(layers, r, scaling(self.lora_alpha, r), self.shrinkage(t), rho)

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


def draws(settings: Settings, num_layers: int) -> Draws:
    """Return the draws that a run was told to make.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If one is out of range.
    """
    alpha = settings.lora_alpha
    return Draws(
        integer("seed", settings.seed),
        num_layers,
        sampler(settings.layer_sampler),
        PerBooster("layers_per_booster", settings.layers_per_booster, _layers_share),
        PerBooster("r", settings.r, PositiveInteger("r")),
        PerBooster("shrinkage", settings.shrinkage, _valid_shrinkage),
        None if alpha is None else finite_positive("lora_alpha", alpha),
        carried(settings),
    )


def _layers_share(value: object) -> int | float | None:
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


def _valid_shrinkage(value: float) -> float:
    """Return a valid α_t: a finite number > 0."""
    return finite_positive("shrinkage", value)
