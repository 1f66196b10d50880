"""What does not go together with tensor parallelism: said before anything of a model is changed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from torch_xgb.boosters.booster import Booster
from torch_xgb.boosters.forms import LoRA
from torch_xgb.targets.layers import Target
from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.sharded import is_cut, is_parallel, is_sharded

__all__ = ["refuse"]

_TRANSFORMERS = "transformers.distributed."


def refuse(model: nn.Module, booster: Booster) -> None:
    """Refuse what a model whose weights tensor parallelism cuts cannot be trained with.

    Raises:
        ValueError: With the first weight's name, and the way out.
    """
    targets = [target for layer in booster.layers for target in layer.targets]
    plain = [t.name for t in targets if _is_plain_part(t)]
    if plain:
        raise ValueError(
            f"{len(plain)} weights, first {plain[0]!r}, are parts that transformers' tensor "
            "parallelism keeps as plain tensors, which nobody can tell from whole ones: take "
            "transformers 5.17 or later, which keeps DTensors, or parallelize_module"
        )
    if not is_parallel(model):
        return
    cut = [target for target in targets if is_cut(model, target.weight.parameter)]
    for names, what, remedy in _obstacles(targets, cut, booster, is_sharded(model)):
        if names:
            raise ValueError(
                f"the model's weights are cut by tensor parallelism, and {what} ({len(names)} "
                f"found, first {names[0]!r}): {remedy}, or leave them out with exclude_modules"
            )


def _obstacles(
    targets: list[Target], cut: list[Target], booster: Booster, sharded: bool
) -> Iterator[tuple[list[str], str, str]]:
    every = [target.name for target in cut]
    # FSDP2's share of them aside
    meshes = {t.name: p.device_mesh for t in cut if is_dtensor(p := t.weight.parameter)}
    yield (
        [n for n, mesh in meshes.items() if mesh.ndim > 1 and not sharded],
        "a mesh of several dimensions cuts them, of which boosters follow one",
        "give parallelize_module one dimension of it, as mesh['tp']",
    )
    yield (
        [target.name for target in cut if target.weight.bare],
        "a bare Parameter is read whole or in parts as its module likes",
        "pass target_parameters=[]",
    )
    yield (
        every if not isinstance(booster.form, LoRA) else [],
        "adapter='direft' reads outputs of which a process has a part",
        "pass adapter='lora'",
    )
    yield (
        every if booster.dropout else [],
        "lora_dropout would drop other inputs than one process does, or other ones in each",
        "pass lora_dropout=0.0",
    )
    yield (
        [t.name for t in targets if t not in cut and _is_laid_out(t)],
        "a plain weight has a forward that leaves each process a part of its gradient",
        "cut the weight too",
    )


def _is_plain_part(target: Target) -> bool:
    """Tell a part of a weight that transformers before 5.17 has cut."""
    planned = any(getattr(module, "_hf_tp_plan", None) for module in target.modules)
    return planned and not is_dtensor(target.weight.parameter)


def _is_laid_out(target: Target) -> bool:
    """Tell a plain weight whose forward on the instance is transformers' for its plans."""
    forwards = (vars(module).get("forward") for module in target.modules)
    return any(str(getattr(f, "__module__", "")).startswith(_TRANSFORMERS) for f in forwards)
