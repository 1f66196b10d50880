"""What a quantised base would keep of the boosters merged into it: why such models are refused.

    python -m benchmarks.quantised --json runs/quantised.json        # about ten minutes

MiniLM is trained in float32 on the topics of Python's docstrings (rank 1, 8 steps a booster, 4 of
6 blocks, the rate falling linearly to zero), and every merged update is written down. The same
updates are then merged into the same weights in NF4 (blocks of 64, as bitsandbytes' Linear4bit
keeps them) and in int8 (a scale a row, as Linear8bitLt does), in these ways:

- requantised: at each merge the weight is dequantised, added to, and quantised anew;
- requantised at random: the same, rounded up or down so that the mean is right;
- with a residual: the same, what did not fit kept beside it in bfloat16 for the next merge;
- quantised at the end: merged into bfloat16 by the library ("residual"), and quantised once;
- beside: the base stays as it is, and all updates together are an adapter beside it (the ledger's
  ``chain.to_peft``), here of rank 8, the nearest to their sum.

``retained`` is the projection of what became of the weights on the true sum of updates, ``cosine``
that of the angle, ``distance`` how far the weights are from the trained float32 ones, in units of
the way those went. Loss and score are on 512 texts held out. Bits are those a weight takes.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.docstrings import docstring_task
from benchmarks.precision_runs import FLOAT32, KAPPA, VARIANTS, Lab, Setting, build, kept
from benchmarks.provenance import provenance, provenance_line
from benchmarks.table import table
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.merge import Merger
from torch_xgb.targets import Weight

# The quantiles of a normal distribution, QLoRA's appendix E.
NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    + [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
)
BLOCK, RANK = 64, 8
COLUMNS = ("bits", "retained", "cosine", "distance", "loss", "score")
Update = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Grid:
    """A kind of quantised weight: groups of entries that share a scale, and the codes they take.

    Attributes:
        name: As in the table.
        codes: Increasing values in [-1, 1].
        group: Entries that share a scale; None for a row.
        bits: Of a code.
    """

    name: str
    codes: Tensor
    group: int | None
    bits: int

    def round(self, W: Tensor, chance: torch.Generator | None = None) -> Tensor:
        """Quantise and dequantise, to the nearest codes, or at random with the right mean."""
        groups = W.reshape(-1, self.group or W.shape[1])
        scale = groups.abs().amax(1, keepdim=True).clamp(min=1e-12)
        x = groups / scale
        above = torch.searchsorted(self.codes, x.contiguous()).clamp(1, len(self.codes) - 1)
        low, high = self.codes[above - 1], self.codes[above]
        share = (x - low) / (high - low)
        threshold = 0.5 if chance is None else torch.rand(x.shape, generator=chance)
        return (torch.where(share > threshold, high, low) * scale).view_as(W)

    def bits_per_weight(self, columns: int) -> float:
        """Return what a weight takes, its share of a float32 scale included."""
        return self.bits + 32 / (self.group or columns)


GRIDS = (Grid("NF4", NF4, BLOCK, 4), Grid("int8", torch.arange(-127, 128) / 127, None, 8))


class Written:
    """Every update of a run by the name of its target, in order, with its booster's index."""

    def __init__(self, optimizer: BoostedLowRankOptimizer) -> None:
        self.updates: dict[str, list[tuple[int, Update]]] = {}
        self._optimizer = optimizer
        optimizer.base.register_step_post_hook(self._stepped)

    @torch.no_grad()
    def _stepped(self, *_: object) -> None:
        if self._optimizer.booster_step == KAPPA - 1:  # the step just taken is not counted yet
            for name, (A, B) in self._optimizer.active_factors.items():
                entry = (self._optimizer.booster_index, (B.clone(), A.clone()))
                self.updates.setdefault(name, []).append(entry)


@dataclass(frozen=True)
class Trained:
    """A run in float32.

    Attributes:
        model: At its end.
        before: The adapted weights at its beginning.
        updates: What was merged into each.
    """

    model: nn.Module
    before: Mapping[str, Tensor]
    updates: Mapping[str, list[tuple[int, Update]]]

    def true(self, name: str) -> Tensor:
        """Return the sum of a weight's updates."""
        zero = torch.zeros_like(self.before[name])
        return sum((B @ A for _, (B, A) in self.updates.get(name, [])), zero)


def train(lab: Lab, lr: float, seed: int) -> Trained:
    """Train in float32 and write the updates down."""
    variant = VARIANTS[FLOAT32]
    model = build(lab.task, variant, seed)
    optimizer = lab.optimizer(model, variant, lr, seed)
    before = {n: model.get_submodule(n).weight.detach().clone() for n in optimizer.targets}
    written = Written(optimizer)
    lab.train_model(model, optimizer, variant, seed)
    return Trained(optimizer.finalize(), before, written.updates)


