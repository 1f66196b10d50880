"""How fast a carried pair should be let go, where the optimum is known and the rank is the ceiling.

A linear map learns another from noisy batches: y = W*x + e, the singular values of W* − W falling
as 1/i. LoRA of rank r can reach the best approximation of that rank and no further.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.runs.journal import RESULTS, Journal, Record
from benchmarks.runs.step import decayed
from benchmarks.subjects.targets import Target
from torch_xgb import BoostedLowRankOptimizer, Decay

JOURNAL = RESULTS / "letting-go.jsonl"
KAPPA, NOISE, ROWS, POINTS = 8, 0.3, 16, 16
RATES, RANKS, LENGTHS, SEEDS = (5e-3, 1e-2, 2e-2), (1, 4), (400, 1600), 3
# ρ of a booster, or at the peak rate where it is tied to the rate; and for how much of the run the
# rate is held before it falls.
WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {"kappa": None},
    "the paper's": {},
    "carry=0.97": {"carry": 0.97},
    "carry=0.9": {"carry": 0.9},
    "carry=0.7": {"carry": 0.7},
    "carry tied, 0.97": {"tied": 0.97},
    "carry tied, 0.9": {"tied": 0.9},
    "carry tied, 0.8": {"tied": 0.8},
    "LoRA, rate held": {"kappa": None, "held": 0.75},
    "carry=0.97, rate held": {"carry": 0.97, "held": 0.75},
    "carry=0.9, rate held": {"carry": 0.9, "held": 0.75},
}


@dataclass(frozen=True)
class Run:
    """One run, and all that its result depends on."""

    way: str
    r: int
    lr: float
    seed: int
    steps: int

    @property
    def key(self) -> dict[str, Any]:
        """What its record is found by."""
        return {"options": WAYS[self.way], "r": self.r, "lr": self.lr, "seed": self.seed,
                "steps": self.steps, "noise": NOISE, "rows": ROWS}  # fmt: skip

    def __call__(self) -> Record:
        """Return the squared error of the map along the way, as a share of the first."""
        target = Target(seed=self.seed)
        delta, model = target.delta().float(), target.model().float()
        goal = torch.eye(target.size) + delta
        optimizer = self._optimizer(model)
        held = WAYS[self.way].get("held", 0.0)
        schedule = LambdaLR(optimizer, partial(decayed, steps=self.steps, held=held))
        generator, errors = torch.Generator().manual_seed(self.seed), []
        for step in range(self.steps):
            x, noise = torch.randn(2, ROWS, target.size, generator=generator)
            (model(x) - x @ goal.T - NOISE * noise).square().sum().div(2 * ROWS).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if (step + 1) % (self.steps // POINTS) == 0:
                errors.append(_error(model, goal))
        first = float(delta.square().sum())
        return {"errors": [round(error / first, 5) for error in errors]}

    def _optimizer(self, model: nn.Module) -> BoostedLowRankOptimizer:
        given = {"kappa": KAPPA, **WAYS[self.way]}
        given.pop("held", None)
        if "tied" in given:
            given["carry"] = Decay((1 - given.pop("tied")) / (KAPPA * self.lr))
        return BoostedLowRankOptimizer(
            AdamW,
            model,
            r=self.r,
            lora_alpha=2 * self.r,
            modules_to_save=[],
            seed=self.seed,
            lr=self.lr,
            weight_decay=0.0,
            **given,
        )


@torch.no_grad()
def _error(model: nn.Module, goal: Tensor) -> float:
    """Return ‖M − W*‖² of what the model computes, its pending pair included."""
    return float((model(torch.eye(len(goal))).T - goal).square().sum())


def run(journal: Journal) -> None:
    """Do what the journal lacks."""
    for r, steps, way in product(RANKS, LENGTHS, WAYS):
        for lr, seed in product(RATES, range(SEEDS)):
            one = Run(way, r, lr, seed, steps)
            journal.once(one.key, one)
