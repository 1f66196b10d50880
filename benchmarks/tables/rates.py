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
    rows = []
    for r in ranks:
        for alpha in ALPHAS:
            cells = []
            for lr in RATES:
                keys = [Run(task, method(start, r, alpha), lr, s, steps).key for s in range(seeds)]
                cells.append(percent([journal[key]["score"] for key in keys if key in journal]))
            rows.append([f"r={r}, α={alpha:g}", *cells])
    return table([f"{task}, {start}", *(f"{lr:g}" for lr in RATES)], rows)
