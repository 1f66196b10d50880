"""What weights of low precision keep of their updates, under each policy of ``merge_precision``.

    python -m benchmarks.merge_precision                    # both parts
    python -m benchmarks.merge_precision --part synthetic   # the first alone
    python -m benchmarks.merge_precision --task trec --seeds 3

Synthetic: 50 rank-1 updates, each as large as 8 steps of Adam can make it (every |B| = 8 lr, A as
at the start), merged into a Gaussian matrix of standard deviation 0.02.

Real: MiniLM on a task, rank 1, 8 steps a booster, 4 of 6 blocks, the rate falling linearly to zero,
with the weights in bfloat16. All runs of a seed share initial values (rounded to bfloat16 in all of
them), head, batches, draws and initial factors; dropout is off. The head is float32 and trained
in full at a rate of its own, so that nothing but the merged weights is rounded in training. Beside
the policies stand everything in float32; the same, rounded at the end; and "kept in float32", which
computes in bfloat16 like the policies and merges into float32.

Over all adapted weights, ``retained`` is the projection of their way on the sum of the run's true
updates, ``cosine`` that of the angle between the two, and ``distance`` how far they end from the
float32 run's, in units of the float32 run's way.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.classification import Task
from benchmarks.docstrings import docstring_task
from benchmarks.precision_runs import KAPPA, Kept, Lab, Setting, kept
from benchmarks.provenance import provenance, provenance_line
from benchmarks.table import table
from benchmarks.tasks import load_task
from torch_xgb.lowrank import kaiming_bound
from torch_xgb.merge import Merger
from torch_xgb.targets import Weight

POLICIES = ("nearest", "stochastic", "residual")
Record = dict[str, Any]


def synthetic(
    policy: str, dtype: torch.dtype, lr: float, size: int = 1024, boosters: int = 50, seed: int = 0
) -> Kept:
    """Merge boosters of random signs into a random matrix with the library's own Merger."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(size, size, bias=False)
    linear.weight.data.normal_(0, 0.02, generator=generator)
    linear.to(dtype)
    weight, merger = Weight("linear.weight", (linear,), "weight"), Merger(policy, seed)
    before, true = linear.weight.detach().double(), torch.zeros(size, size, dtype=torch.float64)
    for t in range(boosters):
        A = (2 * torch.rand(1, size, generator=generator) - 1) * kaiming_bound(size)
        B = torch.randn(size, 1, generator=generator).sign() * lr * KAPPA
        merger.merge(weight, B, A, 1.0, t)
        true.addmm_(B.double(), A.double())
    return kept([linear.weight.detach().double() - before], [true])


def synthetic_records(lrs: Iterable[float], size: int = 1024) -> list[Record]:
    """Run every synthetic case."""
    return [
        {"dtype": name, "lr": lr, "policy": policy}
        | vars(synthetic(policy, getattr(torch, name), lr, size))
        for name in ("bfloat16", "float16")
        for lr in lrs
        for policy in POLICIES
    ]


def synthetic_table(records: Iterable[Record]) -> str:
    """Lay out the synthetic cases, a row a dtype and rate."""
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for r in records:
        rows[f"{r['dtype']}, lr {r['lr']:g}"].append(f"{r['retained']:.3f} / {r['cosine']:.3f}")
    return table(["retained / cosine", *POLICIES], [[name, *cells] for name, cells in rows.items()])


def real_records(lab: Lab, lrs: Iterable[float], seeds: Iterable[int]) -> list[Record]:
    """Run every real case."""
    return [
        {"lr": lr, "seed": seed, "run": name} | figures
        for lr in lrs
        for seed in seeds
        for name, figures in lab.runs(lr, seed)
    ]


def real_table(records: Sequence[Record]) -> str:
    """Lay out the real cases, means over the seeds."""
    cases: defaultdict[tuple[float, str], list[Record]] = defaultdict(list)
    for record in records:
        cases[record["lr"], record["run"]].append(record)
    head = ["lr", "weights", "final loss", "dev score", "seeds", "distance", "retained", "cosine"]
    return table(head, [[f"{lr:g}", name, *_cells(runs)] for (lr, name), runs in cases.items()])


def _cells(runs: Sequence[Record]) -> list[str]:
    mean = {k: statistics.fmean(run[k] for run in runs) for k in runs[0] if k not in ("run", "lr")}
    return [
        f"{mean['loss']:.4f}",
        f"{mean['score']:.4f}",
        " ".join(f"{run['score']:.3f}" for run in runs),
        *(f"{mean[key]:.3f}" for key in ("distance", "retained", "cosine")),
    ]


def load(name: str) -> Task:
    """Load a task by its name."""
    return load_task("TREC") if name == "trec" else docstring_task()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.steps % KAPPA:
        parser.error(f"--steps must be a multiple of {KAPPA}, got {options.steps}")
    parts = ("synthetic", "real") if options.part == "both" else (options.part,)
    try:
        task = load(options.task) if "real" in parts else None
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.merge_precision: {error}")
    print(f"{provenance_line()}\n")
    found: Record = provenance() | {"command": list(sys.argv[1:] if argv is None else argv)}
    if "synthetic" in parts:
        found["synthetic"] = synthetic_records(options.lr)
        print(f"{synthetic_table(found['synthetic'])}\n", flush=True)
    if task:
        setting = Setting(steps=options.steps)
        print(f"{task}\n{setting}\n", flush=True)
        found |= {"task": task.name, "setting": asdict(setting)}
        found["real"] = real_records(Lab(task, setting), options.lr, range(options.seeds))
        print(real_table(found["real"]))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.merge_precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=("both", "synthetic", "real"), default="both")
    parser.add_argument("--task", choices=("docstrings", "trec"), default="docstrings")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 1e-3], help="peak rates")
    parser.add_argument(
        "--steps", type=int, default=Setting.steps, help="a multiple of 8 (default: 256)"
    )
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


if __name__ == "__main__":
    main()
