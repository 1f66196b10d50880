"""Bases of other packages: schedule-free, and those that learn their own rate."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer

schedulefree: Any = pytest.importorskip("schedulefree")
prodigyopt: Any = pytest.importorskip("prodigyopt")
BASES: dict[str, tuple[type[Optimizer], float]] = {
    "schedule-free AdamW": (schedulefree.AdamWScheduleFree, 0.02),
    "schedule-free SGD": (schedulefree.SGDScheduleFree, 0.01),
    "Prodigy": (prodigyopt.Prodigy, 1.0),
}


def boosted(model: nn.Module, name: str) -> BoostedLowRankOptimizer:
    base, lr = BASES[name]
    told: dict[str, Any] = {"kappa": 4, "layers_per_booster": 2, "modules_to_save": ["head"]}
    return BoostedLowRankOptimizer(base, model, lr=lr, **told)


def train(model: nn.Module, optimizer: Any, first: int, last: int) -> list[float]:
    losses = []
    if hasattr(optimizer, "train"):
        optimizer.train()
    for x, y in batches(60)[first:last]:
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", BASES)
def test_resumed_is_uninterrupted(name: str) -> None:
    whole, cut, again = stack(), stack(), stack()
    expected = train(whole, boosted(whole, name), 0, 22)
    optimizer = boosted(cut, name)
    losses = train(cut, optimizer, 0, 10)
    states = copy.deepcopy((cut.state_dict(), optimizer.state_dict()))
    resumed = boosted(again, name)
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert losses + train(again, resumed, 10, 22) == expected


@pytest.mark.parametrize("name", [name for name in BASES if name.startswith("schedule-free")])
def test_the_head_is_saved_where_it_is_evaluated(name: str) -> None:
    model = stack()
    optimizer = boosted(model, name)
    train(model, optimizer, 0, 22)
    there = model.head.weight.clone()
    optimizer.eval()
    assert not torch.equal(model.head.weight, there)
    with pytest.raises(Exception, match="train mode"):
        cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
        optimizer.step()
    optimizer.train()
    torch.testing.assert_close(model.head.weight, there)
    assert optimizer.param_groups[0]["k"] == 22 % 4


def test_prodigys_rate_goes_on_over_boosters() -> None:
    model = stack()
    optimizer = boosted(model, "Prodigy")
    rates = [optimizer.param_groups[0]["d"]]
    for first in range(0, 60, 4):
        train(model, optimizer, first, first + 4)
        rates.append(optimizer.param_groups[0]["d"])
    assert rates == sorted(rates)
    assert rates[-1] > 100 * rates[0]
