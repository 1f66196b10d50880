"""A queue of fine-tuning runs: each recorded once, a killed sweep going on where it stopped."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.measures.progress import Progress
from benchmarks.methods.method import Method
from benchmarks.runs.finetune import Bench, Settings
from benchmarks.runs.journal import RESULTS, Journal, Record
from benchmarks.subjects.classification import fewer, hold_out
from benchmarks.subjects.tasks import TASKS, load_task

RUNS = RESULTS / "runs.jsonl"
RATES = RESULTS / "rates.jsonl"  # of the one line, by scale and rate
# Short runs that show the way and no result: not kept with the others.
QUICK_RUNS = RESULTS.parents[1] / "runs" / "quick.jsonl"
# As fast as a run of float32 weights gets: a third of the time of the plain one on a CPU with AMX.
SHARED: Mapping[str, Any] = {"grouped": True, "products": "medium"}
SEARCH, FINAL = "held out", "scored"  # rows held out of train, or those the task is scored on


@dataclass(frozen=True)
class Run:
    """One fine-tuning run, and all that its result depends on."""

    task: str
    method: Method
    lr: float
    seed: int
    steps: int
    part: str = FINAL
    batch_size: int = 16
    rows: int | None = None  # of train, drawn by the seed; all of them for None

    @property
    def key(self) -> dict[str, Any]:
        """What its record is found by."""
        return {
            "task": self.task,
            **self.method.identity,
            "lr": self.lr,
            "seed": self.seed,
            "steps": self.steps,
            "part": self.part,
            "batch_size": self.batch_size,
            "length": TASKS[self.task].length,
            **SHARED,
            **({"rows": self.rows} if self.rows else {}),
        }

    @property
    def bench(self) -> Bench:
        """What it is trained and scored on."""
        few = (self.rows, self.seed) if self.rows else None
        return _bench(self.task, self.part, self.steps, self.batch_size, few)

    def __call__(self) -> Record:
        """Train and score."""
        outcome = self.bench.run(self.method, self.lr, self.seed)
        numbers = {name: value for name, value in vars(outcome).items() if name != "model"}
        return {"method": self.method.name, **numbers}


@cache
def _bench(task: str, part: str, steps: int, batch_size: int, few: tuple[int, int] | None) -> Bench:
    """Tokenise a task's part once a process, or so many rows of it that a seed draws."""
    rows = hold_out(load_task(task)) if part == SEARCH else load_task(task)
    settings = Settings(steps, batch_size, TASKS[task].length, **SHARED)
    return Bench(fewer(rows, *few) if few else rows, settings)


def work(runs: Sequence[Run], journal: Journal) -> list[Record]:
    """Do the runs that the journal lacks, in order, and return the records of all."""
    missing = [run for run in runs if run.key not in journal]
    with Progress(total=len(missing), unit="run", disable=not missing) as bar:
        for run in missing:
            bar.set_description(f"{run.task}, {run.method.name}, {run.lr:g}, seed {run.seed}")
            record = journal.once(run.key, run)
            bar.write(f"{run.task:6} {run.method.name:28} {run.lr:<7g} seed {run.seed} "
                      f"{run.part:8} {record['score']:.4f}, loss {record['loss']:.4f}, "
                      f"dev loss {record['dev_loss']:.4f}, {record['wall_s']:.0f} s")  # fmt: skip
            bar.update()
    return [journal[run.key] for run in runs]


def searches(task: str, method: Method, steps: int) -> list[Run]:
    """Return the runs of a method's search: every rate of its grid on held-out rows, seed 0."""
    return [Run(task, method, lr, 0, steps, SEARCH) for lr in method.grid]


def common_searches(tasks: Sequence[str], method: Method, steps: int) -> list[Run]:
    """Return the runs of a method's search for one rate that all tasks share."""
    return [run for task in tasks for run in searches(task, method, steps)]


def common_rate(tasks: Sequence[str], method: Method, steps: int, journal: Journal) -> float | None:
    """Return the rate of the best mean over the held-out rows of several tasks.

    None while the search is not complete. Of equals it is the one of the lower mean loss.
    """
    found: dict[float, list[Record]] = {lr: [] for lr in method.grid}
    for run in common_searches(tasks, method, steps):
        if run.key not in journal:
            return None
        found[run.lr].append(journal[run.key])

    def quality(lr: float) -> tuple[float, float]:
        records = found[lr]
        loss = statistics.fmean(r["dev_loss"] for r in records)
        return statistics.fmean(r["score"] for r in records), -loss

    return max(found, key=quality)


def at_every_rate(task: str, method: Method, steps: int, seeds: int) -> list[Run]:
    """Return a method's scored runs at all rates of its grid."""
    rates = method.grid
    return [Run(task, method, lr, seed, steps, FINAL) for seed in range(seeds) for lr in rates]


def best(task: str, method: Method, steps: int, seeds: int, journal: Journal) -> list[Record]:
    """Return the recorded runs at the rate of least mean loss on the scored rows.

    Every method chooses between as many rates, on the rows that are scored: the comparison is even,
    the figures are a little high.
    """
    found = []
    for lr in method.grid:
        wanted = (Run(task, method, lr, seed, steps) for seed in range(seeds))
        found.append([journal[run.key] for run in wanted if run.key in journal])
    most = max(map(len, found))
    complete = [records for records in found if most and len(records) == most]
    return min(complete, key=lambda rs: statistics.fmean(r["dev_loss"] for r in rs), default=[])
