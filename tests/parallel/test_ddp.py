"""DistributedDataParallel around a boosted model: two processes do what one does."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from processes import run, share
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer

pytestmark = pytest.mark.distributed

SETTINGS: dict[str, Any] = {"r": 1, "kappa": 3, "layers_per_booster": 2, "lr": 0.02, "seed": 3}


def _train(settings: dict[str, Any], micro: int, clip: float | None) -> dict[str, Any]:
    """Train nine steps, each of ``micro`` batches, in a loop that knows nothing of boosters."""
    model = stack(3)
    optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS | settings)
    ddp = DistributedDataParallel(model)
    losses, norms, merges = [], [], []
    optimizer.on_merge(lambda report: merges.append(report.booster_index))
    data = batches(9 * micro)
    for step in range(9):
        optimizer.zero_grad()
        for i in range(micro):
            x, y = share(data[step * micro + i])
            with nullcontext() if i == micro - 1 else ddp.no_sync():
                loss = cross_entropy(ddp(x), y) / micro
                loss.backward()
            distributed.all_reduce(loss := loss.detach())
            losses.append(float(loss) / distributed.get_world_size())
        if clip is not None:
            norms.append(float(torch.nn.utils.clip_grad_norm_(ddp.parameters(), clip)))
        optimizer.step()
    weights = {n: p.detach() for n, p in optimizer.finalize().named_parameters()}
    return {"losses": losses, "norms": norms, "merges": merges, "weights": weights}


@pytest.mark.parametrize(
    ("settings", "micro", "clip"),
    [
        ({}, 1, 0.05),
        ({"modules_to_save": ["head"], "adapter": "direft"}, 2, 0.3),
        ({"checkpointing": True}, 2, None),
    ],
    ids=["lora", "direft-head-accumulated", "checkpointed"],
)
def test_two_processes_do_what_one_does(
    settings: dict[str, Any], micro: int, clip: float | None
) -> None:
    (alone,) = run(_train, 1, settings, micro, clip)
    for other in run(_train, 2, settings, micro, clip):
        assert other["merges"] == alone["merges"] == [0, 1, 2]
        assert other["losses"] == pytest.approx(alone["losses"], abs=1e-9)
        assert other["norms"] == pytest.approx(alone["norms"], abs=1e-9)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(other["weights"][name], weight, atol=1e-9, rtol=0)


DISAGREEMENTS = ("weights", "kappa", "lr", "factor_l2")


def _wrap_first() -> str:
    ddp = DistributedDataParallel(stack(3))
    with pytest.raises(RuntimeError, match="build the optimizer on the plain model first") as error:
        BoostedLowRankOptimizer(SGD, ddp, lr=0.1)
    return str(error.value)


def _disagree(what: str) -> str:
    rank = distributed.get_rank()
    model = stack(3, seed=rank if what == "weights" else 0)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    settings = {
        "kappa": {"kappa": 2 + rank},
        "lr": {"lr": 0.1 + rank},
        "factor_l2": {"factor_l2": 0.1 * rank},
    }.get(what, {})
    with pytest.raises(ValueError) as error:
        BoostedLowRankOptimizer(SGD, model, **{"lr": 0.1} | settings)
    assert before == {name: p.requires_grad for name, p in model.named_parameters()}
    return str(error.value)


def _refusals() -> dict[str, str]:
    return {"order": _wrap_first()} | {w: _disagree(w) for w in DISAGREEMENTS}


def test_what_cannot_work_is_said_on_every_process() -> None:
    for said in run(_refusals, 2):
        assert "rank 1: the weight blocks.0.query.weight" in said["weights"]
        assert "rank 1: kappa" in said["kappa"]
        assert "rank 1: lr" in said["lr"]
        assert "rank 1: factor_l2" in said["factor_l2"]


def _resume(folder: str) -> tuple[list[float], list[float]]:
    """Train, save in the middle of a booster, go on; and go on from what was saved."""
    data = [share(batch) for batch in batches(8)]

    def begin() -> tuple[Any, Any]:
        model = stack(3, dtype=torch.float32, seed=1)
        optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS)
        return DistributedDataParallel(model), optimizer

    def go_on(ddp: Any, optimizer: Any, some: Any) -> list[float]:
        losses = []
        for x, y in some:
            loss = cross_entropy(ddp(x.float()), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    ddp, optimizer = begin()
    go_on(ddp, optimizer, data[:4])
    state = {"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict()}
    if distributed.get_rank() == 0:
        torch.save(state, Path(folder, "state.pt"))
    distributed.barrier()
    straight = go_on(ddp, optimizer, data[4:])
    saved = torch.load(Path(folder, "state.pt"), weights_only=True)
    ddp, optimizer = begin()
    ddp.module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return straight, go_on(ddp, optimizer, data[4:])


def test_resume_inside_a_booster(tmp_path: Path) -> None:
    for straight, resumed in run(_resume, 2, str(tmp_path)):
        assert straight == resumed


def _torchrun(folder: Path, *args: str) -> int:
    root = Path(__file__).resolve().parents[2]
    support = root / "tests" / "support"
    paths = os.pathsep.join([str(support), str(root)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*command, str(support / "killed.py"), str(folder), "8", *args],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=180,  # of a hang, not of a slow machine
    ).returncode


@pytest.mark.long
def test_a_killed_rank_ends_the_run_and_the_last_checkpoint_goes_on(tmp_path: Path) -> None:
    broken, straight = tmp_path / "broken", tmp_path / "straight"
    for folder in (broken, straight):
        folder.mkdir()
    assert _torchrun(broken, "5") != 0
    assert not (broken / "end0.pt").exists()
    assert _torchrun(broken) == 0
    assert _torchrun(straight) == 0
    first, resumed = torch.load(broken / "end0.pt", weights_only=True)
    assert first == 5
    for name, weight in torch.load(straight / "end0.pt", weights_only=True)[1].items():
        assert torch.equal(resumed[name], weight)
