"""A call of the model that reaches no drawn target, as with layers that are dropped at random.

Nothing in its output requires a gradient then, and ``backward()`` would fail with words of
autograd's that name no cause. Tied to a factor that gets none it passes, and the step trains
nothing, as ``unused="skip"`` asks for; and ``DistributedDataParallel``, which takes part in what
other processes average once it has heard of one Parameter, has heard of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from torch_xgb.formulas.lowrank import is_followed

__all__ = ["Reach"]


class Reach:
    """The hook that a model's output meets in training.

    Args:
        factors: Those of the boosters; while they are frozen, so is the output.
    """

    def __init__(self, factors: Sequence[nn.Parameter]) -> None:
        self._factors = factors
        self._handle: RemovableHandle | None = None

    def attach(self, model: nn.Module) -> None:
        """Begin to look at outputs, before FSDP2 looks which of them will have a backward pass."""
        self._handle = model.register_forward_hook(self, prepend=True)

    def detach(self) -> None:
        """End it."""
        if self._handle is not None:
            self._handle.remove()

    def __call__(self, model: nn.Module, args: object, output: Any) -> Any:  # noqa: ANN401
        """Return the output, tied to a factor if it depends on nothing that is trained."""
        if not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return output
        leaves, form = tree_flatten(output)
        floating = [i for i, leaf in enumerate(leaves) if _is_floating(leaf)]
        if is_followed() or any(leaves[i].requires_grad for i in floating):
            return output
        factor = next((factor for factor in self._factors if factor.requires_grad), None)
        for i in floating if factor is not None else ():
            leaves[i] = _Tied.apply(leaves[i], factor)  # type: ignore[no-untyped-call]
        return tree_unflatten(leaves, form)


class _Tied(torch.autograd.Function):
    """The identity of y, with a Parameter in its graph that gets no gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, factor: Tensor) -> Tensor:  # noqa: ANN401
        return y.detach()  # no view: what follows may write into it

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return g, None


def _is_floating(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
