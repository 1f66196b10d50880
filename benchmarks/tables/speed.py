"""Time and memory of every contender."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measures.speed import LIMIT
from benchmarks.tables.table import table


def speed_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay the summary out."""
    head = [
        "",
        "step, ms",
        "wall, ms",
        "of LoRA r=8",
        "wall",
        "of its limit",
        "peak MB",
        "of LoRA's",
    ]
    head += ["most"]
    lora = rows["PEFT LoRA r=8"]["memory"]
    body = []
    for name, row in rows.items():
        memory = row["memory"]
        cells = [f"{1e3 * row[key]:.0f}" for key in ("cpu_s", "wall_s")]
        cells += [f"{row[key]:.3f}" for key in ("of_lora8", "of_lora8_wall")]
        cells += ["" if row["of_limit"] is None else f"{row['of_limit']:.3f}"]
        if memory and lora:
            ratio_ = f"{memory['mean'] / lora['mean']:.2f}"
            cells += [f"{memory['mean'] / 1e6:.0f}", ratio_, f"{memory['most'] / 1e6:.0f}"]
        else:
            cells += ["", "", ""]
        body.append([name, *cells])
    return table(head, body)


def plot(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw time and memory of every contender, in units of LoRA's."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = sorted(rows, key=lambda n: -rows[n]["of_lora8"])
    lora = rows["PEFT LoRA r=8"]["memory"]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 0.4 * len(names) + 1.2), sharey=True)
    colours = [
        "C0" if n.startswith("torch_xgb") else "0.75" if n.startswith(LIMIT) else "C1"
        for n in names
    ]
    axes[0].barh(names, [rows[n]["of_lora8"] for n in names], color=colours)
    axes[0].set_xlabel("processor time of a step / PEFT LoRA r=8")
    if lora:
        shares = [rows[n]["memory"]["mean"] / lora["mean"] for n in names]
        axes[1].barh(names, shares, color=colours)
        axes[1].set_xlabel("peak memory above the weights / PEFT LoRA r=8")
    for axis in axes:
        axis.axvline(1, color="0.3", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
