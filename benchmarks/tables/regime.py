"""Long runs: the last checkpoint and the best, by score, loss and calibration."""

import statistics
from collections.abc import Sequence

from benchmarks.runs import regime
from benchmarks.runs.journal import Journal, Record
from benchmarks.runs.regime import Stage, best, planned, tried
from benchmarks.runs.sweep import FINAL, SEARCH
from benchmarks.tables.table import percent, table


def regime_tables(queue: Sequence[Stage], journal: Journal) -> str:
    """Lay out every task and K of which something is recorded, then the means over them."""
    most = {str(stage): stage for stage in queue}  # seeds come later in a queue
    stages = [stage for stage in most.values() if stage_records(stage, journal)]
    tables = [_stage_table(stage, journal) for stage in stages]
    tables.append(_mean_table([stage for stage in stages if not stage.rows], journal))
    return "\n\n".join(filter(None, tables)) or "Nothing is recorded yet."


def stage_records(stage: Stage, journal: Journal) -> dict[tuple[str, float], list[Record]]:
    """Return the records of a stage by method and rate, one a seed."""
    found: dict[tuple[str, float], list[Record]] = {}
    for name in regime.METHODS:
        for seed in range(stage.seeds):
            for followed in planned(stage, seed, name, journal):
                if followed.key in journal:
                    of_rate = found.setdefault((name, followed.run.lr), [])
                    of_rate.append(journal[followed.key])
    return found


def _stage_table(stage: Stage, journal: Journal) -> str:
    rows = []
    for (name, lr), records in stage_records(stage, journal).items():
        lasts, bests = list(map(_last, records)), list(map(_best, records))
        held_out = percent([last[SEARCH]["score"] for last in lasts])
        at = "/".join(f"{best['step']:,}" for best in bests)
        rows.append([name, f"{lr:g}", held_out, *_cells(lasts), at, *_cells(bests)])
    head = [str(stage), "rate", "held out", "last", "loss", "ECE"]
    return table([*head, "best at", "best", "loss", "ECE"], rows)


def _mean_table(stages: Sequence[Stage], journal: Journal) -> str:
    """Lay out seed 0's mean scores over the tasks, of the methods that have all of them.

    Each at the rate that was the best on the rows held out.
    """
    rows = []
    for name in regime.METHODS:
        found = [best(tried(stage, name), journal) for stage in stages]
        records = [journal[followed.key] for followed in found if followed]
        if len(records) == len(stages) > 1:
            looked = (map(look, records) for look in (_last, _best))
            means = [statistics.fmean(one[FINAL]["score"] for one in found) for found in looked]
            rows.append([name, *(percent([mean]) for mean in means)])
    return table([f"mean of {len(stages)} tasks, seed 0", "last", "best"], rows) if rows else ""


def _last(record: Record) -> Record:
    return record["checkpoints"][-1]


def _best(record: Record) -> Record:
    """Return the checkpoint of least loss on the rows held out."""
    return min(record["checkpoints"], key=lambda checkpoint: checkpoint[SEARCH]["loss"])


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
