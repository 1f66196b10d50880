"""The two forms of a low-rank pair: LoRA, which edits a weight, and DiReFT, which edits an output.

One algorithm trains both (MeFT). They differ in where the pair stands in the forward pass and in
the update it makes of a weight, always a product ``scale·left·right`` of rank ≤ r.

Factors of a target, always A, B and perhaps b; B and b begin at zero, so a fresh pair changes
nothing:
    LoRA     A (r, in)   B (out, r)   b (out,)    y = W x + c  →  y + s·B A x + b
    DiReFT   A (r, out)  B (out, r)   b (r,)      y = W x + c  →  y + s·B (A y + b)
Of a bare Parameter nobody sees x or y: its modules read W + s·B A instead of W. For a stack of E
matrices A is (E, r, in), B (E, out, r), and B A is E products.

References:
    LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021), Eq. 3.
    Chain of LoRA (Xia et al., 2024), section 4: a trainable bias beside the pair.
    MeFT: DiReFT h + U₂ᵀ(U₁ h + b) with A = U₁ and B = U₂ᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from torch_xgb.boosters.pair import Pair, Shapes
from torch_xgb.formulas.lowrank import add_low_rank, edit_low_rank
from torch_xgb.targets.layers import Target
from torch_xgb.weights.weight import Weight

__all__ = ["DiReFT", "Form", "LoRA", "Update", "form"]

Update = tuple[Tensor, Tensor, float]  # left (out, r), right (r, in), scale; of a stack, E of them


class Form(Protocol):
    """What a pair is, does and becomes."""

    def shapes(self, target: Target, r: int) -> Shapes:
        """Return the shapes of a target's pair."""

    def narrow(self, pair: Pair[Tensor], r: int) -> Pair[Tensor]:
        """Return the part of a pair that a rank below its own uses."""

    def scaled(self, pair: Pair[Tensor], share: float, ratio: float) -> Pair[Tensor]:
        """Return the pair that has a share of a pair's part in the output.

        Args:
            pair: A pair.
            share: Of its part.
            ratio: Of the scaling s it was trained with to that of the pair returned.
        """

    def forward(self, y: Tensor, x: Tensor, pair: Pair[Tensor], s: float, dropout: float) -> Tensor:
        """Return the output with the pair's share; may write into ``y``.

        Args:
            y: The module's output.
            x: Its input.
            pair: The pair.
            s: The scaling.
            dropout: Probability of dropping an input of A, here and now.
        """

    def weights(self, target: Target) -> tuple[Weight, ...]:
        """Return the weights a merge changes."""

    def update(self, weight: Weight, pair: Pair[Tensor], s: float) -> Update:
        """Return the product that turns the weight into the merged one."""

    def undo(self, weight: Weight, merged: Tensor, pair: Pair[Tensor], s: float) -> Update:
        """Return the product that turns the merged weight, as kept here, back."""


@dataclass(frozen=True)
class LoRA:
    """y + s·B A x, merged as W + s·B A.

    Attributes:
        bias: Whether a linear map with a bias gets a trainable b beside the pair, merged as c + b.
    """

    bias: bool = False

    def shapes(self, target: Target, r: int) -> Shapes:  # noqa: D102
        *stack, rows, columns = target.shape
        b = (rows,) if self.bias and target.biased else None
        return Shapes((*stack, r, columns), (*stack, rows, r), b)

    def narrow(self, pair: Pair[Tensor], r: int) -> Pair[Tensor]:  # noqa: D102
        if pair.A.shape[-2] == r:
            return pair
        return Pair(pair.A[..., :r, :], pair.B[..., :r], pair.b)

    def scaled(self, pair: Pair[Tensor], share: float, ratio: float) -> Pair[Tensor]:  # noqa: D102
        b = None if pair.b is None else share * pair.b  # which s does not scale
        return Pair(pair.A, share * ratio * pair.B, b)

    def forward(  # noqa: D102
        self, y: Tensor, x: Tensor, pair: Pair[Tensor], s: float, dropout: float
    ) -> Tensor:
        x = nn.functional.dropout(x, dropout) if dropout else x
        y = add_low_rank(y, x, pair.A, pair.B, s)
        return y if pair.b is None else y.add_(pair.b.to(y.device, y.dtype))

    def weights(self, target: Target) -> tuple[Weight, ...]:  # noqa: D102
        biased = self.bias and target.biased
        return (target.weight, *target.biases) if biased else (target.weight,)

    def update(self, weight: Weight, pair: Pair[Tensor], s: float) -> Update:  # noqa: D102
        if not weight.is_bias:
            return pair.B, pair.A, s
        assert pair.b is not None
        return pair.b.unsqueeze(1), torch.ones_like(pair.b[:1]).unsqueeze(1), 1.0

    def undo(  # noqa: D102
        self, weight: Weight, merged: Tensor, pair: Pair[Tensor], s: float
    ) -> Update:
        left, right, scale = self.update(weight, pair, s)
        return left, right, -scale


