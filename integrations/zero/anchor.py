"""The anchor: one small Parameter of the model that ZeRO holds, and that never changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.weights.places import place_of

__all__ = ["Anchor"]


class Anchor:
    """Borrows the model's last one-dimensional Parameter that nobody trains or merges into.

    Usually the final norm's: the backward pass goes there first, so no more of the model is
    differentiated for it. Its gradient is made zero, so that it counts in no norm.

    Args:
        boosted: The optimizer of the model.
        tie: Whether to give it a gradient even where the model does not use it. ZeRO-1 and 2 fail
            without any; ZeRO-3 does not, and its Parameters are not there to be tied to.

    Raises:
        ValueError: If the model has no Parameter to borrow.
    """

    def __init__(self, boosted: BoostedLowRankOptimizer, tie: bool) -> None:
        self.parameter = _choose(boosted)
        self.parameter.requires_grad_(True)
        self._handles: list[RemovableHandle] = [self.parameter.register_hook(torch.zeros_like)]
        if tie:
            self._handles.append(boosted.model.register_forward_hook(self._tie))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _tie(self, module: nn.Module, args: object, output: Any) -> Any:  # noqa: ANN401
        if not (module.training and torch.is_grad_enabled()):
            return output
        return tree_map(self._tied, output)

    def _tied(self, leaf: Any) -> Any:  # noqa: ANN401
        if not (isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point()):
            return leaf
        return _Tie.apply(leaf, self.parameter)  # type: ignore[no-untyped-call]


class _Tie(torch.autograd.Function):
    """The identity of y, and no gradient, but one there is, of the anchor."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(anchor)
        return y.detach()  # not a view: the Trainer scales its loss in place

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        (anchor,) = ctx.saved_tensors
        return g, torch.zeros_like(anchor)


def _choose(boosted: BoostedLowRankOptimizer) -> nn.Parameter:
    boosting = boosted.boosting
    taken = {id(weight.parameter) for weight in boosting.weights}
    taken |= {id(p) for p in boosting.trained}
    free = [p for p in boosting.model.parameters() if id(p) not in taken]
    free = [p for p in free if p.is_floating_point()]
    small = [p for p in free if len(place_of(p).shape) <= 1]
    if small:
        return small[-1]
    if not free:
        raise ValueError(
            "every Parameter of the model is a target or trained in full, and DeepSpeed needs one "
            "that is neither: leave a linear map out with exclude_modules"
        )
    return min(free, key=lambda p: torch.Size(place_of(p).shape).numel())
