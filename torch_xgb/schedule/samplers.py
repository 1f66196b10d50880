"""Which layers a booster draws: pure functions of the seed and the booster's index t."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from torch_xgb.formulas.streams import by, stream

__all__ = [
    "Sampler",
    "Weighted",
    "cyclic",
    "draw",
    "least_used",
    "sampler",
    "uniform",
    "window",
]


class Sampler(Protocol):
    """Draws the layers of booster t, the same on every rank and in every run."""

    def __call__(
        self, seed: int, booster_index: int, num_layers: int, layers_per_booster: int
    ) -> Sequence[int]:
        """Return ``layers_per_booster`` distinct indices below ``num_layers``."""


def uniform(seed: int, booster_index: int, num_layers: int, layers_per_booster: int) -> list[int]:
    """Draw layers uniformly without replacement.

    References:
        Less is More: Extreme Gradient Boost Rank-1 Adaption (Zhang et al., 2024), "Random Layer
        Selection".
    """
    order = torch.randperm(num_layers, **by(stream(seed, booster_index, "layers")))
    return sorted(order[:layers_per_booster].tolist())


def window(seed: int, booster_index: int, num_layers: int, layers_per_booster: int) -> list[int]:
    """Draw neighbouring layers at a random place: the backward pass stops higher on average.

    The outermost layers are drawn less often than the inner ones.
    """
    places = num_layers - layers_per_booster + 1
    start = int(torch.randint(places, (), **by(stream(seed, booster_index, "layers"))))
    return list(range(start, start + layers_per_booster))


def cyclic(seed: int, booster_index: int, num_layers: int, layers_per_booster: int) -> list[int]:
    """Draw every layer once before any twice, in a new random order each time round.

    The rounds are shuffles laid end to end. A booster may take the end of one round and the
    beginning of the next; the next round then begins with layers the booster does not hold yet.
    """
    boosters = math.lcm(num_layers, layers_per_booster) // layers_per_booster
    period, place = divmod(booster_index, boosters)
    generator = stream(seed, period, "cycle")
    order: list[int] = []
    while len(order) < (place + 1) * layers_per_booster:
        round_ = torch.randperm(num_layers, **by(generator)).tolist()
        held = set(order[len(order) - len(order) % layers_per_booster :])
        lacking = (layers_per_booster - len(held)) if held else 0
        front = [layer for layer in round_ if layer not in held][:lacking]
        order += front + [layer for layer in round_ if layer not in front]
    return sorted(order[place * layers_per_booster : (place + 1) * layers_per_booster])


def least_used(
    seed: int, booster_index: int, num_layers: int, layers_per_booster: int
) -> list[int]:
    """Draw the layers used least so far, ties broken at random.

    The uses are those of earlier boosters of this size under this seed, replayed.
    """
    t, uses = _USES.get((seed, num_layers, layers_per_booster), (0, [0] * num_layers))
    if t > booster_index:
        t, uses = 0, [0] * num_layers
    for earlier in range(t, booster_index):
        drawn = _least_used(seed, earlier, uses, layers_per_booster)
        uses = [count + (layer in drawn) for layer, count in enumerate(uses)]
    _USES[seed, num_layers, layers_per_booster] = (booster_index, uses)
    return _least_used(seed, booster_index, uses, layers_per_booster)


_USES: dict[tuple[int, int, int], tuple[int, list[int]]] = {}  # where the last replay stopped


def _least_used(seed: int, t: int, uses: list[int], layers_per_booster: int) -> list[int]:
    order = torch.randperm(len(uses), **by(stream(seed, t, "layers"))).tolist()
    return sorted(sorted(order, key=lambda layer: uses[layer])[:layers_per_booster])


@dataclass(frozen=True)
class Weighted:
    """Draw layers without replacement with odds in proportion to given weights.

    Attributes:
        weights: One positive number per layer, in the model's order.

    Raises:
        ValueError: If a weight is not positive and finite; or, when layers are drawn, if their
            number is not that of the layers.

    Example:
        >>> from torch import nn
        >>> from torch.optim import AdamW
        >>> from torch_xgb import BoostedLowRankOptimizer, Weighted
        >>> model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)])
        >>> often_the_last = Weighted([1, 1, 4])
        >>> optimizer = BoostedLowRankOptimizer(
        ...     AdamW, model, layers_per_booster=2, layer_sampler=often_the_last, lr=1e-3
        ... )
        >>> len(optimizer.active_layers)
        2
    """

    weights: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))
        if not all(math.isfinite(w) and w > 0 for w in self.weights):
            raise ValueError(f"weights must be positive and finite, got {self.weights!r}")

    def __call__(  # noqa: D102
        self, seed: int, booster_index: int, num_layers: int, layers_per_booster: int
    ) -> list[int]:
        if len(self.weights) != num_layers:
            raise ValueError(f"{len(self.weights)} weights given for {num_layers} layers")
        generator = stream(seed, booster_index, "layers")
        weights = torch.tensor(self.weights, dtype=torch.float64, device="cpu")
        return sorted(torch.multinomial(weights, layers_per_booster, generator=generator).tolist())


_SAMPLERS: dict[str, Sampler] = {
    "uniform": uniform,
    "cyclic": cyclic,
    "window": window,
    "least-used": least_used,
}


def sampler(layer_sampler: str | Sampler) -> Sampler:
    """Return the sampler of a name, or the callable given.

    Raises:
        TypeError: If it is neither a string nor callable.
        ValueError: If the name is unknown.
    """
    if callable(layer_sampler):
        return layer_sampler
    allowed = f"layer_sampler must be one of {sorted(_SAMPLERS)} or a callable"
    if not isinstance(layer_sampler, str):
        raise TypeError(f"{allowed}, got {layer_sampler!r}")
    if layer_sampler not in _SAMPLERS:
        raise ValueError(f"{allowed}, got {layer_sampler!r}")
    return _SAMPLERS[layer_sampler]


def draw(
    rule: Sampler, seed: int, booster_index: int, num_layers: int, layers_per_booster: int
) -> list[int]:
    """Return the sorted layers of booster t, checked: a user's sampler may answer anything.

    Raises:
        ValueError: If the answer is not ``layers_per_booster`` distinct indices below
            ``num_layers``.
    """
    answer = rule(seed, booster_index, num_layers, layers_per_booster)
    given = list(answer) if isinstance(answer, Iterable) else [answer]
    drawn = [i.item() if hasattr(i, "item") else i for i in given]  # NumPy's, a tensor's
    valid = all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < num_layers for i in drawn
    )
    if not valid or len(set(drawn)) != layers_per_booster or len(drawn) != layers_per_booster:
        raise ValueError(
            f"layer_sampler must return {layers_per_booster} distinct integers in "
            f"[0, {num_layers}), got {drawn!r} for booster {booster_index}"
        )
    return sorted(drawn)
