"""What boosting does to the factors' learning rate, on top of any scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from torch_xgb.checks import natural, number
from torch_xgb.schedule.boundaries import Progress

__all__ = ["RateFactors"]


@dataclass(frozen=True)
class RateFactors:
    """The factor on the learning rate of a step.

    Attributes:
        rewarmup_steps: n; the first n steps of every booster but the first rise linearly, step k by
            (k + 1) / n.
        rank_exponent: e of (r_t / r_0)^e; MeFT's rate η ∝ r^(−1/4) is −0.25.
        first_rank: r_0.

    References:
        MeFT: η ∝ r^(−1/4). ReLoRA (Lialin et al., 2023): a warm-up after each restart.
    """

    rewarmup_steps: int
    rank_exponent: float
    first_rank: int

    def __post_init__(self) -> None:
        natural("rewarmup_steps", self.rewarmup_steps)
        number("rank_lr_exponent", self.rank_exponent)

    def __call__(self, progress: Progress, r: int) -> float:
        """Return the factor for the step about to be taken."""
        factor: float = (r / self.first_rank) ** self.rank_exponent
        if progress.booster_index and progress.booster_step < self.rewarmup_steps:
            factor *= (progress.booster_step + 1) / self.rewarmup_steps
        return factor
