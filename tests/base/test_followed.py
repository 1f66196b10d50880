"""Modules trained in full that are replaced, or given other Parameters: followed, or said."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim import AdamW

from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train


def run(**settings: Any) -> tuple[Stack, BoostedLowRankOptimizer]:
    model = stack()
    settings = {"kappa": None, "layers_per_booster": 2, "modules_to_save": ["head"], **settings}
    return model, BoostedLowRankOptimizer(AdamW, model, lr=0.02, **settings)


def _another(model: Stack) -> None:
    model.head = copy.deepcopy(model.head)


def _wider(model: Stack) -> None:
    model.head.register_parameter("scale", nn.Parameter(torch.ones(())))
    parametrizations.weight_norm(model.head)


CHANGES: dict[str, tuple[Callable[[Stack], object], str]] = {
    "replaced": (_another, "'head', which"),
    "parametrised": (lambda m: parametrizations.weight_norm(m.head), r"'head\.parametrizations"),
    "another-parameter": (_wider, r"'head\.scale', which"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_base_does_not_have_is_refused(change: str) -> None:
    do, named = CHANGES[change]
    model, optimizer = run()
    train(model, optimizer, batches(2))
    do(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match=f"{named}.*trained in full.*build a new optimizer"):
        train(model, optimizer, batches(1))
    with pytest.raises(RuntimeError, match=named):
        optimizer.state_dict()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    optimizer.finalize()
    optimizer.state_dict()


def test_another_parameter_is_trained_from_the_next_step_on() -> None:
    model, optimizer = run()
    train(model, optimizer, batches(2))
    model.head.weight = nn.Parameter(model.head.weight.detach() * 0.5)
    before = model.head.weight.detach().clone()
    train(model, optimizer, batches(1))
    assert not torch.equal(model.head.weight, before)
    assert model.head.weight in optimizer.state


def test_pruning_and_wrapping_keep_the_parameters() -> None:
    model, optimizer = run()
    train(model, optimizer, batches(1))
    prune.l1_unstructured(model.head, "weight", 0.5)
    model.head = nn.Sequential(model.head)
    before = model.head[0].weight_orig.detach().clone()
    train(model, optimizer, batches(1))
    assert not torch.equal(model.head[0].weight_orig, before)


def test_a_head_that_is_cast_takes_its_state_along() -> None:
    model, optimizer = run()
    train(model, optimizer, batches(2))
    model.bfloat16()
    train(model, optimizer, batches(1, torch.bfloat16))
    assert optimizer.state[model.head.weight]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.booster_step == 3


def test_a_framework_may_train_copies_of_what_it_casts() -> None:
    """As DeepSpeed does: the base's groups hold others, of full precision."""
    model, optimizer = run()
    for group in optimizer.base.param_groups[1:]:
        group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]
    model.bfloat16()
    train(model, optimizer, batches(1, torch.bfloat16))
    assert optimizer.booster_step == 1
