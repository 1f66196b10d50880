"""Scores at equal time, beside what a step takes and what a run holds."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.methods.frontier import LORA, Entry, entries
from benchmarks.runs.frontier import STEPS, TASK_NAMES, Counts, records, steps
from benchmarks.runs.journal import Journal, Record
from benchmarks.tables.table import percent, table


@dataclass(frozen=True)
class Reached:
    """What an entry reaches on all tasks, for so much memory.

    Attributes:
        entry: Which.
        memory: The most that a run holds, in bytes.
        score: The mean over tasks of the mean over seeds, in percent.
        later: Whether it took more than LoRA's time.
    """

    entry: Entry
    memory: int
    score: float
    later: bool


def frontier_table(counts: Counts, journal: Journal, seeds: int = 3) -> str:
    """Lay out every entry: a step's FLOPs, bytes, and scores at equal steps and at equal time."""
    rows = []
    for entry in _counted(counts):
        count, K = counts[entry.name], steps(entry, counts)
        of_lora = count["flops"] / counts[LORA]["flops"]
        cells = [f"{of_lora:.2f}", f"{count['peak'] / 1e6:.0f} MB"]
        cells += [_cell(records(t, entry, STEPS, seeds, journal), seeds) for t in TASK_NAMES]
        cells += [str(K), *(_cell(records(t, entry, K, seeds, journal), seeds) for t in TASK_NAMES)]
        rows.append([entry.name, *cells])
    at = [f"{task}, {STEPS} steps" for task in TASK_NAMES]
    return table(["method", "FLOPs", "memory", *at, "equal time", *TASK_NAMES], rows)


def reached(counts: Counts, journal: Journal, seeds: int = 3) -> Iterator[Reached]:
    """Yield what every entry with scores on all tasks reaches in LoRA's time.

    Where that was not run, and 300 steps take longer, it is what those reach.
    """
    for entry in _counted(counts):
        K = steps(entry, counts)
        for length in dict.fromkeys((K, max(K, STEPS))):
            found = [records(task, entry, length, seeds, journal) for task in TASK_NAMES]
            if all(found):
                means = [statistics.fmean(r["score"] for r in rs) for rs in found]
                score, memory = 100 * statistics.fmean(means), counts[entry.name]["peak"]
                yield Reached(entry, memory, score, length > K)
                break


def used(counts: Counts, journal: Journal, seeds: int = 3) -> list[Record]:
    """Return the scored runs behind the table."""
    found = {}
    for entry in _counted(counts):
        for task in TASK_NAMES:
            for K in (STEPS, steps(entry, counts)):
                found |= {id(r): r for r in records(task, entry, K, seeds, journal)}
    return list(found.values())


def _counted(counts: Counts) -> list[Entry]:
    return [entry for entry in entries() if entry.name in counts]


def _cell(found: list[Record], seeds: int) -> str:
    few = f" ({len(found)})" if 0 < len(found) < seeds else ""
    return percent([r["score"] for r in found]) + few
