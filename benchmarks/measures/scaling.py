"""Processor time of a step as the model, the draw, κ and the rank grow."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import AdamW

from benchmarks.subjects.maps import WIDTH, Block
from torch_xgb import BoostedLowRankOptimizer

BASE = {"blocks": 24, "drawn": 8, "kappa": 8, "r": 1}
VARIED = {
    "blocks": (8, 12, 24, 48, 96),
    "drawn": (1, 2, 4, 8, 16),
    "kappa": (1, 2, 4, 8, 32),
    "r": (1, 2, 4, 8, 16),
}
BASES = {"AdamW": False, "AdamW fused": True}


@dataclass(frozen=True)
class Step:
    """Microseconds of processor time.

    Attributes:
        whole: ``step()`` and ``zero_grad()``, merges and draws at 1/κ.
        base: AdamW's part of it.
    """

    whole: float
    base: float


Found = Mapping[str, Mapping[int, Step]]  # by what is varied, and its value


def measured(
    blocks: int, drawn: int, kappa: int, r: int, boosters: int, fused: bool = False
) -> Step:
    """Return the medians over boosters of a step."""
    model = nn.Sequential(*[Block() for _ in range(blocks)])
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, r=r, kappa=kappa, layers_per_booster=drawn, lr=1e-3, fused=fused
    )
    clock, inner = Clock(), Clock()
    optimizer.base.register_step_pre_hook(lambda *_: inner.start())
    optimizer.base.register_step_post_hook(lambda *_: inner.stop())
    x = torch.randn(2, WIDTH)
    spent = []
    for _ in range(boosters):
        for _ in range(kappa):
            model(x).square().sum().backward()
            clock.start()
            optimizer.step()
            optimizer.zero_grad()
            clock.stop()
        spent.append((clock.read() / kappa, inner.read() / kappa))
    whole, base = map(statistics.median, zip(*spent, strict=True))
    return Step(whole, base)


class Clock:
    """Adds up processor time, in microseconds."""

    def __init__(self) -> None:
        self.total = self.began = 0.0

    def start(self) -> None:
        """Begin."""
        self.began = time.process_time()

    def stop(self) -> None:
        """End."""
        self.total += 1e6 * (time.process_time() - self.began)

    def read(self) -> float:
        """Return what came together, and begin anew."""
        total, self.total = self.total, 0.0
        return total


def measure(boosters: int, fused: bool = False) -> Found:
    """Vary one setting at a time."""
    return {
        name: {
            value: measured(**{**BASE, name: value}, boosters=boosters, fused=fused)
            for value in values
        }
        for name, values in VARIED.items()
    }
