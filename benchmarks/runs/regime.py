"""Long runs, as long as the papers train: followed along the way, on two sets of rows.

Rows held out of train say which checkpoint is the best; the task's own are scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import nn

from benchmarks.measures import metrics
from benchmarks.methods.minilm import compared
from benchmarks.runs import glue
from benchmarks.runs.finetune import Bench
from benchmarks.runs.journal import RESULTS, Journal, Record
from benchmarks.runs.sweep import FINAL, RUNS, SEARCH, Run
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


_FIRST = ("CoLA", "MRPC", "STS-B", "TREC")
# The papers' lengths are those of the last stages.
QUEUE = (
    Stage("MRPC", 1500),
    *(Stage(task, 3000) for task in _FIRST),
    *(Stage(task, 3000, 3) for task in _FIRST),
    Stage("MRPC", 7000, 3),
    Stage("STS-B", 10000, 3),
    Stage("CoLA", 10000, 3),
)
QUICK = (Stage("TREC", 8, checkpoints=1),)


@dataclass(frozen=True)
class Followed:
    """A run without the rows held out, looked at on those and on the scored ones along the way."""

    run: Run
    checkpoints: int

    @property
    def key(self) -> dict[str, Any]:
        """What its record is found by."""
        return {**self.run.key, "checkpoints": self.checkpoints}

    def __call__(self) -> Record:
        """Train, and look at the model at evenly spaced checkpoints."""
        run, found = self.run, list[Record]()
        parts = {SEARCH: run.bench.dev, FINAL: _scored(run.task)}
        outcome = run.bench.run(run.method, run.lr, run.seed, partial(self._look, parts, found))
        numbers = {name: getattr(outcome, name) for name in ("loss", "curve", "trainable")}
        return {"method": run.method.name, "checkpoints": found, **numbers}

    def _look(
        self, parts: Mapping[str, Encoded], found: list[Record], step: int, model: nn.Module
    ) -> None:
        K, bench = self.run.steps, self.run.bench
        due = [round(K * (i + 1) / self.checkpoints) for i in range(self.checkpoints)]
        if step in due:
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
def _scored(task: str) -> Encoded:
    """Tokenise the rows that a task is scored on, once a process."""
    whole = load_task(task)
    if hold_out(whole).labels != whole.labels:
        raise ValueError(f"{task}: some label is on held-out rows alone")
    return minilm.encoded(whole, TASKS[task].length)[1]


def planned(stage: Stage, seed: int, journal: Journal) -> list[Followed]:
    """Return the stage's runs of one seed, of the methods whose rate is known.

    The rate is the best of three on rows held out of this task, found at the length of
    ``benchmarks.glue --own``: a search at every K would cost three times the runs.
    """
    own, methods = glue.Size(searched=()), compared(stage.steps)
    rates = {name: glue.rate(stage.task, name, own, journal) for name in METHODS}
    rest = (seed, stage.steps, SEARCH)
    runs = [Run(stage.task, methods[n], lr, *rest) for n, lr in rates.items() if lr]
    return [Followed(run, stage.checkpoints) for run in runs]


def run(queue: Sequence[Stage], journal: Journal, methods: Sequence[str] | None = None) -> None:
    """Do what the journal lacks, of those methods: each before any seed twice."""
    searches = Journal(RUNS)
    for stage in queue:
        for seed in range(stage.seeds):
            for followed in planned(stage, seed, searches):
                wanted = followed.run.method.name in (methods or METHODS)
                if wanted and followed.key not in journal:
                    last = journal.once(followed.key, followed)["checkpoints"][-1][FINAL]
                    one = followed.run
                    print(f"{one.task:6} K {one.steps:<6} {one.method.name:28} {one.lr:<7g} "
                          f"seed {seed} {last['score']:.4f}, loss {last['loss']:.4f}", flush=True)  # fmt: skip  # noqa: E501
