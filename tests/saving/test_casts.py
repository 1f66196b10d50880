"""A model that is cast in mid-run: residuals go into weights that can hold them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer

NARROW = [torch.bfloat16, torch.float16]


def boosted(model: nn.Module, layers: int | None = None) -> BoostedLowRankOptimizer:
    return BoostedLowRankOptimizer(
        SGD, model, kappa=2, layers_per_booster=layers, lr=0.1, modules_to_save=[], lora_alpha=None
    )


def train(model: nn.Module, optimizer: BoostedLowRankOptimizer, steps: int) -> None:
    dtype = next(model.parameters()).dtype
    for x, y in batches(steps, dtype):
        cross_entropy(model(x).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("to", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_residuals_follow_a_cast(dtype: torch.dtype, to: torch.dtype) -> None:
    model = stack(dtype=dtype)
    optimizer = boosted(model)
    train(model, optimizer, 4)
    residuals = dict(optimizer.boosting.entry.pending.merger.residuals)
    assert residuals and any(E.any() for E in residuals.values())
    model.to(to)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.merge()
    assert not optimizer.boosting.entry.pending.merger.residuals
    for name, E in residuals.items():
        here = model.get_parameter(name)
        assert torch.equal(here, before[name] + E.to(to))
    train(model, optimizer, 4)


def test_residuals_of_a_dtype_that_does_not_hold_them_stay() -> None:
    model = stack(dtype=torch.float16)
    optimizer = boosted(model)
    train(model, optimizer, 4)
    merger = optimizer.boosting.entry.pending.merger
    kept = {name: E.clone() for name, E in merger.residuals.items()}
    model.to(torch.bfloat16)
    optimizer.merge()
    assert merger.residuals.keys() == kept.keys()


def test_a_cast_run_resumes_bitwise() -> None:
    model = stack(dtype=torch.bfloat16)
    optimizer = boosted(model, layers=2)
    train(model, optimizer, 4)
    model.to(torch.float32)
    train(model, optimizer, 1)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = stack(dtype=torch.float32)
    other.load_state_dict(saved[0])
    resumed = boosted(other, layers=2)
    resumed.load_state_dict(saved[1])
    for ours, theirs in ((model, optimizer), (other, resumed)):
        train(ours, theirs, 7)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_factors_of_a_wider_dtype_are_not_rounded() -> None:
    saved = boosted(stack(dtype=torch.float64)).state_dict()
    model = stack(dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"float64 and would be rounded to torch\.float32.*in the d"
    ):
        boosted(model).load_state_dict(saved)
    boosted(model.double()).load_state_dict(saved)
