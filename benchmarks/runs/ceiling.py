"""Runs of the byte language model: a search of each method's rate, and what it then reaches."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from benchmarks.methods.ceiling import HELD, HELD_EIGHT, HERE, METHODS, VARIANTS
from benchmarks.methods.method import Method
from benchmarks.runs.journal import RESULTS, Journal, Record
from benchmarks.runs.step import decayed, step
from benchmarks.subjects import bytelm

JOURNAL = RESULTS / "ceiling.jsonl"
QUICK_JOURNAL = RESULTS.parents[1] / "runs" / "ceiling-quick.jsonl"  # short, so no result
_POINTS = 32  # of a recorded curve


@dataclass(frozen=True)
class Stage:
    """A part of the queue: some methods, at one K, with so many seeds.

    ``times`` the rate that a method's search found is what it is trained at.
    """

    steps: int
    seeds: int
    methods: Sequence[str]
    times: Sequence[float] = (1.0,)


@dataclass(frozen=True)
class Run:
    """One training run, and all that its result depends on."""

    method: Method
    lr: float
    seed: int
    steps: int
    windows: int = bytelm.WINDOWS  # that it is scored on

    @property
    def key(self) -> dict[str, Any]:
        """What its record is found by."""
        return {
            **self.method.identity,
            "lr": self.lr,
            "seed": self.seed,
            "steps": self.steps,
            "text": bytelm.digest(),
            **({} if self.windows == bytelm.WINDOWS else {"windows": self.windows}),
        }

    def __call__(self) -> Record:
        """Train and score; a run that diverges ends there, without a loss."""
        torch.set_float32_matmul_precision("medium")
        try:
            return {"method": self.method.name, **self._trained()}
        finally:
            torch.set_float32_matmul_precision("highest")  # torch's default

    def _trained(self) -> Record:
        model = bytelm.model(self.seed)
        trainee = self.method.build(model, self.lr, self.seed, **self.method.options)
        trainable = trainee.trainable
        share = partial(decayed, steps=self.steps, held=self.method.held)
        schedule, losses = LambdaLR(trainee.optimizer, share), []
        data = tqdm(bytelm.batches(self.steps, self.seed), self.method.name, self.steps,
                    leave=False, unit="step", disable=None)  # fmt: skip
        for batch in data:
            losses.append(step(trainee.model, trainee.optimizer, batch))
            schedule.step()
            if not math.isfinite(losses[-1]):
                break
        record: Record = {"loss": None, "held_out": None}
        if len(losses) == self.steps:
            model = trainee.finish()
            record = {"loss": self._evaluated(model, bytelm.SCORED),
                      "held_out": self._evaluated(model, bytelm.SEARCH)}  # fmt: skip
        return {**record, "curve": thinned(losses), "trainable": trainable}

    @torch.no_grad()
    def _evaluated(self, model: nn.Module, part: str) -> float:
        """Return the mean loss on the part's windows, in nats a byte."""
        model.eval()
        losses, rows = [], []
        for batch in bytelm.scoring(part, self.windows):
            losses.append(float(model(**batch).loss))
            rows.append(len(batch["labels"]))
        return round(sum(a * b for a, b in zip(losses, rows, strict=True)) / sum(rows), 5)


