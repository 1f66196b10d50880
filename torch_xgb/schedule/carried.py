"""ρ, how much of its last pair a target takes up: given for every booster, or tied to the rate."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch_xgb.checks import finite_positive, share
from torch_xgb.schedule.per_booster import PerBooster
from torch_xgb.settings import Settings

__all__ = ["Decay", "carried"]


@dataclass(frozen=True)
class Decay:
    r"""ρ tied to the learning rate, as decoupled weight decay is.

    .. math:: \rho = \prod_k \max(0, 1 - \eta_k\, d)

    over the steps k that trained a pair in its last booster, η_k the factors' learning rate at
    each. Under AdamW with a weight decay of d, B would have decayed by as much; but what decays
    here stays in the weight for good. While the rate is high, pairs are renewed; as a scheduler
    lets it fall, ρ rises to 1, and what is left is trained as LoRA trains. Boosters of κ steps at a
    rate η have ρ = (1 − η·d)^κ ≈ 1 − κ·η·d: for a certain ρ there, d = (1 − ρ) / (κ·η).

    Args:
        weight_decay: d, a finite number > 0, as AdamW's ``weight_decay`` would be.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.

    Example:
        >>> from torch_xgb import Decay
        >>> ρ = 1.0
        >>> for η in [5e-3] * 8:
        ...     ρ = Decay(0.75).after(ρ, η)
        >>> round(ρ, 4)
        0.9704

    References:
        Decoupled Weight Decay Regularization (Loshchilov and Hutter, 2019), Algorithm 2.
    """

    weight_decay: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_decay", finite_positive("Decay", self.weight_decay))

    def after(self, rho: float, lr: Any) -> float:  # noqa: ANN401
        """Return what a step at a learning rate leaves of ρ.

        Args:
            rho: ρ before it.
            lr: η, a number or a tensor of one, which is waited for.
        """
        return rho * max(0.0, 1.0 - float(lr) * self.weight_decay)


def carried(settings: Settings) -> PerBooster[float] | None:
    """Return ρ of every booster: None if nothing is carried, 1 where the rate decides.

    Raises:
        TypeError: If ``carry`` is of the wrong type.
        ValueError: If a value is out of range.
    """
    if settings.carry is None:
        return None
    given = 1.0 if isinstance(settings.carry, Decay) else settings.carry
    rho = PerBooster("carry", given, _valid)
    assert rho.values  # every value of a sequence is looked at
    return rho


_ALLOWED = "a number in [0, 1], a sequence or callable of these, Decay(…) or None"


def _valid(value: object) -> float:
    """Return a valid ρ_t."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"carry must be {_ALLOWED}, got {value!r}")
    return share("carry", value)
