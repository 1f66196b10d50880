"""Runs of the causal LM on text of a domain: a search of each method's rate, then longer ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor

from benchmarks.methods.causal import METHODS
from benchmarks.runs.causal import train
from benchmarks.runs.journal import RESULTS, Journal, Record
from benchmarks.subjects import prose, smollm

TASK = "docstrings"
JOURNAL = RESULTS / "domain.jsonl"
QUICK_JOURNAL = RESULTS.parents[1] / "runs" / "domain-quick.jsonl"  # short, so no result


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        searched: Steps of a search.
        lengths: K of the scored runs, in the order they are done.
        seeds: Of each.
        windows: That a run is scored on.
    """

    searched: int = 48
    lengths: tuple[int, ...] = (96, 300, 1000)
    seeds: int = 3
    windows: int = prose.WINDOWS


QUICK = Size(4, (8,), 1, 8)


@cache
def read(part: str) -> Tensor:
    """Tokenise a part once a process."""
    return prose.windows(smollm.tokenizer(), prose.texts()[part])


def key(method: str, lr: float, seed: int, steps: int, part: str, size: Size) -> dict[str, Any]:
    """Return what a run's record is found by."""
    return {
        "task": TASK,
        "method": method,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "part": part,
        "batch_size": prose.ROWS,
        "length": prose.LENGTH,
        "windows": size.windows,
    }


def untrained(size: Size) -> dict[str, Any]:
    """Return the key of the model that nobody trained."""
    return {"task": TASK, "method": "untrained", "windows": size.windows}


def rate(method: str, size: Size, journal: Journal) -> float | None:
    """Return the rate of least loss on held-out windows; None while the search is not complete."""
    found: dict[float, float] = {}
    for lr in METHODS[method][1]:
        searched = key(method, lr, 0, size.searched, prose.SEARCH, size)
        if searched not in journal:
            return None
        found[lr] = journal[searched]["loss"]
    return min(found, key=lambda lr: found[lr])


def records(method: str, steps: int, size: Size, journal: Journal) -> list[Record]:
    """Return the scored runs that are recorded, one a seed."""
    lr = rate(method, size, journal)
    keys = [key(method, lr, seed, steps, prose.SCORED, size) for seed in range(size.seeds) if lr]
    return [journal[one] for one in keys if one in journal]


def run(size: Size, journal: Journal) -> None:
    """Do what the journal lacks: searches, then every method before any seed or K twice."""
    journal.once(untrained(size), partial(_untrained, size))
    for method, (_, rates) in METHODS.items():
        for lr in rates:
            _once(key(method, lr, 0, size.searched, prose.SEARCH, size), journal)
    for steps in size.lengths:
        for seed in range(size.seeds):
            for method in METHODS:
                lr = rate(method, size, journal)
                assert lr is not None
                _once(key(method, lr, seed, steps, prose.SCORED, size), journal)


def _untrained(size: Size) -> Record:
    return {"loss": prose.loss(smollm.model(), read(prose.SCORED), size.windows)}


def _once(wanted: Mapping[str, Any], journal: Journal) -> None:
    if wanted not in journal:
        loss = journal.once(wanted, partial(_trained, wanted))["loss"]
        print(f"{wanted['method']:28} {wanted['lr']:<7g} seed {wanted['seed']} "
              f"K {wanted['steps']:<5} {wanted['part']:8} {loss:.4f}", flush=True)  # fmt: skip


def _trained(wanted: Mapping[str, Any]) -> Record:
    batches = prose.batches(read(prose.TRAIN), wanted["steps"], wanted["seed"])
    how = (wanted["method"], wanted["lr"], wanted["seed"])
    model, record = train(batches, wanted["steps"], *how)
    return {**record, "loss": prose.loss(model, read(wanted["part"]), wanted["windows"])}
