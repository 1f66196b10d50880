"""Ways to merge updates into a quantised weight, and the grids it is quantised on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_xgb.weights.merge import Merger
from torch_xgb.weights.weight import Weight

# The quantiles of a normal distribution, QLoRA's appendix E.
NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    + [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
)
BLOCK, RANK = 64, 8
Update = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Grid:
    """A kind of quantised weight: groups of entries that share a scale, and the codes they take.

    Attributes:
        name: As in the table.
        codes: Increasing values in [-1, 1].
        group: Entries that share a scale; None for a row.
        bits: Of a code.
    """

    name: str
    codes: Tensor
    group: int | None
    bits: int

    def round(self, W: Tensor, chance: torch.Generator | None = None) -> Tensor:
        """Quantise and dequantise, to the nearest codes, or at random with the right mean."""
        groups = W.reshape(-1, self.group or W.shape[1])
        scale = groups.abs().amax(1, keepdim=True).clamp(min=1e-12)
        x = groups / scale
        above = torch.searchsorted(self.codes, x.contiguous()).clamp(1, len(self.codes) - 1)
        low, high = self.codes[above - 1], self.codes[above]
        share = (x - low) / (high - low)
        threshold = 0.5 if chance is None else torch.rand(x.shape, generator=chance)
        return (torch.where(share > threshold, high, low) * scale).view_as(W)

    def bits_per_weight(self, columns: int) -> float:
        """Return what a weight takes, its share of a float32 scale included."""
        return self.bits + 32 / (self.group or columns)


GRIDS = (Grid("NF4", NF4, BLOCK, 4), Grid("int8", torch.arange(-127, 128) / 127, None, 8))


def requantised(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Quantise anew at each merge."""
    W = grid.round(W)
    for _, (B, A) in updates:
        W = grid.round(W.addmm(B, A))
    return W


def at_random(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Quantise anew at each merge, up or down at random."""
    W, chance = grid.round(W), torch.Generator().manual_seed(0)
    for _, (B, A) in updates:
        W = grid.round(W.addmm(B, A), chance)
    return W


def with_residual(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Quantise anew at each merge, and keep in bfloat16 what did not fit."""
    W, residual = grid.round(W), torch.zeros_like(W, dtype=torch.bfloat16)
    for _, (B, A) in updates:
        exact = W.addmm(B, A) + residual
        W = grid.round(exact)
        residual = (exact - W).bfloat16()
    return W


def at_the_end(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Merge into bfloat16 as the library does, and quantise once."""
    linear = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=torch.bfloat16)
    linear.weight.data.copy_(W)
    weight, merger = Weight("weight", (linear,), "weight"), Merger("residual", 0)
    for t, (B, A) in updates:
        merger.merge(weight, B, A, 1.0, t)
    return grid.round(linear.weight.detach().float())


def beside(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Leave the base as it is; the sum of the updates stands beside it, at a low rank."""
    if not updates:
        return grid.round(W)
    U, S, V = torch.linalg.svd(sum((B @ A for _, (B, A) in updates), torch.zeros_like(W)))
    return grid.round(W) + (U[:, :RANK] * S[:RANK]) @ V[:RANK]


# Each way, with the bits that a weight (out, in) takes in training beside its codes and scales; the
# last but one has bfloat16 and a residual in their place.
WAYS: dict[str, tuple[Callable[..., Tensor], Callable[[int, int], float]]] = {
    "requantised": (requantised, lambda rows, columns: 0),
    "requantised at random": (at_random, lambda rows, columns: 0),
    "with a residual": (with_residual, lambda rows, columns: 16),
    "quantised at the end": (at_the_end, lambda rows, columns: 32),
    f"beside, rank {RANK}": (beside, lambda rows, columns: 32 * RANK * (1 / rows + 1 / columns)),
}
