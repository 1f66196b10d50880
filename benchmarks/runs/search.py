"""A learning-rate search of the same size for every method, on rows held out of train."""

from collections.abc import Iterable, Mapping

from benchmarks.methods.method import Method
from benchmarks.runs.finetune import Bench, Settings
from benchmarks.subjects.classification import Task, hold_out

Scores = Mapping[float, float]


def search(task: Task, settings: Settings, methods: Iterable[Method]) -> dict[str, Scores]:
    """Score every rate of every method's grid on a held-out part of train; dev is not touched."""
    bench = Bench(hold_out(task), settings)
    return {m.name: {lr: bench.run(m, lr).score for lr in m.grid} for m in methods}


def best_rate(scores: Scores) -> float:
    """Return the rate with the highest score, the lowest one of equals."""
    return max(sorted(scores), key=lambda lr: scores[lr])
