"""What a restart costs, and what a booster could do instead: one part at a time.

    python -m benchmarks.dynamics                     # two tasks, three seeds; resumes
    python -m benchmarks.dynamics --only "A kept" "A = uᵀG"
    python -m benchmarks.dynamics --tasks TREC --seeds 1
    python -m benchmarks.dynamics --crossing          # K = 300 to 3,600 instead

Rank-1 boosters of 8 steps on all six blocks of MiniLM, so that nothing but the booster's start and
steps differs from LoRA, which is there with ranks 8 and 1, as are full fine-tuning, BitFit and the
head alone. Every variant has two rates and keeps the one with the lower loss on the scored rows:
even, but a little high. See ``benchmarks.bases.Dynamics`` for what each part does.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import minilm
from benchmarks.journal import Journal, Record
from benchmarks.methods import Method, compared, xgblora
from benchmarks.sweep import FINAL, RUNS, Run, interval, work
from benchmarks.table import table
from benchmarks.tasks import TASKS

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


def runs(task: str, method: Method, steps: int, seeds: int) -> list[Run]:
    """Return a variant's runs at both rates."""
    rates = method.grid
    return [Run(task, method, lr, seed, steps, FINAL) for seed in range(seeds) for lr in rates]


def best(task: str, method: Method, steps: int, seeds: int, journal: Journal) -> list[Record]:
    """Return the recorded runs at the rate of least mean loss on the scored rows.

    Every method chooses between as many rates, on the rows that are scored: the comparison is even,
    the figures are a little high.
    """
    found = []
    for lr in method.grid:
        wanted = (Run(task, method, lr, seed, steps) for seed in range(seeds))
        found.append([journal[run.key] for run in wanted if run.key in journal])
    most = max(map(len, found))
    complete = [records for records in found if most and len(records) == most]
    return min(complete, key=lambda rs: statistics.fmean(r["dev_loss"] for r in rs), default=[])


def dynamics_table(tasks: Sequence[str], steps: int, seeds: int, journal: Journal) -> str:
    """Lay out what is recorded, leaving out variants without any run."""
    rows = []
    for name, method in variants().items():
        cells, any_run = [name], False
        for task in tasks:
            records = best(task, method, steps, seeds, journal)
            any_run |= bool(records)
            cells += _cells(records)
        if any_run:
            rows.append(cells)
    columns = ("seeds", "rate", "dev loss", "of seed 0", "train loss")
    head = [cell for task in tasks for cell in (task, *columns)]
    return table(["variant", *head], rows) if rows else "nothing is recorded yet"


def _cells(records: Sequence[Record]) -> list[str]:
    """Format score with its 95 % interval, seeds, rate and losses.

    The loss of seed 0 is what variants with one seed can be compared by.
    """
    if not records:
        return ["–"] * 6
    mean, half = interval([r["score"] for r in records])
    spread = f" ± {100 * half:.1f}" if len(records) > 1 else ""
    dev, train = (statistics.fmean(r[k] for r in records) for k in ("dev_loss", "loss"))
    losses = [f"{loss:.3f}" for loss in (dev, records[0]["dev_loss"], train)]
    rate = f"{records[0]['key']['lr']:g}"
    return [f"{100 * mean:.1f}{spread}", str(len(records)), rate, *losses]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dynamics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    named = variants()
    parser.add_argument("--only", nargs="+", choices=tuple(named), metavar="VARIANT")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=TASK_NAMES)
    parser.add_argument("--steps", type=int, default=300, help="(default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--crossing", action="store_true", help="K = 300, 900, 1,800, 3,600")
    options = parser.parse_args(argv)
    try:
        minilm.folder()
    except ValueError as error:
        sys.exit(f"benchmarks.dynamics: {error}")
    journal = Journal(RUNS)
    lengths = CROSSING if options.crossing else (options.steps,)
    chosen = options.only or (CURVES if options.crossing else tuple(named))
    for steps in lengths:
        for task in options.tasks:
            for seed in range(options.seeds):  # every variant once before any twice
                for name in chosen:
                    found = runs(task, named[name], steps, seed + 1)
                    work([run for run in found if run.seed == seed], journal)
    for steps in lengths:
        print(
            f"K = {steps}", dynamics_table(options.tasks, steps, options.seeds, journal), sep="\n"
        )


if __name__ == "__main__":
    main()
