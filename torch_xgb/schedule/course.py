"""Where a run stands: what its active booster is, when that ends, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import Tensor

from torch_xgb.processes import everyone, mean
from torch_xgb.schedule.boundaries import Progress, boundary
from torch_xgb.schedule.draws import Draw, draws
from torch_xgb.schedule.plateau import LossPolicy
from torch_xgb.schedule.rates import RateFactors
from torch_xgb.settings import Settings

__all__ = ["Course"]


class Course:
    """A run's way through its boosters, pure in (seed, t) but for what it is shown of the loss.

    Args:
        settings: What the run was told.
        num_layers: L, how many layers may be drawn.

    Attributes:
        progress: How far the boosting is.
        draw: What the active booster is.
        policy: What watches the loss, if ``kappa`` is such a thing.
        most_r: The highest rank room is to be made for.
        most_L_s: The largest number of layers room is to be made for.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If one is out of range.
    """

    def __init__(self, settings: Settings, num_layers: int) -> None:
        self._ends = boundary(settings.kappa, settings.least_steps)
        self._draws = draws(settings, num_layers)
        self.policy = settings.kappa if isinstance(settings.kappa, LossPolicy) else None
        self.most_r, self.most_L_s = self._draws.most_r, self._draws.most_L_s
        self.progress, self.draw = Progress(), self._draws.booster(0)
        self._first = self.draw
        self._rates = RateFactors(settings.rewarmup_steps, settings.rank_lr_exponent, self.draw.r)

    @property
    def opening(self) -> dict[str, Any]:
        """What booster 0 is, by names that say what it follows from."""
        first = self._first
        return {
            "kappa at booster 0": self._ends.first,
            "the layers drawn first": first.layers,
            "r at booster 0": first.r,
            "lora_alpha / r at booster 0": first.s,
            "shrinkage at booster 0": first.alpha,
        }

    @property
    def rate(self) -> float:
        """The factor on the factors' learning rate for the step about to be taken."""
        return self._rates(self.progress, self.draw.r)

    def stepped(self) -> bool:
        """Count a step; return whether the active booster ends with it."""
        self.progress = self.progress.stepped()
        return self._ends(self.progress)

    def following(self) -> tuple[Progress, Draw]:
        """Return what follows the active booster, changing nothing.

        Raises:
            TypeError: If a callable answers with the wrong type.
            ValueError: If one answers out of range.
        """
        progress = self.progress.next()
        return progress, self._draws.booster(progress.booster_index)

    def begin(self, progress: Progress, draw: Draw) -> None:
        """Begin a booster."""
        self.progress, self.draw = progress, draw
        if self.policy is not None:
            self.policy.begin()

    def observe(self, loss: float | Tensor) -> None:
        """Show a step's loss, averaged over all processes, to the policy, if there is one."""
        if self.policy is not None:
            self.policy.observe(mean(loss, everyone()))

    def state_dict(self) -> dict[str, Any]:
        """Return counters, draw and the policy's state."""
        policy = None if self.policy is None else self.policy.state_dict()
        return {**asdict(self.progress), "active": asdict(self.draw), "policy": policy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.progress = Progress(**{field.name: state[field.name] for field in fields(Progress)})
        self.draw = Draw(**state["active"])
        if self.policy is not None:
            self.policy.load_state_dict(state["policy"])
