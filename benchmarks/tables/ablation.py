"""One setting at a time: score and training loss."""

from collections.abc import Sequence
from typing import Any

from benchmarks.methods.ablation import GRIDS, TASK_NAMES, XGBLORA, method
from benchmarks.methods.method import Method
from benchmarks.runs.journal import Journal
from benchmarks.runs.sweep import Run, common_rate
from benchmarks.tables.table import percent, table


def ablation_table(
    setting: str, tasks: Sequence[str], steps: int, seeds: int, journal: Journal
) -> str:
    """Lay out what is recorded of one setting: score and training loss."""
    rows = []
    for value in GRIDS[setting]:
        row = [value]
        for task in tasks:
            found = recorded(method(setting, value), task, steps, seeds, journal)
            row += _cells([r["score"] for r in found], [r["loss"] for r in found])
        rows.append(row)
    head = [cell for task in tasks for cell in (f"{task}, score", "training loss")]
    return table([setting, *head], rows)


def recorded(
    method: Method, task: str, steps: int, seeds: int, journal: Journal
) -> list[dict[str, Any]]:
    """Return the recorded runs of a method at the default's rate."""
    lr = common_rate(TASK_NAMES, XGBLORA, steps, journal)
    if lr is None:
        return []
    runs = [Run(task, method, lr, seed, steps) for seed in range(seeds)]
    return [journal[run.key] for run in runs if run.key in journal]


def _cells(scores: Sequence[float], losses: Sequence[float]) -> list[str]:
    """Format mean score with its 95 % interval, and mean loss."""
    loss = f"{sum(losses) / len(losses):.3f}" if losses else "–"
    return [percent(scores), loss]
