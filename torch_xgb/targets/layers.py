"""What may be drawn: layers, and the weights in them.

``nn.Linear`` and transformers' ``Conv1D`` are one kind of target, bare Parameters another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from torch_xgb.targets.probe import Stored, stored
from torch_xgb.targets.quantised import dtype_of, is_quantised_linear
from torch_xgb.weights.weight import Weight

__all__ = ["Layer", "Target", "is_linear", "is_transposed"]


@dataclass(frozen=True, eq=False)
class Target:
    """A linear map whose weight may get a pair, or a bare Parameter that may, a stack of E pairs.

    Attributes:
        name: The module's dotted name in the model; of a bare Parameter, its own.
        weight: Its weight.
        biases: Its bias, if it has one; of a weight tied among linear maps, theirs all.
        beside: Whether merges go beside the weight, which stays as it is.
    """

    name: str
    weight: Weight
    biases: tuple[Weight, ...]
    beside: bool = False

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that apply the weight."""
        return self.weight.modules

    @property
    def biased(self) -> bool:
        """Whether every one of them adds a bias."""
        return len(self.biases) == len(self.modules)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weight, or what that was quantised from."""
        return dtype_of(self.modules[0]) if self.beside else self.weight.parameter.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(out_features, in_features), or (E, out_features, in_features) of a stack."""
        first = self.modules[0]
        if self.beside and isinstance(first, nn.Linear):  # whose weight may be packed
            return first.out_features, first.in_features
        return self.weight.shape


@dataclass(frozen=True, eq=False)
class Layer:
    """What is drawn as a whole: a block's name with its targets."""

    name: str
    targets: tuple[Target, ...]


def is_linear(module: nn.Module) -> bool:
    """Tell a linear map with a plain weight, by its class or by what it computes, or a quantised.

    A quantised one is not asked what it computes: some pack their weight when they are called.
    """
    if is_plain_linear(module) or is_quantised_linear(module):
        return True
    return is_transposed(module) or stored(module) is Stored.OUT_IN


def is_plain_linear(module: nn.Module) -> bool:
    """Tell an ``nn.Linear`` or a subclass that computes what it does, with a weight of its own."""
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return plain and isinstance(module._parameters.get("weight"), nn.Parameter)


def is_transposed(module: nn.Module) -> bool:
    """Tell a linear map that stores its weight (in, out), as transformers' ``Conv1D`` does."""
    known = is_plain_linear(module) or is_quantised_linear(module)
    return not known and stored(module) is Stored.IN_OUT
