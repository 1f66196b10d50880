"""What an adapter keeps of a weight's update: all of it, or its best part of a rank."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torch_xgb.formulas.lowrank import frobenius_norms
from torch_xgb.formulas.spectrum import compress, condensed

__all__ = ["Kept"]


@dataclass(frozen=True)
class Kept:
    """Two factors of ΔW, or of an approximation; of a stack of E matrices a pair for each.

    Attributes:
        B: Shape ``(out, r)`` or ``(E, out, r)``.
        A: Shape ``(r, in)`` or ``(E, r, in)``.
        lost: The Frobenius norm of what is missing.
        norm: That of ΔW.
    """

    B: Tensor
    A: Tensor
    lost: float
    norm: float

    @property
    def rank(self) -> int:
        """Of each matrix."""
        return self.A.shape[-2]

    @classmethod
    def of(cls, left: Tensor, right: Tensor, rank: int | None) -> Kept:
        """Return an update's factors, of less rank where that is asked for or loses nothing."""
        left, right = condensed(left, right)  # put in and taken out again, it is one direction
        most = min(left.shape[-2], right.shape[-1])
        wanted = most if rank is None else min(rank, most)
        norm = float(frobenius_norms([(left, right, 1.0)]))
        if right.shape[-2] <= wanted:
            return cls(left, right, 0.0, norm)
        left, right, sigma = compress(left, right, wanted)
        return cls(left, right, float(sigma[..., wanted:].norm()), norm)
