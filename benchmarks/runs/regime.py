"""Long runs, as long as the papers train: followed along the way, on two sets of rows.

Rows held out of train say which checkpoint is the best; the task's own are scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
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
    """A part of the queue: every method on a task, at one K.

    ``times`` the rate that the search of ``benchmarks.glue --own`` found is what seed 0 is trained
    at; other seeds at the one of them that was best on the rows held out.
    """

    task: str
    steps: int
    seeds: int = 1
    checkpoints: int = 6
    times: Sequence[float] = (1.0,)
    rows: int | None = None  # of train; all of them for None

    def __str__(self) -> str:
        """Name the task, the rows where they are few, and K."""
        few = f", {self.rows:,} rows" if self.rows else ""
        return f"{self.task}{few}, K = {self.steps:,}"


RATES = (1.0, 0.5)  # times the one found in 300 steps: long runs may want a lower one
_FIRST = (Stage("MRPC", 1500), *(Stage(task, 3000) for task in ("CoLA", "STS-B", "TREC")))
# The papers' lengths are those of the last stages.
QUEUE = (
    *_FIRST,
    *(replace(stage, times=RATES) for stage in _FIRST),
    Stage("TREC", 600, 3, times=RATES, rows=200),
    *(replace(stage, times=RATES, seeds=3) for stage in _FIRST),
    Stage("MRPC", 7000, 3, times=RATES),
    Stage("STS-B", 10000, 3, times=RATES),
    Stage("CoLA", 10000, 3, times=RATES),
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


def tried(stage: Stage, name: str) -> list[Followed]:
    """Return a method's runs of seed 0, one a rate; none while no rate is known."""
    lr = glue.rate(stage.task, name, glue.Size(searched=()), Journal(RUNS))
    method = compared(stage.steps)[name]
    rest = {"seed": 0, "steps": stage.steps, "part": SEARCH, "rows": stage.rows}
    rates = [times * lr for times in stage.times] if lr else []
    return [Followed(Run(stage.task, method, rate, **rest), stage.checkpoints) for rate in rates]


def best(runs: Sequence[Followed], journal: Journal) -> Followed | None:
    """Return the recorded run that ends best on the rows held out: by score, then by loss."""

    def quality(followed: Followed) -> tuple[float, float]:
        last = journal[followed.key]["checkpoints"][-1][SEARCH]
        return last["score"], -last["loss"]

    return max((run for run in runs if run.key in journal), key=quality, default=None)


def planned(stage: Stage, seed: int, name: str, journal: Journal) -> list[Followed]:
    """Return a method's runs of one seed: of seed 0 at every rate, of others at the best."""
    runs = tried(stage, name)
    if not seed:
        return runs
    found = best(runs, journal)
    return [replace(found, run=replace(found.run, seed=seed))] if found else []


def run(queue: Sequence[Stage], journal: Journal, methods: Sequence[str] | None = None) -> None:
    """Do what the journal lacks, of those methods: each before any seed twice."""
    for stage in queue:
        for seed, name in product(range(stage.seeds), methods or METHODS):
            for followed in planned(stage, seed, name, journal):
                _once(followed, journal)


def _once(followed: Followed, journal: Journal) -> None:
    if followed.key not in journal:
        last = journal.once(followed.key, followed)["checkpoints"][-1][FINAL]
        run = followed.run
        print(f"{run.task:6} K {run.steps:<6} {run.method.name:28} {run.lr:<7g} seed {run.seed} "
              f"{last['score']:.4f}, loss {last['loss']:.4f}", flush=True)  # fmt: skip
