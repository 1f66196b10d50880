"""The modules trained in full beside the boosters: their groups in an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from torch_xgb.checks import non_negative

__all__ = ["InFull"]


class InFull:
    """What trains them.

    Args:
        parameters: Theirs.
        optimizer_class: An optimizer of their own: a class, or a callable that takes groups; None
            is the base.
        lr: A rate of their own; None is the optimizer's.

    Raises:
        TypeError: If one of the two is of the wrong type.
        ValueError: For a rate below zero, or if there is nothing to train by them.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer_class: Callable[..., Optimizer] | None = None,
        lr: float | None = None,
    ) -> None:
        self.parameters, self.optimizer_class = list(parameters), optimizer_class
        self.lr = None if lr is None else non_negative("head_lr", lr)
        if isinstance(optimizer_class, Optimizer) or not (
            optimizer_class is None or callable(optimizer_class)
        ):
            raise TypeError(
                "modules_to_save_optimizer must be an optimizer's class, or a callable that takes "
                f"parameter groups and returns an optimizer, got {optimizer_class!r}"
            )
        told = {"head_lr": lr, "modules_to_save_optimizer": optimizer_class}
        if not self.parameters and (given := [n for n, value in told.items() if value is not None]):
            raise ValueError(
                f"{given[0]}= is for modules trained in full beside the boosters, and there are "
                "none: name them in modules_to_save=[…]"
            )

    def groups(self, kwargs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return their parameter groups.

        Weights decay; biases and norms do not, and stand in a group of their own if ``kwargs`` ask
        for decay.
        """
        rate = {} if self.lr is None else {"lr": self.lr}
        if not kwargs.get("weight_decay"):
            return [{"params": self.parameters, **rate}] if self.parameters else []
        weights = [p for p in self.parameters if _is_weight(p)]
        others = [p for p in self.parameters if not _is_weight(p)]
        groups = [
            {"params": weights, **rate},
            {"params": others, **rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


def _is_weight(parameter: nn.Parameter) -> bool:
    return len(getattr(parameter, "ds_shape", parameter.shape)) > 1  # of ZeRO-3's, which is empty
