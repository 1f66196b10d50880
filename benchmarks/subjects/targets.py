"""Problems whose optimum is known: a linear map, or a product of them, to be turned into another.

The target is W* = W + Δ with Δ of rank R and singular values 1/i, i = 1 … R, so that the best
approximation of rank k leaves Σ_{i>k} 1/i² of Σ 1/i²: about 1/k, the shape of the papers' bounds.
Inputs are white and known in distribution, so the loss is ½‖M − W*‖²_F itself; noise is added to
gradients where a bound is about noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Target:
    """A problem: a product of ``depth`` square maps that should become I + Δ."""

    size: int = 64
    rank: int = 48
    depth: int = 1
    seed: int = 0

    @property
    def singular_values(self) -> Tensor:
        """Those of Δ, shape ``(rank,)``."""
        return 1 / torch.arange(1, self.rank + 1, dtype=torch.float64)

    def delta(self) -> Tensor:
        """Draw Δ, shape ``(size, size)``."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (2, self.size, self.size)
        U, V = torch.linalg.qr(
            torch.randn(shape, generator=generator, dtype=torch.float64)
        ).Q  # fmt: skip
        return U[:, : self.rank] * self.singular_values @ V[:, : self.rank].T

    def model(self) -> nn.Sequential:
        """Build the maps, each the identity."""
        maps = [nn.Linear(self.size, self.size, bias=False) for _ in range(self.depth)]
        for linear in maps:
            linear.weight.data = torch.eye(self.size, dtype=torch.float64)
        return nn.Sequential(*maps)

    def floor(self, r: int) -> float:
        """Return the least excess error, as a share of the first, at rank r in every map."""
        squares = self.singular_values.square()
        return float(squares[r * self.depth :].sum() / squares.sum())

    def loss(self, model: nn.Module, delta: Tensor) -> Tensor:
        """Return ½‖M − (I + Δ)‖²_F, M the product of the maps."""
        eye = torch.eye(self.size, dtype=torch.float64)
        return (model(eye) - (eye + delta).T).square().sum() / 2


def slope(x: list[float], y: list[float]) -> float:
    """Fit the exponent p of y ∝ x^p by least squares in logarithms."""
    u, v = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    u = u - u.mean()
    return float(u @ (v - v.mean()) / (u @ u))


def trace_norm_gap(gradient: Tensor, W: Tensor, radius: float) -> float:
    """Return the Frank–Wolfe gap max ⟨∇L, W − V⟩ over V of trace norm ≤ radius.

    References:
        Chain of LoRA (Xia et al., 2024), section 4.
    """
    return float((gradient * W).sum() + radius * torch.linalg.matrix_norm(gradient, 2))
