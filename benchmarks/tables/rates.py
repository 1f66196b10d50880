"""Scores of the one line by scale and rate."""

from collections.abc import Sequence

from benchmarks.methods.rates import ALPHAS, RATES, method
from benchmarks.runs.journal import Journal
from benchmarks.runs.sweep import Run
from benchmarks.tables.table import percent, table


def rates_table(
    task: str, start: str, ranks: Sequence[int], steps: int, seeds: int, journal: Journal
) -> str:
    """Lay out what is recorded of a task: a row for each rank and α, a column for each rate."""
    methods = [method(start, r, alpha) for r in ranks for alpha in ALPHAS]
    scores = {
        (one.name, lr): [
            journal[run.key]["score"]
            for run in (Run(task, one, lr, seed, steps) for seed in range(seeds))
            if run.key in journal
        ]
        for one in methods
        for lr in RATES
    }
    tried = [lr for lr in RATES if any(scores[one.name, lr] for one in methods)]
    rows = [[one.name, *(percent(scores[one.name, lr]) for lr in tried)] for one in methods]
    known = [row for row in rows if set(row[1:]) != {"–"}]
    return table([task, *(f"{lr:g}" for lr in tried)], known) if tried else ""
