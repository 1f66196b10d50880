"""The whole family in explicit loops: LoRA with a bias, DiReFT, knots, and a rank per booster."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

Weights = dict[str, Tensor]


@dataclass
class Link:
    """One booster: its steps, its scaling, and the A of every drawn module."""

    steps: int
    s: float
    A: Weights


def linear(W: Weights, pairs: dict[str, list[Tensor]], direft: bool, s: float, name: str, x: Tensor) -> Tensor:  # fmt: skip  # noqa: E501
    """W x + c, with the pair's share."""
    y = x @ W[f"{name}.weight"].T + W[f"{name}.bias"]
    if name not in pairs:
        return y
    A, B, *b = pairs[name]
    if direft:
        return y + s * (y @ A.T + (b[0] if b else 0)) @ B.T
    return y + s * (x @ A.T) @ B.T + (b[0] if b else 0)


def forward(W: Weights, pairs: dict[str, list[Tensor]], direft: bool, s: float, x: Tensor) -> Tensor:  # fmt: skip  # noqa: E501
    """``tiny.Stack``'s forward pass."""

    def lin(name: str, x: Tensor) -> Tensor:
        return linear(W, pairs, direft, s, name, x)

    x = lin("embed", x)
    for i in sorted({int(name.split(".")[1]) for name in W if name.startswith("blocks.")}):
        q, k, v = (lin(f"blocks.{i}.{part}", x) for part in ("query", "key", "value"))
        x = x + lin(f"blocks.{i}.out", (q @ k.mT / x.shape[-1] ** 0.5).softmax(-1) @ v)
        x = x + lin(f"blocks.{i}.down", lin(f"blocks.{i}.up", x).tanh())
    return lin("head", x.mean(-2))


def merge(W: Weights, pairs: dict[str, list[Tensor]], direft: bool, s: float) -> None:
    """Merge every pair exactly."""
    for name, factors in pairs.items():
        A, B, *b = (factor.detach() for factor in factors)
        weight, bias = W[f"{name}.weight"], W[f"{name}.bias"]
        if direft:
            bias += s * B @ (A @ bias + (b[0] if b else 0))
            weight += s * B @ (A @ weight)
        else:
            weight += s * B @ A
            bias += b[0] if b else 0


def chain(
    W: Weights,
    batches: Iterable[tuple[Tensor, Tensor]],
    links: Sequence[Link],
    *,
    optimizer: Callable[[Sequence[Tensor]], Optimizer],
    lr: Callable[[int], float],
    direft: bool = False,
    bias: bool = False,
) -> list[float]:
    """Train W in place through every link; return the loss of every step."""
    losses, data = [], iter(batches)
    for link in links:
        pairs: dict[str, list[Tensor]] = {}
        for name, A in link.A.items():
            out = len(W[f"{name}.weight"])
            parts = [A.clone(), A.new_zeros(out, len(A))]
            if direft:
                parts.append(A.new_zeros(len(A)))
            elif bias:
                parts.append(A.new_zeros(out))
            pairs[name] = [part.requires_grad_() for part in parts]
        factors = [factor for parts in pairs.values() for factor in parts]
        base = optimizer(factors)
        for _ in range(link.steps):
            x, y = next(data)
            loss = cross_entropy(forward(W, pairs, direft, link.s, x), y)
            for factor, gradient in zip(factors, torch.autograd.grad(loss, factors), strict=True):
                factor.grad = gradient
            base.param_groups[0]["lr"] = lr(len(losses))
            base.step()
            losses.append(loss.item())
        merge(W, pairs, direft, link.s)
    return losses
