"""The README's picture: scores at equal time against memory, and against time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.methods.frontier import CARRIED, LORA, PAPER
from benchmarks.tables.curves import Curve
from benchmarks.tables.frontier import Reached

# An entry: its label, and where that stands beside the point.
_SHOWN: dict[str, tuple[str, tuple[int, int], str]] = {
    "full fine-tuning": ("full fine-tuning", (-8, -3), "right"),
    "PEFT LoRA r=1": ("LoRA r=1", (6, -11), "left"),
    LORA: ("LoRA r=8", (8, -3), "left"),
    f"{LORA}, checkpointed": ("LoRA r=8", (0, 7), "center"),
    "PEFT LoRA r=32": ("LoRA r=32", (8, -3), "left"),
    "BAdam, 1 block": ("BAdam", (8, 3), "left"),
    "GaLore r=8": ("GaLore", (8, -3), "left"),
    PAPER: ("boosters, 4 of 6 blocks", (8, -10), "left"),
    f"{PAPER}, checkpointed": ("boosters", (8, -3), "left"),
    CARRIED: ("carry=0.97", (-4, 8), "left"),
    f"{CARRIED}, checkpointed": ("carry=0.97", (8, -3), "left"),
    f"{CARRIED}, 2 of 6 blocks": ("carry=0.97, 2 of 6 blocks", (14, 1), "left"),
    f"{CARRIED}, 2 of 6 blocks, checkpointed": ("carry=0.97, 2 of 6", (8, -3), "left"),
}
_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "PEFT LoRA r=8": ("LoRA r=8", {"color": "0.4"}),
    "one booster over all steps": ("LoRA r=1, by one booster", {"color": "0.6", "ls": "--"}),
    "the paper's restart": ("boosters r=1", {"color": "C0", "ls": "--"}),
    "carry=0.97": ("boosters r=1, carry=0.97", {"color": "C0"}),
}


def draw_overview(path: Path, reached: Sequence[Reached], scores: Sequence[Curve]) -> None:
    """Draw both panels.

    Args:
        path: The picture.
        reached: What methods reach in LoRA's time.
        scores: A curve a method, of its score against time, in steps of LoRA's.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    memory, time = figure.subplots(1, 2)
    _memory(memory, reached)
    for curve in scores:
        label, style = _CURVES[curve.label]
        time.plot(curve.x, curve.y, lw=1.6, marker="o", ms=4, label=label, **style)
    time.set_xscale("log")
    time.set_xticks(ticks := (300, 900, 1800, 3600), [f"{x:,}" for x in ticks])
    time.minorticks_off()
    time.set(xlabel="time, in steps of LoRA r=8", ylabel="score on TREC", ylim=(93, 97))
    if scores:
        time.legend(fontsize=8, loc="lower right")
    for axes in (memory, time):
        axes.grid(alpha=0.25, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _memory(axes: Any, reached: Sequence[Reached]) -> None:
    """Draw a point an entry, hollow where it took longer, and a line along the best for less."""
    for one in reached:
        label, offset, side = _SHOWN[one.entry.name]
        color = "C0" if one.entry.boosted else "0.35"
        point = one.memory / 1e6, one.score
        style = {"mfc": "white" if one.later else color, "mec": color}
        axes.plot(*point, "^" if one.entry.checkpointed else "o", ms=6, **style)
        beside = {"textcoords": "offset points", "fontsize": 8, "color": color, "ha": side}
        axes.annotate(label, point, offset, **beside)
    best = frontier(reached)
    axes.step(
        [x / 1e6 for x, _ in best], [y for _, y in best], where="post", color="0.85", zorder=0
    )
    axes.plot([], [], "^", color="0.35", ms=6, label="checkpointed")
    if any(one.later for one in reached):
        hollow = {"mfc": "white", "mec": "0.35", "label": "300 steps, more than LoRA's time"}
        axes.plot([], [], "o", ms=6, **hollow)
    axes.legend(fontsize=8, loc="upper right")
    axes.set(
        xlabel="memory of a run, MB, weights and all",
        ylabel="mean of TREC and STS-B",
        xlim=(90, 480),
    )


def frontier(reached: Sequence[Reached]) -> list[tuple[float, float]]:
    """Return memory and score of what no other beats with as little memory, in as little time."""
    best: list[tuple[float, float]] = []
    for one in sorted(reached, key=lambda r: (r.memory, -r.score)):
        if not one.later and (not best or one.score > best[-1][1]):
            best.append((one.memory, one.score))
    return best
