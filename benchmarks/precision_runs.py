"""MiniLM trained with its weights in bfloat16, under each policy of ``merge_precision``."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from benchmarks import minilm
from benchmarks.classification import Batch, Encoded, Task
from benchmarks.methods import ENCODER_LINEARS
from torch_xgb import BoostedLowRankOptimizer

KAPPA = 8
FLOAT32, KEPT_IN_FLOAT32, ROUNDED = "float32", "kept in float32", "float32, rounded at the end"
_F, _B = torch.float32, torch.bfloat16
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    steps: int = 256
    batch_size: int = 8
    length: int = 24
    layers_per_booster: int = 4
    head_lr: float = 1e-3


@dataclass(frozen=True)
class Variant:
    """A way to hold the weights."""

    policy: str
    adapted: torch.dtype  # of the weights that boosters are merged into
    frozen: torch.dtype  # of the rest of the encoder, and of what is computed

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the frozen weights' dtype."""
        return nullcontext() if self.frozen == _F else torch.autocast("cpu", self.frozen)


VARIANTS = {
    FLOAT32: Variant("nearest", _F, _F),
    KEPT_IN_FLOAT32: Variant("nearest", _F, _B),
    "nearest": Variant("nearest", _B, _B),
    "stochastic": Variant("stochastic", _B, _B),
    "residual": Variant("residual", _B, _B),
}


@dataclass(frozen=True)
class Kept:
    """What became of an update: its projection on the true one, and the angle between them."""

    retained: float
    cosine: float


def kept(moved: Iterable[Tensor], true: Iterable[Tensor]) -> Kept:
    """Compare how weights moved with how they should have."""
    along = moved_square = true_square = 0.0
    for m, t in zip(moved, true, strict=True):
        along += float((m.double() * t.double()).sum())
        moved_square += float(m.double().square().sum())
        true_square += float(t.double().square().sum())
    both = (moved_square * true_square) ** 0.5
    return Kept(along / true_square, along / both if both else 0.0)


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
        tokenizer = minilm.tokenizer()
        self.train = Encoded(tokenizer, task.train, task.labels, setting.length)
        self.dev = Encoded(tokenizer, task.dev, task.labels, setting.length)

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
        before, updates = _weights(model, optimizer.targets), TrueUpdates(optimizer)
        losses = self.train_model(model, optimizer, variant, seed)
        after = _weights(optimizer.finalize(), before)
        score = self.score(model, variant)
        return Run(model, statistics.fmean(losses[-50:]), score, before, after, updates.sums)

    def rounded(self, run: Run) -> Run:
        """Round the final weights of a run once: the nearest that bfloat16 can end to it."""
        for name in run.after:
            weight = run.model.get_submodule(name).weight
            weight.data = weight.data.to(_B).float()
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
            kappa=KAPPA,
            layers_per_booster=self.setting.layers_per_booster,
            target_modules=ENCODER_LINEARS,
            modules_to_save=list(minilm.HEAD),
            merge_precision=variant.policy,
            seed=seed,
            lr=lr,
            weight_decay=0.0,
        )
        optimizer.param_groups[1]["lr"] = self.setting.head_lr
        return optimizer

    def train_model(
        self, model: nn.Module, optimizer: BoostedLowRankOptimizer, variant: Variant, seed: int
    ) -> list[float]:
        """Train a model; return the losses."""
        steps, losses = self.setting.steps, []
        schedule = LambdaLR(optimizer, partial(_decay, steps=steps))
        batches = self.train.training_batches(steps, self.setting.batch_size, seed)
        for batch in tqdm(batches, total=steps, unit="step", leave=False, disable=None):
            losses.append(_step(model, optimizer, variant, batch))
            schedule.step()
        return losses


def build(task: Task, variant: Variant, seed: int) -> nn.Module:
    """Load the model, round all but its head to bfloat16, and hold it as the variant does."""
    model = minilm.classifier(task.labels, seed).eval()  # eval: no dropout
    for name, module in model.named_modules():
        if minilm.is_head(name):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            adapted = isinstance(module, nn.Linear) and key == "weight"
            dtype = variant.adapted if adapted else variant.frozen
            parameter.data = parameter.data.to(_B).to(dtype)
    return model


class TrueUpdates:
    """Sums up s·B A of every booster just before it is merged."""

    def __init__(self, optimizer: BoostedLowRankOptimizer) -> None:
        self.sums: dict[str, Tensor] = {}
        self._optimizer = optimizer
        optimizer.base.register_step_post_hook(self._stepped)

    @torch.no_grad()
    def _stepped(self, *_: object) -> None:
        if self._optimizer.booster_step == KAPPA - 1:  # the step just taken is not counted yet
            for name, (A, B) in self._optimizer.active_factors.items():
                self.sums[name] = self.sums[name] + B @ A if name in self.sums else B @ A


def _weights(model: nn.Module, names: Iterable[str]) -> Weights:
    return {n: model.get_submodule(n).weight.detach().float().clone() for n in names}


def _decay(step: int, steps: int) -> float:
    return 1 - step / steps


def _step(
    model: nn.Module, optimizer: BoostedLowRankOptimizer, variant: Variant, batch: Batch
) -> float:
    with variant.autocast():
        loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())
