"""Other optimizers of the same model: what they hold in vain, or beside ours, is said."""

import copy
import gc
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW
from torch.optim.optimizer import (
    _global_optimizer_pre_hooks,
    register_optimizer_step_pre_hook,
)

from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.base.others import _WATCHING


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    settings = {"kappa": 2, "modules_to_save": [], **settings}
    return BoostedLowRankOptimizer(AdamW, model, lr=0.02, **settings)


def unfrozen() -> Stack:
    return stack().requires_grad_(True)


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 3) -> None:
    for x, y in batches(steps):
        cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_what_building_has_frozen_for_another_optimizer() -> None:
    model = unfrozen()
    other = SGD(model.head.parameters(), lr=0.1)
    optimizer = boosted(model)
    with pytest.warns(
        UserWarning, match=r"SGD, steps 2 weights.*'head\.weight', that were frozen"
    ) as said:
        train(model, optimizer, other)
    assert len(said) == 1


def test_what_both_train() -> None:
    model = unfrozen()
    optimizer = boosted(model, modules_to_save=["head"])
    other = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x, y = batches(1)[0]
    cross_entropy(model(x), y).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="that BoostedLowRankOptimizer trains too"):
        other.step()


def test_nothing_is_said_of_others() -> None:
    """Of another model, of what it trains itself, of what nobody ever trained, of ours."""
    model, apart = unfrozen(), nn.Linear(2, 2)
    model.embed.requires_grad_(False)
    of_apart, of_frozen = SGD(apart.parameters(), lr=0.1), SGD(model.embed.parameters(), lr=0.1)
    own = {"modules_to_save": ["head"], "modules_to_save_optimizer": partial(SGD, lr=0.1)}
    optimizer = boosted(model, **own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, of_apart, of_frozen)
        twin = copy.deepcopy(optimizer)
        train(twin.model, twin)
        again = pickle.loads(pickle.dumps(optimizer))
        train(again.model, again)
        optimizer.finalize()
        train(model, SGD(model.parameters(), lr=0.1))


def test_nobody_watches_for_one_that_is_gone() -> None:
    gc.collect()
    before = len(_WATCHING)
    model = unfrozen()
    optimizer = boosted(model)
    train(model, optimizer)
    assert len(_WATCHING) == before + 1
    optimizer.finalize()
    assert len(_WATCHING) == before
    model = unfrozen()
    optimizer = boosted(model)
    train(model, optimizer)
    del optimizer
    gc.collect()
    assert len(_WATCHING) == before


def test_one_that_goes_while_another_steps_does_that_no_harm() -> None:
    """The garbage collector runs anywhere, also where torch goes through the hooks of a step."""
    model, apart = unfrozen(), nn.Linear(2, 2)
    held = [boosted(model)]
    train(model, *held)
    hooks = len(_global_optimizer_pre_hooks)

    def drop(*_: Any) -> None:
        held.clear()
        gc.collect()

    handles = [register_optimizer_step_pre_hook(hook) for hook in (drop, lambda *_: None)]
    before, other = apart.weight.detach().clone(), SGD(apart.parameters(), lr=0.1)
    apart(torch.ones(1, 2)).sum().backward()
    try:
        other.step()
    finally:
        for handle in handles:
            handle.remove()
    assert not torch.equal(apart.weight, before) and not held
    train(model := unfrozen(), boosted(model))
    assert len(_global_optimizer_pre_hooks) == hooks  # one for all
