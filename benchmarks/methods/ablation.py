"""XGBLoRA with one setting changed, the others at their defaults."""

from collections.abc import Mapping
from typing import Any

from benchmarks.methods.method import Method
from benchmarks.methods.minilm import compared, xgblora

Options = Mapping[str, Any]
XGBLORA = compared(1)["XGBLoRA r=1"]
TASK_NAMES = ("TREC", "SST-2")

GRIDS: dict[str, dict[str, Options]] = {
    "kappa": {
        **{str(k): {"kappa": k} for k in (1, 2, 4, 8, 16, 32, 64)},
        "K, every block": {"kappa": None, "layers_per_booster": None},
    },
    "r": {str(r): {"r": r} for r in (1, 4, 8, 16)},
    "L_s": {str(L_s): {"layers_per_booster": L_s} for L_s in (1, 2, 3, 4, 6)},
    "reset": {
        "state and A (the paper)": {},
        "A kept": {"start": "kept"},
        "second moment kept": {"keep": "second"},
        "all state kept": {"keep": "all"},
        "A and all state kept": {"start": "kept", "keep": "all"},
    },
    "sampler": {name: {"layer_sampler": name} for name in ("uniform", "cyclic", "window")},
    "alpha_t": {str(alpha): {"shrinkage": alpha} for alpha in (1.0, 0.7, 0.5)},
    "lambda": {str(weight): {"factor_l2": weight} for weight in (0.0, 1e-4, 1e-2)},
    "s": {str(s): {"lora_alpha": s} for s in (0.5, 1.0, 2.0, 4.0)},
}
# What a grid's default value is written as, so that its run is the default's own.
_DEFAULTS: dict[str, Any] = {
    "kappa": 8,
    "r": 1,
    "layers_per_booster": 4,
    "layer_sampler": "uniform",
    "shrinkage": 1.0,
    "factor_l2": 0.0,
    "lora_alpha": 1.0,
}


def method(setting: str, value: str) -> Method:
    """Return XGBLoRA with one setting changed."""
    options = GRIDS[setting][value]
    changed = {k: v for k, v in options.items() if k not in _DEFAULTS or v != _DEFAULTS[k]}
    return Method(f"XGBLoRA, {setting} = {value}", xgblora, XGBLORA.lr, XGBLORA.grid, changed)
