"""The wrapper's step against each setting."""

from collections.abc import Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from benchmarks.measures.scaling import Found
from benchmarks.runs.provenance import provenance
from benchmarks.tables.table import table


def scaling_table(found: Mapping[str, Found]) -> str:
    """Lay out the milliseconds of a step and of the base's part, a row a setting's value."""
    first = next(iter(found.values()))
    rows = [
        [f"{setting} = {value}"]
        + [f"{us / 1e3:.2f}" for varied in found.values() for us in astuple(varied[setting][value])]
        for setting, values in first.items()
        for value in values
    ]
    head = [f"{base}{part}" for base in found for part in (", ms a step", "'s own")]
    return table(["", *head], rows)


def record(found: Mapping[str, Found]) -> dict[str, Any]:
    """Gather the figures for the file."""
    steps = {
        base: {n: {v: asdict(step) for v, step in some.items()} for n, some in varied.items()}
        for base, varied in found.items()
    }
    return {**provenance(), "us": steps}


def plot(found: Mapping[str, Found], path: Path) -> None:
    """Draw the time of a step against each setting."""
    from matplotlib.figure import Figure

    labels = {"blocks": "blocks L", "drawn": "drawn blocks L_s", "kappa": "κ", "r": "rank r"}
    figure = Figure(figsize=(11, 3.0), layout="constrained")
    axes = figure.subplots(1, len(labels), sharey=True)
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for (base, varied), colour in zip(found.items(), ("C0", "C1"), strict=True):
            steps = varied[name]
            whole = [step.whole / 1e3 for step in steps.values()]
            axis.plot(list(steps), whole, f"{colour}-o", ms=4, label=f"step(), {base}")
            inner = [step.base / 1e3 for step in steps.values()]
            axis.plot(list(steps), inner, f"{colour}:", label=f"of it {base}'s own")
        axis.set_xlabel(label)
        axis.grid(alpha=0.25, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("ms a step")
    axes[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