def thinned(losses: Sequence[float]) -> list[float]:
    """Average a curve over stretches of equal length."""
    edges = [round(i * len(losses) / _POINTS) for i in range(_POINTS + 1)]
    parts = (losses[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b)
    return [round(statistics.fmean(part), 4) for part in parts]


@dataclass(frozen=True)
class Queue:
    """Stages with the search that goes before them.

    Attributes:
        stages: In the order they are done.
        searched: K of a search.
        windows: That a run is scored on.
    """

    stages: Sequence[Stage]
    searched: int = 400
    windows: int = bytelm.WINDOWS

    def searches(self, method: Method, journal: Journal) -> list[Run]:
        """Return the runs of a method's search, as far as they are known.

        Every rate of its grid, and where the best is at an end of the grid one beyond it.
        """
        runs = [self._run(method, lr, 0, self.searched) for lr in method.grid]
        found = _losses(runs, journal)
        if len(found) == len(runs):
            best = min(found, key=lambda lr: found[lr])
            beyond = {min(found): best / 2, max(found): 2 * best}.get(best)
            runs += [self._run(method, beyond, 0, self.searched)] if beyond else []
        return runs

    def rate(self, method: Method, journal: Journal) -> float | None:
        """Return the rate that a method's search has found; None while it is not complete.

        A grid of one rate needs no search.
        """
        if len(method.grid) == 1:
            return method.grid[0]
        runs = self.searches(method, journal)
        found = _losses(runs, journal)
        return min(found, key=lambda lr: found[lr]) if len(found) == len(runs) else None

    def final(
        self, method: Method, seed: int, steps: int, journal: Journal, times: float = 1.0
    ) -> Run | None:
        """Return a method's scored run at so many times the rate its search found, if it has."""
        lr = self.rate(method, journal)
        return None if lr is None else self._run(method, times * lr, seed, steps)

    def run(self, journal: Journal) -> None:
        """Do what the journal lacks: searches as they are needed, every method before any seed."""
        for stage in self.stages:
            names = [name for name in stage.methods if name in HERE]
            for method in map(METHODS.__getitem__, names):
                while self.rate(method, journal) is None:
                    for one in self.searches(method, journal):
                        _once(one, journal)
            for seed, name, times in product(range(stage.seeds), names, stage.times):
                one = self.final(METHODS[name], seed, stage.steps, journal, times)
                assert one is not None
                _once(one, journal)

    def _run(self, method: Method, lr: float, seed: int, steps: int) -> Run:
        return Run(method, lr, seed, steps, self.windows)


def _losses(runs: Sequence[Run], journal: Journal) -> dict[float, float]:
    """Return the held-out loss of each rate that is recorded, of a diverged run infinite."""
    records = {run.lr: journal[run.key]["held_out"] for run in runs if run.key in journal}
    return {lr: math.inf if loss is None else loss for lr, loss in records.items()}


def _once(run: Run, journal: Journal) -> None:
    if run.key not in journal:
        record = journal.once(run.key, run)
        loss = "diverged" if record["loss"] is None else f"{record['loss']:.4f}"
        print(f"{run.method.name:28} {run.lr:<7g} seed {run.seed} K {run.steps:<5} "
              f"{loss}, {record['wall_s']:.0f} s", flush=True)  # fmt: skip


MAIN = ("PEFT LoRA r=1", "XGBLoRA, carry=0.97 r=1", "XGBLoRA r=1")
_EIGHT = tuple(name.replace("r=1", "r=8") for name in MAIN)
_OTHERS = tuple(name for name in METHODS if name not in (*MAIN, *_EIGHT))
LENGTHS, SEEDS = (400, 1600, 6400), 3  # of the table
OTHER_RATES = (0.5, 2.0)  # times the one found at K = 400: is another better in long runs?
# What is least missed comes last, as whatever stops the queue cuts it there.
QUEUE = Queue((
    Stage(1600, 3, (*MAIN[:2], *HELD)),
    Stage(6400, 1, (*MAIN[:2], *HELD)),
    Stage(400, 3, (*MAIN[:2], *VARIANTS)),
    Stage(6400, 3, (*MAIN[:2], *HELD)),
    Stage(1600, 1, (*MAIN, *VARIANTS)),
    Stage(1600, 3, MAIN),
    Stage(6400, 1, MAIN),
    Stage(6400, 3, MAIN),
    Stage(1600, 1, ("full", *_EIGHT, *_OTHERS)),
    Stage(6400, 1, (*MAIN[:2], *HELD), OTHER_RATES),
    Stage(6400, 1, ("full", *_EIGHT, *_OTHERS)),
    Stage(6400, 3, (*_EIGHT[:2], *HELD_EIGHT)),
))  # fmt: skip
QUICK = Queue((Stage(8, 1, tuple(METHODS)),), searched=4, windows=64)
