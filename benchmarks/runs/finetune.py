"""Fine-tune MiniLM on a task by one method, and measure score, size, memory and time."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.measures import metrics
from benchmarks.measures.memory import peak_memory
from benchmarks.measures.progress import Progress
from benchmarks.methods.method import Method, Trainee
from benchmarks.runs.step import decayed, step
from benchmarks.subjects import minilm
from benchmarks.subjects.classification import Batch, Encoded, Task

Watch = Callable[[int, nn.Module], None]  # steps taken, and the model in training
_WINDOW = 8  # steps timed together, so that every window holds one merge


@dataclass(frozen=True)
class Settings:
    """What all methods of a comparison share.

    Attributes:
        steps: K.
        batch_size: Rows of a step.
        length: Tokens a row is cut to.
        warmup: Share of the steps in which the rate rises.
        seed: Of head, batches and dropout.
        grouped: Batches of rows of similar length, which need less padding.
        products: torch's name of how exact a product of float32 matrices is: "medium" rounds what
            is multiplied to bfloat16 where the processor can (AMX, tensor cores) and sums in
            float32. Weights, updates and optimizer state are float32 in any case.
        device: Where it runs.
    """

    steps: int = 200
    batch_size: int = 16
    length: int = 48
    warmup: float = 0.06
    seed: int = 0
    grouped: bool = False
    products: str = "highest"
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Outcome:
    """What one run gave. The model is plain again: no adapter is left on it."""

    model: nn.Module
    score: float
    dev_loss: float
    loss: float  # mean of the last tenth of the steps
    curve: tuple[float, ...]  # means of thirty stretches of the training loss
    trainable: int
    head: int
    total: int
    step_ms: float  # median over windows of eight steps of their mean


class Bench:
    """A task tokenised once, for any number of methods, rates and seeds to be run on."""

    def __init__(self, task: Task, settings: Settings) -> None:
        """Tokenise the task."""
        self.task, self.settings = task, settings
        self.train, self.dev = minilm.encoded(task, settings.length)
        self.device = torch.device(settings.device)

    def run(
        self, method: Method, lr: float, seed: int | None = None, watch: Watch | None = None
    ) -> Outcome:
        """Train by ``method`` at the peak rate ``lr`` and score on dev.

        Head, batches and dropout depend on the seed alone, so that methods differ in nothing
        else; ``seed`` stands in for the settings' one. ``watch`` is called after every step.
        """
        torch.set_float32_matmul_precision(self.settings.products)
        try:
            return self._run(method, lr, self.settings.seed if seed is None else seed, watch)
        finally:
            torch.set_float32_matmul_precision("highest")  # torch's default

    def _run(self, method: Method, lr: float, seed: int, watch: Watch | None) -> Outcome:
        trainee, sizes = self._build(method, lr, seed)
        steps = self.settings.steps
        schedule = LambdaLR(
            trainee.optimizer, partial(decayed, steps=steps, warmup=self.settings.warmup)
        )
        losses, seconds = [], []
        bar = Progress(
            self._batches(steps, seed), method.name, total=steps, unit="step", leave=False
        )
        for batch in bar:
            start = self._clock()
            losses.append(step(trainee.model, trainee.optimizer, batch))
            schedule.step()
            seconds.append(self._clock() - start)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            if watch:
                watch(len(losses), trainee.model)
        model = trainee.finish()
        windows = [seconds[i : i + _WINDOW] for i in range(0, max(1, steps - _WINDOW + 1), _WINDOW)]
        step_ms = 1e3 * statistics.median(map(statistics.fmean, windows))
        loss = statistics.fmean(losses[-max(1, steps // 10) :])
        score, dev_loss = self.evaluate(model)
        return Outcome(model, score, dev_loss, loss, _thinned(losses), *sizes, step_ms)

    def peak_memory(self, method: Method, lr: float, steps: int = 3, boosters: int = 4) -> int:
        """Return the peak bytes above the model's weights: the first ``steps`` steps, repeated.

        ``boosters`` says how many boosters are looked at, one step each after the first, since
        one that reaches a lower block holds more. The tracked steps are not part of any training.
        """
        model = minilm.classifier(self.task.labels, self.settings.seed).to(self.device).train()
        batches = list(self._batches(steps, self.settings.seed))

        def track() -> None:
            trainee = method.build(model, lr, self.settings.seed, **method.options)
            for batch in batches:
                step(trainee.model, trainee.optimizer, batch)
            for _ in range(boosters - 1):
                trainee.next_booster()
                step(trainee.model, trainee.optimizer, batches[0])

        return peak_memory(track, self.device)

    def score(self, model: nn.Module) -> float:
        """Return the task's score of a model on dev."""
        return self.evaluate(model)[0]

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Return the task's score of a model on dev, and its loss there."""
        rows, truth = self.outputs(model, self.dev)
        return metrics.score(self.task.metric, rows, truth), metrics.loss(rows, truth)

    @torch.no_grad()
    def outputs(self, model: nn.Module, rows: Encoded) -> tuple[Tensor, Tensor]:
        """Return a model's outputs of rows, and their labels; it is in evaluation after that."""
        model.to(self.device).eval()
        outputs, labels = [], []
        for batch in Progress(rows.ordered_batches(64), "dev", unit="batch", leave=False):
            labels.append(batch.pop("labels"))
            moved = {name: values.to(self.device) for name, values in batch.items()}
            outputs.append(model(**moved).logits.float().cpu())
        return torch.cat(outputs), torch.cat(labels)

    def _build(self, method: Method, lr: float, seed: int) -> tuple[Trainee, tuple[int, int, int]]:
        """Load a fresh model and hand it to the method; count what is trained of what."""
        model = minilm.classifier(self.task.labels, seed).to(self.device).train()
        total = sum(parameter.numel() for parameter in model.parameters())
        head = sum(p.numel() for name, p in model.named_parameters() if minilm.is_head(name))
        trainee = method.build(model, lr, seed, **method.options)
        torch.manual_seed(seed)
        return trainee, (trainee.trainable, head, total)

    def _batches(self, steps: int, seed: int) -> Iterable[Batch]:
        """Yield the training batches on the device."""
        train, grouped = self.train, self.settings.grouped
        batches = train.grouped_batches if grouped else train.training_batches
        for batch in batches(steps, self.settings.batch_size, seed):
            yield {name: values.to(self.device) for name, values in batch.items()}

    def _clock(self) -> float:
        """Read the time when the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _thinned(losses: list[float], points: int = 30) -> tuple[float, ...]:
    """Average a curve over as many stretches of equal length."""
    edges = [round(i * len(losses) / points) for i in range(points + 1)]
    parts = (losses[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b)
    return tuple(round(statistics.fmean(part), 4) for part in parts)
