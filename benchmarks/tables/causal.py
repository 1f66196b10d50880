"""The causal LM: scores of every method."""

from collections.abc import Iterable, Sequence

from benchmarks.methods.causal import METHODS
from benchmarks.runs.causal import Size, searched, untrained
from benchmarks.runs.journal import Journal, Record
from benchmarks.tables.table import table


def causal_table(size: Size, journal: Journal) -> str:
    """Do what is missing and lay it out."""
    rows = []
    for name in (*size.tasks, "COPA"):
        cells = _cells([untrained(name, size, journal)])
        rows.append([f"{name}, untrained", *cells, "–", "–"])
    for name in size.tasks:
        for method in METHODS:
            lr, records = searched(name, method, size, journal)
            first = records[0]
            extra = [f"{100 * first['copa']:.1f}", f"{first['step_ms']:.0f} ms"]
            rows.append([f"{name}, {method} at {lr:g}", *_cells(records), *extra])
    return table(["task, method", "score", "per byte", "COPA", "step"], rows)


def recorded_table(records: Iterable[Record]) -> str:
    """Lay out records one by one."""
    rows = [
        [
            f"{r['key']['task']}, {r['key']['method']}",
            str(r["key"].get("steps", 0)),
            f"{r['key']['lr']:g}" if "lr" in r["key"] else "–",
            r["key"].get("part", "test"),
            f"{100 * r['score']:.1f}",
            f"{100 * r['score_norm']:.1f}",
            str(r["key"]["questions"]),
        ]
        for r in records
    ]
    head = ["task, method", "steps", "rate", "rows", "score", "per byte", "questions"]
    return table(head, rows)


def _cells(records: Sequence[Record]) -> list[str]:
    """Format the mean of both scores."""
    names = ("score", "score_norm")
    return [f"{100 * sum(r[name] for r in records) / len(records):.1f}" for name in names]
