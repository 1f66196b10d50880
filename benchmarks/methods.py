"""The four ways to fine-tune that are compared: a model in, a model and its optimizer out.

The head (pooler and classifier) is trained in full in all four, at the same rate as the rest.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from peft import LoraConfig, get_peft_model
from torch import nn
from torch.optim import AdamW, Optimizer

from benchmarks.minilm import HEAD, is_head
from torch_xgb import BoostedLowRankOptimizer

ENCODER_LINEARS = r".*encoder\.layer\..*\.(query|key|value|dense)"


@dataclass(frozen=True)
class Trainee:
    """What a training loop needs."""

    model: nn.Module
    optimizer: Optimizer
    finish: Callable[[], nn.Module]  # training is over: the plain model
    next_booster: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Method:
    """A way to fine-tune, with the rates that a search tries (as many for every method)."""

    name: str
    build: Callable[[nn.Module, float, int], Trainee]
    lr: float
    grid: tuple[float, ...]


def head_only(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train the head, on an encoder left as it is."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(name))
    head = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Trainee(model, AdamW(head, lr=lr, weight_decay=0.0), lambda: model)


def full(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train every parameter."""
    return Trainee(model, AdamW(model.parameters(), lr=lr, weight_decay=0.0), lambda: model)


def lora(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train PEFT's LoRA, rank 8 and alpha 16, on all linear layers of the encoder."""
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=ENCODER_LINEARS, modules_to_save=list(HEAD)
    )
    with warnings.catch_warnings():
        # peft 0.21 asks for this under a name that transformers 5 deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = get_peft_model(model, config)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = AdamW(trained, lr=lr, weight_decay=0.0)
    return Trainee(adapted, optimizer, adapted.merge_and_unload)


def xgblora(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train rank-1 boosters of 8 steps on all linear layers of 4 drawn blocks.

    Everything is the paper's default but the number of blocks: it draws 8 of RoBERTa's 12, and
    4 of MiniLM's 6 is the same share.
    """
    optimizer = BoostedLowRankOptimizer(
        AdamW,
        model,
        r=1,
        kappa=8,
        layers_per_booster=4,
        target_modules=ENCODER_LINEARS,
        modules_to_save=list(HEAD),
        seed=seed,
        lr=lr,
        weight_decay=0.0,
    )
    return Trainee(model, optimizer, optimizer.finalize, optimizer.merge)


# The rates are those that `python examples/finetune_classifier.py --search` found (seed 0, 440
# rows held out of train), the best inside the grid for every method.
METHODS = {
    method.name: method
    for method in (
        Method("head only", head_only, 5e-3, (1e-3, 2e-3, 5e-3, 1e-2)),
        Method("full fine-tuning", full, 5e-4, (1e-4, 2e-4, 5e-4, 1e-3)),
        Method("PEFT LoRA r=8", lora, 2e-3, (5e-4, 1e-3, 2e-3, 5e-3)),
        Method("XGBLoRA r=1", xgblora, 2e-3, (1e-3, 2e-3, 5e-3, 1e-2)),
    )
}
