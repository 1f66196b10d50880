"""Runs of the family, and what their steps cost."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.measures.flops import count_flops
from benchmarks.methods.family import RATES, Variant, observing
from benchmarks.methods.method import Method, Trainee
from benchmarks.runs.finetune import Bench
from benchmarks.subjects import minilm


def run(bench: Bench, variant: Variant) -> dict[str, Any]:
    """Train one variant, and count what its steps cost."""
    merged: list[int] = []
    steps = bench.settings.steps

    def build(model: nn.Module, lr: float, seed: int) -> Trainee:
        optimizer = variant.build(model, lr, seed, steps)
        optimizer.on_merge(lambda report: merged.append(report.steps))
        observing(optimizer, model)
        return Trainee(model, optimizer, optimizer.finalize)

    lr = RATES[variant.base]
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
