"""Boosters beside quantised weights in two processes."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from processes import run, share
from quantised import quantised_stack
from tiny import batches
from torch_xgb import BoostedLowRankOptimizer
from training import train

SETTINGS: dict[str, Any] = {"kappa": 2, "layers_per_booster": 2, "lr": 0.02, "seed": 3}


def _train() -> torch.Tensor:
    model = quantised_stack()
    optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS, accumulator_rank=3)
    wrapped = DistributedDataParallel(model)
    for batch in batches(12):
        x, y = share(batch)
        cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer.finalize()(batches(1)[0][0]).detach()


def _of_another_base() -> str:
    model = quantised_stack()
    model.blocks[1].up.weight[0, 0] ^= torch.distributed.get_rank()
    with pytest.raises(ValueError, match=r"rank 1: the weight blocks\.1\.up\.weight") as raised:
        BoostedLowRankOptimizer(AdamW, model, **SETTINGS)
    return str(raised.value)


def _both() -> tuple[torch.Tensor, str]:
    return _train(), _of_another_base()


@pytest.mark.distributed
def test_two_processes_do_what_one_does_and_begin_alike() -> None:
    (first, _), (second, _) = run(_both, 2)
    model = quantised_stack()
    optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS, accumulator_rank=3)
    train(model, optimizer, batches(12))
    assert torch.equal(first, second)
    expected = optimizer.finalize()(batches(1)[0][0]).detach()
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-9)
