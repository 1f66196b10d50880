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

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.carry import Carry
from torch_xgb.boosters.forms import Form
from torch_xgb.boosters.pair import Pair
from torch_xgb.formulas.entries import widest
from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.merge import Merger, add_product
from torch_xgb.weights.places import Whole
from torch_xgb.weights.weight import Weight

__all__ = ["FoldIn", "Resumed", "StartOver", "fold", "unfold"]


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


@dataclass(eq=False)
class Resumed:
    """Whether a state was loaded and no step taken since; shared with the hooks on loading."""

    _untouched: bool = False

    def loaded(self) -> None:
        """Take note that a state was loaded."""
        self._untouched = True

    def stepped(self) -> None:
        """Take note of a step."""
        self._untouched = False

    def overwritten(self) -> None:
        """Say once that weights were loaded over it."""
        if self._untouched:
            self._untouched = False
            warnings.warn(
                "weights were loaded after the optimizer's state, whose pending booster starts "
                "over: to go on exactly, load the model first and the optimizer's state then",
                stacklevel=3,
            )


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
        self, adapter: Adapter, merger: Merger, carry: Carry | None, resumed: Resumed
    ) -> None:
        self.adapter = adapter
        self.merger = merger
        self.carry = carry
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
            self.merger.forget(weight)
        if loaded and self.carry is not None:
            self.carry.forget(self.adapter.target)
        if loaded and self.adapter.bound is not None and not self.adapter.waits:
            if self.adapter.pending:
                self.resumed.overwritten()
            self.adapter.start_over()


def _is_whole(adapter: Adapter) -> bool:
    return all(type(weight.place) is Whole for weight in adapter.weights)


def _fits(value: object, weight: Weight) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and tuple(value.shape) == weight.place.shape


def _held(adapter: Adapter, module: nn.Module) -> list[Weight]:
    return [weight for weight in adapter.weights if any(m is module for m in weight.modules)]
