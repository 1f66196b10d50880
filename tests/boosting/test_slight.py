"""Whoever keeps full fine-tuning's rate trains next to nothing, and is told once."""

import copy
import re
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from torch_xgb import BoostedLowRankOptimizer

WIDTH = 64


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)],
    )


def said(steps: int, lr: float, warmup: int = 0, **kwargs: Any) -> list[str]:
    """What is warned of by a run of so many steps."""
    model = deep()
    optimizer = BoostedLowRankOptimizer(AdamW, model, modules_to_save=[], lr=lr, **kwargs)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup)))
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            mse_loss(model(x), x).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return [str(one.message) for one in caught]


def test_a_rate_of_full_fine_tuning_is_told_once_with_one_that_trains() -> None:
    (message,) = said(40, 2e-5)
    assert "booster 0" in message
    assert "lr=2e-05" in message
    tried = float(re.search(r"Try lr=(\S+),", message)[1])  # type: ignore[index]
    assert 3e-4 <= tried <= 3e-3
    assert said(40, tried) == []


def test_a_warm_up_is_waited_for() -> None:
    assert said(16, 2e-5, warmup=64) == []
    (message,) = said(56, 2e-5, warmup=64)
    assert "booster 0" not in message


def test_rates_that_boosters_have_are_not_looked_into() -> None:
    model = deep()
    optimizer = BoostedLowRankOptimizer(AdamW, model, modules_to_save=[], lr=1e-3)
    asked: list[object] = []
    optimizer.boosting.listeners.tell(lambda: asked.append(1))  # type: ignore[func-returns-value]
    assert not asked
    slow = BoostedLowRankOptimizer(AdamW, deep(), modules_to_save=[], lr=2e-5)
    slow.boosting.listeners.tell(lambda: asked.append(1))  # type: ignore[func-returns-value]
    assert asked


def test_a_slow_run_travels() -> None:
    model = deep()
    optimizer = BoostedLowRankOptimizer(AdamW, model, modules_to_save=[], lr=2e-5)
    _, twin = copy.deepcopy((model, optimizer))
    assert twin.param_groups[0]["lr"] == 2e-5
