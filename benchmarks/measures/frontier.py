"""What a step of a method computes and what a run of it holds at most, on MiniLM. Counted."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measures.flops import count_flops
from benchmarks.measures.memory import peak_memory
from benchmarks.methods.frontier import GAP, Entry, galore
from benchmarks.methods.method import Trainee
from benchmarks.subjects.batched import minilm
from benchmarks.subjects.classification import Batch

ROWS, TOKENS = 16, 32


def measure(entry: Entry) -> dict[str, int]:
    """Count a whole step, and the most that a run holds.

    FLOPs are those of matrix products in forward, backward and the optimizer, GaLore's
    decompositions at 1/gap, the mean over draws. Merges of rank 1 are outer products and are not
    among them: two FLOPs an entry every κ steps, a ten-thousandth of a step. Bytes are live
    tensors, the model's weights among them, where the lowest block is drawn.
    """
    ends = list(entry.ends())
    flops = sum(share * _flops(entry, settings) for share, settings in ends)
    return {"flops": round(flops), "peak": _peak(entry, ends[0][1])}


def _flops(entry: Entry, settings: dict[str, Any]) -> float:
    subject = minilm(ROWS, TOKENS)
    trainee = entry.build(subject.model(), **settings)
    run = _step(trainee, subject.batch)
    run()  # what happens once: state made, GaLore's first decomposition
    counted = float(count_flops(run).total())
    if entry.method.build is galore:
        weights = trainee.optimizer.param_groups[0]["params"]
        counted += sum(_decomposition(*weight.shape) for weight in weights) / GAP
    return counted


def _decomposition(rows: int, columns: int) -> int:
    """Return the FLOPs of a thin SVD by R-SVD (Golub & Van Loan, 4th ed., Figure 8.6.1)."""
    m, n = max(rows, columns), min(rows, columns)
    return 6 * m * n**2 + 20 * n**3


def _peak(entry: Entry, settings: dict[str, Any]) -> int:
    subject = minilm(ROWS, TOKENS)
    model = subject.model()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())

    def train() -> None:
        trainee = entry.build(model, **settings)
        run = _step(trainee, subject.batch)
        run()
        run()
        trainee.next_booster()

    return weights + peak_memory(train, torch.device("cpu"))


def _step(trainee: Trainee, batch: Batch) -> Callable[[], None]:
    def step() -> None:
        trainee.model(**batch).loss.backward()
        trainee.optimizer.step()
        trainee.optimizer.zero_grad()

    return step
