"""The family: ways of chaining pairs over K steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer

from benchmarks.subjects import minilm
from torch_xgb import BoostedLowRankOptimizer, LossPlateau

_TARGETS = r".*encoder\.layer\..*\.(query|value)"
RATES: dict[type[Optimizer], float] = {AdamW: 2e-3, Adagrad: 1e-2, SGD: 3e-1}


@dataclass(frozen=True)
class Variant:
    """One way of chaining pairs over K steps."""

    name: str
    base: type[Optimizer] = AdamW
    settings: Callable[[int], dict[str, Any]] = field(default=lambda K: {})

    def build(self, model: nn.Module, lr: float, seed: int, steps: int) -> BoostedLowRankOptimizer:
        """Attach it to a model."""
        given = {"r": 8, "kappa": None, "lora_alpha": 16, "layers_per_booster": None}
        return BoostedLowRankOptimizer(
            self.base,
            model,
            target_modules=_TARGETS,
            modules_to_save=list(minilm.HEAD),
            seed=seed,
            lr=lr,
            **{**given, **self.settings(steps)},
        )


def chain(links: int) -> Callable[[int], dict[str, Any]]:
    """Cut K steps into links of equal length."""
    return lambda K: {"kappa": tuple(K * i // links for i in range(1, links))}


def step_down(to: int) -> Callable[[int], dict[str, Any]]:
    """Spend the first half of K steps at rank 8, the other at a lower one."""
    return lambda K: {"kappa": (K // 2,), "r": [8, to]}


VARIANTS = [
    Variant("LoRA (chain length 1)"),
    Variant("COLA, chain length 2", settings=chain(2)),
    Variant("COLA, chain length 3", settings=chain(3)),
    *(Variant(f"COLA(8, {r})", settings=step_down(r)) for r in (6, 4, 2)),
    Variant("COLA, knots from the loss", settings=lambda K: {"kappa": LossPlateau()}),
    Variant("COLA with biases", settings=lambda K: chain(2)(K) | {"bias": "targets"}),
    *(Variant(f"LoRA, {base.__name__}", base) for base in (Adagrad, SGD)),
    *(Variant(f"COLA, {base.__name__}", base, chain(2)) for base in (Adagrad, SGD)),
    Variant("DiReFT", settings=lambda K: {"adapter": "direft"}),
    Variant(
        "DiReFT chain, eta ~ r^(-1/4)",
        settings=lambda K: step_down(2)(K) | {"adapter": "direft", "rank_lr_exponent": -0.25},
    ),
    Variant("XGBLoRA r=1", settings=lambda K: {"r": 1, "kappa": 8, "layers_per_booster": 4}),
]


def observing(optimizer: BoostedLowRankOptimizer, model: nn.Module) -> None:
    """Show the loss of every training forward to the optimizer's policy."""

    def show(module: nn.Module, args: object, output: Any) -> None:
        if module.training and output.get("loss") is not None:
            optimizer.observe(output["loss"])

    model.register_forward_hook(show)
