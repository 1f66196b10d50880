"""What fine-tuning runs gave and cost, and the searches before them."""

from collections.abc import Mapping

from benchmarks.runs.finetune import Outcome
from benchmarks.runs.search import Scores, best_rate
from benchmarks.tables.table import table

COSTS = ("trained", "of the model", "beside the head", "memory", "step")


def cost_cells(outcome: Outcome, peak: int) -> list[str]:
    """Format what a run cost, for the columns ``COSTS``: counts in per mille, bytes in MB."""
    return [
        f"{outcome.trainable:,}",
        f"{1e3 * outcome.trainable / outcome.total:.1f} ‰",
        f"{1e3 * (outcome.trainable - outcome.head) / outcome.total:.1f} ‰",
        f"{peak / 1e6:.0f} MB",
        f"{outcome.step_ms:.0f} ms",
    ]


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
