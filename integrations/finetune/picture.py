"""A run in one picture: loss, scores, and the boosters' updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_run"]

Log = Sequence[Mapping[str, Any]]


def draw_run(history: Log, file: Path) -> Path | None:
    """Draw what was logged over the steps.

    Args:
        history: The Trainer's ``log_history``.
        file: Where to.

    Returns:
        The file, or None where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    curves = _curves(history)
    figure = Figure(figsize=(7, 2.2 * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axis, (title, (steps, values)) in zip(axes, curves.items(), strict=True):
        axis.plot(steps, values, marker="." if len(steps) < 40 else None)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    figure.savefig(file, dpi=120)
    return file


def _curves(history: Log) -> dict[str, tuple[list[int], list[float]]]:
    names = {"loss": "loss", "eval_loss": "loss, dev"}
    scored = {n for entry in history for n in entry if n.startswith("eval_")}
    others = [n for n in sorted(scored) if not n.endswith(("_runtime", "_per_second", "_loss"))]
    names |= {name: f"{name.removeprefix('eval_')}, dev" for name in others}
    names["booster/update_norm"] = "a booster's ‖ΔW‖"
    found = {}
    for name, title in names.items():
        points = {entry["step"]: entry[name] for entry in history if name in entry}
        if points:
            found[title] = ([*points], [*points.values()])
    return found
