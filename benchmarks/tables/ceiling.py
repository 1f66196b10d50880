"""Where the rank is the ceiling: losses by K, with what a step costs."""

from collections.abc import Sequence
from functools import partial

from benchmarks.measures.ceiling import counted, interleaved, ratios
from benchmarks.measures.metrics import interval
from benchmarks.methods.ceiling import HERE, METHODS
from benchmarks.runs.ceiling import LENGTHS, OTHER_RATES, QUEUE, SEEDS, Queue
from benchmarks.runs.journal import Journal, Record
from benchmarks.tables.table import table

UNIT = "PEFT LoRA r=1"


def losses(name: str, steps: int, journal: Journal, queue: Queue = QUEUE) -> list[float | None]:
    """Return the recorded losses of a method, one a seed; None for a run that diverged."""
    runs = [queue.final(METHODS[name], seed, steps, journal) for seed in range(SEEDS)]
    return [journal[run.key]["loss"] for run in runs if run and run.key in journal]


def loss_table(journal: Journal, lengths: Sequence[int] = LENGTHS, queue: Queue = QUEUE) -> str:
    """Lay out what is recorded: a row a method, a column a K, then what a step costs."""
    rows = []
    for name, method in METHODS.items():
        found = [losses(name, steps, journal, queue) for steps in lengths]
        if any(found):
            lr = queue.rate(method, journal)
            rows.append([name, f"{lr:g}", *map(_loss, found), *_costs(name, journal)])
    head = ["method", "rate", *(f"K = {steps:,} (seeds)" for steps in lengths)]
    costs = ["trained", "memory", "FLOPs a step", *(["time a step"] if _TIMES in journal else [])]
    return table([*head, *costs], rows)


def difference_table(
    journal: Journal, lengths: Sequence[int] = LENGTHS, queue: Queue = QUEUE
) -> str:
    """Lay out how far each method is from LoRA of its rank and schedule, paired by seed."""
    rows = []
    for name in METHODS:
        other = f"PEFT LoRA{', held' if METHODS[name].held else ''} {name[-3:]}"
        if name == other or other not in METHODS:
            continue
        cells = []
        for steps in lengths:
            pairs = zip(*(losses(n, steps, journal, queue) for n in (name, other)), strict=False)
            cells.append(_mean([a - b for a, b in pairs if a is not None and b is not None], "+"))
        if any(cell != "–" for cell in cells):
            rows.append([name, *cells])
    return table(["loss, less LoRA's", *(f"K = {steps:,}" for steps in lengths)], rows)


def rate_table(journal: Journal, steps: int = LENGTHS[-1], queue: Queue = QUEUE) -> str:
    """Lay out the losses of seed 0 at other rates than the one found at the search's K."""
    rows, times = [], sorted((1.0, *OTHER_RATES))
    for name, method in METHODS.items():
        runs = [queue.final(method, 0, steps, journal, x) for x in times]
        found = [[journal[r.key]["loss"]] if r and r.key in journal else [] for r in runs]
        if sum(map(bool, found)) > 1:
            rows.append([name, f"{queue.rate(method, journal):g}", *map(_loss, found)])
    head = [f"loss at K = {steps:,}, by rate", "rate", *(f"× {x:g}" for x in times)]
    return table(head, rows) if rows else ""


def used(journal: Journal, lengths: Sequence[int] = LENGTHS) -> list[Record]:
    """Return the records behind the tables, those of the searches among them."""
    return [record for record in journal if record["key"].get("steps") in lengths]


def measure(journal: Journal, rounds: int) -> None:
    """Count and time what the journal lacks."""
    for method in HERE.values():
        journal.once(_counts(method.name), partial(counted, method))
    journal.once(_TIMES, lambda: {"cpu_s": interleaved(list(HERE.values()), rounds)})


_TIMES = {"cost": "times"}


def _counts(name: str) -> dict[str, object]:
    identity = METHODS[name].identity
    identity.pop("held", None)  # a step costs the same
    return {"cost": "counts", **identity}


def _costs(name: str, journal: Journal) -> list[str]:
    """Format what is trained, the peak of memory, and FLOPs and time in units of LoRA's."""
    times = [_time(name, journal)] if _TIMES in journal else []
    if _counts(name) not in journal or _counts(UNIT) not in journal:
        return ["–", "–", "–", *times]
    own, unit = journal[_counts(name)], journal[_counts(UNIT)]
    memory, flops = f"{own['peak'] / 1e6:.1f} MB", f"{own['flops'] / unit['flops']:.2f}"
    return [f"{own['trainable']:,}", memory, flops, *times]


def _time(name: str, journal: Journal) -> str:
    times = journal[_TIMES]["cpu_s"]
    return f"{ratios(times, UNIT)[name]:.2f}" if name in times else "–"


def _loss(found: Sequence[float | None]) -> str:
    known = [loss for loss in found if loss is not None]
    if len(known) < len(found):
        return f"{len(found) - len(known)} of {len(found)} diverged"
    return f"{_mean(known, '')} ({len(known)})" if known else "–"


def _mean(found: Sequence[float], sign: str) -> str:
    """Format a mean with half its 95 % interval, where there are several."""
    if not found:
        return "–"
    mean, half = interval(found)
    return f"{mean:{sign}.3f}" + (f" ± {half:.3f}" if len(found) > 1 else "")
