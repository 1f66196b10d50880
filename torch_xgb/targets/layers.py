"""What may be drawn: layers, and the weights in them.

``nn.Linear`` and transformers' ``Conv1D`` are one kind of target, bare Parameters another.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from torch import nn

from torch_xgb.weights.weight import Weight

__all__ = ["Layer", "Target", "is_conv1d", "is_linear"]


@dataclass(frozen=True, eq=False)
class Target:
    """A linear map whose weight may get a pair, or a bare Parameter that may, a stack of E pairs.

    Attributes:
        name: The module's dotted name in the model; of a bare Parameter, its own.
        weight: Its weight.
        biases: Its bias, if it has one; of a weight tied among linear maps, theirs all.
    """

    name: str
    weight: Weight
    biases: tuple[Weight, ...]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that apply the weight."""
        return self.weight.modules

    @property
    def biased(self) -> bool:
        """Whether every one of them adds a bias."""
        return len(self.biases) == len(self.modules)

    @property
    def shape(self) -> tuple[int, ...]:
        """(out_features, in_features), or (E, out_features, in_features) of a stack."""
        return self.weight.shape


@dataclass(frozen=True, eq=False)
class Layer:
    """What is drawn as a whole: a block's name with its targets."""

    name: str
    targets: tuple[Target, ...]


def is_linear(module: nn.Module) -> bool:
    """Tell a linear map with a plain weight: ``nn.Linear`` or transformers' ``Conv1D``."""
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return (plain or is_conv1d(module)) and isinstance(
        module._parameters.get("weight"), nn.Parameter
    )


def is_conv1d(module: nn.Module) -> bool:
    """Tell transformers' ``Conv1D``, which stores its weight (in, out)."""
    # No instance can exist unless somebody has imported the class: no import needed here.
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return conv1d is not None and type(module) is conv1d
