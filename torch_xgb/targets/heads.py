"""The modules trained in full beside the boosters: named, or a transformers model's task head."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from torch import nn

__all__ = ["find_heads", "select_saved"]


def select_saved(model: nn.Module, modules_to_save: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the modules to be trained in full.

    Args:
        model: The model.
        modules_to_save: Names or name suffixes, as PEFT's argument of this name; None finds the new
            task head of a transformers model; an empty list trains none.

    Raises:
        TypeError: If it is no list of strings.
        ValueError: If a name matches no module with parameters.
    """
    heads = find_heads(model)
    if modules_to_save is None:
        return heads
    if (
        isinstance(modules_to_save, str)
        or not isinstance(modules_to_save, Iterable)
        or not all(isinstance(name, str) for name in modules_to_save)
    ):
        raise TypeError(f"modules_to_save must be a list of module names, got {modules_to_save!r}")
    saved: dict[str, nn.Module] = {}
    for entry in modules_to_save:
        matches = {n: m for n, m in model.named_modules() if n == entry or n.endswith(f".{entry}")}
        matches = {n: m for n, m in matches.items() if any(True for _ in m.parameters())}
        if not matches:
            known = ", ".join(
                n for n, m in model.named_children() if any(True for _ in m.parameters())
            )
            raise ValueError(
                f"modules_to_save: no module with parameters matches {entry!r}; top level: {known}"
            )
        saved |= matches
    for name in heads.keys() - saved.keys():
        if saved:
            warnings.warn(
                f"the task head {name!r} is not in modules_to_save and stays frozen", stacklevel=5
            )
    return saved


def find_heads(model: nn.Module) -> dict[str, nn.Module]:
    """Return the task heads of a transformers model: what stands beside its base model.

    The output embedding of a language model is no task head. A transformers model is known by the
    two attributes all of them carry, ``base_model_prefix`` and ``get_output_embeddings``.
    """
    prefix = getattr(model, "base_model_prefix", None)
    if not isinstance(prefix, str) or not hasattr(model, "get_output_embeddings"):
        return {}
    base = model._modules.get(prefix)
    if base is None and not type(model).__name__.endswith("Classification"):
        return {}
    backbone = base if base is not None else max(model.children(), key=_size)
    backbone_parameters = {id(p) for p in backbone.parameters()}
    embedding = model.get_output_embeddings()  # type: ignore[operator]
    heads = {}
    for name, child in model.named_children():
        own = [p for p in child.parameters() if id(p) not in backbone_parameters]
        generates = embedding is not None and any(m is embedding for m in child.modules())
        if own and child is not backbone and not generates:
            heads[name] = child
    return heads


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
