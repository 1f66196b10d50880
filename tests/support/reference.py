"""The whole algorithm in explicit loops, without hooks, slots or state that is reset in place.

Letters as in the papers: W (out, in) a frozen weight, A (r, in) and B (out, r) a booster's pair,
s its scaling, t the booster's index, kappa its steps.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

Weights = dict[str, Tensor]
Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Trace:
    """The loss of every step, the weights after every merge, the last booster's state."""

    losses: list[float] = field(default_factory=list)
    merged: list[Weights] = field(default_factory=list)
    pairs: Pairs = field(default_factory=dict)
    optimizer: Optimizer | None = None


def forward(W: Weights, pairs: Pairs, s: float, x: Tensor) -> Tensor:
    """The forward pass of ``tiny.Stack``, every linear map as W x + bias + s·B A x."""

    def linear(name: str, x: Tensor) -> Tensor:
        y = x @ W[f"{name}.weight"].T + W[f"{name}.bias"]
        if name in pairs:
            A, B = pairs[name]
            y = y + s * ((x @ A.T) @ B.T).to(y.dtype)
        return y

    x = linear("embed", x)
    for block in sorted({name.split(".")[1] for name in W if name.startswith("blocks.")}, key=int):
        q, k, v = (linear(f"blocks.{block}.{name}", x) for name in ("query", "key", "value"))
        x = x + linear(f"blocks.{block}.out", (q @ k.mT / x.shape[-1] ** 0.5).softmax(-1) @ v)
        x = x + linear(f"blocks.{block}.down", linear(f"blocks.{block}.up", x).tanh())
    return linear("head", x.mean(-2))


def boost(
    W: Weights,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    init: Callable[[int], Weights],  # t -> the A of every drawn weight, by the name of its module
    optimizer: Callable[[Sequence[Tensor]], Optimizer],
    saved: Sequence[str] = (),  # parameters trained in full beside the boosters
    r: int = 1,
    kappa: int | None = 8,
    lora_alpha: float | None = None,
    shrinkage: Callable[[int], float] = lambda t: 1.0,
    factor_l2: float = 0.0,
    clip: float | None = None,
    lr: Callable[[int], float] | None = None,
) -> Trace:
    """Train W in place, to the merge of the last booster, finished or not."""
    trace, t, s = Trace(), -1, 1.0 if lora_alpha is None else lora_alpha / r
    full = [W[name].requires_grad_() for name in saved]
    # Biases do not decay.
    kinds = [p for p in full if p.ndim > 1], [p for p in full if p.ndim == 1]
    groups = [
        {"params": one, **no}
        for one, no in zip(kinds, ({}, {"weight_decay": 0.0}), strict=True)
        if one
    ]
    persistent = [optimizer(groups)] if groups else []

    def merge() -> None:
        for name, (A, B) in trace.pairs.items():
            W[f"{name}.weight"] += (shrinkage(t) * s * B @ A).detach().to(W[f"{name}.weight"].dtype)
        trace.merged.append({name: weight.detach().clone() for name, weight in W.items()})

    for step, (x, y) in enumerate(batches):
        if step == 0 or (kappa is not None and step % kappa == 0):  # a new booster
            t += 1
            As = {name: A.clone().requires_grad_() for name, A in init(t).items()}
            Bs = {
                n: A.new_zeros(len(W[f"{n}.weight"]), r, requires_grad=True) for n, A in As.items()
            }
            trace.pairs = {name: (As[name], Bs[name]) for name in As}
            trace.optimizer = optimizer([*As.values(), *Bs.values()])
        factors = [factor for pair in trace.pairs.values() for factor in pair]
        loss = cross_entropy(forward(W, trace.pairs, s, x), y)
        for parameter, gradient in zip(
            factors + full, torch.autograd.grad(loss, factors + full), strict=True
        ):
            parameter.grad = gradient
        if clip is not None:
            clip_grad_norm_(factors + full, clip)
        for factor in factors:
            factor.grad = factor.grad + 2 * factor_l2 * factor.detach()
        for base in (trace.optimizer, *persistent):
            for group in base.param_groups if lr is not None else ():
                group["lr"] = lr(step)
            base.step()
        trace.losses.append(loss.item())
        if kappa is not None and (step + 1) % kappa == 0:
            merge()
    if kappa is None or (step + 1) % kappa:
        merge()
    return trace
