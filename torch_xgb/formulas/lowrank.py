"""The low-rank pair as formulas on tensors.

Letters and shapes, here and in every other module:
    x (..., in)     input of a linear map        W (out, in)   its weight, frozen
    y (..., out)    its output                   A (r, in)     down-projection
    s               scaling, lora_alpha / r      B (out, r)    up-projection
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from torch_xgb.formulas.entries import widest
from torch_xgb.formulas.joint_gradient import Joint, add_product, joint_of
from torch_xgb.formulas.unrounded import unrounded

__all__ = [
    "add_low_rank",
    "edit_low_rank",
    "frobenius_norms",
    "is_followed",
    "joined",
    "kaiming_bound",
    "scaling",
    "with_low_rank",
]


def scaling(lora_alpha: float | None, r: int) -> float:
    """Return s = lora_alpha / r, or 1 with None (W + B A, as XGBLoRA writes it).

    References:
        LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021), section 4.1.
        Less is More: Extreme Gradient Boost Rank-1 Adaption (Zhang et al., 2024), Eq. 8.
    """
    return 1.0 if lora_alpha is None else lora_alpha / r


def kaiming_bound(in_features: int) -> float:
    """Return b of U(-b, b), which LoRA draws A from: Kaiming's with a = sqrt(5)."""
    return math.sqrt(6 / ((1 + 5) * in_features))


def joined(
    one: tuple[Tensor, Tensor, float], other: tuple[Tensor, Tensor, float], factor: float
) -> tuple[Tensor, Tensor, float]:
    """Return one product plus a factor times another, as one product of both ranks together.

    Args:
        one: left ``(out, r)``, right ``(r, in)`` and a scale, or a stack's.
        other: The same, of any rank, moved to where the first is.
        factor: Of the other.
    """
    (left, right, scale), (L, R, of_other) = one, other
    lefts = torch.cat([left * scale, L.to(left) * (factor * of_other)], -1)
    return lefts, torch.cat([right, R.to(right)], -2), 1.0


