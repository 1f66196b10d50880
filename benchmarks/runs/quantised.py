"""A run in float32, and what each way of quantising would have kept of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.measures.kept import kept
from benchmarks.methods.grids import GRIDS, WAYS, Update, at_the_end
from benchmarks.methods.precision import FLOAT32, VARIANTS, Pairs, before_merges, build
from benchmarks.runs.precision import Lab
from torch_xgb import BoostedLowRankOptimizer

Updates = dict[str, list[tuple[int, Update]]]


def written(optimizer: BoostedLowRankOptimizer) -> Updates:
    """List every update of a run by the name of its target, in order, with its booster's index."""
    updates: Updates = {}

    def add(index: int, pairs: Pairs) -> None:
        for name, (A, B) in pairs.items():
            updates.setdefault(name, []).append((index, (B.clone(), A.clone())))

    before_merges(optimizer, add)
    return updates


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
    updates = written(optimizer)
    lab.train_model(model, optimizer, variant, seed)
    return Trained(optimizer.finalize(), before, updates)


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
