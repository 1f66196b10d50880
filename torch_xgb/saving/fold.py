"""A pending booster in the weights: the arithmetic, and the hook that ``state_dict()`` meets.

Whoever reads weights gets W + s·B A, and a copy of the model is one of plain weights.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.forms import Form
from torch_xgb.boosters.pair import Pair
from torch_xgb.formulas.entries import widest
from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.merge import add_product
from torch_xgb.weights.own import require_own
from torch_xgb.weights.places import Whole
from torch_xgb.weights.weight import Weight

__all__ = ["FoldIn", "fits", "fold", "held_by", "is_whole", "unfold"]


def fold(adapter: Adapter, weight: Weight, kept: Tensor | None = None) -> Tensor:
    """Return a weight, as kept here or as given, with the adapter's pair merged in."""
    update = adapter.form.update(weight, _widened(adapter.pair, weight), adapter.s)
    return add_product(weight, weight.place.local if kept is None else kept, *update)


def unfold(form: Form, weight: Weight, merged: Tensor, pair: Pair[Tensor], s: float) -> Tensor:
    """Take a pair out of a weight as kept here.

    It is the first weight again wherever both share an exponent.
    """
    return add_product(weight, merged, *form.undo(weight, merged, _widened(pair, weight), s))


def _widened(pair: Pair[Tensor], weight: Weight) -> Pair[Tensor]:
    device = weight.place.local.device
    return pair.map(lambda factor: factor.detach().to(device, widest(device)))


class FoldIn:
    """Replace a drawn target's entries by what computes what the model computes now.

    One hook for all modules of a target: entries of a tied weight share a tensor, as ever.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._last: weakref.ref[Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle with a model, without what was handed out last."""
        return {"adapter": self.adapter, "_last": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldIn:
        """Copy a model as plain weights that compute what it does, its pairs at rest.

        Nobody would merge them there, and who averages weights over training walks a copy's.
        """
        adapter = copy.deepcopy(self.adapter, memo)
        if self.adapter.pending:
            self.adapter.put_beside(adapter.accumulator)
        if adapter.bound is not None and is_whole(self.adapter):
            if self.adapter.pending:
                require_own(self.adapter.weights)
                for weight in self.adapter.weights:
                    twin = copy.deepcopy(weight.parameter, memo)  # the one of the copied module
                    twin.data.copy_(fold(self.adapter, weight))
            adapter.rest()
        return FoldIn(adapter)

    @torch.no_grad()
    def __call__(  # noqa: D102
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: object
    ) -> None:
        if not self.adapter.pending:
            return
        if self.adapter.accumulator is not None:
            self.adapter.accumulator.custody.asked()
        require_own(self.adapter.weights)
        for weight in held_by(self.adapter, module):
            key, place = prefix + weight.attribute, weight.place
            stored = state_dict.get(key)
            if is_dtensor(weight.parameter) and stored is not None:
                state_dict[key] = place.store(fold(self.adapter, weight))
            elif fits(stored, weight):  # else shared out: an empty one, whose shards are elsewhere
                state_dict[key] = self._once(weight, stored, state_dict)

    def _once(self, weight: Weight, stored: Tensor, state_dict: dict[str, Any]) -> Tensor:
        """Fold, or return what a module tied to this one got: its entries share a tensor."""
        if len(weight.modules) == 1:  # as the biases of maps whose weights are tied
            return fold(self.adapter, weight, stored)
        last = None if self._last is None else self._last()
        if last is not None and any(value is last for value in state_dict.values()):
            return last
        merged = fold(self.adapter, weight, stored)
        self._last = weakref.ref(merged)
        return merged


def is_whole(adapter: Adapter) -> bool:
    """Tell a target of which this process keeps every weight whole."""
    return all(type(weight.place) is Whole for weight in adapter.weights)


def fits(value: object, weight: Weight) -> TypeGuard[Tensor]:
    """Tell what may be loaded into a weight, or was saved of it, whole."""
    return isinstance(value, Tensor) and tuple(value.shape) == weight.place.shape


def held_by(adapter: Adapter, module: nn.Module) -> list[Weight]:
    """Return the weights of a target that one of its modules holds."""
    return [weight for weight in adapter.weights if any(m is module for m in weight.modules)]
