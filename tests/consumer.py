"""What a strictly typed project writes with this library; mypy reads it, nobody runs it."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import torch_xgb
from torch_xgb import BoostedLowRankOptimizer, Chain, LossPlateau, MergeReport, Weighted


def train(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], out: Path) -> nn.Module:
    optimizer = BoostedLowRankOptimizer(
        AdamW,
        model,
        r=[4, 2, 1],
        kappa=LossPlateau(),
        layers_per_booster=0.5,
        layer_sampler=Weighted([1.0, 2.0]),
        target_modules=["q_proj", "v_proj"],
        record=out / "run",
        lr=1e-3,
        betas=(0.9, 0.95),
    )
    as_any_optimizer: Optimizer = optimizer
    scheduler = CosineAnnealingLR(as_any_optimizer, T_max=100)

    def told(report: MergeReport) -> None:
        print(report.booster_index, sum(report.update_norm.values()))

    handle = optimizer.on_merge(told)
    for x, y in loader:
        loss: Tensor = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if optimizer.converged:
            break
    handle.remove()
    share: float = optimizer.summary().share
    names: tuple[str, ...] = optimizer.active_layers
    pairs: dict[str, tuple[Tensor, Tensor]] = optimizer.active_factors
    print(optimizer.summary(), share, names, len(pairs))
    plain: nn.Module = optimizer.finalize()
    return plain


def best(run: Path, model: nn.Module) -> nn.Module:
    chain = Chain.load(run)
    chain.score(0, 0.5)
    report = chain.to_peft(run / "adapter", rank=8)
    print(report.total_error, torch_xgb.plan(model, dtype=torch.bfloat16, card=24.0).needs[0].peak)
    restored: nn.Module = torch_xgb.release(chain.rollback(model, to=chain.best))
    return restored
