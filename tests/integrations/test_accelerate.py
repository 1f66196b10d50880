"""accelerate: prepare, accumulate, clip, save and load, in one process, DDP and FSDP2."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset
from torch_xgb.integrations.accelerate import checkpoint

from processes import run
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer

pytestmark = pytest.mark.distributed

SETTINGS: dict[str, Any] = {"kappa": 3, "layers_per_booster": 2, "lr": 0.02, "seed": 3}


def accelerator(route: str, micro: int) -> Accelerator:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    partial = PartialState(cpu=True)
    plugin = None
    if route == "fsdp2":
        # accelerate offers FSDP to accelerators alone; nothing of its code for it needs one.
        partial._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            cpu_ram_efficient_loading=False,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Block"],
        )
    made = Accelerator(cpu=route != "fsdp2", fsdp_plugin=plugin, gradient_accumulation_steps=micro)
    wanted = {"fsdp2": DistributedType.FSDP, "ddp": DistributedType.MULTI_CPU}
    assert made.distributed_type is wanted.get(route, made.distributed_type)
    return made


def train(acc: Accelerator, parts: Any, steps: slice, clip: float = 0.3) -> list[float]:
    model, optimizer, loader, scheduler = parts
    losses = []
    for i, (x, y) in enumerate(loader):
        if not steps.start <= i < steps.stop:
            continue
        with acc.accumulate(model):
            loss = cross_entropy(model(x), y)
            acc.backward(loss)
            if acc.sync_gradients:
                acc.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(float(acc.gather(loss.detach()).mean()))
    return losses


def prepare(acc: Accelerator) -> Any:
    model = stack(3)
    optimizer = BoostedLowRankOptimizer(AdamW, model, modules_to_save=["head"], **SETTINGS)
    data = batches(12)
    loader = DataLoader(
        TensorDataset(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])),
        batch_size=4 // acc.num_processes,
    )
    # accelerate steps a scheduler once a process.
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step // acc.num_processes))
    parts = acc.prepare(model, optimizer, loader, scheduler)
    checkpoint(acc, optimizer)
    return (*parts, optimizer)


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {n.removeprefix("module."): p.detach() for n, p in model.state_dict().items()}
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).clone() for n, p in state.items()}


def _train(route: str, folder: str) -> dict[str, Any]:
    acc = accelerator(route, 2)
    *parts, optimizer = prepare(acc)
    losses = train(acc, parts, slice(0, 8))
    acc.save_state(folder)
    losses += train(acc, parts, slice(8, 12))
    trained = whole(parts[0])
    booster = (optimizer.booster_index, optimizer.booster_step)

    acc = accelerator(route, 2)
    *parts, optimizer = prepare(acc)
    with torch.no_grad():
        for name, parameter in parts[0].named_parameters():
            if "boosters" not in name:
                parameter.zero_()
    acc.load_state(folder)
    assert (optimizer.booster_index, optimizer.booster_step) == (1, 1)
    resumed = train(acc, parts, slice(8, 12))
    assert parts[0] is not None and optimizer.finalize() is not None
    return {"losses": losses, "resumed": resumed, "weights": trained, "booster": booster}


def _listed(folder: str) -> tuple[bool, bool]:
    """What accelerate unscales before clipping is what it lists, and it is saved once."""
    acc = accelerator("fsdp2", 1)
    *parts, optimizer = prepare(acc)
    train(acc, parts, slice(0, 1))
    acc.save_state(folder)
    named = [path for path in Path(folder).rglob("*") if "optimizer" in path.name]
    return [o.optimizer for o in acc._optimizers] == [optimizer], not named


def test_the_optimizer_stays_listed_for_unscaling(tmp_path: Path) -> None:
    assert run(_listed, 2, str(tmp_path)) == [(True, True)] * 2


@pytest.mark.parametrize("route", ["ddp", "fsdp2"])
def test_two_processes_do_what_one_does_and_resume(route: str, tmp_path: Path) -> None:
    (alone,) = run(_train, 1, "single", str(tmp_path / "single"))
    assert alone["booster"] == (2, 0)
    for other in run(_train, 2, route, str(tmp_path / route)):
        assert other["booster"] == alone["booster"]
        assert other["losses"] == pytest.approx(alone["losses"], abs=1e-6)
        assert other["resumed"] == pytest.approx(other["losses"][8:], abs=1e-6)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(other["weights"][name], weight, atol=1e-6, rtol=0)
