"""Parameters that an output does not depend on, in its graph all the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Beside"]


class Beside(torch.autograd.Function):
    """The identity of y, and gradients of zeros for some Parameters that it does not depend on."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *others: Tensor) -> Tensor:  # noqa: ANN401
        """Return y."""
        ctx.save_for_backward(*others)
        return y.detach()  # no view: what follows may write into it

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        """Return its gradient, and zeros."""
        return (g, *map(torch.zeros_like, ctx.saved_tensors))
