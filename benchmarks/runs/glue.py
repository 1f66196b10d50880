"""GLUE in kind: its searches and scored runs, and what is recorded of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.methods.minilm import METHODS, compared
from benchmarks.runs.journal import Journal, Record, canonical
from benchmarks.runs.sweep import FINAL, Run, common_rate, common_searches, work
from benchmarks.subjects.tasks import TASKS, load_task


@dataclass(frozen=True)
class Size:
    """How much of the table is run."""

    tasks: Sequence[str] = tuple(TASKS)
    methods: Sequence[str] = tuple(compared(1))
    steps: int = 300
    seeds: int = 3
    searched: Sequence[str] = ("TREC", "SST-2")  # the tasks of a common rate; of none: of its own

    def search(self, task: str) -> tuple[Sequence[str], int]:
        """Return the tasks that a task's rates are looked for on, and the steps there."""
        if self.searched:
            return self.searched, self.steps
        return (task,), self.steps * TASKS[task].longer


QUICK = Size(("TREC", "SST-2"), tuple(METHODS), 16, 1)


def rate(task: str, name: str, size: Size, journal: Journal) -> float | None:
    """Return the rate that a method's search found for a task; None while it is not complete."""
    where, steps = size.search(task)
    return common_rate(where, compared(steps)[name], steps, journal)


def used(size: Size, journal: Journal) -> list[Record]:
    """Return the records behind the table, those of the searches among them."""
    runs: list[Run] = []
    for task, name in product(size.tasks, size.methods):
        where, steps = size.search(task)
        lr = rate(task, name, size, journal)
        runs += common_searches(where, compared(steps)[name], steps)
        runs += finals(task, name, lr, size) if lr else []
    keys = {canonical(run.key): run.key for run in runs if run.key in journal}
    return [journal[key] for key in keys.values()]


def scores(task: str, name: str, size: Size, journal: Journal) -> list[float]:
    """Return the recorded scores of a method on a task at the rate its search found."""
    lr = rate(task, name, size, journal)
    runs = finals(task, name, lr, size) if lr else []
    return [journal[run.key]["score"] for run in runs if run.key in journal]


def finals(task: str, name: str, lr: float, size: Size) -> list[Run]:
    """Return the scored runs of a method; its chain's knots go with the task's own K."""
    steps = size.steps * TASKS[task].longer
    method = compared(steps)[name]
    return [Run(task, method, lr, seed, steps, FINAL) for seed in range(size.seeds)]


def run(size: Size, journal: Journal) -> None:
    """Search, then do what is missing, task by task and seed by seed."""
    present = [task for task in dict.fromkeys((*size.searched, *size.tasks)) if _loads(task)]
    if not set(size.searched) <= set(present):
        return
    for task in (task for task in size.tasks if task in present):
        where, steps = size.search(task)
        planned = []
        for name in size.methods:
            work(common_searches(where, compared(steps)[name], steps), journal)
            lr = rate(task, name, size, journal)
            assert lr is not None
            planned.append(finals(task, name, lr, size))
            print(f"{task}, {name}: rate {lr:g}", flush=True)
        for of_a_seed in zip(*planned, strict=True):  # every method once before any twice
            work(of_a_seed, journal)


def _loads(task: str) -> bool:
    try:
        print(load_task(task), flush=True)
    except (ValueError, OSError) as error:
        print(f"left out: {error}", flush=True)
        return False
    return True
