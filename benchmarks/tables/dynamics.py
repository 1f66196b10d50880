"""The booster's dynamics: scores and losses of every variant."""

import statistics
from collections.abc import Sequence

from benchmarks.methods.dynamics import variants
from benchmarks.runs.journal import Journal, Record
from benchmarks.runs.sweep import best
from benchmarks.tables.table import percent, table


def dynamics_table(tasks: Sequence[str], steps: int, seeds: int, journal: Journal) -> str:
    """Lay out what is recorded, leaving out variants without any run."""
    rows = []
    for name, method in variants().items():
        cells, any_run = [name], False
        for task in tasks:
            records = best(task, method, steps, seeds, journal)
            any_run |= bool(records)
            cells += _cells(records)
        if any_run:
            rows.append(cells)
    columns = ("seeds", "rate", "dev loss", "of seed 0", "train loss")
    head = [cell for task in tasks for cell in (task, *columns)]
    return table(["variant", *head], rows) if rows else "nothing is recorded yet"


def _cells(records: Sequence[Record]) -> list[str]:
    """Format score with its 95 % interval, seeds, rate and losses.

    The loss of seed 0 is what variants with one seed can be compared by.
    """
    if not records:
        return ["–"] * 6
    dev, train = (statistics.fmean(r[k] for r in records) for k in ("dev_loss", "loss"))
    losses = [f"{loss:.3f}" for loss in (dev, records[0]["dev_loss"], train)]
    rate = f"{records[0]['key']['lr']:g}"
    return [percent([r["score"] for r in records]), str(len(records)), rate, *losses]
