"""One setting of XGBLoRA at a time, the others at their defaults, on two tasks.

    python -m benchmarks.ablation                     # everything; goes on where it stopped
    python -m benchmarks.ablation --quick             # the same, 16 steps, one seed
    python -m benchmarks.ablation --only kappa r

The rate is the one that the default setting's search found (XGBLoRA r=1, as benchmarks.glue): a
search for every value would cost four times as much, so a value that needs a rate of its own is
treated harshly here; where that was suspected, benchmarks.dynamics has searched. κ = K is one
booster, merged at the end.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import minilm
from benchmarks.journal import Journal
from benchmarks.methods import Method, compared, xgblora
from benchmarks.sweep import (
    QUICK_RUNS,
    RUNS,
    Run,
    common_rate,
    common_searches,
    interval,
    work,
)
from benchmarks.table import table
from benchmarks.tasks import TASKS

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


def ablation_table(
    setting: str, tasks: Sequence[str], steps: int, seeds: int, journal: Journal
) -> str:
    """Lay out what is recorded of one setting: score and training loss."""
    rows = []
    for value in GRIDS[setting]:
        row = [value]
        for task in tasks:
            found = recorded(method(setting, value), task, steps, seeds, journal)
            row += _cells([r["score"] for r in found], [r["loss"] for r in found])
        rows.append(row)
    head = [cell for task in tasks for cell in (f"{task}, score", "training loss")]
    return table([setting, *head], rows)


def recorded(
    method: Method, task: str, steps: int, seeds: int, journal: Journal
) -> list[dict[str, Any]]:
    """Return the recorded runs of a method at the default's rate."""
    lr = common_rate(TASK_NAMES, XGBLORA, steps, journal)
    if lr is None:
        return []
    runs = [Run(task, method, lr, seed, steps) for seed in range(seeds)]
    return [journal[run.key] for run in runs if run.key in journal]


def _cells(scores: Sequence[float], losses: Sequence[float]) -> list[str]:
    """Format mean score with its 95 % interval, and mean loss."""
    if not scores:
        return ["–", "–"]
    mean, half = interval(scores)
    spread = f" ± {100 * half:.1f}" if len(scores) > 1 else ""
    return [f"{100 * mean:.1f}{spread}", f"{sum(losses) / len(losses):.3f}"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="16 steps, one seed")
    parser.add_argument("--only", nargs="+", choices=tuple(GRIDS), default=tuple(GRIDS))
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=TASK_NAMES)
    parser.add_argument("--steps", type=int, default=300, help="(default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    options = parser.parse_args(argv)
    if options.quick:
        options.steps, options.seeds = 16, 1
    try:
        minilm.folder()
    except ValueError as error:
        sys.exit(f"benchmarks.ablation: {error}")
    journal = Journal(QUICK_RUNS if options.quick else RUNS)
    work(common_searches(TASK_NAMES, XGBLORA, options.steps), journal)
    lr = common_rate(TASK_NAMES, XGBLORA, options.steps, journal)
    assert lr is not None
    for task in options.tasks:
        for seed in range(options.seeds):  # every value once before any twice
            for setting in options.only:
                values = [method(setting, value) for value in GRIDS[setting]]
                work([Run(task, m, lr, seed, options.steps) for m in values], journal)
    for setting in options.only:
        args = (options.tasks, options.steps, options.seeds, journal)
        print(ablation_table(setting, *args), end="\n\n")


if __name__ == "__main__":
    main()
