"""Runs of a causal LM: trained on answers, scored by likelihood."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.measures.progress import Progress
from benchmarks.methods.causal import METHODS
from benchmarks.runs.journal import RESULTS, Journal, Record
from benchmarks.runs.step import step
from benchmarks.subjects import smollm
from benchmarks.subjects.choices import FOLDERS, Prompts, questions, score
from benchmarks.subjects.classification import Batch

JOURNAL = RESULTS / "causal.jsonl"
QUICK_JOURNAL = RESULTS.parents[1] / "runs" / "causal-quick.jsonl"  # short, so no result


@dataclass(frozen=True)
class Size:
    """How much is run."""

    steps: int = 100
    seeds: int = 1
    questions: int = 300
    batch_size: int = 8
    tasks: tuple[str, ...] = tuple(FOLDERS)


QUICK = Size(16, 1, 60)


def train(
    batches: Iterable[Batch], steps: int, method: str, lr: float, seed: int
) -> tuple[nn.Module, Record]:
    """Fine-tune a fresh model; return it plain, with what training gave."""
    model = smollm.model().train()
    trainee = METHODS[method][0](model, lr, seed)
    warmup = max(1, steps // 16)
    schedule = LambdaLR(trainee.optimizer, lambda i: min((i + 1) / warmup, (steps - i) / steps))
    losses, tokens, start = [], 0, time.perf_counter()
    for batch in Progress(batches, method, total=steps, unit="step", leave=False):
        losses.append(round(step(trainee.model, trainee.optimizer, batch), 4))
        schedule.step()
        tokens += int(batch["attention_mask"].sum())
    step_ms = 1e3 * (time.perf_counter() - start) / steps
    trainable = trainee.trainable
    return trainee.finish(), {
        "losses": losses,
        "tokens": tokens,
        "step_ms": round(step_ms, 1),
        "trainable": trainable,
    }


def run(name: str, method: str, lr: float, seed: int, part: str, size: Size) -> Record:
    """Train and score; COPA too, where the run is not a search's."""
    asked, prompts = questions(name, "train"), Prompts(smollm.tokenizer())
    batches = prompts.training(asked, size.steps, size.batch_size, seed)
    model, record = train(batches, size.steps, method, lr, seed)
    record |= zero_shot(name, part, size, model)
    if part == "test":
        record["copa"] = zero_shot("COPA", part, size, model)["score"]
    return record


def zero_shot(name: str, part: str, size: Size, model: nn.Module | None = None) -> Record:
    """Score a model, by default the one that nobody trained."""
    asked = questions(name, part)[: size.questions]
    return score(model or smollm.model(), Prompts(smollm.tokenizer()), asked)


def untrained(name: str, size: Size, journal: Journal) -> Record:
    """Return the score of the model that nobody trained, from the journal if it is there."""
    key = {"task": name, "method": "untrained", "questions": size.questions}
    return journal.once(key, partial(zero_shot, name, "test", size))


def searched(name: str, method: str, size: Size, journal: Journal) -> tuple[float, list[Record]]:
    """Search the rate, then score it with every seed, doing what the journal lacks."""
    common = {"steps": size.steps, "batch_size": size.batch_size, "questions": size.questions}

    def once(lr: float, seed: int, part: str) -> Record:
        key = {"task": name, "method": method, "lr": lr, "seed": seed, "part": part} | common
        return journal.once(key, partial(run, name, method, lr, seed, part, size))

    search = {lr: once(lr, 0, "held out") for lr in METHODS[method][1]}
    lr = max(search, key=lambda lr: (search[lr]["score"], search[lr]["score_norm"], -lr))
    return lr, [once(lr, seed, "test") for seed in range(size.seeds)]
