"""Runs on targets whose optimum is known."""

from dataclasses import dataclass

import torch
from torch.optim import SGD

from benchmarks.runs.journal import RESULTS, Record
from benchmarks.subjects.targets import Target, trace_norm_gap
from torch_xgb import BoostedLowRankOptimizer

JOURNAL = RESULTS / "theory.jsonl"
KAPPA, BOOSTERS = 16, 256


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
            lora_alpha=None,
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
