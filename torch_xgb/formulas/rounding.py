"""From a wide dtype to a narrow one, at random between neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_xgb.formulas.entries import as_bits

__all__ = ["round_stochastically", "round_to_upper_half"]

_EXPONENT = {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}


def round_stochastically(
    exact: Tensor,
    dtype: torch.dtype,
    bits: Tensor,
    margin: float = 0.0,
    spare: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return one of the two neighbouring values of a dtype, so that the expectation is exact.

    ⌊x/h + u⌋·h, with h the distance of x's neighbours and u uniform in [0, 1). The same bits given,
    a greater value never becomes a smaller one.

    Args:
        exact: Values x of a wider dtype, float32 or float64.
        dtype: What to round to.
        bits: Of each a random int16, of which the upper bits are used; overwritten.
        margin: Of the distance between neighbours; nearer than that to one, a value becomes it.
        spare: Two tensors like ``exact`` to compute in; the first is returned.

    Returns:
        The values, in the dtype of ``exact``.
    """
    h, u = spare or (torch.empty_like(exact), torch.empty_like(exact))
    narrow = torch.finfo(dtype)
    finer = round(math.log2(narrow.eps / torch.finfo(exact.dtype).eps))
    if finer < 16:  # what x/h has no place for would be rounded, perhaps up
        bits.bitwise_and_(-1 << (16 - finer))
    u.copy_(bits.view(torch.uint16)).mul_((1 - 2 * margin) * 2.0**-16)
    if margin:
        u.add_(margin)
    torch.bitwise_and(as_bits(exact), _EXPONENT[exact.dtype], out=as_bits(h))
    greatest = narrow.max / (2 - narrow.eps)  # power of two
    h.clamp_(narrow.smallest_normal, greatest).mul_(narrow.eps)
    return h.mul_(u.addcdiv_(exact, h).floor_())


def round_to_upper_half(exact: Tensor, bits: Tensor, out: Tensor) -> Tensor:
    """Round float32 to bfloat16, its upper half: what is added to the lower half may carry.

    Args:
        exact: Sums of numbers of bfloat16 and finite ones.
        bits: Of each a random int16.
        out: Laid out like ``exact``; written to.

    Returns:
        ``out``: one of the two neighbouring values, as of ``round_stochastically``.
    """
    as_bits(out).copy_(bits.view(torch.uint16)).add_(as_bits(exact)).bitwise_and_(-(1 << 16))
    if exact.device.type == "cpu":  # whose NaNs have zeros in the lower half, so that none carries
        return out
    return torch.where(exact.isnan(), exact, out, out=out)
