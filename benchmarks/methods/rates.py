"""The one line as somebody brings it: the optimizer's defaults, a scale, a rank, a rate."""

from typing import Any

from torch import nn
from torch.optim import AdamW

from benchmarks.methods.method import Method, Trainee
from torch_xgb import BoostedLowRankOptimizer

ALPHAS = (1.0, 4.0, 8.0, 16.0, 32.0)
RANKS = (1, 8)
RATES = (2e-4, 5e-4, 1e-3, 2e-3)  # LoRA's customary ones; AdamW's default is the third
STARTS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "carry=0.97": {"carry": 0.97},
    'carry=0.97, init="gradient"': {"carry": 0.97, "init": "gradient"},
}


def one_line(model: nn.Module, lr: float, seed: int, **options: Any) -> Trainee:
    """Train by the line of the README, the new classifier alone in full."""
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=lr, seed=seed, **options)
    return Trainee(model, optimizer, optimizer.finalize, optimizer.merge)


def method(start: str, r: int, alpha: float) -> Method:
    """Return the line with a scale α / r."""
    options = {"r": r, "lora_alpha": alpha, **STARTS[start]}
    return Method(f"{start}, r={r}, α={alpha:g}", one_line, 1e-3, RATES, options)
