"""GLUE in kind: every method on every task at the same number of steps, with the same search.

    python -m benchmarks.glue                     # the full table; goes on where it stopped
    python -m benchmarks.glue --quick             # 2 tasks, 4 methods, 16 steps: 15 minutes
    python -m benchmarks.glue --tasks RTE CB --methods "XGBLoRA r=1" "PEFT LoRA r=8"
    python -m benchmarks.glue --own               # a rate for every task, not one for all

MiniLM (all-MiniLM-L6-v2, 6 blocks, 22.7M parameters). Each method's learning rate is searched
first: three rates on rows held out of TREC's and SST-2's train parts, seed 0, the best mean of
both; with --own on rows held out of each task's train part, for this task. At that rate every seed
is scored on the task's own dev or test rows. K is the same for all methods: 300 steps of 16 rows,
and three times that for CoLA, which no method learns in 300. Runs are appended to
benchmarks/results/runs.jsonl, and what is recorded there is not run again (--quick keeps its own in
runs/quick.jsonl). A task whose rows are missing is left out, with the reason; one that rates of
others are searched on cannot be.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks import minilm
from benchmarks.journal import Journal, Record, canonical
from benchmarks.methods import FULL, HEAD_ONLY, METHODS, compared
from benchmarks.sweep import (
    FINAL,
    QUICK_RUNS,
    RUNS,
    Run,
    common_rate,
    common_searches,
    interval,
    work,
)
from benchmarks.table import table
from benchmarks.tasks import TASKS, load_task


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


def score_table(size: Size, journal: Journal) -> str:
    """Lay out what is recorded: a row a method, a column a task, and the mean over common tasks.

    Common are the tasks that the head alone and full fine-tuning have all seeds of. A method that
    lacks one has no mean; one with nothing recorded has no row.
    """
    found = {n: {t: scores(t, n, size, journal) for t in size.tasks} for n in size.methods}
    complete = {
        name: {t for t, values in by_task.items() if len(values) == size.seeds}
        for name, by_task in found.items()
    }
    baselines = [complete[m.name] for m in (HEAD_ONLY, FULL) if m.name in complete]
    common = [t for t in size.tasks if baselines and all(t in tasks for tasks in baselines)]
    rows = []
    for name, by_task in found.items():
        parts = [by_task[t] for t in common if t in complete[name]]
        means = [sum(of_seed) / len(common) for of_seed in zip(*parts, strict=True)]
        mean = _cell(means) if common and len(parts) == len(common) else "–"
        rows.append([name, *map(_cell, by_task.values()), mean])
    shown = [row for row in rows if any(cell != "–" for cell in row[1:])]
    return table(["method", *size.tasks, f"mean of {len(common)}"], shown or rows)


def rate_table(size: Size, journal: Journal) -> str:
    """Lay out the rates that the searches found: a row a method, a column a task."""
    rows = []
    for name in size.methods:
        found = [rate(task, name, size, journal) for task in size.tasks]
        if any(found):
            rows.append([name, *(f"{lr:g}" if lr else "–" for lr in found)])
    return table(["rate of", *size.tasks], rows)


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


def _cell(scores: Sequence[float]) -> str:
    """Format percentages with their 95 % confidence interval."""
    if not scores:
        return "–"
    mean, half = interval(scores)
    return f"{100 * mean:.1f}" + (f" ± {100 * half:.1f}" if len(scores) > 1 else "")


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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    size = QUICK if (options := _parse(argv)).quick else Size()
    given = {name: getattr(options, name, None) or value for name, value in vars(size).items()}
    size = Size(**given | ({"searched": ()} if options.own else {}))
    try:
        minilm.folder()
    except ValueError as error:
        sys.exit(f"benchmarks.glue: {error}")
    journal = Journal(QUICK_RUNS if options.quick else RUNS)
    run(size, journal)
    print(score_table(size, journal), rate_table(size, journal), sep="\n\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.glue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a subset, by the same code")
    parser.add_argument("--own", action="store_true", help="a rate for every task, its own")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), metavar="TASK")
    parser.add_argument("--methods", nargs="+", choices=tuple(compared(1)), metavar="METHOD")
    parser.add_argument("--steps", type=int, help=f"optimizer steps (default: {Size.steps})")
    parser.add_argument("--seeds", type=int, help=f"how many seeds (default: {Size.seeds})")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
