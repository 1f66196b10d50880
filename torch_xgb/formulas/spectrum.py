"""Singular values of a product of two thin matrices, L (out, R) and Rᵀ (R, in), as formulas.

With L = Q₁T₁ and Rᵀ = Q₂T₂ by QR, L R = Q₁ (T₁T₂ᵀ) Q₂ᵀ: the singular values are those of the core
T₁T₂ᵀ, which has no more rows and columns than there are terms. A matrix of shape (out, in) is never
formed, unless R is larger than out and in.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["compress", "condensed", "effective_rank", "spectra"]


def compress(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best product of a rank in the Frobenius norm, with all singular values.

    Args:
        left: Shape ``(out, R)``, or ``(E, out, R)`` for a product each of a stack.
        right: Shape ``(R, in)``, or ``(E, R, in)``.
        rank: k; more than the product can have means all of it.

    Returns:
        Factors ``(out, k)`` and ``(k, in)`` that share the singular values evenly, and the singular
        values of the whole product, largest first.

    References:
        Eckart and Young (1936): the truncated SVD is optimal; its error is the norm of the rest.
    """
    Q1, T1 = torch.linalg.qr(left)
    Q2, T2 = torch.linalg.qr(right.mT)
    U, sigma, Vh = torch.linalg.svd(T1 @ T2.mT, full_matrices=False)
    root = sigma[..., :rank].sqrt()
    L = Q1 @ (U[..., :rank] * root.unsqueeze(-2))
    return L, (root.unsqueeze(-1) * Vh[..., :rank, :]) @ Q2.mT, sigma


def condensed(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same product with one term for each direction: those that cancel are left out.

    Args:
        left: Shape ``(out, R)``, or ``(E, out, R)`` for a product each of a stack.
        right: Shape ``(R, in)``, or ``(E, R, in)``, on the CPU; terms whose rows are bitwise the
            same are added up.
    """
    keys = [row.numpy().tobytes() for row in right.movedim(-2, 0).contiguous()]
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    if len(number) == len(keys):
        return left, right
    index = torch.tensor([number[key] for key in keys], device="cpu")
    first = torch.tensor([keys.index(key) for key in number], device="cpu")
    several = torch.bincount(index) > 1
    sums = left.new_zeros(*left.shape[:-1], len(number)).index_add_(-1, index, left)
    kept = sums.flatten(0, -2).any(0) | ~several
    return sums[..., kept], right[..., first[kept], :]


def spectra(left: Tensor, right: Tensor, widths: list[int]) -> list[Tensor]:
    """Return the singular values of left[:, :w] · right[:w] for each w, largest first.

    Of a stack those of all its members together, as one matrix of them along a diagonal has them.
    """
    _, T1 = torch.linalg.qr(left)
    _, T2 = torch.linalg.qr(right.mT)
    found = [torch.linalg.svdvals(T1[..., :w] @ T2[..., :w].mT) for w in widths]
    return [sigma.flatten().sort(descending=True).values for sigma in found]


def effective_rank(sigma: Tensor) -> float:
    """Return exp(H(p)), p the singular values' shares σ²/Σσ²: k if k of them are equal, 0 if none.

    References:
        Roy and Vetterli (2007), The effective rank, with squares (energies) for σ itself.
    """
    energy = sigma.square()
    total = energy.sum()
    if not total > 0:
        return 0.0
    p = energy / total
    return float(torch.special.entr(p).sum().exp())
