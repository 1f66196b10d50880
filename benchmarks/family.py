"""The family on a real task: chains of LoRA, rank step-down, base optimizers, DiReFT, beside LoRA.

    python -m benchmarks.family                 # the docstring topics of the demo
    python -m benchmarks.family --task trec     # TREC in ../shared/data/trec

MiniLM, with pooler and classifier trained in full in every run, query and value adapted in every
block as in Chain of LoRA, alpha 16, one linear decay over the whole run, one seed and one rate per
base optimizer: no search, so read differences of a point as noise. FLOPs are those of forward and
backward of all steps, counted on the first batch at every rank a run uses; "pair" is what the pairs
themselves cost, the frozen model's share taken off.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer

from benchmarks import minilm
from benchmarks.classification import Task
from benchmarks.cost import count_flops
from benchmarks.docstrings import docstring_task
from benchmarks.finetune import Bench, Settings
from benchmarks.merge_precision import load
from benchmarks.methods import Method, Trainee
from benchmarks.provenance import provenance, provenance_line
from benchmarks.table import table
from torch_xgb import BoostedLowRankOptimizer, LossPlateau

_TARGETS = r".*encoder\.layer\..*\.(query|value)"
_RATES: dict[type[Optimizer], float] = {AdamW: 2e-3, Adagrad: 1e-2, SGD: 3e-1}


@dataclass(frozen=True)
class Variant:
    """One way of chaining pairs over K steps."""

    name: str
    base: type[Optimizer] = AdamW
    settings: Callable[[int], dict[str, Any]] = field(default=lambda K: {})

    def build(self, model: nn.Module, lr: float, seed: int, steps: int) -> BoostedLowRankOptimizer:
        """Attach it to a model."""
        given = {"r": 8, "kappa": None, "lora_alpha": 16, "layers_per_booster": None}
        return BoostedLowRankOptimizer(
            self.base,
            model,
            target_modules=_TARGETS,
            modules_to_save=list(minilm.HEAD),
            seed=seed,
            lr=lr,
            **{**given, **self.settings(steps)},
        )


def chain(links: int) -> Callable[[int], dict[str, Any]]:
    """Cut K steps into links of equal length."""
    return lambda K: {"kappa": tuple(K * i // links for i in range(1, links))}


def step_down(to: int) -> Callable[[int], dict[str, Any]]:
    """Spend the first half of K steps at rank 8, the other at a lower one."""
    return lambda K: {"kappa": (K // 2,), "r": [8, to]}


VARIANTS = [
    Variant("LoRA (chain length 1)"),
    Variant("COLA, chain length 2", settings=chain(2)),
    Variant("COLA, chain length 3", settings=chain(3)),
    *(Variant(f"COLA(8, {r})", settings=step_down(r)) for r in (6, 4, 2)),
    Variant("COLA, knots from the loss", settings=lambda K: {"kappa": LossPlateau()}),
    Variant("COLA with biases", settings=lambda K: chain(2)(K) | {"bias": "targets"}),
    *(Variant(f"LoRA, {base.__name__}", base) for base in (Adagrad, SGD)),
    *(Variant(f"COLA, {base.__name__}", base, chain(2)) for base in (Adagrad, SGD)),
    Variant("DiReFT", settings=lambda K: {"adapter": "direft"}),
    Variant(
        "DiReFT chain, eta ~ r^(-1/4)",
        settings=lambda K: step_down(2)(K) | {"adapter": "direft", "rank_lr_exponent": -0.25},
    ),
    Variant("XGBLoRA r=1", settings=lambda K: {"r": 1, "kappa": 8, "layers_per_booster": 4}),
]


def observing(optimizer: BoostedLowRankOptimizer, model: nn.Module) -> None:
    """Show the loss of every training forward to the optimizer's policy."""

    def show(module: nn.Module, args: object, output: Any) -> None:
        if module.training and output.get("loss") is not None:
            optimizer.observe(output["loss"])

    model.register_forward_hook(show)


def run(bench: Bench, variant: Variant) -> dict[str, Any]:
    """Train one variant, and count what its steps cost."""
    merged: list[int] = []
    steps = bench.settings.steps

    def build(model: nn.Module, lr: float, seed: int) -> Trainee:
        optimizer = variant.build(model, lr, seed, steps)
        optimizer.on_merge(lambda report: merged.append(report.steps))
        observing(optimizer, model)
        return Trainee(model, optimizer, optimizer.finalize)

    lr = _RATES[variant.base]
    outcome = bench.run(Method(variant.name, build, lr, (lr,)), lr)
    flops, frozen = count(bench, variant, merged)
    return {
        "name": variant.name,
        "boosters": len(merged),
        "score": outcome.score,
        "loss": outcome.loss,
        "flops": flops,
        "pair_flops": flops - frozen,
    }


def count(bench: Bench, variant: Variant, merged: Sequence[int]) -> tuple[int, int]:
    """Return the FLOPs of a whole run, and those of the same run with pairs that cost nothing."""
    steps, total, frozen = bench.settings.steps, 0, 0
    model = minilm.classifier(bench.task.labels, bench.settings.seed).train()
    batch = next(iter(bench.train.training_batches(1, bench.settings.batch_size, 0)))
    optimizer = variant.build(model, 0.0, bench.settings.seed, steps)
    for length in merged:
        flops = sum(count_flops(lambda: model(**batch).loss.backward()).values())
        model.zero_grad()
        pairs = sum(A.numel() + B.numel() for A, B in optimizer.active_factors.values())
        tokens = batch["input_ids"].numel()
        # x A', (x A')B', and the gradients of A, B and x: two products forward, four backward.
        own = 2 * tokens * 3 * pairs
        total, frozen = total + length * flops, frozen + length * (flops - own)
        optimizer.merge()
    return total, frozen


def family_table(records: Sequence[dict[str, Any]]) -> str:
    """Lay the runs out; FLOPs of the pairs beside LoRA's of rank 8."""
    lora = records[0]
    rows = [
        [
            r["name"],
            str(r["boosters"]),
            f"{r['score']:.3f}",
            f"{r['loss']:.3f}",
            f"{r['flops'] / lora['flops']:.4f}",
            f"{r['pair_flops'] / lora['pair_flops']:.3f}",
        ]
        for r in records
    ]
    return table(["variant", "boosters", "score", "loss", "FLOPs / LoRA's", "pair / LoRA's"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.family",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=("docstrings", "trec"), default="docstrings")
    parser.add_argument("--steps", type=int, default=96, help="K, a multiple of 6 (default: 96)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers down")
    options = parser.parse_args(argv)
    try:
        task: Task = docstring_task() if options.task == "docstrings" else load(options.task)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.family: {error}")
    settings = Settings(options.steps, length=32, device="cpu")
    print(task, provenance_line(), sep="\n", flush=True)
    bench, records = Bench(task, settings), []
    for variant in VARIANTS:
        records.append(run(bench, variant))
        print(f"{variant.name}: {records[-1]['score']:.3f}", flush=True)
    print(f"\n{family_table(records)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"settings": asdict(settings), "torch": torch.__version__, **provenance()}
        options.json.write_text(json.dumps({**about, "runs": records}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
