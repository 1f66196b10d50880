"""Weights of low precision under each policy of ``merge_precision``: MiniLM's, and random ones."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.measures.kept import Kept, kept
from benchmarks.measures.progress import Progress
from benchmarks.methods.minilm import ENCODER_LINEARS
from benchmarks.methods.precision import (
    FLOAT32,
    HEAD_LR,
    KAPPA,
    LAYERS_PER_BOOSTER,
    POLICIES,
    ROUNDED,
    VARIANTS,
    Pairs,
    Variant,
    before_merges,
    build,
)
from benchmarks.runs.step import step
from benchmarks.subjects import minilm
from benchmarks.subjects.classification import Task
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.formulas.lowrank import kaiming_bound
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.weight import Weight

Weights = Mapping[str, Tensor]
Record = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What all runs share; the rate falls linearly to zero, and nothing is dropped out."""

    steps: int = 256
    batch_size: int = 8
    length: int = 24


@dataclass(frozen=True)
class Run:
    """What one training run came to."""

    model: nn.Module
    loss: float  # mean of the last 50 steps
    score: float
    before: Weights
    after: Weights
    true: Weights  # the sum of the updates as they were before any rounding

    def figures(self, reference: "Run") -> dict[str, float]:
        """Return the columns of the table."""
        kept_ = kept((self.after[n] - self.before[n] for n in self.true), self.true.values())
        apart = _norm(self.after[n] - w for n, w in reference.after.items())
        way = _norm(w - reference.before[n] for n, w in reference.after.items())
        return {"loss": self.loss, "score": self.score, "distance": apart / way, **vars(kept_)}


def _norm(tensors: Iterable[Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5


class Lab:
    """A task tokenised once, for all runs."""

    def __init__(self, task: Task, setting: Setting) -> None:
        self.task, self.setting = task, setting
        self.train, self.dev = minilm.encoded(task, setting.length)

    def runs(self, lr: float, seed: int) -> Iterator[tuple[str, dict[str, float]]]:
        """Train every variant with the same batches, draws and initial values."""
        reference = self.run(VARIANTS[FLOAT32], lr, seed)
        yield FLOAT32, reference.figures(reference)
        rounded = self.rounded(reference)
        yield ROUNDED, rounded.figures(reference)
        for name, variant in VARIANTS.items():
            if name != FLOAT32:
                yield name, self.run(variant, lr, seed).figures(reference)

    def run(self, variant: Variant, lr: float, seed: int) -> Run:
        """Train one variant."""
        model = build(self.task, variant, seed)
        optimizer = self.optimizer(model, variant, lr, seed)
        before, updates = _weights(model, optimizer.targets), true_updates(optimizer)
        losses = self.train_model(model, optimizer, variant, seed)
        after = _weights(optimizer.finalize(), before)
        score = self.score(model, variant)
        return Run(model, statistics.fmean(losses[-50:]), score, before, after, updates)

    def rounded(self, run: Run) -> Run:
        """Round the final weights of a run once: the nearest that bfloat16 can end to it."""
        for name in run.after:
            weight = run.model.get_submodule(name).weight
            weight.data = weight.data.bfloat16().float()
        after = _weights(run.model, run.after)
        return replace(run, score=self.score(run.model, VARIANTS[FLOAT32]), after=after)

    @torch.no_grad()
    def score(self, model: nn.Module, variant: Variant) -> float:
        """Return the share of dev rows that the model labels right."""
        right = 0
        for batch in self.dev.ordered_batches(64):
            labels = batch.pop("labels")
            with variant.autocast():
                right += int((model(**batch).logits.argmax(-1) == labels).sum())
        return right / len(self.dev)

    def optimizer(
        self, model: nn.Module, variant: Variant, lr: float, seed: int
    ) -> BoostedLowRankOptimizer:
        """Build a run's optimizer."""
        optimizer = BoostedLowRankOptimizer(
            AdamW,
            model,
            r=1,
            lora_alpha=None,
            kappa=KAPPA,
            layers_per_booster=LAYERS_PER_BOOSTER,
            target_modules=ENCODER_LINEARS,
            modules_to_save=list(minilm.HEAD),
            merge_precision=variant.policy,
            seed=seed,
            lr=lr,
            weight_decay=0.0,
        )
        optimizer.param_groups[1]["lr"] = HEAD_LR
        return optimizer

    def train_model(
        self, model: nn.Module, optimizer: BoostedLowRankOptimizer, variant: Variant, seed: int
    ) -> list[float]:
        """Train a model; return the losses."""
        steps, losses = self.setting.steps, []
        schedule = LambdaLR(optimizer, partial(_decay, steps=steps))
        batches = self.train.training_batches(steps, self.setting.batch_size, seed)
        for batch in Progress(batches, total=steps, unit="step", leave=False):
            losses.append(step(model, optimizer, batch, variant.autocast()))
            schedule.step()
        return losses


def true_updates(optimizer: BoostedLowRankOptimizer) -> Weights:
    """Sum up s·B A of every booster just before it is merged."""
    sums: dict[str, Tensor] = {}

    def add(index: int, pairs: Pairs) -> None:
        for name, (A, B) in pairs.items():
            sums[name] = sums[name] + B @ A if name in sums else B @ A

    before_merges(optimizer, add)
    return sums


def _weights(model: nn.Module, names: Iterable[str]) -> Weights:
    return {n: model.get_submodule(n).weight.detach().float().clone() for n in names}


def _decay(step: int, steps: int) -> float:
    return 1 - step / steps


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


def real_records(lab: Lab, lrs: Iterable[float], seeds: Iterable[int]) -> list[Record]:
    """Run every real case."""
    return [
        {"lr": lr, "seed": seed, "run": name} | figures
        for lr in lrs
        for seed in seeds
        for name, figures in lab.runs(lr, seed)
    ]
