"""The README's picture: what a step takes of LoRA's, and what becomes of scores with more steps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs.journal import RESULTS
from benchmarks.tables.curves import Curve

SPEED = RESULTS / "speed-minilm.json"
_SHOWN = {  # contender: its label, and where that stands beside the point
    "torch_xgb r=1, uniform": ("boosters", (8, -2)),
    "torch_xgb r=1, window": ("windows", (-24, -14)),
    "torch_xgb, half checkpointed, window": ("half checkpointed", (8, -3)),
    "torch_xgb, checkpointed, window": ("checkpointed", (8, -3)),
    "PEFT LoRA r=8": ("LoRA r=8", (8, -3)),
    "PEFT LoRA r=8, checkpointed": ("LoRA, checkpointed", (-50, 8)),
    "BAdam, 2 blocks": ("BAdam", (8, -3)),
    "GaLore r=8": ("GaLore", (8, 2)),
    "full AdamW": ("full fine-tuning", (-30, -13)),
}
_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "PEFT LoRA r=8": ("LoRA r=8", {"color": "0.4"}),
    "one booster over all steps": ("LoRA r=1, by one booster", {"color": "0.6", "ls": "--"}),
    "the paper's restart": ("boosters r=1", {"color": "C0", "ls": "--"}),
    "carry=0.97": ("boosters r=1, carry=0.97", {"color": "C0"}),
}


def draw_overview(path: Path, scores: Sequence[Curve]) -> None:
    """Draw both panels.

    Args:
        path: The picture.
        scores: A curve a method, of its score against steps.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    costs, gains = figure.subplots(1, 2)
    _costs(costs, json.loads(SPEED.read_text(encoding="utf-8"))["rows"])
    for curve in scores:
        label, style = _CURVES[curve.label]
        gains.plot(curve.x, curve.y, lw=1.6, marker="o", ms=4, label=label, **style)
    gains.set_xscale("log")
    gains.set_xticks(
        measured := sorted({x for c in scores for x in c.x}), [f"{x:,}" for x in measured]
    )
    gains.minorticks_off()
    gains.set(xlabel="steps", ylabel="score on TREC", ylim=(93, 97))
    gains.legend(fontsize=8, loc="lower right")
    for axes in (costs, gains):
        axes.grid(alpha=0.25, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _costs(axes: Any, rows: Mapping[str, Mapping[str, Any]]) -> None:
    lora = rows["PEFT LoRA r=8"]["memory"]["mean"]
    for name, (label, offset) in _SHOWN.items():
        point = rows[name]["of_lora8"], rows[name]["memory"]["mean"] / lora
        ours = name.startswith("torch_xgb")
        axes.plot(*point, "o" if ours else "s", color="C0" if ours else "0.4", ms=6)
        axes.annotate(
            label,
            point,
            offset,
            textcoords="offset points",
            fontsize=8,
            color="C0" if ours else "0.3",
        )
    axes.set(xlabel="time of a step, of LoRA's", ylabel="peak memory, of LoRA's")
    axes.set(xlim=(0.55, 1.75), ylim=(0, 1.9))