def requantised(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Quantise anew at each merge."""
    W = grid.round(W)
    for _, (B, A) in updates:
        W = grid.round(W.addmm(B, A))
    return W


def at_random(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Quantise anew at each merge, up or down at random."""
    W, chance = grid.round(W), torch.Generator().manual_seed(0)
    for _, (B, A) in updates:
        W = grid.round(W.addmm(B, A), chance)
    return W


def with_residual(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Quantise anew at each merge, and keep in bfloat16 what did not fit."""
    W, residual = grid.round(W), torch.zeros_like(W, dtype=torch.bfloat16)
    for _, (B, A) in updates:
        exact = W.addmm(B, A) + residual
        W = grid.round(exact)
        residual = (exact - W).bfloat16()
    return W


def at_the_end(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Merge into bfloat16 as the library does, and quantise once."""
    linear = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=torch.bfloat16)
    linear.weight.data.copy_(W)
    weight, merger = Weight("weight", (linear,), "weight"), Merger("residual", 0)
    for t, (B, A) in updates:
        merger.merge(weight, B, A, 1.0, t)
    return grid.round(linear.weight.detach().float())


def beside(W: Tensor, updates: Sequence[tuple[int, Update]], grid: Grid) -> Tensor:
    """Leave the base as it is; the sum of the updates stands beside it, at a low rank."""
    if not updates:
        return grid.round(W)
    U, S, V = torch.linalg.svd(sum((B @ A for _, (B, A) in updates), torch.zeros_like(W)))
    return grid.round(W) + (U[:, :RANK] * S[:RANK]) @ V[:RANK]


# Each way, with the bits that a weight (out, in) takes in training beside its codes and scales; the
# last but one has bfloat16 and a residual in their place.
WAYS: dict[str, tuple[Callable[..., Tensor], Callable[[int, int], float]]] = {
    "requantised": (requantised, lambda rows, columns: 0),
    "requantised at random": (at_random, lambda rows, columns: 0),
    "with a residual": (with_residual, lambda rows, columns: 16),
    "quantised at the end": (at_the_end, lambda rows, columns: 32),
    f"beside, rank {RANK}": (beside, lambda rows, columns: 32 * RANK * (1 / rows + 1 / columns)),
}


def evaluate(lab: Lab, trained: Trained, weights: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return loss and score on what was held out, with other weights in the trained model."""
    for name, W in weights.items():
        trained.model.get_submodule(name).weight.data.copy_(W)
    total, right = 0.0, 0
    with torch.no_grad():
        for batch in lab.dev.ordered_batches(64):
            labels = batch.pop("labels")
            logits = trained.model(**batch).logits
            total += float(cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
    return total / len(lab.dev), right / len(lab.dev)


def figures(
    lab: Lab, trained: Trained, start: Mapping[str, Tensor], end: Mapping[str, Tensor]
) -> dict[str, float]:
    """Compare where weights ended with where they should have."""
    true = {name: trained.true(name) for name in end}
    moved = kept((end[name] - start[name] for name in end), true.values())
    apart = sum(float((W - trained.before[n] - true[n]).square().sum()) for n, W in end.items())
    way = sum(float(delta.square().sum()) for delta in true.values())
    loss, score = evaluate(lab, trained, end)
    return {**vars(moved), "distance": (apart / way) ** 0.5, "loss": loss, "score": score}


def records(lab: Lab, trained: Trained) -> Iterator[dict[str, Any]]:
    """Measure every way on every grid, beside the float32 run and the untouched base."""
    before = trained.before
    end = {name: W + trained.true(name) for name, W in before.items()}
    yield {"grid": "float32", "way": "merged", "bits": 32.0, **figures(lab, trained, before, end)}
    count = sum(W.numel() for W in before.values())
    for grid in GRIDS:
        start = {name: grid.round(W) for name, W in before.items()}
        for way, (merge, beside_bits) in {"not trained": (None, lambda *_: 0), **WAYS}.items():
            end = (
                start
                if merge is None
                else {
                    name: merge(W, trained.updates.get(name, []), grid)
                    for name, W in before.items()
                }
            )
            own = 0 if merge is at_the_end else 1  # bfloat16 with its residual, in training
            bits = sum(
                W.numel() * (own * grid.bits_per_weight(W.shape[1]) + beside_bits(*W.shape))
                for W in before.values()
            )
            found = figures(lab, trained, start, end)
            yield {"grid": grid.name, "way": way, "bits": bits / count, **found}


def lay_out(found: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the table, means over the seeds."""
    head = ["lr", "weights", "bits", "retained", "cosine", "distance", "dev loss", "dev score"]
    cases: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for r in found:
        cases.setdefault((r["lr"], f"{r['grid']}, {r['way']}"), []).append(r)
    rows = []
    for (lr, name), runs in cases.items():
        mean = {key: statistics.fmean(run[key] for run in runs) for key in COLUMNS}
        rows.append([f"{lr:g}", name, f"{mean['bits']:.1f}"])
        rows[-1] += [f"{mean[key]:.3f}" for key in COLUMNS[1:]]
    return table(head, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantised",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 1e-3, 5e-3], help="rates")
    parser.add_argument("--steps", type=int, default=256, help="a multiple of 8 (default: 256)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    try:
        lab = Lab(docstring_task(), Setting(steps=options.steps))
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.quantised: {error}")
    print(f"{lab.task}\n{lab.setting}, seeds {options.seeds}; {provenance_line()}\n", flush=True)
    found = [
        {"lr": lr, "seed": seed, **record}
        for lr in options.lr
        for seed in range(options.seeds)
        for record in records(lab, train(lab, lr, seed))
    ]
    print(lay_out(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"steps": options.steps, **provenance()}
        options.json.write_text(json.dumps({**about, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
