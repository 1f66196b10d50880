"""What a step of each way to train the byte language model costs."""

import random
import statistics
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from benchmarks.measures.flops import count_flops
from benchmarks.measures.memory import peak_memory
from benchmarks.measures.speed import timed
from benchmarks.methods.method import Method, Trainee
from benchmarks.subjects import bytelm
from benchmarks.subjects.classification import Batch


def counted(method: Method) -> dict[str, int]:
    """Count the FLOPs of a step's products, and its peak of memory above the weights."""
    (batch,) = bytelm.batches(1, 0)
    model = bytelm.model(0)
    peak = peak_memory(partial(_train, model, method, batch), torch.device("cpu"))
    trainee = _built(method)
    flops = count_flops(lambda: trainee.model(**batch).loss.backward())
    return {"trainable": trainee.trainable, "peak": peak, "flops": sum(flops.values())}


def interleaved(methods: Sequence[Method], rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Time κ = 8 steps of every method in every round, in random order, merges included.

    Returns:
        Each method's processor seconds a step, by round; the first round warms up and is dropped.
    """
    batches = list(bytelm.batches(8, seed))
    made = {method.name: _built(method) for method in methods}
    order, rng = list(made), random.Random(seed)
    found: dict[str, list[float]] = {name: [] for name in order}
    torch.set_float32_matmul_precision("medium")  # as in the runs
    try:
        for _ in range(rounds + 1):
            rng.shuffle(order)
            for name in order:
                found[name].append(timed(partial(_steps, made[name], batches))[0] / len(batches))
    finally:
        torch.set_float32_matmul_precision("highest")
    return {name: times[1:] for name, times in found.items()}


def ratios(times: Mapping[str, Sequence[float]], to: str) -> dict[str, float]:
    """Return the median over rounds of each method's time in units of another's."""
    return {
        name: statistics.median(a / b for a, b in zip(of, times[to], strict=True))
        for name, of in times.items()
    }


def _built(method: Method) -> Trainee:
    return method.build(bytelm.model(0), method.lr, 0, **method.options)


def _steps(trainee: Trainee, batches: Sequence[Batch]) -> None:
    for batch in batches:
        trainee.model(**batch).loss.backward()
        trainee.optimizer.step()
        trainee.optimizer.zero_grad()


def _train(model: torch.nn.Module, method: Method, batch: Batch) -> None:
    """Take the steps whose memory is looked at, a merge among them."""
    trainee = method.build(model, method.lr, 0, **method.options)
    _steps(trainee, [batch] * 2)
    trainee.next_booster()
    _steps(trainee, [batch] * 2)
