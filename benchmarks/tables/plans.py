"""What ``torch_xgb.plan`` foretells: beside what came, and of the papers' models."""

from collections.abc import Mapping, Sequence

from benchmarks.measures.plans import Check
from benchmarks.tables.table import table


def check_table(checks: Sequence[Check]) -> str:
    """Lay out predictions beside measurements."""
    body = [
        [c.model, c.method, f"{c.predicted / 1e6:.1f}", f"{c.measured / 1e6:.1f}", f"{c.off:+.1%}"]
        for c in checks
    ]
    return table(["", "method", "predicted MB", "measured MB", "off"], body)


def card_table(found: Sequence[Mapping[str, object]]) -> str:
    """Lay out what fits a card."""
    head = [
        "",
        "method",
        "checkpointing",
        "trained, ‰",
        "weights GiB",
        "MiB a token",
        "most tokens",
    ]
    body = [
        [
            str(row["model"]),
            str(row["method"]),
            "yes" if row["checkpointing"] else "no",
            f"{row['per_mille']:.2f}",
            f"{row['weights_gib']:.1f}",
            f"{row['mib_per_token']:.2f}",
            f"{row['tokens']:,}",
        ]
        for row in found
    ]
    return table(head, body)
