"""``"optimizer": {"type": "BoostedLowRank", "params": {…}}`` of a DeepSpeed configuration, read."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from torch_xgb import BoostedLowRankOptimizer

__all__ = ["NAME", "from_json"]

NAME = "BoostedLowRank"
_ELSEWHERE = {
    "max_grad_norm": 'the configuration\'s own "gradient_clipping"',
    "torch_adam": "nothing: the base is torch.optim's already",
    "adam_w_mode": '"base": "Adam" or "AdamW"',
}


def from_json(model: nn.Module, params: Mapping[str, Any]) -> BoostedLowRankOptimizer:
    """Build the optimizer that a configuration describes.

    Args:
        model: The engine's module.
        params: ``base`` (a name of torch.optim, or a dotted path to a class; "AdamW" if left out),
            any argument of BoostedLowRankOptimizer, and the base's own.

    Raises:
        ValueError: If a key is unknown, with the right ones; if the base is; or for a value left
            at "auto", which only accelerate and the Trainer fill in.
    """
    given = dict(params)
    base = _base(given.pop("base", "AdamW"))
    ours = [
        name
        for name, parameter in inspect.signature(BoostedLowRankOptimizer).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    bases = _keywords(base)
    if bases is not None and (unknown := [key for key in given if key not in {*ours, *bases}]):
        raise ValueError(_unknown(unknown, ours, bases, getattr(base, "__name__", str(base))))
    unset = [k for k, value in given.items() if value == "auto" and k != "merge_precision"]
    if unset:
        raise ValueError(
            f'the {NAME} optimizer\'s {", ".join(unset)} is still "auto": accelerate and the '
            "Trainer fill in lr, betas, eps and weight_decay; give any other value itself"
        )
    if "betas" in given:
        given["betas"] = tuple(given["betas"])
    return BoostedLowRankOptimizer(base, model, **given)


def _base(name: object) -> Callable[..., Optimizer]:
    if isinstance(name, str):
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module) if module else torch.optim, attribute)
        except (ImportError, AttributeError):
            found = None
        if callable(found) and (module or isinstance(found, type)) and found is not Optimizer:
            return found  # type: ignore[no-any-return]
    raise ValueError(
        "base must name an optimizer of torch.optim, or one elsewhere by its dotted path "
        f'("package.module.Class"), got {name!r}'
    )


def _keywords(base: Callable[..., Optimizer]) -> list[str] | None:
    """Return what a base can be given; None if that is anything."""
    parameters = list(inspect.signature(base).parameters.values())[1:]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def _unknown(unknown: list[str], ours: list[str], bases: list[str], base: str) -> str:
    hints = "".join(f"; for {k!r} use {_ELSEWHERE[k]}" for k in unknown if k in _ELSEWHERE)
    return (
        f"unknown keys of the {NAME} optimizer in the DeepSpeed configuration: "
        f"{', '.join(map(repr, unknown))}{hints}. Known are base, {', '.join(ours)}; and, for "
        f"{base}, {', '.join(bases)}"
    )
