"""From a wide dtype to a narrow one: to the nearest value, or at random between neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_xgb.formulas.entries import as_bits

__all__ = ["round_stochastically", "round_to_nearest"]


def round_to_nearest(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the nearest values of a dtype, ties to even."""
    return exact.to(dtype)


def round_stochastically(
    exact: Tensor, dtype: torch.dtype, generator: torch.Generator, margin: float = 0.0
) -> Tensor:
    """Return one of the two neighbouring values of a dtype, so that the expectation is exact.

    The same numbers drawn, a greater value never becomes a smaller one.

    Args:
        exact: Values of a wider dtype.
        dtype: What to round to.
        generator: On the device of ``exact``.
        margin: Of the distance between neighbours; nearer than that to one, a value becomes it.
    """
    if (exact.dtype, dtype) == (torch.float32, torch.bfloat16):
        return _round_bits(exact, generator, margin)
    nearest = exact.to(dtype)
    below = torch.where(nearest.to(exact.dtype) > exact, _neighbour(nearest, up=False), nearest)
    above = _neighbour(below, up=True)
    gap = above.to(exact.dtype) - below.to(exact.dtype)
    share = (exact - below.to(exact.dtype)) / gap
    chance = torch.rand(exact.shape, generator=generator, device=exact.device, dtype=torch.float32)
    if margin:
        chance.mul_(1 - 2 * margin).add_(margin)
    return torch.where(chance < share, above, below)


def _round_bits(exact: Tensor, generator: torch.Generator, margin: float) -> Tensor:
    """Round to bfloat16, the upper half of a float32: what is added to the lower half may carry."""
    least = int(margin * (1 << 16))
    bits = torch.empty(exact.shape, dtype=torch.int32, device=exact.device)
    bits.random_(least, (1 << 16) - least, generator=generator)
    bits.add_(exact.view(torch.int32)).bitwise_and_(-(1 << 16))
    return torch.where(exact.isnan(), exact, bits.view(torch.float32)).to(torch.bfloat16)


def _neighbour(values: Tensor, up: bool) -> Tensor:
    """Return the adjacent values: a float's bits, read as an integer, count its magnitude."""
    bits = as_bits(values)
    step = torch.where((values > 0) == up, 1, -1).to(bits.dtype)
    smallest = 1 if up else torch.iinfo(bits.dtype).min + 1
    return torch.where(values == 0, smallest, bits + step).view(values.dtype)
