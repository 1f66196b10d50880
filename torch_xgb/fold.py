"""A pending booster in the weights: the arithmetic, and the hooks of a target's modules.

Whoever reads weights meets the hooks: ``state_dict()`` gets W + s·B A, ``load_state_dict()`` ends
what was pending, and a copy of the model is one of plain weights.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from torch_xgb.adapter import Adapter
from torch_xgb.lowrank import widest
from torch_xgb.merge import Merger, row_chunks
from torch_xgb.places import Whole, is_dtensor
from torch_xgb.targets import Weight

__all__ = ["FoldIn", "Resumed", "StartOver", "add_product", "fold", "unfold"]


def add_product(weight: Weight, kept: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return W + scale·left·right, rounded once to W's dtype.

    Args:
        weight: W, of shape (out, in).
        kept: What this process keeps of it, or another tensor laid out alike.
        left: Shape ``(out, r)``.
        right: Shape ``(r, in)``.
        scale: A factor of the product.
    """
    wide = widest(kept.device)
    left, right = left.to(kept.device, wide), right.to(kept.device, wide)
    result = kept.clone()
    for piece in weight.pieces(result):
        L, R = left[piece.rows], right[:, piece.columns]
        for i in row_chunks(piece.values):
            piece.values[i] = (L[i] @ R).mul_(scale) + piece.values[i]
    return result


def fold(adapter: Adapter, weight: Weight, kept: Tensor | None = None) -> Tensor:
    """Return a weight, as kept here or as given, with the adapter's pair merged in."""
    update = adapter.form.update(weight, _wide_factors(adapter), adapter.s)
    return add_product(weight, weight.place.local if kept is None else kept, *update)


def unfold(adapter: Adapter, weight: Weight, merged: Tensor) -> Tensor:
    """Take the pair out: the first weight again wherever both share an exponent."""
    undo = adapter.form.undo(weight, merged, _wide_factors(adapter), adapter.s)
    return add_product(weight, merged, *undo)


def _wide_factors(adapter: Adapter) -> tuple[Tensor, ...]:
    device = adapter.target.weight.place.local.device
    return tuple(factor.detach().to(device, widest(device)) for factor in adapter.factors)


@dataclass
class Resumed:
    """Whether a state was loaded and no step taken since; shared with the hooks on loading."""

    untouched: bool = False


class FoldIn:
    """Replace a drawn target's entries by what computes what the model computes now."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldIn:
        """Copy a model as plain weights that compute what it does, its pairs at rest.

        Nobody would merge them there, and who averages weights over training walks a copy's.
        """
        adapter = copy.deepcopy(self.adapter, memo)
        if adapter.bound is not None and _is_whole(self.adapter):
            if self.adapter.pending:
                for weight in self.adapter.form.weights(self.adapter.target):
                    twin = copy.deepcopy(weight.parameter, memo)  # the one of the copied module
                    twin.data.copy_(fold(self.adapter, weight))
            adapter.bound, adapter.resting = None, adapter.bound
        return FoldIn(adapter)

    @torch.no_grad()
    def __call__(  # noqa: D102
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: object
    ) -> None:
        if not self.adapter.pending:
            return
        for weight in _held(self.adapter, module):
            key, place = prefix + weight.attribute, weight.place
            stored = state_dict.get(key)
            if is_dtensor(weight.parameter) and stored is not None:
                state_dict[key] = place.store(fold(self.adapter, weight))
            elif _fits(stored, weight):  # else shared out: an empty one, whose shards are elsewhere
                state_dict[key] = fold(self.adapter, weight, stored)


class StartOver:
    """Forget a target's pairs and residuals when its weight is loaded: they were the old one's."""

    def __init__(
        self, adapter: Adapter, merger: Merger, carried: dict[str, Any], resumed: Resumed
    ) -> None:
        self.adapter = adapter
        self.merger = merger
        self.carried = carried
        self.resumed = resumed

    @torch.no_grad()
    def __call__(  # noqa: D102
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
    ) -> None:
        loaded = [
            weight
            for weight in _held(self.adapter, module)
            if _fits(state_dict.get(prefix + weight.attribute), weight)
        ]
        for weight in loaded:
            self.merger.residuals.pop(weight.name, None)
        if loaded:
            self.carried.pop(self.adapter.target.name, None)
        if loaded and self.adapter.bound is not None:
            A, b = self.adapter.bound[0], self.adapter.bound[2:]
            if not any(bool(factor.any()) for factor in (A, *b)):
                return  # it waits for A's gradient and changes nothing
            if self.resumed.untouched and self.adapter.pending:
                self.resumed.untouched = False
                warnings.warn(
                    "weights were loaded after the optimizer's state, whose pending booster starts "
                    "over: to go on exactly, load the model first and the optimizer's state then",
                    stacklevel=2,
                )
            for factor in self.adapter.bound[1:]:
                factor.zero_()


def _is_whole(adapter: Adapter) -> bool:
    places = (weight.place for weight in adapter.form.weights(adapter.target))
    return all(type(place) is Whole for place in places)


def _fits(value: object, weight: Weight) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and tuple(value.shape) == weight.place.shape


def _held(adapter: Adapter, module: nn.Module) -> list[Weight]:
    weights = adapter.form.weights(adapter.target)
    return [weight for weight in weights if any(m is module for m in weight.modules)]
