"""Thousands of merges in each precision, beside the same sum in float64."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.reliability.counts import Counts
from torch_xgb import BoostedLowRankOptimizer

__all__ = ["run"]

SIZE = 24
# The dtype, the policy, and what is allowed: of the distance travelled, or in units in the last
# place of the largest weight (a residual is off by a rounding however many merges there were), or
# in deviations of the mean error (stochastic rounding is off at random, and not on average).
CASES: list[tuple[torch.dtype, str, str, float]] = [
    (torch.float64, "nearest", "relative", 1e-9),
    (torch.float32, "nearest", "relative", 1e-3),
    (torch.float32, "residual", "units", 2.0),
    (torch.bfloat16, "residual", "units", 2.0),
    (torch.float16, "residual", "units", 2.0),
    (torch.bfloat16, "stochastic", "deviations", 5.0),
    (torch.bfloat16, "nearest", "none", 0.0),
]


def run(quick: bool, seed: int) -> Counts:
    """Merge, and compare."""
    warnings.simplefilter("ignore")
    counts = Counts()
    for dtype, policy, bound, allowed in CASES:
        name = f"{str(dtype).removeprefix('torch.')} {policy}"
        with counts.fault(name) as fault:
            W, exact, start = _merged(dtype, policy, 150 if quick else 10_000, seed)
            unit = torch.finfo(dtype).eps * float(exact.abs().max())
            found = {**_distances(W, exact, start, unit), "none": 0.0}
            counts.figures[f"{name}, relative"] = found["relative"]
            if not found[bound] <= allowed:
                fault.wrong = f"{bound} error {found[bound]:.3g}, allowed {allowed:.3g}"
    return counts


def _merged(dtype: torch.dtype, policy: str, merges: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(SIZE, SIZE, generator=generator) * 0.1)
    model.to(dtype)
    start = model[0].weight.detach().double().clone()
    told: dict[str, Any] = {"kappa": None, "merge_precision": policy, "lr": 1.0, "seed": seed}
    optimizer = BoostedLowRankOptimizer(SGD, model, modules_to_save=[], **told)
    s = optimizer.boosting.course.draw.s
    direction = torch.randn(SIZE, 1, generator=generator, dtype=torch.float64)
    exact = start.clone()
    for _ in range(merges):
        ((A, B),) = optimizer.active_factors.values()
        with torch.no_grad():
            noise = torch.randn(SIZE, 1, generator=generator, dtype=torch.float64)
            B.copy_((direction + 3 * noise) * 1e-4)
        exact += s * B.detach().double() @ A.detach().double()
        optimizer.merge()
    return model[0].weight.detach().double(), exact, start


def _distances(W: Tensor, exact: Tensor, start: Tensor, unit: float) -> dict[str, float]:
    off, travelled = W - exact, (exact - start).norm()
    return {
        "relative": float(off.norm() / travelled),
        "deviations": float(off.mean().abs() / (off.std() / off.numel() ** 0.5)),
        "units": float(off.abs().max()) / unit,
    }
