"""MiniLM trained beside a base of four bits: score, memory, and what an accumulator dropped."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_leaves

from benchmarks.methods.beside import WAYS, Way, hold, tensors_of
from benchmarks.methods.method import Trainee
from benchmarks.runs.journal import Journal
from benchmarks.runs.precision import Setting, Weights, true_updates
from benchmarks.runs.step import step
from benchmarks.subjects import minilm
from benchmarks.subjects.classification import Encoded, Task
from torch_xgb import BoostedLowRankOptimizer

Record = dict[str, Any]


class Bench:
    """A task tokenised once."""

    def __init__(self, task: Task, setting: Setting) -> None:
        self.task, self.setting = task, setting
        self.train, self.dev = minilm.encoded(task, setting.length)

    def record(self, way: Way, seed: int) -> Record:
        """Train one way with the seed's head, batches and draws."""
        model = _without_dropout(minilm.classifier(self.task.labels, seed))
        hold(model, way.base)
        base = _bytes(tensors_of(model))
        trainee = way.train(model, way.lr, seed)
        true: Weights = {}
        if isinstance(trainee.optimizer, BoostedLowRankOptimizer):
            true = true_updates(trainee.optimizer)
        forward = torch.autocast("cpu", torch.bfloat16) if _is_narrow(model) else None
        schedule = LambdaLR(trainee.optimizer, lambda i: 1 - i / self.setting.steps)
        losses, held = [], 0
        batches = self.train.training_batches(self.setting.steps, self.setting.batch_size, seed)
        for batch in batches:
            losses.append(step(trainee.model, trainee.optimizer, batch, forward))
            schedule.step()
            held = max(held, _beside(trainee))
        found = {"way": way.name, "lr": way.lr, "seed": seed, "base": base, "beside": held}
        found |= {"lost": _lost(model, true), "loss": statistics.fmean(losses[-50:])}
        return {**found, "score": score(trainee.model, self.dev)}

    def records(self, seeds: int, journal: Journal) -> Iterator[Record]:
        """Train every way, seed by seed, where the journal has no record of it."""
        for seed in range(seeds):
            for way in WAYS:
                key = {"way": way.name, "lr": way.lr, "seed": seed, **asdict(self.setting)}
                yield journal.once(key, partial(self.record, way, seed))


@torch.no_grad()
def score(model: nn.Module, dev: Encoded) -> float:
    """Return the share of dev rows that a model labels right, computed as in training."""
    right = 0
    for batch in dev.ordered_batches(64):
        labels = batch.pop("labels")
        with torch.autocast("cpu", torch.bfloat16, enabled=_is_narrow(model)):
            right += int((model.train()(**batch).logits.argmax(-1) == labels).sum())
    return right / len(dev)


def _without_dropout(model: nn.Module) -> nn.Module:
    """Drop nothing out in training: bitsandbytes computes otherwise in evaluation."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def _is_narrow(model: nn.Module) -> bool:
    return any(p.dtype == torch.bfloat16 for p in model.parameters())


def _lost(model: nn.Module, true: Weights) -> float | None:
    """Return ‖what stands beside − the sum of updates‖ / ‖the sum‖ over all weights."""
    apart = whole = 0.0
    for name, update in true.items():
        if (held := getattr(model.get_submodule(name), "accumulator", None)) is None:
            return None
        left, right = held.product
        apart += float((left @ right - update).square().sum())
        whole += float(update.square().sum())
    return (apart / whole) ** 0.5 if whole else None


def _beside(trainee: Trainee) -> int:
    """Return bytes held beside the base, head aside: factors, gradients, state, sums, residuals."""
    heads = {id(p) for n, p in trainee.model.named_parameters() if minilm.is_head(n)}
    trained = [p for group in trainee.optimizer.param_groups for p in group["params"]]
    trained = [p for p in trained if id(p) not in heads]
    state: Mapping[Tensor, Any] = trainee.optimizer.state
    own = [t for p in trained for t in tree_leaves(state.get(p, {})) if isinstance(t, Tensor)]
    found = [*trained, *trained, *own]  # each has had a gradient of its size
    if isinstance(trainee.optimizer, BoostedLowRankOptimizer):
        found += trainee.optimizer.boosting.entry.remembered
    return _bytes(found)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
