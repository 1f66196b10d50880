"""A run in one picture: loss, scores, and the boosters' updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_run"]

_ALIKE = ("eval_accuracy", "eval_f1", "eval_pearson", "eval_spearman")  # shares, at most 1
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
    panels = [curves for names in _panels(history) if (curves := _curves(history, names))]
    figure = Figure(figsize=(7, 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, curves in zip(axes, panels, strict=True):
        for name, (steps, values) in curves.items():
            axis.plot(steps, values, marker="." if len(steps) < 40 else None, label=name)
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(file, dpi=120)
    return file


def _panels(history: Log) -> list[dict[str, str]]:
    """Return what is drawn together, each with its name in the legend."""
    scored = {name for entry in history for name in entry if name.startswith("eval_")}
    scored = {name for name in scored if not name.endswith(("_runtime", "_per_second", "_loss"))}
    alike = [[n for n in _ALIKE if n in scored], *([n] for n in sorted(scored - {*_ALIKE}))]
    shown = [{n: f"{n.removeprefix('eval_')}, dev" for n in names} for names in alike]
    losses = {"loss": "loss", "eval_loss": "loss, dev"}
    return [losses, *shown, {"booster/update_norm": "a booster's ‖ΔW‖"}]


def _curves(history: Log, names: Mapping[str, str]) -> dict[str, tuple[list[int], list[float]]]:
    found = {}
    for name, title in names.items():
        if points := {entry["step"]: entry[name] for entry in history if name in entry}:
            found[title] = ([*points], [*points.values()])
    return found
