"""scale·left·right, the low-rank product that a merge adds, a part at a time.

No setting that lets matrix products be rounded (TF32, bfloat16 in oneDNN) reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torch_xgb.formulas.entries import widest
from torch_xgb.weights.places import Piece

__all__ = ["Product"]

_FEW = 8  # columns of left up to which outer products are summed, the same in every cut


@dataclass(frozen=True, eq=False)
class Product:
    """ΔW = scale·left·right of low rank, of a matrix or of each member of a stack of E.

    A stack counts as the matrix of its members below one another.

    Attributes:
        left: Shape ``(out, r)`` or ``(E, out, r)``.
        right: Shape ``(r, in)`` or ``(E, r, in)``.
        scale: A factor of the whole.
    """

    left: Tensor
    right: Tensor
    scale: float

    @property
    def T(self) -> Product:  # noqa: N802
        """Of the transposed matrix, or of a stack's members transposed."""
        return Product(self.right.mT, self.left.mT, self.scale)

    def to(self, device: torch.device, dtype: torch.dtype) -> Product:
        """Return it on a device, in a dtype."""
        return Product(self.left.to(device, dtype), self.right.to(device, dtype), self.scale)

    def part(self, piece: Piece, out: Tensor | None = None) -> Tensor:
        """Return what it has where a piece of the matrix is.

        Args:
            piece: The piece.
            out: Of its shape; written to where outer products are summed, and returned then.
        """
        if self.left.ndim == 2:
            return _part(self._scaled, self.right, piece.rows, piece.columns, out)
        rows = self.left.shape[1]
        found = []
        for member in range(piece.rows.start // rows, -(-piece.rows.stop // rows)):
            first = member * rows
            own = slice(max(piece.rows.start - first, 0), min(piece.rows.stop - first, rows))
            found.append(_part(self._scaled[member], self.right[member], own, piece.columns))
        return found[0] if len(found) == 1 else torch.cat(found)

    def add_to(self, values: Tensor, piece: Piece, spare: Callable[[], Tensor]) -> None:
        """Add what it has where a piece of the matrix is, in one write.

        Args:
            values: Of the piece's shape and the product's dtype.
            piece: The piece.
            spare: Returns a tensor of that shape to compute in, where one is needed.
        """
        if self.left.ndim == 2 and self.right.shape[0] == 1:
            values.addcmul_(self._scaled[piece.rows], self.right[:, piece.columns])
        else:
            values.add_(self.part(piece, spare()))

    @cached_property
    def _scaled(self) -> Tensor:
        return self.left * self.scale


def _part(
    left: Tensor, right: Tensor, rows: slice, columns: slice, out: Tensor | None = None
) -> Tensor:
    L, R = left[rows], right[:, columns]
    if R.shape[0] > _FEW:
        wide = widest(L.device)  # a dtype whose products nothing rounds
        return (L.to(wide) @ R.to(wide)).to(L.dtype)
    found = torch.mul(L[:, :1], R[:1], out=out)
    for k in range(1, R.shape[0]):
        found.addcmul_(L[:, k : k + 1], R[k : k + 1])
    return found
