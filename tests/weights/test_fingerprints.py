"""Numbers that weights are known by again: any bit of any entry changes them."""

import pytest
import torch
from torch import Tensor

from torch_xgb.weights.fingerprints import EARLIER, NUMBERING, quick_sum

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def flipped(W: Tensor, row: int, column: int, bit: int) -> Tensor:
    W, size = W.clone(), W.element_size()
    bits = W.view(INTEGERS[size])
    bits[row, column] ^= -(1 << bit) if bit == 8 * size - 1 else 1 << bit
    return W


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_counts(dtype: torch.dtype) -> None:
    """Signs too, of even rows and columns: their numbers are no even multipliers."""
    W = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    known, quick = NUMBERING.of(W), int(quick_sum(W))
    for row, column in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        for bit in range(8 * W.element_size()):
            other = flipped(W, row, column, bit)
            assert NUMBERING.of(other) != known, (row, column, bit)
            assert int(quick_sum(other)) != quick, (row, column, bit)


def test_what_earlier_versions_took_is_taken_again() -> None:
    """Of float64 alone in another way; numbers of version 2."""
    W = torch.arange(6.0).view(2, 3) - 2
    assert NUMBERING.of(W) == EARLIER.of(W)
    assert NUMBERING.of(W.double()) != EARLIER.of(W.double()) == 13866583252673757184
