"""What of a model nobody trains, as it was: its frozen Parameters that no booster is merged into.

Buffers are left out: calls of a model in training change them, at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from torch_xgb.boosters.booster import Booster
from torch_xgb.weights.fingerprints import NUMBERING

__all__ = ["check_rest", "rest"]


def rest(booster: Booster) -> dict[str, dict[str, Any]]:
    """Return what each is known by again: its dtype, and a number of its values."""
    named = booster.freeze.left_alone(booster.model)
    plain = {name: p for name, p in named.items() if _is_plain(p)}
    found = NUMBERING.of_parameters(plain)
    return {n: {"dtype": str(plain[n].dtype), "number": number} for n, number in found.items()}


def check_rest(saved: object, booster: Booster) -> None:
    """Compare what was saved with what is here; what was cast to another dtype is let be.

    Raises:
        ValueError: If it is damaged.
        RuntimeError: If it does not belong to the model's weights.
    """
    if not isinstance(saved, Mapping) or not all(map(_is_known, saved.values())):
        raise ValueError("the state is damaged: 'rest' does not tell Parameters by numbers")
    here = rest(booster)
    alike = [n for n in saved if n in here and here[n]["dtype"] == saved[n]["dtype"]]
    if other := [name for name in alike if here[name] != saved[name]]:
        raise RuntimeError(
            "the optimizer's state does not belong to the model's weights: of those that stay "
            f"frozen {len(other)} differ, first {other[0]!r}. Load the model saved together "
            "with this state first: model.load_state_dict(...), then "
            "optimizer.load_state_dict(...). If they were changed on purpose, remove "
            "'rest' and 'seal' from state['booster']"
        )


def _is_plain(parameter: nn.Parameter) -> bool:
    plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided
    return plain and not parameter.is_meta and not parameter.is_quantized


def _is_known(value: object) -> bool:
    return isinstance(value, Mapping) and {"dtype", "number"} <= value.keys()
