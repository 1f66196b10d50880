"""A learning-rate search of the same size for every method, on rows held out of train."""

from collections.abc import Iterable, Mapping

from benchmarks.classification import Task, hold_out
from benchmarks.finetune import Bench, Settings
from benchmarks.methods import Method
from benchmarks.table import table

Scores = Mapping[float, float]


def search(task: Task, settings: Settings, methods: Iterable[Method]) -> dict[str, Scores]:
    """Score every rate of every method's grid on a held-out part of train; dev is not touched."""
    bench = Bench(hold_out(task), settings)
    return {m.name: {lr: bench.run(m, lr).score for lr in m.grid} for m in methods}


def best_rate(scores: Scores) -> float:
    """Return the rate with the highest score, the lowest one of equals."""
    return max(sorted(scores), key=lambda lr: scores[lr])


def search_table(found: Mapping[str, Scores]) -> str:
    """Show a search, a row a method, the chosen rate with a star."""
    rows = []
    for name, scores in found.items():
        best = best_rate(scores)
        cells = (
            f"{score:.3f} at {lr:g}{'*' if lr == best else ' '}" for lr, score in scores.items()
        )
        rows.append([name, *cells])
    return table(["held-out score", *[""] * (len(rows[0]) - 1)], rows)
