"""The factor Parameters: a fixed set, lent to whatever layers a booster draws."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from torch_xgb.targets import Layer, Target

__all__ = ["Size", "Sizes", "Slots"]

Size = tuple[int, ...]
Sizes = Callable[[Target], tuple[Size, ...]]


class Slots(nn.Module):
    """The factor Parameters, at home in the user's model but absent from every ``state_dict``.

    For each shape of pair there are as many as the L_s layers richest in it hold: L_s layers' worth
    where layers are alike, and never too few where they are not.

    Args:
        layers: All layers that may be drawn.
        num_layers: L_s, how many are drawn at a time, at most.
        sizes: The shapes of a target's factors.
    """

    def __init__(self, layers: Sequence[Layer], num_layers: int, sizes: Sizes) -> None:
        super().__init__()
        weights = [target.weight.parameter for layer in layers for target in layer.targets]
        dtype = reduce(torch.promote_types, (w.dtype for w in weights), torch.float32)
        self.sizes = sizes
        self.names: dict[tuple[Size, ...], list[list[str]]] = {}
        for kind, (shapes, count) in enumerate(_most_needed(layers, num_layers, sizes).items()):
            letters = ("A", "B", "b")[: len(shapes)]
            self.names[shapes] = [[f"{x}{kind}_{i}" for x in letters] for i in range(count)]
            for names in self.names[shapes]:
                for name, shape in zip(names, shapes, strict=True):
                    values = torch.zeros(shape, dtype=dtype, device=weights[0].device)
                    self.register_parameter(name, nn.Parameter(values))

    def lend(self, targets: Iterable[Target]) -> list[list[nn.Parameter]]:
        """Return factors of each target's shapes, none twice."""
        free = {shapes: iter(names) for shapes, names in self.names.items()}
        named = [next(free[self.sizes(target)]) for target in targets]
        return [[self.get_parameter(name) for name in names] for names in named]

    def with_parameters(self, parameters: Iterable[nn.Parameter]) -> Slots:
        """Return slots like these that hold the given Parameters, in the order of these."""
        twin = copy.copy(self)
        names = [name for name, _ in self.named_parameters()]
        twin._parameters = dict(zip(names, parameters, strict=True))
        return twin

    def _save_to_state_dict(self, *args: Any) -> None:
        """Save nothing: a checkpoint holds the plain model's keys."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Expect nothing."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Slots:
        """Follow the model to another device, but not to a lower precision."""
        own = next(self.parameters())
        moved = fn(torch.empty(0, dtype=own.dtype, device=own.device))
        if moved.dtype == own.dtype:
            return super()._apply(fn, recurse)  # type: ignore
        return super()._apply(lambda p: p.to(moved.device), recurse)  # type: ignore


def _most_needed(
    layers: Sequence[Layer], num_layers: int, sizes: Sizes
) -> dict[tuple[Size, ...], int]:
    """Return, for each shape of pair, how many of them ``num_layers`` layers can hold at most."""
    per_layer = [Counter(sizes(target) for target in layer.targets) for layer in layers]
    kinds = dict.fromkeys(sizes(target) for layer in layers for target in layer.targets)
    counts = {kind: sorted((c[kind] for c in per_layer), reverse=True) for kind in kinds}
    return {kind: sum(count[:num_layers]) for kind, count in counts.items()}
