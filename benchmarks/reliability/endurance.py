"""Thousands of boosters: memory, live objects, the time of a step and files stay what they were."""

from __future__ import annotations

import gc
import tempfile
import time
import tracemalloc
import warnings
from array import array
from pathlib import Path
from statistics import median

from benchmarks.reliability.counts import Counts
from benchmarks.reliability.subjects import Kind, boosted, model_of, step

__all__ = ["run"]

KINDS = [Kind("stack", "head"), Kind("bfloat16", "residual"), Kind("stack", "carry")]


def run(quick: bool, seed: int) -> Counts:
    """Train for long, with a ledger once, and look at what grows."""
    warnings.simplefilter("ignore")
    counts, steps = Counts(), 320 if quick else 20_000
    for kind in KINDS[:1] if quick else KINDS:
        with counts.fault(f"{kind.model}, {kind.settings}") as fault:
            fault.wrong = _grown(kind, steps, counts.figures)
    with counts.fault("files of a ledger") as fault:
        fault.wrong = _files(steps // 10)
    return counts


def _grown(kind: Kind, steps: int, figures: dict[str, float]) -> str:
    model = model_of(kind)
    optimizer = boosted(model, kind, kappa=8)
    tracemalloc.start()
    seen: list[tuple[int, int]] = []
    times = array("d", bytes(8 * steps))  # all of it before anything is counted
    for number in range(steps):
        began = time.process_time()
        step(model, optimizer, number % 100)
        times[number] = time.process_time() - began
        if number % (steps // 8) == steps // 8 - 1:
            gc.collect()
            seen.append((len(gc.get_objects()), tracemalloc.get_traced_memory()[0]))
    tracemalloc.stop()
    early, late = median(times[steps // 8 : steps // 4]), median(times[-steps // 8 :])
    (objects, memory), (more_objects, more_memory) = seen[2], seen[-1]
    name = f"{kind.model} {kind.settings}"
    figures[f"{name}, boosters"] = optimizer.booster_index
    figures[f"{name}, objects more"] = more_objects - objects
    figures[f"{name}, bytes more"] = more_memory - memory
    figures[f"{name}, time late / early"] = late / early
    if more_objects - objects > 200 or more_memory - memory > 200_000:
        return f"{more_objects - objects} objects and {more_memory - memory} bytes more"
    return "" if late < 2 * early else f"a step takes {late / early:.1f} times as long"


def _files(steps: int) -> str:
    kind = Kind("stack", "plain")
    model, folder = model_of(kind), Path(tempfile.mkdtemp())
    optimizer = boosted(model, kind, kappa=4, record=folder / "run")
    for number in range(steps):
        step(model, optimizer, number)
    chain = optimizer.chain
    merged = optimizer.booster_index
    optimizer.finalize()
    found = [path.name for path in (folder / "run").iterdir()]
    boosters = [name for name in found if name.startswith("booster-")]
    extra = len(found) - len(boosters)
    if chain is None or not merged <= len(boosters) <= merged + 1 or extra > 6:
        return f"{len(boosters)} files of {merged} boosters, and {extra} others"
    return ""
