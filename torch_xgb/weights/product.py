"""scale·left·right, the low-rank product that a merge adds, a part at a time.

No setting that lets matrix products be rounded (TF32, bfloat16 in oneDNN) reaches it.
"""

from __future__ import annotations

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
    """ΔW = scale·left·right of low rank.

    Attributes:
        left: Shape ``(out, r)``.
        right: Shape ``(r, in)``.
        scale: A factor of the whole.
    """

    left: Tensor
    right: Tensor
    scale: float

    @property
    def T(self) -> Product:  # noqa: N802
        """Of the transposed matrix."""
        return Product(self.right.T, self.left.T, self.scale)

    def to(self, device: torch.device, dtype: torch.dtype) -> Product:
        """Return it on a device, in a dtype."""
        return Product(self.left.to(device, dtype), self.right.to(device, dtype), self.scale)

    def part(self, piece: Piece) -> Tensor:
        """Return what it has where a piece of the matrix is."""
        rows, columns = piece.rows, piece.columns
        L, R = self._scaled[rows], self.right[:, columns]
        if R.shape[0] > _FEW:
            wide = widest(L.device)  # a dtype whose products nothing rounds
            return (L.to(wide) @ R.to(wide)).to(L.dtype)
        found = L[:, :1] * R[:1]
        for k in range(1, R.shape[0]):
            found.addcmul_(L[:, k : k + 1], R[k : k + 1])
        return found

    @cached_property
    def _scaled(self) -> Tensor:
        return self.left * self.scale