@dataclass(frozen=True)
class DiReFT:
    """y + s·B (A y + b), merged as W + s·B (A W) and c + s·B (A c + b).

    A linear map without bias gets no b: its bias would be a new key in every checkpoint.
    """

    def shapes(self, target: Target, r: int) -> Shapes:  # noqa: D102
        rows, _ = target.shape
        return Shapes((r, rows), (rows, r), (r,) if target.biased else None)

    def narrow(self, pair: Pair[Tensor], r: int) -> Pair[Tensor]:  # noqa: D102
        if len(pair.A) == r:
            return pair
        return Pair(pair.A[:r], pair.B[:, :r], None if pair.b is None else pair.b[:r])

    def scaled(self, pair: Pair[Tensor], share: float, ratio: float) -> Pair[Tensor]:  # noqa: D102
        return Pair(pair.A, share * ratio * pair.B, pair.b)  # b is inside: B (A y + b)

    def forward(  # noqa: D102
        self, y: Tensor, x: Tensor, pair: Pair[Tensor], s: float, dropout: float
    ) -> Tensor:
        read = nn.functional.dropout(y, dropout) if dropout else y
        return edit_low_rank(y, pair.A, pair.B, pair.b, s, read)

    def weights(self, target: Target) -> tuple[Weight, ...]:  # noqa: D102
        return (target.weight, *target.biases)

    def update(self, weight: Weight, pair: Pair[Tensor], s: float) -> Update:  # noqa: D102
        return pair.B, self._inner(weight, None, pair), s

    def undo(  # noqa: D102
        self, weight: Weight, merged: Tensor, pair: Pair[Tensor], s: float
    ) -> Update:
        # With u = A W (+ b) and W' = W + s·B u, A W' (+ b) = (I + s·A B) u.
        A, B = pair.A, pair.B
        inner = torch.eye(len(A), dtype=A.dtype, device=A.device) + s * (A @ B)
        return B, torch.linalg.solve(inner, self._inner(weight, merged, pair)), -s

    def _inner(self, weight: Weight, kept: Tensor | None, pair: Pair[Tensor]) -> Tensor:
        u = weight.project(pair.A, kept)
        return u + pair.b.unsqueeze(1) if pair.b is not None and weight.is_bias else u


def form(adapter: str, bias: str) -> Form:
    """Return the form of an adapter's name.

    Raises:
        ValueError: If the adapter or the bias is unknown, or does not go with the other.
    """
    if bias not in ("none", "targets"):
        raise ValueError(f"bias must be 'none' or 'targets', got {bias!r}")
    if adapter == "lora":
        return LoRA(bias == "targets")
    if adapter != "direft":
        raise ValueError(f"adapter must be 'lora' or 'direft', got {adapter!r}")
    if bias != "none":
        raise ValueError("bias='targets' goes with adapter='lora'; a DiReFT pair has its own bias")
    return DiReFT()
