"""Base optimizers and starts that a booster can have instead of the paper's, one part at a time.

The library restarts a booster as the paper says: A drawn afresh, B = 0, no optimizer state. Here
each part of that can be changed alone, through what a user has: a callable base optimizer,
``active_factors`` and ``on_merge``. What is kept is kept by target, not by Parameter: the library
lends the same Parameters to other targets.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_xgb import BoostedLowRankOptimizer

Pairs = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Dynamics:
    """How boosters start and step. The defaults are the paper's, with Adam.

    A's moments count from its first gradient, which comes when B is no longer zero.

    Attributes:
        start: A at a new booster: "fresh" (drawn), "kept" (as the last booster of that target left
            it), "gradient" (the first batch gives A = uᵀG for a random sign vector u, scaled to a
            fresh A's norm, B steps from the second batch on), "power" (as "gradient", with u the
            image G A of the fresh A: a step of power iteration, from two batches), or "orthogonal"
            (drawn, less its share in the span of the target's earlier A).
        keep: Optimizer state that outlives a booster: "none", "second" (second moments) or "all".
        scale: What an update is divided by: "coordinate" (Adam), "tensor" (the root mean square of
            a whole factor, averaged over time like Adam's), or "norm" (that of the update itself:
            Frank–Wolfe's step, Muon's on a factor of rank 1).
        beta1: Of the first moment.
        beta2: Of the second.
        corrected: Whether moments are corrected for their start at zero.
        ratio: Learning rate of A, in units of B's (LoRA+ has it below 1).
        warmup: Steps of a linear warm-up inside every booster.
    """

    start: str = "fresh"
    keep: str = "none"
    scale: str = "coordinate"
    beta1: float = 0.9
    beta2: float = 0.999
    corrected: bool = True
    ratio: float = 1.0
    warmup: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "start": ("fresh", "kept", "gradient", "power", "orthogonal"),
            "keep": ("none", "second", "all"),
            "scale": ("coordinate", "tensor", "norm"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}")

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple["Dynamics", dict[str, Any]]:
        """Take one's own settings out of a booster's options."""
        own = {f.name for f in fields(cls)}
        rest = {key: value for key, value in options.items() if key not in own}
        return cls(**{key: value for key, value in options.items() if key in own}), rest


@dataclass
class Moments:
    """Adam's two averages of a tensor's gradients, and how many went into each."""

    first: Tensor
    second: Tensor
    steps: tuple[int, int] = (0, 0)

    def update(self, grad: Tensor, how: Dynamics) -> Tensor:
        """Take a gradient in and return the direction to step against."""
        square = grad.square() if how.scale == "coordinate" else grad.square().mean()
        self.first.lerp_(grad, 1 - how.beta1)
        self.second.lerp_(square, 1 - how.beta2)
        n1, n2 = self.steps = (self.steps[0] + 1, self.steps[1] + 1)
        m = self.first / (1 - how.beta1**n1) if how.corrected else self.first
        if how.scale == "norm":
            return m / (m.square().mean().sqrt() + 1e-12)
        return m / ((self.second / (1 - how.beta2**n2)).sqrt() + 1e-8)

    def restart(self, keep: str) -> None:
        """Forget what does not outlive a booster."""
        if keep != "all":
            self.first.zero_()
            self.steps = (0, self.steps[1])
        if keep == "none":
            self.second.zero_()
            self.steps = (0, 0)


@dataclass
class Held:
    """What is remembered of one target between its boosters."""

    A: Tensor
    moments: tuple[Moments, Moments]
    span: list[Tensor] = field(default_factory=list)  # orthonormal rows


class FactorAdam(Optimizer):
    """Adam without weight decay whose group 0 follows a ``Dynamics``.

    Args:
        groups: Group 0 the factors, others trained by plain Adam.
        lr: B's learning rate.
        how: What happens to the factors.
        seed: Of the random vectors u.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, how: Dynamics, seed: int = 0
    ) -> None:
        super().__init__(groups, {"lr": lr})
        self._how = how
        self._pairs: Callable[[], Pairs] = dict
        self._held: dict[str, Held] = {}
        self._others: dict[Tensor, Moments] = {}
        self._biases: dict[Tensor, Moments] = {}  # of one booster
        self._generator = torch.Generator().manual_seed(seed)
        self._step_of_booster = 0
        self._directions = {"gradient": 1, "power": 2}.get(how.start, 0)

    def follow(self, optimizer: BoostedLowRankOptimizer) -> None:
        """Watch the boosters whose factors are in group 0."""
        self._pairs = lambda: optimizer.active_factors
        optimizer.on_merge(lambda report: self._begin())
        self._begin()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step the factors as the dynamics say, the rest by Adam."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups[1:]:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    moments = self._others.setdefault(parameter, _moments(parameter, False))
                    direction = moments.update(parameter.grad, Dynamics())
                    parameter.sub_(direction, alpha=group["lr"])
        pairs = self._pairs()
        self._step_biases({id(factor) for pair in pairs.values() for factor in pair})
        for name, (A, B) in pairs.items():
            if self._step_of_booster < self._directions:
                self._turn(A, B)
            else:
                self._descend(name, A, B)
        self._step_of_booster += 1
        return loss

    def _step_biases(self, paired: set[int]) -> None:
        """Step what group 0 holds beside pairs, a bias of a target each, by Adam."""
        group = self.param_groups[0]
        for parameter in group["params"]:
            if id(parameter) not in paired and parameter.grad is not None:
                moments = self._biases.setdefault(parameter, _moments(parameter, False))
                parameter.sub_(moments.update(parameter.grad, Dynamics()), alpha=group["lr"])

    def _descend(self, name: str, A: Tensor, B: Tensor) -> None:
        """Step one pair."""
        held, how = self._held[name], self._how
        done = self._step_of_booster - self._directions + 1
        lr = self.param_groups[0]["lr"] * min(1.0, done / max(1, how.warmup))
        for factor, moments, ratio in zip((A, B), held.moments, (how.ratio, 1.0), strict=True):
            if factor.grad is not None and bool(factor.grad.any()):  # A has none while B = 0
                factor.sub_(moments.update(factor.grad, how), alpha=lr * ratio)
        held.A.copy_(A)

    def _turn(self, A: Tensor, B: Tensor) -> None:
        """Turn a start's random vector into the next factor: u to uᵀG, or A to G A."""
        if self._how.start == "power" and self._step_of_booster == 0:
            B.copy_(_like(B.grad, B.shape[0] ** -0.5))
            A.zero_()
        else:
            A.copy_(_like(A.grad, 3**-0.5))  # the norm of a row of U(±1/√in)
            B.zero_()

    def _begin(self) -> None:
        """Start a booster's pairs, after the library has given them a fresh A and B = 0."""
        self._step_of_booster = 0
        self._biases.clear()
        with torch.no_grad():
            for name, (A, B) in self._pairs().items():
                self._start(name, A, B)

    def _start(self, name: str, A: Tensor, B: Tensor) -> None:
        start, held = self._how.start, self._held.get(name)
        if held is None:
            by_tensor = self._how.scale != "coordinate"
            pair = (_moments(A, by_tensor), _moments(B, by_tensor))
            held = self._held[name] = Held(A.clone(), pair)
        else:
            for moments in held.moments:
                moments.restart(self._how.keep)
            if start == "kept":
                A.copy_(held.A)
        if start == "gradient":
            signs = torch.randint(0, 2, B.shape, generator=self._generator).to(B)
            B.copy_((2 * signs - 1) / B.shape[0] ** 0.5)
            A.zero_()
        elif start == "orthogonal":
            _leave(A, held.span)


