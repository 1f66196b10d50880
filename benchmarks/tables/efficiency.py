"""What every method costs."""

from functools import partial

from benchmarks.measures.efficiency import ROWS, TOKENS, measure
from benchmarks.methods.minilm import compared
from benchmarks.runs.journal import RESULTS, Journal, Record
from benchmarks.tables.table import table

JOURNAL = RESULTS / "efficiency.jsonl"


def costs(journal: Journal, steps: int = 300) -> dict[str, Record]:
    """Count what the journal lacks, and return every method's record."""
    return {
        name: journal.once({**method.identity, "rows": ROWS, "tokens": TOKENS},
                           partial(measure, method))
        for name, method in compared(steps).items()
    }  # fmt: skip


def cost_table(found: dict[str, Record]) -> str:
    """Lay the counts out, FLOPs in units of full fine-tuning's."""
    whole = found["full fine-tuning"]["flops"]
    rows = [
        [
            name,
            f"{r['trainable']:,}",
            f"{1e3 * (r['trainable'] - r['head']) / r['total']:.2f} ‰",
            f"{r['peak'] / 1e6:.0f} MB",
            f"{r['flops'] / whole:.2f}",
        ]
        for name, r in found.items()
    ]
    head = ["method", "trained", "beside the head", "memory", "FLOPs a step / full"]
    return table(head, rows)
