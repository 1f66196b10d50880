"""Wrappers that cannot be served, and getters that would leave the booster out, are refused."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as getters
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW

from processes import run, share
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer

CPU = torch.device("cpu")


def _fsdp1(order: str, use_orig_params: bool) -> str:
    model = stack(3, dtype=torch.float32).requires_grad_(True)  # FSDP1 wants all alike

    def wrap(module: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(module, use_orig_params=use_orig_params, device_id=CPU)

    if order == "after":
        BoostedLowRankOptimizer(SGD, model, lr=0.1)
        with pytest.raises(RuntimeError) as error:
            wrap(model)
    elif order == "block after":  # not the one the factors are in
        optimizer = BoostedLowRankOptimizer(SGD, model, lr=0.1)
        model.blocks[2] = wrap(model.blocks[2].requires_grad_(False))
        x, y = share(batches(1, torch.float32)[0])
        with pytest.raises(RuntimeError) as error:
            cross_entropy(model(x), y).backward()
            optimizer.step()
    else:
        wrapped = wrap(model)
        given = {"before": wrapped, "inner": model, "part": wrapped.module.blocks}[order]
        with pytest.raises(RuntimeError) as error:
            BoostedLowRankOptimizer(SGD, given, lr=0.1)
    return str(error.value)


def _every_order() -> dict[str, str]:
    orders = ("after", "block after", "before", "inner", "part")
    return {f"{order} {orig}": _fsdp1(order, orig) for order in orders for orig in (True, False)}


@pytest.mark.distributed
def test_fsdp1_is_refused_in_every_order() -> None:
    for said in run(_every_order, 2):
        assert len(said) == 10
        for order, message in said.items():
            assert "(FSDP1)" in message and "fully_shard" in message, order


def _asked(how: str, model: nn.Module, optimizer: Any) -> Any:
    empty = {"state": {}, "param_groups": [{"params": []}]}
    return {
        "optimizer": lambda: getters.get_optimizer_state_dict(model, optimizer),
        "both": lambda: getters.get_state_dict(model, optimizer),
        "set": lambda: getters.set_optimizer_state_dict(model, optimizer, empty),
    }[how]


@pytest.mark.parametrize("base", [AdamW, SGD])
@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("how", ["optimizer", "both", "set"])
def test_getters_that_drop_the_booster_are_refused(base: type, steps: int, how: str) -> None:
    model = stack(3)
    optimizer = BoostedLowRankOptimizer(base, model, kappa=2, layers_per_booster=2, lr=0.1)
    for x, y in batches(steps):
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    counted = optimizer.booster_index, optimizer.booster_step
    error = ValueError if how == "set" else RuntimeError
    with pytest.raises(error, match="leave the booster out|no entry 'booster'"):
        _asked(how, model, optimizer)()
    assert (optimizer.booster_index, optimizer.booster_step) == counted
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert getters.get_model_state_dict(model).keys() == stack(3).state_dict().keys()


def test_a_step_at_a_rate_of_zero_is_one() -> None:
    model = stack(3)
    optimizer = BoostedLowRankOptimizer(SGD, model, kappa=2, lr=0.0)
    x, y = batches(1)[0]
    cross_entropy(model(x), y).backward()
    optimizer.step()
    assert optimizer.booster_step == 1
