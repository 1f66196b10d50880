"""Runs of equal time: every method for as many steps as the FLOPs of LoRA's 300 buy."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.measures.frontier import ROWS, TOKENS, measure
from benchmarks.methods.frontier import LORA, Entry, entries, present
from benchmarks.runs import glue, sweep
from benchmarks.runs.journal import RESULTS, Journal, Record

COUNTS = RESULTS / "frontier.jsonl"
STEPS, SLACK = 300, 0.08  # LoRA's; a step count within 8 % of it is taken for it
TASK_NAMES = ("TREC", "STS-B")
Counts = Mapping[str, Record]


def counts(journal: Journal) -> dict[str, Record]:
    """Count what the journal lacks, and return every entry's record by its name."""
    return {entry.name: journal.once(_key(entry), partial(measure, entry)) for entry in present()}


def counted(journal: Journal) -> dict[str, Record]:
    """Return what is recorded of the entries' counts."""
    found = {entry.name: _key(entry) for entry in entries()}
    return {name: journal[key] for name, key in found.items() if key in journal}


def _key(entry: Entry) -> dict[str, Any]:
    return {**entry.identity, "rows": ROWS, "tokens": TOKENS}


def steps(entry: Entry, counts: Counts) -> int:
    """Return the steps that an entry can take in the time of LoRA's."""
    share = counts[LORA]["flops"] / counts[entry.name]["flops"]
    return STEPS if abs(share - 1) <= SLACK else round(STEPS * share)


def planned(task: str, entry: Entry, K: int, seeds: int, journal: Journal) -> list[list[sweep.Run]]:
    """Return an entry's runs on a task, a list a rate: one, if a search has found it."""
    own = glue.Size(searched=())
    found = glue.rate(task, entry.rated, own, journal) if entry.rated else None
    rates = (found,) if found else entry.method.grid
    return [[sweep.Run(task, entry.method, lr, s, K) for s in range(seeds)] for lr in rates]


def records(task: str, entry: Entry, K: int, seeds: int, journal: Journal) -> list[Record]:
    """Return what is recorded of it, at the rate of most seeds and then of least loss."""
    found = [
        [journal[run.key] for run in runs if run.key in journal]
        for runs in planned(task, entry, K, seeds, journal)
    ]
    return min(found, key=lambda rs: (-len(rs), sum(r["dev_loss"] for r in rs)))


def run(
    tasks: Sequence[str], names: Sequence[str], seeds: int, journal: Journal, counts: Counts
) -> None:
    """Do what the journal lacks: every method once on every task before any seed twice.

    A rate that is not searched for is chosen with seed 0, among those of the grid.
    """
    for seed in range(seeds):
        for task in tasks:
            for entry in (entry for entry in present() if entry.name in names):
                K = steps(entry, counts)
                tried = [runs[seed] for runs in planned(task, entry, K, seeds, journal)]
                if seed:
                    kept = records(task, entry, K, 1, journal)[0]["key"]["lr"]
                    tried = [run for run in tried if run.lr == kept]
                sweep.work(tried, journal)
