"""Ways to hold a model's weights in training: the policies of ``merge_precision``."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.subjects import minilm
from benchmarks.subjects.classification import Task
from torch_xgb import BoostedLowRankOptimizer

KAPPA, LAYERS_PER_BOOSTER, HEAD_LR = 8, 4, 1e-3
FLOAT32, KEPT_IN_FLOAT32, ROUNDED = "float32", "kept in float32", "float32, rounded at the end"
_F, _B = torch.float32, torch.bfloat16
POLICIES = ("nearest", "stochastic", "residual")
Pairs = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Variant:
    """A way to hold the weights."""

    policy: str
    adapted: torch.dtype  # of the weights that boosters are merged into
    frozen: torch.dtype  # of the rest of the encoder, and of what is computed

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the frozen weights' dtype."""
        return nullcontext() if self.frozen == _F else torch.autocast("cpu", self.frozen)


VARIANTS = {
    FLOAT32: Variant("nearest", _F, _F),
    KEPT_IN_FLOAT32: Variant("nearest", _F, _B),
    "nearest": Variant("nearest", _B, _B),
    "stochastic": Variant("stochastic", _B, _B),
    "residual": Variant("residual", _B, _B),
}


def build(task: Task, variant: Variant, seed: int) -> nn.Module:
    """Load the model, round all but its head to bfloat16, and hold it as the variant does."""
    model = minilm.classifier(task.labels, seed).eval()  # eval: no dropout
    for name, module in model.named_modules():
        if minilm.is_head(name):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            adapted = isinstance(module, nn.Linear) and key == "weight"
            dtype = variant.adapted if adapted else variant.frozen
            parameter.data = parameter.data.to(_B).to(dtype)
    return model


def before_merges(optimizer: BoostedLowRankOptimizer, take: Callable[[int, Pairs], None]) -> None:
    """Hand every booster's index and factor pairs over, just before it is merged."""

    @torch.no_grad()
    def stepped(*_: object) -> None:
        if optimizer.booster_step == KAPPA - 1:  # the step just taken is not counted yet
            take(optimizer.booster_index, optimizer.active_factors)

    optimizer.base.register_step_post_hook(stepped)
