"""Routes beside one process."""

from collections.abc import Sequence

from benchmarks.measures.collectives import Record
from benchmarks.tables.table import table


def compare(ranks: Sequence[Record], alone: Record) -> Record:
    """Set what the processes saw beside what the plain model did."""
    means = [sum(values) / len(ranks) for values in zip(*(r["losses"] for r in ranks), strict=True)]
    differences = [abs(a - b) for a, b in zip(means, alone["losses"], strict=True)]
    return {
        "loss difference": max(differences),
        "merges": {r["merges"] for r in ranks}.pop(),
        "in merges": max(r["in merges"] for r in ranks),
        "sent": ranks[0]["sent"],
        "factors": ranks[0]["factors"],
    }


def route_table(records: Sequence[Record]) -> str:
    """Lay out what was measured, a row a route, number of processes and dtype."""
    head = ["route", "processes", "dtype", "loss difference", "merges", "in merges"]
    rows = [
        [r["route"], str(r["world size"]), r["dtype"], f"{r['loss difference']:.1e}"]
        + [str(r[key]) for key in ("merges", "in merges")]
        + [f"{r['sent']:,.0f} B", f"{r['factors']:,} B"]
        for r in records
    ]
    return table([*head, "sent", "factors"], rows)
