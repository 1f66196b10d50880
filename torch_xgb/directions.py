"""A booster whose A is a direction of the gradient instead of a random one.

A fresh random row of A sees 1/in of a gradient's square. Here the first batch of a booster chooses
it: with A = 0 and B = U the model computes what it did, and the pair's own gradient is

    ∂L/∂A = s·Uᵀ G,        G = ∂L/∂W (out, in),

so that, for random signs U, each row of A becomes a random combination of G's rows, found without
a gradient of full size. B steps from the second batch on.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_xgb.adapter import Adapter

__all__ = ["INITS", "aim", "turn"]

INITS = {"kaiming": 1, "gradient": 2}  # how A may begin, and the steps that a booster then needs
_ROW_NORM = 3**-0.5  # of a Kaiming-uniform row, U(±1/√in)


@torch.no_grad()
def aim(adapters: Iterable[Adapter], generator: torch.Generator) -> None:
    """Make every A zero and every B random signs, columns of unit norm.

    Args:
        adapters: Those of the drawn layers, just reset.
        generator: Of the signs.
    """
    for adapter in adapters:
        A, B, *_ = adapter.factors
        signs = torch.randint(0, 2, B.shape, generator=generator, device=generator.device)
        B.copy_((2 * signs - 1) / B.shape[0] ** 0.5)
        A.zero_()


@torch.no_grad()
def turn(adapters: Iterable[Adapter]) -> None:
    """Turn every A, freshly drawn again, into the direction of its gradient, and use up gradients.

    Rows keep the norm of drawn ones. A row without gradient stays as it was drawn.

    Args:
        adapters: Those of the drawn layers, with the gradients of a backward pass after ``aim``.
    """
    for adapter in adapters:
        assert adapter.bound is not None
        gradient = adapter.bound[0].grad
        if gradient is not None:
            A = adapter.factors[0]
            rows = adapter.form.narrow([gradient, *adapter.bound[1:]], adapter.r)[0].to(A)
            A.copy_(_directions(rows, A))
        for factor in adapter.bound:
            factor.grad = None


def _directions(gradient: Tensor, drawn: Tensor) -> Tensor:
    norms = gradient.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, gradient * (-_ROW_NORM / norms.clamp(min=1e-38)), drawn)
