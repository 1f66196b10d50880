"""How fast a carried pair is let go, and what error that leaves."""

from collections.abc import Sequence

from benchmarks.measures.metrics import interval
from benchmarks.runs.journal import Journal, Record
from benchmarks.runs.letting_go import LENGTHS, RANKS, RATES, SEEDS, WAYS, Run
from benchmarks.subjects.targets import Target
from benchmarks.tables.table import table


def letting_go_table(journal: Journal, ranks: Sequence[int] = RANKS) -> str:
    """Lay out what is recorded: a row a way, a column a rank and K, the error in percent."""
    every = [(r, steps) for r in ranks for steps in LENGTHS]
    found = {at: {way: recorded(way, *at, journal) for way in WAYS} for at in every}
    shown = [at for at in every if any(found[at].values())]
    ways = [way for way in WAYS if any(found[at][way] for at in shown)]
    rows = [[way, *(_error(found[at][way]) for at in shown)] for way in ways]
    floors = [f"{100 * Target().floor(r):.1f}" for r, _ in shown]
    head = ["error, % of the first", *(f"r = {r}, K = {steps:,}" for r, steps in shown)]
    return table(head, [["the best map of this rank", *floors], *rows])


def recorded(way: str, r: int, steps: int, journal: Journal) -> list[Record]:
    """Return the records at the rate of least mean error, if all rates and seeds are there."""
    found = []
    for lr in RATES:
        keys = [Run(way, r, lr, seed, steps).key for seed in range(SEEDS)]
        if not all(key in journal for key in keys):
            return []
        found.append([journal[key] for key in keys])
    return min(found, key=lambda records: sum(record["errors"][-1] for record in records))


def _error(records: Sequence[Record]) -> str:
    if not records:
        return "–"
    mean, half = interval([100 * record["errors"][-1] for record in records])
    return f"{mean:.1f} ± {half:.1f}"
