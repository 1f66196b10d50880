"""Numbers that tell whether two weights are the same, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_xgb.places import Piece, total
from torch_xgb.targets import Weight

__all__ = ["as_bits", "fingerprint", "fingerprints", "mixed_sum"]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASK = (1 << 64) - 1
_CHUNK = 1 << 22  # entries widened at a time


def fingerprint(W: Tensor) -> int:
    """Return a 64-bit number that changes with any bit of a matrix and any exchange of entries.

    A sum over entries of their mixed bits, weighted by row and by column, modulo 2⁶⁴: in integers,
    so that neither the order of summation, nor the device, nor how the matrix is shared out over
    processes matters.

    Args:
        W: Of shape (out, in).
    """
    rows, columns = W.shape
    return int(mixed_sum(Piece(slice(0, rows), slice(0, columns), W))) & _MASK


def fingerprints(kept: Iterable[tuple[Weight, Tensor]]) -> list[int]:
    """Return fingerprints of weights; of all sharded ones together by one all-reduce.

    Args:
        kept: Each weight with what this process keeps of it, or another tensor laid out alike.
    """
    own = [(_local_sum(weight, tensor), weight.place.group) for weight, tensor in kept]
    return [int(value) & _MASK for value in total(own)]


def _local_sum(weight: Weight, kept: Tensor) -> Tensor:
    start = torch.zeros((), dtype=torch.int64, device=kept.device)
    return sum((mixed_sum(piece) for piece in weight.pieces(kept)), start)


def mixed_sum(piece: Piece) -> Tensor:
    """Return a piece's share of its matrix's fingerprint, a 64-bit integer that wraps around."""
    W = piece.values
    bits, device = as_bits(W), W.device
    rows = torch.arange(piece.rows.start, piece.rows.stop, device=device)
    columns = torch.arange(piece.columns.start, piece.columns.stop, device=device)
    of_rows = (rows + 1) * 0x9E3779B1 + 0x85EBCA77
    of_columns = (columns + 1) * 0xC2B2AE3D + 0x27D4EB2F
    summed = torch.zeros((), dtype=torch.int64, device=device)
    step = max(1, _CHUNK // max(1, W.shape[1]))
    for start in range(0, W.shape[0], step):
        chunk = slice(start, start + step)
        wide = bits[chunk].to(torch.int64)
        wide = (wide ^ (wide << 21)) * of_columns
        summed += (wide.sum(1) * of_rows[chunk]).sum()
    return summed


def as_bits(values: Tensor) -> Tensor:
    """Return floating values as the integers their bits spell."""
    return values.view(_BITS[values.element_size()])
