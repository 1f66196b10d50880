"""Long runs, as long as the papers train: followed along the way, on two sets of rows.

Rows held out of train say which checkpoint is the best; the task's own are scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import nn

from benchmarks.measures import metrics
from benchmarks.methods.method import Method
from benchmarks.methods.minilm import compared
from benchmarks.runs import glue
from benchmarks.runs.finetune import Bench, Settings
from benchmarks.runs.journal import RESULTS, Journal, Record
from benchmarks.runs.sweep import FINAL, RUNS, SEARCH, SHARED
from benchmarks.subjects import minilm
from benchmarks.subjects.classification import Encoded, hold_out
from benchmarks.subjects.tasks import TASKS, load_task

JOURNAL = RESULTS / "regime.jsonl"
QUICK_JOURNAL = RESULTS.parents[1] / "runs" / "regime-quick.jsonl"  # short, so no result
METHODS = (
    "XGBLoRA r=1, carry=0.97",
    "PEFT LoRA r=8",
    "XGBLoRA r=1",
    "PEFT LoRA r=1",
    "full fine-tuning",
)


@dataclass(frozen=True)
class Stage:
    """A part of the queue: every method on a task, at one K."""

    task: str
    steps: int
    seeds: int = 1
    checkpoints: int = 6


# The papers' lengths are those of the last stages.
QUEUE = (
    Stage("CoLA", 1500),
    Stage("TREC", 1500),
    Stage("MRPC", 1500),
    Stage("STS-B", 1500),
    Stage("CoLA", 3000, 3),
    Stage("TREC", 3000, 3),
    Stage("MRPC", 7000, 3),
    Stage("STS-B", 10000, 3),
    Stage("CoLA", 10000, 3),
)
QUICK = (Stage("TREC", 8, checkpoints=1),)


@dataclass(frozen=True)
class Run:
    """One long run, and all that its result depends on."""

    task: str
    method: Method
    lr: float
    seed: int
    steps: int
    checkpoints: int

    @property
    def key(self) -> dict[str, Any]:
        """What its record is found by."""
        return {
            "task": self.task,
            **self.method.identity,
            "lr": self.lr,
            "seed": self.seed,
            "steps": self.steps,
            "length": TASKS[self.task].length,
            "checkpoints": self.checkpoints,
            **SHARED,
        }

    def __call__(self) -> Record:
        """Train, and look at the model at evenly spaced checkpoints."""
        bench, scored = _bench(self.task, self.steps)
        found: list[Record] = []
        outcome = bench.run(self.method, self.lr, self.seed, partial(self._look, scored, found))
        numbers = {name: getattr(outcome, name) for name in ("loss", "curve", "trainable")}
        return {"method": self.method.name, "checkpoints": found, **numbers}

    def _look(self, scored: Encoded, found: list[Record], step: int, model: nn.Module) -> None:
        due = [round(self.steps * (i + 1) / self.checkpoints) for i in range(self.checkpoints)]
        if step in due:
            bench, _ = _bench(self.task, self.steps)
            parts = {SEARCH: bench.dev, FINAL: scored}
            found.append({"step": step} | {p: _figures(bench, model, r) for p, r in parts.items()})
            model.train()


def _figures(bench: Bench, model: nn.Module, rows: Encoded) -> Record:
    outputs, labels = bench.outputs(model, rows)
    return {
        "score": metrics.score(bench.task.metric, outputs, labels),
        "loss": metrics.loss(outputs, labels),
        "ece": metrics.calibration(outputs, labels) if bench.task.labels else None,
    }


@cache
def _bench(task: str, steps: int) -> tuple[Bench, Encoded]:
    """Tokenise a task once a process: train in two parts, and the rows that are scored."""
    whole, length = load_task(task), TASKS[task].length
    part = hold_out(whole)
    if part.labels != whole.labels:
        raise ValueError(f"{task}: some label is on held-out rows alone")
    return Bench(part, Settings(steps, 16, length, **SHARED)), minilm.encoded(whole, length)[1]


def planned(stage: Stage, seed: int, journal: Journal) -> list[Run]:
    """Return the stage's runs of one seed, of the methods whose rate is known.

    The rate is the best of three on rows held out of this task, found at the length of
    ``benchmarks.glue --own``: a search at every K would cost three times the runs.
    """
    own, methods = glue.Size(searched=()), compared(stage.steps)
    rates = {name: glue.rate(stage.task, name, own, journal) for name in METHODS}
    rest = (seed, stage.steps, stage.checkpoints)
    return [Run(stage.task, methods[n], lr, *rest) for n, lr in rates.items() if lr]


def run(queue: Sequence[Stage], journal: Journal) -> None:
    """Do what the journal lacks, every method before any seed twice."""
    searches = Journal(RUNS)
    for stage in queue:
        for seed in range(stage.seeds):
            for one in planned(stage, seed, searches):
                if one.key not in journal:
                    last = journal.once(one.key, one)["checkpoints"][-1][FINAL]
                    print(f"{one.task:6} K {one.steps:<6} {one.method.name:28} {one.lr:<7g} "
                          f"seed {seed} {last['score']:.4f}, loss {last['loss']:.4f}", flush=True)  # fmt: skip  # noqa: E501
