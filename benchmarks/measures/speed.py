"""How long a step takes and the memory it peaks at: paired, interleaved, over the draws."""

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.measures.memory import peak_memory
from benchmarks.methods.contenders import Contender, contenders
from benchmarks.subjects.batched import Subject
from benchmarks.subjects.classification import Batch

KAPPA = 8
OURS, LIMIT = "torch_xgb r=1", "the limit"
Times = dict[str, list[tuple[float, float]]]  # (processor, wall) seconds, by the step's name


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return the processor and wall seconds of a run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def visits(contender: Contender, top: int) -> list[tuple[str, Callable[[], object]]]:
    """List what is timed of a contender in a round, by name; aiming happens outside the clock."""
    if contender.aim is None:
        return [(contender.name, contender.step)]
    return [(f"{contender.name}@{lowest}", contender.step) for lowest in (0, top)]


def rounds(subject: Subject, made: Mapping[str, Contender], count: int, seed: int) -> Times:
    """Time every contender in every round; the first round warms up and is thrown away."""
    times: Times = defaultdict(list)
    order = [(c, name) for c in made.values() for name, _ in visits(c, _top(subject, c))]
    rng = random.Random(seed)
    for number in range(count + 1):
        rng.shuffle(order)
        for contender, name in order:
            if contender.aim is not None:
                contender.aim(int(name.rpartition("@")[2]))
            if number:
                times[name].append(timed(contender.step))
                if contender.turn is not None and name.endswith("@0"):
                    times[f"{contender.name} merge"].append(timed(contender.turn))
            else:
                contender.step()
    return dict(times)


def _sampled(name: str) -> bool:
    """Tell whether a contender's blocks come from the samplers, rather than in turns."""
    return name.startswith(("torch_xgb", LIMIT))


def _top(subject: Subject, contender: Contender) -> int:
    return subject.blocks - 1 if contender.name == "BAdam, 1 block" else subject.top


def means(subject: Subject, times: Times, clock: int) -> dict[str, list[float]]:
    """Return each contender's mean step in every round, over its draws, merges included.

    Args:
        subject: Whose samplers' means are taken.
        times: What was timed.
        clock: 0 for processor time, 1 for wall time.
    """
    series = {name: [pair[clock] for pair in pairs] for name, pairs in times.items()}
    found: dict[str, list[float]] = {}
    for name, low in series.items():
        stem, at, lowest = name.rpartition("@")
        if name.endswith(" merge") or (at and lowest != "0"):
            continue
        if not at:
            found[name] = low
            continue
        high = next(s for n, s in series.items() if n.startswith(f"{stem}@") and n != name)
        turns = series.get(f"{stem} merge", [0.0] * len(low))
        shares = subject.means if _sampled(stem) else {"": 0.5}
        for sampler, share in shares.items():
            label = f"{stem}, {sampler}" if sampler else stem
            found[label] = [
                a + share * (b - a) + turn / KAPPA
                for a, b, turn in zip(low, high, turns, strict=True)
            ]
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def own_share(
    subject: Subject, times: Times, contender: Contender, steps: int = 5
) -> dict[str, float]:
    """Return what share of a step is not the model's own work.

    "uniform" and "window" are what lies beyond the limit, in the same round and without a profiler,
    which would slow small operators down: the pairs' products in forward and backward, what is
    trained beside them, ``step()``, and merges at 1/κ. The others are parts of it.
    """
    optimizer, cpu = contender.optimizer, means(subject, times, 0)
    assert optimizer is not None and contender.aim is not None
    shares = {
        sampler: statistics.median(
            1 - b / a
            for a, b in zip(cpu[f"{OURS}, {sampler}"], cpu[f"{LIMIT}, {sampler}"], strict=True)
        )
        for sampler in subject.means
    }
    contender.aim(round(subject.means["uniform"] * subject.top))
    contender.step()
    outer, inner = _timed_within(contender, [optimizer, optimizer.base], steps)  # type: ignore[attr-defined]
    merge = statistics.median(cpu_s for cpu_s, _ in times[f"{OURS} merge"])
    whole = statistics.median(cpu[f"{OURS}, uniform"])
    parts = {
        "AdamW": inner / steps,
        "step() beside it": (outer - inner) / steps,
        "merge / κ": merge / KAPPA,
    }
    return shares | {name: seconds / whole for name, seconds in parts.items()}


def _timed_within(
    contender: Contender, optimizers: Sequence[torch.optim.Optimizer], steps: int
) -> list[float]:
    """Return the processor seconds that so many steps spend inside each optimizer's ``step``."""
    spent = [0.0] * len(optimizers)

    def clocked(place: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                spent[place] += time.process_time() - start

        return step

    for place, optimizer in enumerate(optimizers):
        optimizer.step = clocked(place, optimizer.step)  # type: ignore[method-assign]
    try:
        for _ in range(steps):
            contender.step()
    finally:
        for optimizer in optimizers:
            del optimizer.step
    return spent


def peaks(subject: Subject) -> dict[str, list[int]]:
    """Measure the peak of two steps above the weights, from the optimizer's making on.

    For what draws blocks: with the lowest one at either end.
    """
    found: dict[str, list[int]] = {}
    for name, build in contenders(subject.drawn).items():
        ends: list[int] = [0]
        probe = build(subject.model(), subject.batch)
        if probe.aim is not None:
            ends = [0, _top(subject, probe)]
        del probe
        found[name] = [_peak(subject, build, lowest) for lowest in ends]
    return found


def _peak(subject: Subject, build: Callable[[nn.Module, Batch], Contender], lowest: int) -> int:
    model = subject.model()

    def run() -> None:
        contender = build(model, subject.batch)
        if contender.aim is not None:
            contender.aim(lowest)
        contender.step()
        contender.step()

    return peak_memory(run, torch.device("cpu"))


def memory_means(subject: Subject, found: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """Return the mean over draws and the most of each contender's peaks."""
    rows: dict[str, dict[str, int]] = {}
    for name, ends in found.items():
        shares = {"": 0.0}
        if len(ends) == 2:
            shares = {f", {n}": s for n, s in subject.means.items()}
            shares = shares if _sampled(name) else {"": 0.5}
        for label, share in shares.items():
            mean = ends[0] + share * (ends[-1] - ends[0])
            rows[name + label] = {"mean": round(mean), "most": max(ends)}
    return rows


def summary(subject: Subject, times: Times, memory: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Gather medians, paired ratios and peaks by contender."""
    cpu, wall = means(subject, times, 0), means(subject, times, 1)
    peaks_ = memory_means(subject, memory)
    rows = {}
    for name, series in cpu.items():
        limit = f"{LIMIT}, {name.rpartition(', ')[2]}" if name.startswith(OURS) else ""
        rows[name] = {
            "cpu_s": statistics.median(series),
            "wall_s": statistics.median(wall[name]),
            "of_lora8": ratio(series, cpu["PEFT LoRA r=8"]),
            "of_lora8_wall": ratio(wall[name], wall["PEFT LoRA r=8"]),
            "of_limit": ratio(series, cpu[limit]) if limit else None,
            "memory": peaks_.get(name),
        }
    return rows