def frobenius_norms(products: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Return ‖scale·left·right‖_F of every product, without forming one of shape (out, in).

    ‖L R‖²_F = tr((LᵀL)(R Rᵀ)), two (r, r) matrices; of rank 1 it is ‖L‖‖R‖.

    Args:
        products: Triples of left ``(out, r)``, right ``(r, in)`` and a scale; of a stack of E,
            ``(E, out, r)`` and ``(E, r, in)``.
    """
    if products and all(R.ndim == 2 and R.shape[0] == 1 for _, R, _ in products):
        lefts, rights, scales = zip(*products, strict=True)
        wide = widest(lefts[0].device)
        a, b = (torch._foreach_norm(side, 2, dtype=wide) for side in (lefts, rights))
        sizes = torch._foreach_mul(a, b)
        torch._foreach_mul_(sizes, [abs(scale) for scale in scales])
        return torch.stack(sizes)
    norms = []
    for left, right, scale in products:
        L, R = left.to(widest(left.device)), right.to(widest(right.device))
        norms.append(((L.mT @ L) * (R @ R.mT)).sum().clamp(min=0).sqrt() * abs(scale))
    return torch.stack(norms)


def add_low_rank(y: Tensor, x: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """Return y + s·(x Aᵀ)Bᵀ, written into y's own memory; backward keeps x and x Aᵀ alone.

    Of a pair that requires no gradient it keeps neither.

    Args:
        y: The linear map's fresh output ``(..., out_features)``. Nothing else may hold on to its
            values: they are overwritten.
        x: The map's input ``(..., in_features)``.
        A: Shape ``(r, in_features)``, of any floating dtype; computed with in x's.
        B: Shape ``(out_features, r)``, of any floating dtype; computed with in y's.
        s: The scaling.

    Returns:
        The sum, of y's shape and dtype, sharing y's memory unless y is not contiguous, x or y is of
        no width, or somebody follows the computation who needs the plain expression: a compiler
        (which fuses it by itself), ``torch.jit.trace``, ``torch.func``, or selective checkpointing.
    """
    x = x.to(y.device)  # of a module whose own forward moves it, as accelerate's
    plain = y.is_nested or not y.is_contiguous() or not (x.shape[-1] and y.shape[-1])
    if torch.compiler.is_compiling() or plain or is_followed():
        h = torch.nn.functional.linear(x, A.to(x.device, x.dtype))
        return y + (s * torch.nn.functional.linear(h, B.to(h.device, h.dtype))).to(y.dtype)
    out: Tensor = _AddLowRank.apply(y, x, A, B, s, joint_of(y, x))  # type: ignore[no-untyped-call]
    return out


def is_followed() -> bool:
    """Tell whether operations are traced, transformed, or kept one by one."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    transformed = transformed or forward_ad._current_level >= 0
    if transformed or torch._C._get_tracing_state() is not None:
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    modes = _get_current_dispatch_mode_stack()
    return any(type(mode).__module__ == "torch.utils.checkpoint" for mode in modes)


def with_low_rank(W: Tensor, left: Tensor, right: Tensor, s: float) -> Tensor:
    """Return W + s·left·right, for whoever reads a weight; backward keeps left and right alone.

    Args:
        W: Shape ``(n, m)``, or ``(E, n, m)`` for a stack of matrices.
        left: Shape ``(n, r)``, or ``(E, n, r)``; computed with in W's dtype, as all of it.
        right: Shape ``(r, m)``, or ``(E, r, m)``.
        s: The scaling.
    """
    with unrounded(W):
        L, R = left.to(W.device, W.dtype), right.to(W.device, W.dtype)
        return torch.addmm(W, L, R, alpha=s) if W.ndim == 2 else torch.baddbmm(W, L, R, alpha=s)


def edit_low_rank(
    y: Tensor, A: Tensor, B: Tensor, b: Tensor | None, s: float, read: Tensor | None = None
) -> Tensor:
    """Return y + s·B(A y + b), an edit of a representation; backward keeps y and A y + b.

    Args:
        y: The representation ``(..., features)``.
        A: U₁ of shape ``(r, features)``.
        B: U₂ᵀ of shape ``(features, r)``.
        b: Shape ``(r,)``, or None.
        s: The scaling.
        read: What A reads instead of y, laid out alike: y after dropout.

    References:
        MeFT: h + U₂ᵀ(U₁ h + b), DiReFT's intervention.
    """
    with unrounded(y):
        A, B, b = (None if one is None else one.to(y.device, y.dtype) for one in (A, B, b))  # type: ignore[assignment]
        h = torch.nn.functional.linear(y if read is None else read, A, b)
        if y.is_nested:  # no view of rows
            return y + s * torch.nn.functional.linear(h, B)
        return torch.addmm(_rows(y), _rows(h), B.T, alpha=s).view(y.shape)


class _AddLowRank(torch.autograd.Function):
    """y ← y + s·(x Aᵀ)Bᵀ in place."""

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,  # noqa: ANN401
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        s: float,
        joint: Joint | None,
    ) -> Tensor:
        with unrounded(y):
            h = _rows(x) @ A.to(x).T
            add_product(y.view(-1, y.shape[-1]), h.to(y.dtype), B.to(y).T, s)
        trained = any(ctx.needs_input_grad[2:4])  # else x has no part in any gradient
        ctx.save_for_backward(x if trained else None, h if trained else None, A, B)
        ctx.s, ctx.dtype, ctx.joint = s, x.dtype, joint
        # The output of a linear map with bias is a view; marked dirty, it would make autograd clone
        # the whole gradient (CopySlices). A detached alias is no view, and the map's own backward
        # never reads y.
        return y.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, h, A, B = ctx.saved_tensors
        # Where a gradient of the gradient is wanted, h must know x and A.
        if torch.is_grad_enabled() and x is not None:
            h = _rows(x) @ A.to(x).T
        needs_x, needs_A, needs_B = ctx.needs_input_grad[1:4]
        with unrounded(g):
            rows = _rows(g)
            gB = (rows @ B.to(g)).mul_(ctx.s).to(ctx.dtype)
            dx = _to_input(ctx.joint, gB, A.to(gB), g.shape[:-1]) if needs_x else None
            dA = (gB.T @ _rows(x)).to(A) if needs_A else None
            dB = (rows.T @ h.to(g.dtype)).to(B).mul_(ctx.s) if needs_B else None
        return (g if ctx.needs_input_grad[0] else None), dx, dA, dB, None, None


def _to_input(joint: Joint | None, gB: Tensor, A: Tensor, shape: torch.Size) -> Tensor | None:
    """Leave the pair's share of x's gradient to the map's own, or return it, of x's shape."""
    if joint is not None:
        alone = torch.is_grad_enabled() or torch.compiler.is_compiling()
        joint.share = None if alone else (gB, A)
        if not alone:
            return None
    # Without a view: autograd adds further gradients of x into it in place.
    return _outer(gB.view(*shape, gB.shape[-1]), A)


def _outer(h: Tensor, rows: Tensor) -> Tensor:
    """Return h·rows, of rank 1 entry by entry."""
    return h * rows[0] if len(rows) == 1 else torch.matmul(h, rows)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