def attach(
    model: torch.nn.Module, how: Dynamics, seed: int, lr: float, **options: Any
) -> BoostedLowRankOptimizer:
    """Build the library's optimizer around a ``FactorAdam``."""

    def base(groups: Iterable[dict[str, Any]], lr: float) -> FactorAdam:
        return FactorAdam(groups, lr, how, seed)

    optimizer = BoostedLowRankOptimizer(base, model, seed=seed, lr=lr, **options)
    assert isinstance(optimizer.base, FactorAdam)
    optimizer.base.follow(optimizer)
    return optimizer


def _moments(like: Tensor, by_tensor: bool) -> Moments:
    second = torch.zeros((), device=like.device) if by_tensor else torch.zeros_like(like)
    return Moments(torch.zeros_like(like), second)


def _like(gradient: Tensor | None, norm: float) -> Tensor:
    """Return the descent direction of a factor's gradient, each of its vectors of this norm."""
    assert gradient is not None
    dim = 1 if gradient.shape[0] <= gradient.shape[1] else 0
    return -norm * gradient / gradient.norm(dim=dim, keepdim=True).clamp(min=1e-30)


def _leave(A: Tensor, span: list[Tensor]) -> None:
    """Take out of A its share in a span, keep its norm, and enlarge the span by it."""
    if span and len(span) + len(A) > A.shape[1] // 2:
        span.clear()
    norm = A.norm(dim=1, keepdim=True)
    if span:
        Q = torch.stack(span)
        A.sub_(A @ Q.T @ Q)
    A.mul_(norm / A.norm(dim=1, keepdim=True).clamp(min=1e-30))
    span.extend(torch.linalg.qr(A.T).Q.T.unbind())
