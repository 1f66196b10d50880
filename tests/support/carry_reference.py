"""Carried pairs in explicit loops: a pair and an AdamW of its own for every target, for good.

Letters as in the papers: W (out, in), A (r, in), B (out, r), s the scaling, t the booster's index.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from family_reference import Weights, forward, merge
from tiny import Batch
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.formulas.streams import stream


@dataclass
class Link:
    """One booster: its steps, rank, scaling, α and ρ, and a fresh A of every drawn module."""

    steps: int
    r: int
    s: float
    alpha: float
    rho: float
    A: Weights


@dataclass
class Held:
    """A target's last pair as trained, its scaling, how much is to be taken up, AdamW's state."""

    factors: list[Tensor]
    s: float
    share: float
    state: list[dict[str, Tensor]]


def links(optimizer: BoostedLowRankOptimizer, count: int, kappa: int) -> list[Link]:
    """What an optimizer of these settings draws."""
    booster, draws = copy.deepcopy(optimizer.boosting.booster), optimizer.boosting.course._draws
    found = []
    for t in range(count):
        draw = draws.booster(t)
        booster.bind(draw.layers, draw.r, draw.s)
        booster.reset(stream(0, t, "factors"))
        A = {a.target.name: a.pair.A.detach().clone() for a in booster.active}
        found.append(Link(kappa, draw.r, draw.s, draw.alpha, draw.rho or 0.0, A))
    return found


def chain(
    W: Weights,
    batches: Sequence[Batch],
    links: Sequence[Link],
    *,
    lr: Callable[[int], float],
    direft: bool = False,
    bias: bool = False,
    decay: float | None = None,
) -> tuple[list[float], list[Weights]]:
    """Train W in place; return the loss of every step, and the weights after every booster."""
    held: dict[str, Held] = {}
    losses: list[float] = []
    after: list[Weights] = []
    for link in links:
        start = {name: tensor.clone() for name, tensor in W.items()}
        pairs, bases = {}, {}
        for name, A in link.A.items():
            zeros = {"direft": len(A), "bias": len(W[f"{name}.bias"])}
            b = [A.new_zeros(zeros["direft" if direft else "bias"])] if direft or bias else []
            factors = [A.clone(), A.new_zeros(len(W[f"{name}.weight"]), len(A)), *b]
            last = held.get(name)
            if last is not None:
                take_up(factors, last, link, direft)
                take_out(W, name, factors, direft, link.s)
            pairs[name] = [factor.requires_grad_() for factor in factors]
            bases[name] = AdamW(pairs[name], lr=1.0)
            if last is not None:
                for factor, state in zip(pairs[name], last.state, strict=True):
                    bases[name].state[factor] = {k: like(v, factor) for k, v in state.items()}
        left = 1.0
        for _ in range(link.steps):
            x, y = batches[len(losses)]
            loss = cross_entropy(forward(W, pairs, direft, link.s, x), y)
            flat = [factor for pair in pairs.values() for factor in pair]
            for factor, gradient in zip(flat, torch.autograd.grad(loss, flat), strict=True):
                factor.grad = gradient
            rate = lr(len(losses))
            for base in bases.values():
                base.param_groups[0]["lr"] = rate
                base.step()
            left *= 1.0 if decay is None else 1.0 - rate * decay
            losses.append(loss.item())
        merge(W, pairs, direft, link.s)
        for name in W:  # Eq. 8: α of what the booster has changed
            W[name].copy_(start[name] + link.alpha * (W[name] - start[name]))
        for name, pair in pairs.items():
            state = [dict(bases[name].state[factor]) for factor in pair]
            factors = [factor.detach() for factor in pair]
            held[name] = Held(factors, link.s, link.alpha * left, state)
        after.append({name: tensor.clone() for name, tensor in W.items()})
    return losses, after


def take_up(factors: list[Tensor], last: Held, link: Link, direft: bool) -> None:
    """Put ρ of a pair's share into a fresh one, as far as the rank goes."""
    k, share = min(len(last.factors[0]), link.r), link.rho * last.share
    factors[0][:k] = last.factors[0][:k]
    factors[1][:, :k] = share * last.s / link.s * last.factors[1][:, :k]
    for b, b_last in zip(factors[2:], last.factors[2:], strict=True):
        if direft:
            b[:k] = b_last[:k]
        else:
            b.copy_(share * b_last)


def take_out(W: Weights, name: str, factors: list[Tensor], direft: bool, s: float) -> None:
    """Find the weight that with the pair computes what the weight did."""
    A, B, *b = factors
    weight, bias = W[f"{name}.weight"], W[f"{name}.bias"]
    if not direft:
        weight -= s * B @ A
        bias -= b[0] if b else 0
        return
    edit = torch.eye(len(B), dtype=B.dtype) + s * B @ A
    weight.copy_(torch.linalg.solve(edit, weight))
    bias.copy_(torch.linalg.solve(edit, bias - s * B @ b[0]))


def like(value: Tensor, factor: Tensor) -> Tensor:
    """A state of a factor's shape: what it had of rows and columns before, else zeros."""
    if value.ndim == 0:
        return value.clone()
    found = torch.zeros_like(factor)
    part = tuple(slice(min(a, b)) for a, b in zip(value.shape, factor.shape, strict=True))
    found[part] = value[part]
    return found.detach()
