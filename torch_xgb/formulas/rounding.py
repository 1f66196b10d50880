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
    exact: Tensor, dtype: torch.dtype, bits: Tensor, margin: float = 0.0
) -> Tensor:
    """Return one of the two neighbouring values of a dtype, so that the expectation is exact.

    The same bits given, a greater value never becomes a smaller one.

    Args:
        exact: Values of a wider dtype.
        dtype: What to round to.
        bits: Of each a random int32, of which the upper bits are used; overwritten.
        margin: Of the distance between neighbours; nearer than that to one, a value becomes it.
    """
    if (exact.dtype, dtype) == (torch.float32, torch.bfloat16):
        return _round_bits(exact, bits, margin)
    nearest = exact.to(dtype)
    below = torch.where(nearest.to(exact.dtype) > exact, _neighbour(nearest, up=False), nearest)
    above = _neighbour(below, up=True)
    gap = above.to(exact.dtype) - below.to(exact.dtype)
    share = (exact - below.to(exact.dtype)) / gap
    # The middles of 2²⁴ intervals of [0, 1), so that neither end is met.
    chance = bits.bitwise_right_shift_(8).to(torch.float32).add_((1 << 23) + 0.5).mul_(2.0**-24)
    if margin:
        chance.mul_(1 - 2 * margin).add_(margin)
    return torch.where(chance < share, above, below)


def _round_bits(exact: Tensor, bits: Tensor, margin: float) -> Tensor:
    """Round to bfloat16, the upper half of a float32: what is added to the lower half may carry."""
    bits.bitwise_right_shift_(16)
    if margin:
        bits.mul_((1 << 16) - 2 * int(margin * (1 << 16))).bitwise_right_shift_(16)
    bits.add_(1 << 15).add_(exact.view(torch.int32)).bitwise_and_(-(1 << 16))
    return torch.where(exact.isnan(), exact, bits.view(torch.float32)).to(torch.bfloat16)


def _neighbour(values: Tensor, up: bool) -> Tensor:
    """Return the adjacent values: a float's bits, read as an integer, count its magnitude."""
    bits = as_bits(values)
    step = torch.where((values > 0) == up, 1, -1).to(bits.dtype)
    smallest = 1 if up else torch.iinfo(bits.dtype).min + 1
    return torch.where(values == 0, smallest, bits + step).view(values.dtype)
