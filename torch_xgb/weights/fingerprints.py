"""Numbers that tell whether two weights, or other tensors, are the same, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_xgb.formulas.entries import as_bits, row_chunks
from torch_xgb.processes import total
from torch_xgb.weights.places import Piece, Whole, place_of, whole_piece
from torch_xgb.weights.weight import Weight

__all__ = ["EARLIER", "NUMBERING", "Numbering", "of_rows", "quick_sum", "row_sums"]

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Numbering:
    """Gives tensors numbers of 64 bits, which any bit of one and any exchange of entries changes.

    A sum over entries of their mixed bits, weighted by row and by column, modulo 2⁶⁴: in integers,
    so that neither the order of summation, nor the device, nor how a matrix is shared out over
    processes matters.

    Attributes:
        mixes_halves: Whether the upper half of an entry of 64 bits is mixed into the lower first:
            its sign would else be multiplied out by an even number of a row or column.
    """

    mixes_halves: bool = True

    def of(self, tensor: Tensor) -> int:
        """Return a tensor's number; of a matrix of shape (out, in) its fingerprint as a weight."""
        return int(self._of(tensor)) & _MASK

    def of_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, int]:
        """Return a number of each tensor by its name, waiting for each device once."""
        each = {name: self._of(tensor) for name, tensor in tensors.items()}
        found: dict[str, int] = {}
        for device in dict.fromkeys(number.device for number in each.values()):
            here = {name: number for name, number in each.items() if number.device == device}
            values = torch.stack(list(here.values())).tolist()
            found |= {name: value & _MASK for name, value in zip(here, values, strict=True)}
        return found

    def of_parameters(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
        """Return a number of each Parameter that this process keeps whole."""
        kept = {name: p.detach() for name, p in parameters.items() if type(place_of(p)) is Whole}
        return self.of_tensors({name: tensor for name, tensor in kept.items() if tensor.numel()})

    def of_weights(self, kept: Iterable[tuple[Weight, Tensor]]) -> dict[str, int]:
        """Return each weight's number by its name; of all sharded ones by one all-reduce.

        Args:
            kept: Each weight with what this process keeps of it, or another tensor laid out alike.
        """
        own = {w.name: (self._of_pieces(w, tensor), w.place.group) for w, tensor in kept}
        totals = zip(own, total(list(own.values())), strict=True)
        return {name: int(value) & _MASK for name, value in totals}

    def _of(self, tensor: Tensor) -> Tensor:
        values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        if not values.numel():
            return torch.zeros((), dtype=torch.int64, device=values.device)
        if values.element_size() == 1:
            values = values.view(torch.uint8).to(torch.int16)
        rows = values.detach().reshape(len(values) if values.ndim else 1, -1)
        return self._of_piece(whole_piece(rows))

    def _of_pieces(self, weight: Weight, kept: Tensor) -> Tensor:
        start = torch.zeros((), dtype=torch.int64, device=kept.device)
        return sum((self._of_piece(piece) for piece in weight.pieces(kept)), start)

    def _of_piece(self, piece: Piece) -> Tensor:
        """Return a piece's share of its matrix's number, a 64-bit integer that wraps around."""
        W = piece.values
        bits, device = as_bits(W), W.device
        rows = torch.arange(piece.rows.start, piece.rows.stop, device=device)
        columns = torch.arange(piece.columns.start, piece.columns.stop, device=device)
        of_rows = (rows + 1) * 0x9E3779B1 + 0x85EBCA77
        of_columns = (columns + 1) * 0xC2B2AE3D + 0x27D4EB2F
        summed = torch.zeros((), dtype=torch.int64, device=device)
        for chunk in row_chunks(W):
            wide = bits[chunk].to(torch.int64)
            wide = _folded(wide, bits) if self.mixes_halves else wide
            wide = (wide ^ (wide << 21)) * of_columns
            summed += (wide.sum(1) * of_rows[chunk]).sum()
        return summed


NUMBERING = Numbering()
EARLIER = Numbering(mixes_halves=False)  # of checkpoints before version 3, of ledgers before 5


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
