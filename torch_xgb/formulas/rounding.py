"""From a wide dtype to a narrow one, at random between neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_xgb.formulas.entries import as_bits

__all__ = ["round_in_place", "round_stochastically"]


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
        rounded = round_in_place(exact, bits, margin)
        return torch.where(exact.isnan(), exact, rounded).to(dtype)
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


def round_in_place(exact: Tensor, bits: Tensor, margin: float) -> Tensor:
    """Round float32 to bfloat16, its upper half: what is added to the lower half may carry.

    Args:
        exact: Sums of numbers of bfloat16 and finite ones.
        bits: As of ``round_stochastically``.
        margin: The same.

    Returns:
        The values as float32, in the memory of ``bits``.
    """
    bits.bitwise_right_shift_(16)
    if margin:
        bits.mul_((1 << 16) - 2 * int(margin * (1 << 16))).bitwise_right_shift_(16)
    bits.add_(1 << 15).add_(exact.view(torch.int32)).bitwise_and_(-(1 << 16))
    rounded = bits.view(torch.float32)
    if exact.device.type == "cpu":  # whose NaNs have zeros in the lower half, so that none carries
        return rounded
    return torch.where(exact.isnan(), exact, rounded, out=rounded)


def _neighbour(values: Tensor, up: bool) -> Tensor:
    """Return the adjacent values: a float's bits, read as an integer, count its magnitude."""
    bits = as_bits(values)
    away = bits.bitwise_right_shift(8 * bits.element_size() - 1).bitwise_or_(1)  # by sign, 1 or −1
    smallest = 1 if up else torch.iinfo(bits.dtype).min + 1
    adjacent = torch.add(bits, away, alpha=1 if up else -1)
    return adjacent.masked_fill_(bits.bitwise_left_shift(1) == 0, smallest).view(values.dtype)
