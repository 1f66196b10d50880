"""Ways to train beside a base of four bits, and the merged boosters they are compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.methods import lora
from benchmarks.methods.method import Trainee
from benchmarks.methods.minilm import ENCODER_LINEARS
from benchmarks.subjects.minilm import HEAD, is_head
from torch_xgb import BoostedLowRankOptimizer


@dataclass(frozen=True)
class Way:
    """A way to hold the base, and to train on it.

    Attributes:
        name: In the table.
        base: Makes of the linear maps of a float32 model what they are kept as.
        train: Takes a model, a rate and a seed.
        lr: Its rate, of the factors and the head.
    """

    name: str
    base: Callable[[nn.Linear], nn.Linear]
    train: Callable[[nn.Module, float, int], Trainee]
    lr: float


def hold(model: nn.Module, base: Callable[[nn.Linear], nn.Linear]) -> nn.Module:
    """Replace the linear maps of the encoder by what a base makes of them."""
    for name, linear in list(model.named_modules()):
        if type(linear) is nn.Linear and not is_head(name):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, base(linear))
    return model


def float32(linear: nn.Linear) -> nn.Linear:
    """Keep the weight as it is."""
    return linear


def bfloat16(linear: nn.Linear) -> nn.Linear:
    """Keep the weight in bfloat16."""
    linear.weight.data = linear.weight.data.bfloat16()
    return linear


def nf4(linear: nn.Linear) -> nn.Linear:
    """Quantise to NF4 as QLoRA does, computed with in float32.

    Raises:
        ValueError: If bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        raise ValueError("bitsandbytes is missing: pip install --no-deps bitsandbytes") from None
    size = linear.in_features, linear.out_features
    made = Linear4bit(*size, compute_dtype=torch.float32, quant_type="nf4")
    made.load_state_dict(linear.state_dict())
    return made.to("cpu")  # it quantises when it is moved


def rounded(linear: nn.Linear) -> nn.Linear:
    """Keep in float32 what NF4 dequantises to."""
    from bitsandbytes.functional import dequantize_4bit

    weight = nf4(linear).weight
    linear.weight.data = dequantize_4bit(weight.data, weight.quant_state)
    return linear


def boosters(model: nn.Module, lr: float, seed: int, **options: Any) -> Trainee:
    """Train boosters of rank 1, 8 steps each, on 4 of 6 blocks."""
    given = {
        "r": 1,
        "lora_alpha": None,
        "layers_per_booster": 4,
        "target_modules": ENCODER_LINEARS,
        "modules_to_save": list(HEAD),
        "weight_decay": 0.0,
        **options,
    }
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=lr, seed=seed, **given)
    return Trainee(model, optimizer, optimizer.finalize)


def as_qlora(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train the same in QLoRA's memory of rank 8: its factors, gradients and AdamW's state.

    Those are 4 · 8 rows and columns a weight; a pair of rank 1 with its own leaves 28 for the sum.
    """
    return boosters(model, lr, seed, accumulator_rank=28)


def few(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train the same with room for a sum of rank 8 beside each weight."""
    return boosters(model, lr, seed, accumulator_rank=8)


def qlora(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train PEFT's LoRA of rank 8 on all linear maps of the encoder."""
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=ENCODER_LINEARS, modules_to_save=list(HEAD)
    )
    return lora.trainee(model, config, lr)


MERGED, BESIDE = "boosters merged into bfloat16", "boosters beside NF4, sums of rank 28"
WHOLE, ROUNDED = "boosters merged into float32", "boosters merged into float32 of NF4's values"
FEW, QLORA = "boosters beside NF4, sums of rank 8", "QLoRA r=8, NF4"
WAYS = (
    Way(MERGED, bfloat16, boosters, 5e-3),
    Way(WHOLE, float32, boosters, 5e-3),
    Way(ROUNDED, rounded, boosters, 5e-3),
    Way(BESIDE, nf4, as_qlora, 5e-3),
    Way(FEW, nf4, few, 5e-3),
    Way(QLORA, nf4, qlora, 2e-3),
)


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Return what the encoder's linear maps keep, scales of quantised weights included."""
    found: list[Tensor] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not is_head(name) and "lora_" not in name:
            state = getattr(module.weight, "quant_state", None)
            scales = [] if state is None else [*state.as_dict(packed=True).values()]
            found += [module.weight, *(one for one in scales if isinstance(one, Tensor))]
    return found
