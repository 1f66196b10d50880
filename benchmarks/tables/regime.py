"""Long runs: the last checkpoint and the best, by score, loss and calibration."""

import statistics
from collections.abc import Sequence

from benchmarks.runs.journal import Journal, Record
from benchmarks.runs.regime import Stage, planned
from benchmarks.runs.sweep import FINAL, RUNS, SEARCH
from benchmarks.tables.table import percent, table


def regime_tables(queue: Sequence[Stage], journal: Journal) -> str:
    """Lay out every task and K of which something is recorded, with the seeds it has."""
    most = {(stage.task, stage.steps): stage for stage in queue}  # seeds come later in a queue
    tables = [_stage_table(stage, journal) for stage in most.values()]
    return "\n\n".join(filter(None, tables)) or "Nothing is recorded yet."


def stage_records(stage: Stage, journal: Journal) -> dict[str, list[Record]]:
    """Return the records of a stage by method, one a seed."""
    found: dict[str, list[Record]] = {}
    searches = Journal(RUNS)
    for seed in range(stage.seeds):
        for followed in planned(stage, seed, searches):
            if followed.key in journal:
                found.setdefault(followed.run.method.name, []).append(journal[followed.key])
    return found


def _stage_table(stage: Stage, journal: Journal) -> str:
    rows = []
    for name, records in stage_records(stage, journal).items():
        lasts = [record["checkpoints"][-1] for record in records]
        bests = [min(r["checkpoints"], key=lambda c: c[SEARCH]["loss"]) for r in records]
        at = "/".join(f"{best['step']:,}" for best in bests)
        rows.append([name, f"{records[0]['key']['lr']:g}", *_cells(lasts), at, *_cells(bests)])
    head = [f"{stage.task}, K = {stage.steps:,}", "rate", "last", "loss", "ECE"]
    return table([*head, "best at", "best", "loss", "ECE"], rows) if rows else ""


def _cells(checkpoints: Sequence[Record]) -> list[str]:
    """Format the means of score, loss and calibration on the scored rows."""
    found = [checkpoint[FINAL] for checkpoint in checkpoints]
    errors = [figures["ece"] for figures in found if figures["ece"] is not None]
    loss = statistics.fmean(figures["loss"] for figures in found)
    return [
        percent([figures["score"] for figures in found]),
        f"{loss:.3f}",
        f"{100 * statistics.fmean(errors):.1f}" if errors else "–",
    ]
