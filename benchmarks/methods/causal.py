"""How a causal LM is fine-tuned: PEFT's LoRA and boosters, on all linear maps."""

from collections.abc import Callable
from functools import partial
from typing import Any

from peft import LoraConfig
from torch import nn
from torch.optim import AdamW

from benchmarks.methods.lora import trainee
from benchmarks.methods.method import Trainee
from torch_xgb import BoostedLowRankOptimizer

Build = Callable[[nn.Module, float, int], Trainee]


def lora(model: nn.Module, lr: float, seed: int, r: int = 8) -> Trainee:
    """Train PEFT's LoRA with s = 2 on all linear maps."""
    return trainee(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear"), lr)


def boosted(model: nn.Module, lr: float, seed: int, **settings: Any) -> Trainee:
    """Train boosters of rank 1 and 8 steps on 8 of 30 blocks: the paper's defaults."""
    given = {"modules_to_save": [], "seed": seed, "lr": lr, "weight_decay": 0.0}
    given |= {"lora_alpha": None, **settings}  # s = 1, as the paper writes it
    optimizer = BoostedLowRankOptimizer(AdamW, model, r=1, kappa=8, **given)
    return Trainee(model, optimizer, optimizer.finalize)


METHODS: dict[str, tuple[Build, tuple[float, ...]]] = {
    "PEFT LoRA r=8": (lora, (5e-4, 1e-3)),
    "PEFT LoRA r=1": (partial(lora, r=1), (1e-3, 2e-3)),
    "XGBLoRA r=1": (boosted, (2e-3, 5e-3)),
    "XGBLoRA r=1, carry=0.97": (
        partial(boosted, carry=0.97, layers_per_booster=None),
        (2e-3, 5e-3),
    ),
}
