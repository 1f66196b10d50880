"""Numbers that tell whether two weights are the same, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_xgb.formulas.entries import as_bits, row_chunks
from torch_xgb.processes import total
from torch_xgb.weights.places import Piece, whole_piece
from torch_xgb.weights.weight import Weight

__all__ = ["fingerprint", "fingerprints", "mixed_sum", "of_rows", "quick_sum", "row_sums"]

_MASK = (1 << 64) - 1


def fingerprint(W: Tensor, earlier: bool = False) -> int:
    """Return a 64-bit number that changes with any bit of a matrix and any exchange of entries.

    A sum over entries of their mixed bits, weighted by row and by column, modulo 2⁶⁴: in integers,
    so that neither the order of summation, nor the device, nor how the matrix is shared out over
    processes matters.

    Args:
        W: Of shape (out, in).
        earlier: Whether as earlier versions did, of float64 in another way: see ``mixed_sum``.
    """
    return int(mixed_sum(whole_piece(W), earlier)) & _MASK


def fingerprints(kept: Iterable[tuple[Weight, Tensor]], earlier: bool = False) -> list[int]:
    """Return fingerprints of weights; of all sharded ones together by one all-reduce.

    Args:
        kept: Each weight with what this process keeps of it, or another tensor laid out alike.
        earlier: As of ``fingerprint``.
    """
    own = [(_local_sum(weight, tensor, earlier), weight.place.group) for weight, tensor in kept]
    return [int(value) & _MASK for value in total(own)]


def _local_sum(weight: Weight, kept: Tensor, earlier: bool) -> Tensor:
    start = torch.zeros((), dtype=torch.int64, device=kept.device)
    return sum((mixed_sum(piece, earlier) for piece in weight.pieces(kept)), start)


def mixed_sum(piece: Piece, earlier: bool = False) -> Tensor:
    """Return a piece's share of its matrix's fingerprint, a 64-bit integer that wraps around.

    Args:
        piece: Of numbers of at most 64 bits. The upper half of one is mixed into the lower first:
            its sign would else be multiplied out by an even number of a row or column.
        earlier: Whether to leave that out, as earlier versions did.
    """
    W = piece.values
    bits, device = as_bits(W), W.device
    rows = torch.arange(piece.rows.start, piece.rows.stop, device=device)
    columns = torch.arange(piece.columns.start, piece.columns.stop, device=device)
    of_rows = (rows + 1) * 0x9E3779B1 + 0x85EBCA77
    of_columns = (columns + 1) * 0xC2B2AE3D + 0x27D4EB2F
    summed = torch.zeros((), dtype=torch.int64, device=device)
    for chunk in row_chunks(W):
        wide = bits[chunk].to(torch.int64)
        wide = wide if earlier else _folded(wide, bits)
        wide = (wide ^ (wide << 21)) * of_columns
        summed += (wide.sum(1) * of_rows[chunk]).sum()
    return summed


def quick_sum(matrix: Tensor) -> Tensor:
    """Return a number that changes with any bit of a matrix, as fast as memory is read.

    Exchanges of entries within a row escape it.

    Args:
        matrix: With rows that are contiguous.
    """
    return of_rows(row_sums(matrix))


def row_sums(matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """Return what ``quick_sum`` is made of, a 64-bit integer for each row.

    Args:
        matrix: With rows that are contiguous.
        out: Where to, if it is known.
    """
    bits = as_bits(matrix)
    several = 8 // bits.element_size()
    strides = (bits.shape[1], bits.stride(0), bits.storage_offset())
    if several > 1 and bits.stride(1) == 1 and not any(size % several for size in strides):
        bits = bits.view(torch.int64)
    return torch.sum(_folded(bits, matrix), 1, dtype=torch.int64, out=out)


def of_rows(sums: Tensor) -> Tensor:
    """Return the ``quick_sum`` of a matrix whose ``row_sums`` are given."""
    return (sums * (2 * torch.arange(len(sums), device=sums.device) + 1)).sum()


def _folded(bits: Tensor, of: Tensor) -> Tensor:
    """Mix the upper half of the bits of numbers of 64 into the lower."""
    return bits ^ (bits >> 32 & 0xFFFFFFFF) if of.element_size() == 8 else bits
