"""A batch that reaches no drawn target."""

import copy
import pickle
from typing import cast

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from processes import run
from torch_xgb import BoostedLowRankOptimizer


class Dropping(nn.Module):
    """Blocks of which some are passed by."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor, passed_by: tuple[int, ...] = ()) -> dict[str, Tensor]:
        for i, block in enumerate(self.blocks):
            x = x if i in passed_by else block(x)
        return {"loss": x.square().mean(), "rows": torch.arange(len(x))}


EVERY = (0, 1, 2)


def build(unused: str, sharded: bool = False) -> tuple[Dropping, BoostedLowRankOptimizer]:
    torch.manual_seed(0)
    model = Dropping()
    if sharded:
        fully_shard(model)
    told = {"kappa": 4, "layers_per_booster": 2, "lr": 1e-2, "unused": unused}
    return model, BoostedLowRankOptimizer(AdamW, model, **told)


def test_it_is_skipped() -> None:
    model, optimizer = build("skip")
    x = torch.ones(2, 6)
    model(x)["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    before = [f.detach().clone() for f in optimizer.boosting.factors]
    model(x, EVERY)["loss"].backward()
    assert all(f.grad is None for f in optimizer.boosting.factors)
    optimizer.step()
    after = optimizer.boosting.factors
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_it_is_an_error_otherwise() -> None:
    model, optimizer = build("error")
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(torch.ones(2, 6), EVERY)["loss"].backward()
    optimizer.finalize()


def test_outputs_are_as_they_were_where_nothing_is_trained() -> None:
    model, optimizer = build("skip")
    x = torch.ones(2, 6)
    with torch.no_grad():
        assert not model(x, EVERY)["loss"].requires_grad
    assert not model.eval()(x, EVERY)["loss"].requires_grad
    assert model.train()(x, EVERY)["loss"].requires_grad
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x)["loss"], model(x)["loss"])
    optimizer.finalize()
    assert not model._forward_hooks


def _factors(passed_by: list[list[tuple[int, ...]]], how: str = "") -> list[float]:
    """What the factors are after steps in which each half of a batch passes by some blocks."""
    model, optimizer = build("skip", sharded=how == "sharded")
    several, called = distributed.get_world_size() > 1, cast(nn.Module, model)
    if how == "wrapped":
        called = DistributedDataParallel(model, find_unused_parameters=True)
    for step, halves in enumerate(passed_by):
        mine = [halves[distributed.get_rank()]] if several else halves
        for passed in mine:
            (called(torch.full((2, 6), 1.0 + step), passed)["loss"] / len(mine)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [float(factor.detach().sum()) for factor in optimizer.boosting.factors]


@pytest.mark.distributed
def test_a_process_that_reaches_none_takes_part_in_averaging() -> None:
    """As does one of all that reach none: the base is given no gradient then."""
    passed_by = [[(), ()], [(), EVERY], [EVERY, EVERY], [EVERY, ()], [(0,), (2,)]]
    (alone,) = run(_factors, 1, passed_by)
    for factors in (
        *run(_factors, 2, passed_by, "wrapped"),
        *run(_factors, 2, passed_by, "sharded"),
    ):
        assert factors == pytest.approx(alone, abs=1e-5)
