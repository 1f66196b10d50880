"""What ``torch.distributed.checkpoint`` writes and reads of a run, in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint
from torch.optim import AdamW

from torch_xgb import BoostedLowRankOptimizer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def made() -> tuple[nn.Module, BoostedLowRankOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    return model, BoostedLowRankOptimizer(AdamW, model, kappa=2, lr=0.1, seed=1)


def trained(model: nn.Module, optimizer: BoostedLowRankOptimizer, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        loss = model(torch.ones(3, 4) + step).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_an_optimizer_given_as_it_is_resumes(tmp_path: Path) -> None:
    model, optimizer = made()
    trained(model, optimizer, 3)
    checkpoint.save({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path)
    straight = trained(model, optimizer, 3)
    again, fresh = made()
    checkpoint.load({"model": again, "optimizer": fresh}, checkpoint_id=tmp_path)
    assert (fresh.booster_index, fresh.booster_step) == (1, 1)
    assert trained(again, fresh, 3) == straight
    assert "booster" in fresh.state_dict()  # whoever else asks gets it as ever


def test_a_state_taken_to_pieces_says_what_to_give(tmp_path: Path) -> None:
    model, optimizer = made()
    trained(model, optimizer, 3)
    given: dict[str, Any] = {"model": model, "optimizer": optimizer.state_dict()}
    checkpoint.save(given, checkpoint_id=tmp_path)
    again, fresh = made()
    read: dict[str, Any] = {"model": again, "optimizer": fresh.state_dict()}
    checkpoint.load(read, checkpoint_id=tmp_path)
    with pytest.raises(ValueError, match='give that the optimizer itself, {"optimizer"'):
        fresh.load_state_dict(read["optimizer"])


def test_a_checkpoint_that_has_none_says_so(tmp_path: Path) -> None:
    model, optimizer = made()
    checkpoint.save({"model": model}, checkpoint_id=tmp_path)
    planner = checkpoint.DefaultLoadPlanner(allow_partial_load=True)
    with pytest.raises(ValueError, match="has read nothing into the optimizer's state"):
        checkpoint.load({"optimizer": optimizer}, checkpoint_id=tmp_path, planner=planner)
