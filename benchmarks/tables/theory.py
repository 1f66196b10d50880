"""The theorems: plots, and the slopes that were found."""

import statistics
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.runs.journal import Journal, Record
from benchmarks.runs.theory import BOOSTERS, KAPPA, boosters, gaps, noisy
from benchmarks.subjects.targets import Target, slope
from benchmarks.tables.curves import Curve, draw

PLOTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "plots"
RANKS = (1, 2, 4, 8)
SEEDS = (0, 1, 2)
LINEAR, DEEP = Target(), Target(size=32, rank=24, depth=3)
Once = Callable[..., Record]


def capacity(name: str, target: Target, once: Once) -> list[str]:
    """Draw excess error against T for all ranks; return floors and slopes as lines."""
    times, curves = list(range(BOOSTERS + 1)), []
    lines = [f"{name}: {name_of(target)}"]
    for kappa, label in ((KAPPA, "boosters"), (None, "LoRA")):
        for r in RANKS:
            runs = []
            for seed in SEEDS:
                drawn = Target(**{**asdict(target), "seed": seed})
                what = {"part": name, "r": r, "kappa": kappa, "target": asdict(drawn)}
                runs.append(once(what, partial(boosters, drawn, r, kappa))["errors"])
            mean = [statistics.fmean(values) for values in zip(*runs, strict=True)]
            curves.append(Curve(f"{label}, r = {r}", times, mean, dashed=kappa is None))
            head = f"  {label:8} r = {r}: after {BOOSTERS * KAPPA} steps {mean[-1]:.2e}"
            if kappa is None:
                lines.append(f"{head}, the floor at this rank is {target.floor(r):.2e}")
            else:
                crossed = next((t for t in times if mean[t] < target.floor(r)), None)
                fitted = slope(times[8:65], mean[8:65])
                when = "never below" if crossed is None else f"below (T = {crossed})"
                lines.append(f"{head}, {when} LoRA's floor, slope {fitted:.2f} (T = 8 … 64)")
    bound = [t**-0.5 for t in times[1:]]
    curves.append(Curve("1/√T (the bound's slope)", times[1:], bound, guide=True))
    x = f"boosters T, or LoRA's steps / {KAPPA}"
    y = "excess error / initial"
    draw(PLOTS / f"theory-{name}.png", curves, x, y, name_of(target), lowest=1e-5)
    return lines


def name_of(target: Target) -> str:
    """Describe a target."""
    kind = "linear target" if target.depth == 1 else f"product of {target.depth} maps"
    return f"{kind}, {target.size} × {target.size}, rank {target.rank}"


def noise(once: Once) -> list[str]:
    """Draw MeFT's gradient against T for all ranks; return its exponents as lines."""
    times = [64, 128, 256, 512, 1024, 2048]
    curves, lines = [], ["noise: MeFT's bound is slope -0.5 in T and 0.25 in r"]
    for r in RANKS:
        mean = []
        for steps in times:
            runs = [
                once(
                    {"part": "noise", "r": r, "steps": steps, "seed": seed},
                    partial(noisy, r, steps, seed),
                )["least"]
                for seed in SEEDS
            ]
            mean.append(statistics.fmean(runs))
        curves.append(Curve(f"LoRA, r = {r}", times, mean))
        lines.append(f"  r = {r}: slope in T {slope(list(map(float, times)), mean):.2f}")
    for i in (2, len(times) - 1):
        values = [curve.y[i] for curve in curves]
        lines.append(f"  T = {times[i]}: slope in r {slope(list(map(float, RANKS)), values):.2f}")
    first = max(curve.y[0] for curve in curves)
    bound = [first * (t / times[0]) ** -0.5 for t in times]
    curves.append(Curve("1/√T (the bound's slope)", times, bound, guide=True))
    title = "LoRA with noisy gradients, η ∝ r^(−1/4) / √T"
    draw(PLOTS / "theory-noise.png", curves, "steps T", "least squared gradient norm", title)
    return lines


def gap(once: Once) -> list[str]:
    """Draw the mean Frank–Wolfe gap against T; return its slopes as lines."""
    times = list(range(1, BOOSTERS + 1))
    curves, lines = [], ["gap: COLA's bound is slope -0.5"]
    for boosted, label in ((False, "exact Frank–Wolfe"), (True, f"boosters, r = 1, κ = {KAPPA}")):
        runs = [
            once(
                {"part": "gap", "boosted": boosted, "seed": seed},
                partial(gaps, boosted, seed),
            )["gaps"]
            for seed in SEEDS
        ]
        each = [statistics.fmean(values) for values in zip(*runs, strict=True)]
        mean = [statistics.fmean(each[:t]) for t in times]
        curves.append(Curve(label, times, mean))
        lines.append(f"  {label}: slope of the mean gap {slope(times[8:], mean[8:]):.2f}")
    bound = [curves[0].y[0] * t**-0.5 for t in times]
    curves.append(Curve("1/√T (the bound's slope)", times, bound, guide=True))
    title = f"{name_of(LINEAR)}; trace-norm ball twice the target's"
    draw(PLOTS / "theory-gap.png", curves, "boosters T", "mean Frank–Wolfe gap up to T", title)
    return lines


def findings(journal: Journal) -> list[str]:
    """Do what the journal lacks, draw all plots, and return what they show."""
    once = journal.once
    parts = (capacity("boosters", LINEAR, once), capacity("deep", DEEP, once))
    return [line for part in (*parts, noise(once), gap(once)) for line in part]
