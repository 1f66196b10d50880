"""How a booster begins: with a random A, or with one that is a direction of the gradient.

A fresh random row of A sees 1/in of a gradient's square. With init="gradient" the first batch of a
booster chooses it: with A = 0 and B = U the model computes what it did, and the pair's own gradient
is

    ∂L/∂A = s·Uᵀ G,        G = ∂L/∂W (out, in),

so that, for random signs U, each row of A becomes a random combination of G's rows, found without
a gradient of full size. B steps from the second batch on. A pair that is taken up (``carry``) has
its direction, and trains from the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.booster import Booster
from torch_xgb.checks import one_of
from torch_xgb.formulas.streams import by, stream
from torch_xgb.weights.transfers import sent

__all__ = ["Start"]

_ROW_NORM = 3**-0.5  # of a Kaiming-uniform row, U(±1/√in)


@dataclass(frozen=True)
class Start:
    """How boosters begin, pure in (seed, t) but for gradients.

    Attributes:
        init: "kaiming" (the paper: A is drawn) or "gradient".
        seed: Of what is drawn.
    """

    init: str
    seed: int

    def __post_init__(self) -> None:
        one_of("init", self.init, ("kaiming", "gradient"))

    def begin(self, booster: Booster, t: int) -> None:
        """Make the pairs of booster t fresh: they change nothing."""
        booster.reset(stream(self.seed, t, "factors"))

    def aim(self, booster: Booster, t: int, left: Sequence[Adapter]) -> None:
        """Have the pairs of booster t wait for A's gradient, if it begins with that.

        Args:
            booster: With pairs just made fresh.
            t: Its index.
            left: Those that have taken up a pair, and train it from the first step.
        """
        if self.init == "gradient":
            _aim(booster.active, stream(self.seed, t, "signs"), left)

    def first_step(self, booster: Booster, t: int, left: Sequence[Adapter]) -> None:
        """Use the gradients of booster t's first batch up, if it begins with those.

        Args:
            booster: With gradients.
            t: Its index.
            left: Those that do not wait for them.
        """
        waiting = [adapter for adapter in booster.active if adapter not in left]
        if self.init == "gradient" and waiting:
            booster.reset(stream(self.seed, t, "factors"), left)
            _turn(waiting)


@torch.no_grad()
def _aim(adapters: Iterable[Adapter], generator: torch.Generator, left: Sequence[Adapter]) -> None:
    """Make every A zero and every B random signs, columns of unit norm."""
    for adapter in adapters:
        A, B = adapter.pair.A, adapter.pair.B
        signs = torch.randint(0, 2, B.shape, **by(generator))
        if adapter not in left:
            B.copy_(sent((2 * signs - 1) / B.shape[-2] ** 0.5, B.device))
            A.zero_()


@torch.no_grad()
def _turn(adapters: Iterable[Adapter]) -> None:
    """Turn every A, freshly drawn again, into the direction of its gradient, and use up gradients.

    Rows keep the norm of drawn ones. A row without gradient stays as it was drawn.
    """
    for adapter in adapters:
        gradient, A = adapter.parameters.A.grad, adapter.pair.A
        if gradient is not None:
            A.copy_(_directions(gradient[..., : A.shape[-2], :].to(A), A))
        for factor in adapter.parameters:
            factor.grad = None


def _directions(gradient: Tensor, drawn: Tensor) -> Tensor:
    norms = gradient.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, gradient * (-_ROW_NORM / norms.clamp(min=1e-38)), drawn)
