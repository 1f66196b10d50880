"""When a booster ends and which layers it draws: pure functions of the seed and its index t."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = [
    "Boundary",
    "Every",
    "Never",
    "Progress",
    "Sampler",
    "boundary",
    "cyclic",
    "draw",
    "layers_per_draw",
    "sampler",
    "stream",
    "uniform",
    "window",
]


@dataclass(frozen=True)
class Progress:
    """How far the boosting is.

    Attributes:
        booster_index: t, the number of boosters merged before the active one.
        booster_step: Optimizer steps taken in the active booster.
    """

    booster_index: int = 0
    booster_step: int = 0


class Sampler(Protocol):
    """Draws the layers of booster t, the same on every rank and in every run."""

    def __call__(
        self, seed: int, booster_index: int, num_layers: int, layers_per_booster: int
    ) -> Sequence[int]:
        """Return ``layers_per_booster`` distinct indices below ``num_layers``."""


class Boundary(Protocol):
    """Tells when a booster ends."""

    def __call__(self, progress: Progress) -> bool:
        """Return whether the active booster ends with the step just counted."""


@dataclass(frozen=True)
class Every:
    """End a booster after kappa steps, as the paper does."""

    kappa: int

    def __call__(self, progress: Progress) -> bool:  # noqa: D102
        return progress.booster_step >= self.kappa


@dataclass(frozen=True)
class Never:
    """Keep one booster until it is merged by hand: LoRA (T = 1, kappa = K)."""

    def __call__(self, progress: Progress) -> bool:  # noqa: D102
        return False


def boundary(kappa: int | None) -> Boundary:
    """Return the rule for ``kappa``: a number of steps, or None for a single booster.

    Raises:
        TypeError: If ``kappa`` is neither an int nor None.
        ValueError: If it is not positive.
    """
    if kappa is None:
        return Never()
    if isinstance(kappa, bool) or not isinstance(kappa, int):
        raise TypeError(f"kappa must be a positive integer or None (one booster), got {kappa!r}")
    if kappa < 1:
        raise ValueError(f"kappa must be a positive integer or None (one booster), got {kappa!r}")
    return Every(kappa)


def layers_per_draw(layers_per_booster: int | float | None, num_layers: int) -> int:
    """Return L_s, the number of layers a booster draws out of ``num_layers``.

    Raises:
        TypeError: If ``layers_per_booster`` is neither a number nor None.
        ValueError: If an int is not positive, or a float share lies outside (0, 1].
    """
    allowed = "layers_per_booster must be a positive integer, a float in (0, 1] or None (all)"
    if layers_per_booster is None:
        return num_layers
    if isinstance(layers_per_booster, bool) or not isinstance(layers_per_booster, (int, float)):
        raise TypeError(f"{allowed}, got {layers_per_booster!r}")
    if isinstance(layers_per_booster, int):
        if layers_per_booster < 1:
            raise ValueError(f"{allowed}, got {layers_per_booster!r}")
        return min(layers_per_booster, num_layers)
    if not 0 < layers_per_booster <= 1:
        raise ValueError(f"{allowed}, got {layers_per_booster!r}")
    return max(1, round(layers_per_booster * num_layers))


def stream(
    seed: int, booster_index: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator that depends on its arguments alone; no global one is touched."""
    digest = hashlib.blake2b(f"{seed}/{booster_index}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "big") >> 1)


def uniform(seed: int, booster_index: int, num_layers: int, layers_per_booster: int) -> list[int]:
    """Draw layers uniformly without replacement.

    References:
        Less is More: Extreme Gradient Boost Rank-1 Adaption (Zhang et al., 2024), "Random Layer
        Selection".
    """
    order = torch.randperm(num_layers, generator=stream(seed, booster_index, "layers"))
    return sorted(order[:layers_per_booster].tolist())


def window(seed: int, booster_index: int, num_layers: int, layers_per_booster: int) -> list[int]:
    """Draw neighbouring layers at a random place: the backward pass stops higher on average.

    The outermost layers are drawn less often than the inner ones.
    """
    places = num_layers - layers_per_booster + 1
    start = int(torch.randint(places, (), generator=stream(seed, booster_index, "layers")))
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
        round_ = torch.randperm(num_layers, generator=generator).tolist()
        held = set(order[len(order) - len(order) % layers_per_booster :])
        lacking = (layers_per_booster - len(held)) if held else 0
        front = [layer for layer in round_ if layer not in held][:lacking]
        order += front + [layer for layer in round_ if layer not in front]
    return sorted(order[place * layers_per_booster : (place + 1) * layers_per_booster])


_SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "cyclic": cyclic, "window": window}


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
    drawn = list(rule(seed, booster_index, num_layers, layers_per_booster))
    valid = all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < num_layers for i in drawn
    )
    if not valid or len(set(drawn)) != layers_per_booster or len(drawn) != layers_per_booster:
        raise ValueError(
            f"layer_sampler must return {layers_per_booster} distinct integers in "
            f"[0, {num_layers}), got {drawn!r} for booster {booster_index}"
        )
    return sorted(drawn)


def constant_or_callable(
    value: float | Callable[[int], float], name: str
) -> Callable[[int], float]:
    """Return shrinkage α_t as a function of the booster's index.

    Raises:
        TypeError: If ``value`` is neither a number nor callable.
        ValueError: If a number is not finite and positive.
    """
    if callable(value):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name} must be a positive number or a callable of the booster's index, got {value!r}"
        )
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return Constant(float(value))


@dataclass(frozen=True)
class Constant:
    """The same value for every booster."""

    value: float

    def __call__(self, booster_index: int) -> float:  # noqa: D102
        return self.value
