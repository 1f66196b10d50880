"""The ways to train a byte language model whose blocks' matrices only the method reaches.

Embeddings, head and norms are trained in full by all of them, at one rate that all share; only the
matrices' rate is the method's own. s = 2, as LoRA's α = 2r gives it, for all pairs.
"""

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from torch import nn
from torch.optim import AdamW, Optimizer

from benchmarks.methods.contenders import missing
from benchmarks.methods.lora import adapted
from benchmarks.methods.method import Method, Trainee
from benchmarks.subjects.bytelm import BESIDE, is_beside
from torch_xgb import BoostedLowRankOptimizer, Decay

BESIDE_RATE = 5e-3
KAPPA = 8
ADAMW: dict[str, Any] = {"weight_decay": 0.0, "fused": True}
RATES = (5e-3, 1e-2, 2e-2)
MATRICES = ["qkv", "mix", "up", "down"]


def beside_alone(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train embeddings, head and norms; the blocks' matrices stay random."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_beside(name))
    return Trainee(model, AdamW(_two(model, [], lr), **ADAMW), lambda: model)


def full(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train every parameter."""
    return Trainee(model, AdamW(_two(model, _matrices(model), lr), **ADAMW), lambda: model)


def lora(model: nn.Module, lr: float, seed: int, r: int) -> Trainee:
    """Train PEFT's LoRA."""
    wrapped = adapted(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=MATRICES))
    pairs = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or is_beside(name))
    optimizer = AdamW(_two(model, pairs, lr), **ADAMW)
    return Trainee(wrapped, optimizer, wrapped.merge_and_unload)


def boosted(
    model: nn.Module, lr: float, seed: int, r: int, tied: float | None = None, **options: Any
) -> Trainee:
    """Train boosters of κ = 8 on every block; options are the library's.

    ``tied`` is what ρ is at the peak rate, for a ρ that rises to 1 as the rate falls.
    """
    given = {"kappa": KAPPA, "layers_per_booster": None, "nonfinite": "skip", **options}
    if tied is not None:
        given["carry"] = Decay((1 - tied) / (KAPPA * lr))
    optimizer = BoostedLowRankOptimizer(
        AdamW,
        model,
        r=r,
        lora_alpha=2 * r,
        modules_to_save=list(BESIDE),
        seed=seed,
        lr=lr,
        **ADAMW,
        **given,
    )
    optimizer.param_groups[1]["lr"] = BESIDE_RATE
    return Trainee(model, optimizer, optimizer.finalize, optimizer.merge)


def galore(model: nn.Module, lr: float, seed: int, r: int) -> Trainee:
    """Train the matrices through GaLore's projected gradients, at its authors' settings."""
    from galore_torch import GaLoreAdamW

    matrices, beside = _two(model, _matrices(model), lr)
    matrices |= {"rank": r, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    optimizer: Optimizer = GaLoreAdamW([matrices, beside], no_deprecation_warning=True)
    return Trainee(model, optimizer, lambda: model)


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if not is_beside(name)]


def _two(model: nn.Module, own: Sequence[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """Return the groups of an optimizer: what is the method's own, and what all train in full."""
    beside = [p for name, p in model.named_parameters() if is_beside(name)]
    groups = [{"params": list(own), "lr": lr}, {"params": beside, "lr": BESIDE_RATE}]
    return groups if own else groups[1:]


def _ranks(name: str, build: Any, **options: Any) -> list[Method]:  # noqa: ANN401
    return [Method(f"{name} r={r}", build, RATES[1], RATES, {"r": r, **options}) for r in (1, 8)]


CARRY = 0.97
# What else was asked of carry, at its own rate: a pair let go faster, and as fast on the whole as
# CARRY lets go, but tied to the rate: faster while it is high, and at last not at all.
VARIANTS = {
    method.name: method
    for method in (
        Method("XGBLoRA, carry=0.9 r=1", boosted, 1e-2, (1e-2,), {"r": 1, "carry": 0.9}),
        Method("XGBLoRA, carry tied, 0.94 r=1", boosted, 1e-2, (1e-2,), {"r": 1, "tied": 0.94}),
    )
}


def _held(r: int, rate: float) -> dict[str, Method]:
    """Return the pair's ways with the rate held for three quarters of the run.

    A booster learns as much as its rate lets it.
    """
    carried = {"r": r, "carry": CARRY}
    methods = (
        Method(f"PEFT LoRA, held r={r}", lora, rate, (rate,), {"r": r}, 0.75),
        Method(f"XGBLoRA, carry={CARRY}, held r={r}", boosted, rate, (rate,), carried, 0.75),
    )
    return {method.name: method for method in methods}


HELD, HELD_EIGHT = _held(1, 1e-2), _held(8, 5e-3)  # at the rates that those falling have found
METHODS = {
    method.name: method
    for method in (
        Method("embeddings and head alone", beside_alone, BESIDE_RATE, (BESIDE_RATE,)),
        Method("full", full, 2e-3, (1e-3, 2e-3, 4e-3)),
        *_ranks("PEFT LoRA", lora),
        *_ranks("XGBLoRA", boosted),
        *_ranks(f"XGBLoRA, carry={CARRY}", boosted, carry=CARRY),
        # The restart of its paper, without the warm start in full: pairs and their state anew, the
        # rate rising again.
        *_ranks("ReLoRA", boosted, kappa=200, rewarmup_steps=20),
        *_ranks("GaLore", galore),
        *VARIANTS.values(),
        *HELD.values(),
        *HELD_EIGHT.values(),
    )
}
# What is installed here; the tables show what is recorded of all.
HERE = {n: m for n, m in METHODS.items() if m.build is not galore or not missing("GaLore")}
