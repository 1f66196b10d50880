"""Knots from the loss: when a booster, and when the run, has converged."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

from torch_xgb.checks import non_negative, positive_integer, probability

__all__ = ["LossPlateau", "LossPolicy"]


@runtime_checkable
class LossPolicy(Protocol):
    """Decides from the loss of each step when a booster, and when the run, has converged."""

    @property
    def converged(self) -> bool:
        """Whether further boosters are not worth their steps."""

    def observe(self, loss: float) -> None:
        """Take note of a step's loss."""

    def ends(self, booster_step: int) -> bool:
        """Return whether the active booster ends with the step just counted."""

    def begin(self) -> None:
        """Begin a new booster."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume."""


class LossPlateau:
    """End a booster once its smoothed loss has stopped improving.

    COLA names knots chosen by the convergence of the loss as future work; XGBLoRA stops "until a
    convergence criterion is met". This is one rule for both: a booster has converged after
    ``patience`` steps without an improvement of the smoothed loss by ``min_improvement`` of its
    size, and the run after ``stop_after`` boosters without one. What improves slowly but steadily
    adds up: every loss is compared with that of the last improvement, not with the last loss.

    Args:
        patience: Steps without improvement that end a booster.
        min_improvement: What counts as improvement, relative to the best loss so far.
        smoothing: Weight of the past in the exponential moving average of the loss, in [0, 1).
        min_steps: A booster's floor on κ.
        max_steps: Its ceiling; None for no ceiling.
        stop_after: Boosters in a row that must fail to improve the loss of the run's last
            improvement before ``converged`` turns true; None never stops.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, or ``max_steps`` is below ``min_steps``.

    Example:
        >>> policy = LossPlateau(patience=2, min_steps=1, smoothing=0.0)
        >>> for step, loss in enumerate([2.0, 1.0, 1.0, 1.0], start=1):
        ...     policy.observe(loss)
        ...     print(step, policy.ends(step))
        1 False
        2 False
        3 False
        4 True

    References:
        Chain of LoRA (Xia et al., 2024), section 7; Less is More (Zhang et al., 2024), section 3.
    """

    def __init__(
        self,
        patience: int = 8,
        min_improvement: float = 1e-3,
        smoothing: float = 0.8,
        min_steps: int = 8,
        max_steps: int | None = 128,
        stop_after: int | None = None,
    ) -> None:
        self.patience = positive_integer("patience", patience)
        self.min_improvement = non_negative("min_improvement", min_improvement)
        self.smoothing = probability("smoothing", smoothing)
        self.min_steps = positive_integer("min_steps", min_steps)
        self.max_steps = None if max_steps is None else positive_integer("max_steps", max_steps)
        self.stop_after = None if stop_after is None else positive_integer("stop_after", stop_after)
        if self.max_steps is not None and self.max_steps < self.min_steps:
            raise ValueError(f"max_steps={max_steps} is below min_steps={min_steps}")
        self._average, self._weight = 0.0, 0.0
        self._best, self._lowest, self._stale, self._seen = math.inf, math.inf, 0, 0
        self._run_best, self._idle_boosters = math.inf, 0

    @property
    def converged(self) -> bool:
        """Whether ``stop_after`` boosters in a row have not improved the loss of the run."""
        return self.stop_after is not None and self._idle_boosters >= self.stop_after

    def observe(self, loss: float) -> None:
        """Take note of a step's loss.

        Raises:
            TypeError: If it is no number.
        """
        if isinstance(loss, bool) or not isinstance(loss, (int, float)):
            raise TypeError(f"the loss must be a number, got {loss!r}")
        self._seen += 1
        if not math.isfinite(loss):
            self._stale += 1
            return
        self._average = self.smoothing * self._average + (1 - self.smoothing) * loss
        self._weight = self.smoothing * self._weight + (1 - self.smoothing)
        smoothed = self._average / self._weight
        self._lowest = min(self._lowest, smoothed)
        if self._improves(smoothed, self._best):
            self._best, self._stale = smoothed, 0
        else:
            self._stale += 1

    def ends(self, booster_step: int) -> bool:
        """Return whether the active booster ends with the step just counted.

        Raises:
            RuntimeError: If a step's loss was not observed.
        """
        self.require_seen(booster_step)
        if self.max_steps is not None and booster_step >= self.max_steps:
            return True
        return booster_step >= self.min_steps and self._stale >= self.patience

    def require_seen(self, booster_step: int) -> None:
        """Raise a RuntimeError if a loss was not observed, up to a step of the active booster."""
        if self._seen < booster_step:
            raise RuntimeError(
                "knots from the loss need the loss: call optimizer.observe(loss) before each "
                "optimizer.step(), or give step() a closure"
            )

    def begin(self) -> None:
        """Begin a new booster: the average goes on, the best starts over."""
        if self._improves(self._lowest, self._run_best):
            self._run_best, self._idle_boosters = self._lowest, 0
        elif self._seen:
            self._idle_boosters += 1
        self._best, self._lowest, self._stale, self._seen = math.inf, math.inf, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return {key: value for key, value in self.__dict__.items() if key.startswith("_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters back.

        Raises:
            ValueError: If they are not those of a ``LossPlateau``.
        """
        own = self.state_dict()
        state = {"_lowest": state.get("_best"), **state}  # which states of before did not have
        wrong = [
            key
            for key in own.keys() | state.keys()
            if key not in own or type(state.get(key)) not in (type(own[key]), int)
        ]
        if wrong:
            raise ValueError(f"{sorted(wrong)[0]!r} must be a number, got {state!r}")
        self.__dict__.update(state)

    def _improves(self, value: float, best: float) -> bool:
        return value < (best if math.isinf(best) else best - self.min_improvement * abs(best))
