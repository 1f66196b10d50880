"""The papers' theorems where the optimum is known: linear and deep linear targets of rank R.

    python -m benchmarks.theory            # four minutes on one core

Four questions, a plot and a line of fitted slopes each:

boosters    Excess error against the number T of boosters, r = 1, 2, 4, 8, and LoRA of the same
            ranks for as many steps (XGBLoRA, Fig. 2, Theorems 1 and 2: ≤ C/√T + C'/r; its C'/r says
            that boosters stall at a floor set by r, its remarks that they do not).
deep        The same for a product of three maps, one of them drawn by each booster.
noise       min_t E‖∇f‖² of LoRA with noisy gradients against T and r, step size ∝ r^(−1/4)/√T
            (MeFT, Theorem 2: at most ∝ r^(1/4)/√T).
gap         The mean Frank–Wolfe gap against T, for exact Frank–Wolfe over a trace-norm ball and
            for boosters of rank 1 (COLA, Theorem 4.1: at most ∝ 1/√T).

Bounds are above what happens, so a slope steeper than a bound's agrees with it. The library trains
everything but exact Frank–Wolfe; SGD, so that no optimizer state plays a part. Three seeds.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch.optim import SGD

from benchmarks.curves import Curve, draw
from benchmarks.journal import RESULTS, Journal, Record
from benchmarks.provenance import provenance_line
from benchmarks.targets import Target, slope, trace_norm_gap
from torch_xgb import BoostedLowRankOptimizer

JOURNAL = RESULTS / "theory.jsonl"
PLOTS = Path(__file__).resolve().parents[1] / "docs" / "plots"
RANKS = (1, 2, 4, 8)
SEEDS = (0, 1, 2)
KAPPA, BOOSTERS = 16, 256
LINEAR, DEEP = Target(), Target(size=32, rank=24, depth=3)


@dataclass(frozen=True)
class Training:
    """One run: boosters of rank r and κ steps, or LoRA with κ = None."""

    target: Target
    r: int
    kappa: int | None
    steps: int
    lr: float = 0.5

    def optimizer(self, model: torch.nn.Module) -> BoostedLowRankOptimizer:
        """Attach it; a booster draws one map, LoRA has all."""
        return BoostedLowRankOptimizer(
            SGD,
            model,
            r=self.r,
            kappa=self.kappa,
            layers_per_booster=None if self.kappa is None else 1,
            modules_to_save=[],
            unused="skip",  # a residual can be exactly orthogonal to a factor
            seed=self.target.seed,
            lr=self.lr,
        )

    def errors(self) -> list[float]:
        """Return the excess error before every κ steps and at the end, as shares of the first."""
        delta, model = self.target.delta(), self.target.model()
        optimizer, every = self.optimizer(model), self.kappa or KAPPA
        found = []
        for step in range(self.steps):
            optimizer.zero_grad()
            loss = self.target.loss(model, delta)
            loss.backward()
            optimizer.step()
            if step % every == 0:
                found.append(float(loss.detach()))
        found.append(float(self.target.loss(optimizer.finalize(), delta).detach()))
        return [_rounded(error / found[0]) for error in found]

    def least_gradient(self, noise: float) -> float:
        """Return min_t ‖∇_{A,B} f‖² of LoRA trained with gradients of this noise.

        The noise is Gaussian, of this standard deviation for the whole of a gradient, whatever
        the rank (MeFT's ζ).
        """
        delta, model = self.target.delta(), self.target.model()
        optimizer = self.optimizer(model)
        factors = optimizer.param_groups[0]["params"]
        size = sum(factor.numel() for factor in factors)
        generator = torch.Generator().manual_seed(self.target.seed)
        least = float("inf")
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.target.loss(model, delta).backward()
            least = min(least, sum(float(f.grad.square().sum()) for f in factors))
            for factor in factors:
                shape, dtype = factor.shape, factor.dtype
                drawn = torch.randn(shape, generator=generator, dtype=dtype)
                factor.grad.add_(drawn, alpha=noise / size**0.5)
            optimizer.step()
        optimizer.finalize()
        return least


def boosters(target: Target, r: int, kappa: int | None) -> Record:
    """Train one rank; LoRA for as many steps as the boosters take."""
    return {"errors": Training(target, r, kappa, BOOSTERS * KAPPA).errors()}


def noisy(r: int, steps: int, seed: int) -> Record:
    """Train LoRA with noisy gradients at MeFT's step size."""
    target = Target(size=32, rank=24, seed=seed)
    run = Training(target, r, None, steps, lr=1.0 * r**-0.25 / steps**0.5)
    return {"least": run.least_gradient(noise=1.0)}


def gaps(boosted: bool, seed: int, radius: float = 2.0) -> Record:
    """Return the Frank–Wolfe gap at every iterate, W* inside the ball.

    The ball's radius is that many trace norms of Δ.
    """
    target = Target(seed=seed)
    delta, model = target.delta(), target.model()
    eye = torch.eye(target.size, dtype=torch.float64)
    tau = radius * float(target.singular_values.sum())
    found: list[float] = []
    if boosted:
        optimizer = Training(target, 1, KAPPA, 0).optimizer(model)
        for _ in range(BOOSTERS):
            with torch.no_grad():
                W = model[0].weight - eye
            found.append(_rounded(trace_norm_gap(W - delta, W, tau)))
            for _ in range(KAPPA):
                optimizer.zero_grad()
                target.loss(model, delta).backward()
                optimizer.step()
        optimizer.finalize()
        return {"gaps": found}
    W = torch.zeros_like(delta)
    for t in range(BOOSTERS):
        G = W - delta
        found.append(_rounded(trace_norm_gap(G, W, tau)))
        U, _, Vh = torch.linalg.svd(G)
        W = W + 2 / (t + 2) * (-tau * torch.outer(U[:, 0], Vh[0]) - W)
    return {"gaps": found}


def _rounded(value: float) -> float:
    """Keep six digits: what a record has to hold."""
    return float(f"{value:.6g}")


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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.theory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    print(provenance_line(), flush=True)
    print(*findings(Journal(JOURNAL)), sep="\n")


if __name__ == "__main__":
    main()
