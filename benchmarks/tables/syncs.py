"""What is asked of a device, by setting."""

from collections.abc import Mapping

from benchmarks.tables.table import table

Row = Mapping[str, Mapping[str, int]]  # counts, by "step", "merge" and "draw"


def syncs_table(rows: Mapping[str, Row]) -> str:
    """Lay out a line a setting: what a step, a merge and a draw ask for."""
    head = ["", "step: waits", "late looks", "copies", "launches"]
    head += ["merge: waits", "copies", "launches", "draw: waits", "copies", "launches"]
    body = []
    for name, row in rows.items():
        cells = [str(row["step"]["waits"]), str(row["step"]["late looks"]), *_moved(row["step"])]
        for what in ("merge", "draw"):
            cells += [str(row[what]["waits"]), *_moved(row[what])]
        body.append([name, *cells])
    return table(head, body)


def _moved(counts: Mapping[str, int]) -> list[str]:
    return [f"{counts['to the device']} + {counts['from it']}", str(counts["launches"])]
