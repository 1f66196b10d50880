"""Boosters that start and step in other ways than the paper's, one part at a time."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.methods.method import Method
from benchmarks.methods.minilm import compared, xgblora

TASK_NAMES = ("TREC", "SST-2")
_GRADIENT = {"start": "gradient"}
_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "the paper's restart": {},
    "the paper's restart, biases too": {"bias": "targets"},
    'init="gradient"': {"init": "gradient"},  # the library's own A = uᵀG, with AdamW itself
    "A = uᵀG": _GRADIENT,
    "A = uᵀG, biases too": _GRADIENT | {"bias": "targets"},
    "A = uᵀG, no momentum": _GRADIENT | {"beta1": 0.0},
    "A = uᵀG, A not trained": _GRADIENT | {"ratio": 0.0},
    "A = uᵀG, no momentum, A not trained": _GRADIENT | {"ratio": 0.0, "beta1": 0.0},
    "A = uᵀG, second moment kept": _GRADIENT | {"keep": "second"},
    "A = uᵀG, no momentum, second moment kept": _GRADIENT | {"keep": "second", "beta1": 0.0},
    "A = uᵀG, κ = 16": _GRADIENT | {"kappa": 16},
    "A = uᵀG, 4 of 6 blocks": _GRADIENT | {"layers_per_booster": 4},
    "A = uᵀG, by tensor, second moment kept": _GRADIENT | {"scale": "tensor", "keep": "second"},
    "A by power iteration": {"start": "power"},
    "A orthogonal to earlier ones": {"start": "orthogonal"},
    "A kept": {"start": "kept"},
    "all state kept": {"keep": "all"},
    "A and second moment kept": {"start": "kept", "keep": "second"},
    "A and all state kept": {"start": "kept", "keep": "all"},
    "A and all state kept, κ = 32": {"start": "kept", "keep": "all", "kappa": 32},
    "carry=0.7": {"carry": 0.7},  # the library's own: A, the state, and 0.7 of B
    "carry=0.9": {"carry": 0.9},
    "carry=0.97": {"carry": 0.97},
    "carry=0.97, 4 of 6 blocks": {"carry": 0.97, "layers_per_booster": 4},
    "carry=1": {"carry": 1.0},
    "A kept, steps of unit norm": {"start": "kept", "scale": "norm"},
    "no momentum": {"beta1": 0.0},
    "second moment kept": {"keep": "second"},
    "no momentum, second moment kept": {"keep": "second", "beta1": 0.0},
    "by tensor, second moment kept": {"keep": "second", "scale": "tensor"},
    "warm-up of 4 in the booster": {"warmup": 4},
    "A four times faster": {"ratio": 4.0},
    "A four times slower (LoRA+)": {"ratio": 0.25},
    "one booster over all steps": {"kappa": None, "layers_per_booster": None},
    "one booster, A not trained": {"kappa": None, "layers_per_booster": None, "ratio": 0.0},
}
CROSSING = (300, 900, 1800, 3600)
CURVES = ("PEFT LoRA r=8", "one booster over all steps", "the paper's restart", "carry=0.97")
_RATES = (2e-3, 5e-3)
_LOWER_RATES = {"PEFT LoRA r=8": (1e-3, 2e-3), "full fine-tuning": (1e-4, 2e-4)}


def variants() -> dict[str, Method]:
    """Return the methods to compare with, and every variant of the boosters."""
    boosted = {
        name: Method(name, xgblora, _RATES[1], _RATES, {"layers_per_booster": 6, **options})
        for name, options in _VARIANTS.items()
    }
    others = {
        name: replace(method, grid=_LOWER_RATES.get(name, _RATES))
        for name, method in compared(1).items()
        if name in ("PEFT LoRA r=8", "PEFT LoRA r=1", "full fine-tuning", "BitFit", "head only")
    }
    return others | boosted
