"""W ← W + ΔW with ΔW of low rank, under one policy for precision.

float32 and float64 weights take the product directly. In bfloat16 and float16 most of a small
update is rounded away, so what happens to the remainder is a policy: forget it ("nearest"), round
up or down at random so that nothing is lost on average ("stochastic"), or carry it over to the next
merge ("residual").

A residual alone leaves weights at the nearest value, and what was learned out of the model's sight
until it adds up to half a unit. So every entry has its own threshold between two values, drawn once
for the whole run: of entries a third of the way up a third are rounded up. The weights then hold
the update on average at every moment, as under "stochastic", with the noise of one rounding instead
of one a merge; an entry that does not change is not rounded again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_xgb.checks import device, one_of
from torch_xgb.formulas.entries import widest
from torch_xgb.formulas.streams import Field
from torch_xgb.weights.addition import Addition
from torch_xgb.weights.places import chunks
from torch_xgb.weights.product import Product
from torch_xgb.weights.transfers import arrived, beside
from torch_xgb.weights.weight import Weight
from torch_xgb.weights.workspace import Workspace

__all__ = ["MERGE_PRECISIONS", "Merger", "add_product", "carries_over"]

MERGE_PRECISIONS = ("auto", "nearest", "stochastic", "residual")


@dataclass(eq=False)
class Merger:
    """Merges updates into weights; under "residual" it holds what their dtype could not.

    Args:
        precision: One of ``MERGE_PRECISIONS``. "auto" is "residual" for weights of less than 32
            bits and "nearest" for the others; docs/concepts/precision.md has the measurement.
        seed: Of the numbers that rounding draws.
        residual_device: Where the residuals live; None keeps them beside their weights.

    Attributes:
        residuals: Per weight, laid out like what this process keeps of it, appearing at its first
            merge.

    Raises:
        ValueError: If ``precision`` or the device is unknown.
    """

    precision: str
    seed: int
    residual_device: torch.device | str | None = None
    residuals: dict[str, Tensor] = field(default_factory=dict)
    _saved: set[str] = field(default_factory=set)  # those that a state_dict shares
    _from: set[torch.device] = field(default_factory=set)  # whence residuals come to the host
    _space: weakref.ref[Workspace] | None = None

    def __post_init__(self) -> None:
        one_of("merge_precision", self.precision, MERGE_PRECISIONS)
        if self.residual_device is not None:
            self.residual_device = device("residual_device", self.residual_device)

    def merge(
        self, weight: Weight, left: Tensor, right: Tensor, scale: float, booster_index: int
    ) -> float | None:
        """Add scale·left·right to a weight, in place.

        Args:
            weight: W, of shape (out, in).
            left: Shape ``(out, r)``.
            right: Shape ``(r, in)``.
            scale: A factor of the whole update.
            booster_index: t, which "stochastic" draws new numbers for.

        Returns:
            The share of the update lost to rounding, as of ``Addition.sums``; None where it was not
            measured, in float32 and float64.
        """
        addition = self.addition(weight, Product(left, right, scale), booster_index)
        addition.go_on()
        return lost_share(addition.sums.tolist()) if addition.measured else None

    def addition(
        self, weight: Weight, product: Product, booster_index: int, measure: bool = True
    ) -> Addition:
        """Return what adds a product to a weight once it is told to, for booster t.

        One at a time: they share the memory that they compute in, which is freed with the last.

        Args:
            weight: The weight.
            product: What is added.
            booster_index: t.
            measure: Whether somebody wants to know what rounding loses.
        """
        W = weight.place.local
        precision = self._precision(W)
        bits = None
        if precision == "stochastic":
            bits = Field.of(self.seed, booster_index, f"rounding/{weight.name}")
        elif precision == "residual":
            bits = Field.of(self.seed, 0, f"thresholds/{weight.name}")
        left_over = precision == "residual" or weight.name in self.residuals
        residual = self._residual(weight.name, W) if left_over else None
        space = None if self._space is None else self._space()
        if space is None:
            space = Workspace()
            self._space = weakref.ref(space)
        return Addition(weight, product, precision, bits, residual, self.forget, measure, space)

    def forget(self, weight: Weight) -> None:
        """Drop a weight's residual: other values have been put into the weight."""
        self.residuals.pop(weight.name, None)

    def put_back(self, weight: Weight, residual: Tensor) -> None:
        """Take a residual over that was dropped: the values it belongs to are back."""
        self.residuals[weight.name] = residual

    def state_dict(self, weights: Iterable[Weight]) -> dict[str, Tensor]:
        """Return the residuals as a checkpoint holds such Parameters, by name, in their order.

        They share memory with these until the next merge, which then writes to copies.
        """
        arrived(self._from)
        self._saved = set(self.residuals)
        held = [weight for weight in weights if weight.name in self.residuals]
        return {weight.name: weight.place.store(self.residuals[weight.name]) for weight in held}

    def load_state_dict(self, state: Mapping[str, Tensor], weights: Iterable[Weight]) -> None:
        """Take such residuals over, by copy, each process its part."""
        residuals = {}
        for weight in weights:
            if weight.name in state:
                place = weight.place
                residuals[weight.name] = self._held(place.local)
                residuals[weight.name].copy_(place.part(state[weight.name]))
        self.residuals = residuals

    def __getstate__(self) -> dict[str, Any]:
        """Copy residuals that are there."""
        arrived(self._from)
        return {**vars(self), "_space": None}

    def _precision(self, W: Tensor) -> str:
        if W.dtype == widest(W.device):  # nothing is wider that a sum could be rounded from
            return "nearest"
        if self.precision != "auto":
            return self.precision
        return "residual" if carries_over(self.precision, W.element_size()) else "nearest"

    def _residual(self, name: str, W: Tensor) -> Tensor:
        held = self.residuals.get(name)
        if held is None:
            self.residuals[name] = self._held(W).zero_()
        elif name in self._saved or (self.residual_device is None and held.device != W.device):
            self.residuals[name] = self._held(W).copy_(held)
        self._saved.discard(name)
        return self.residuals[name]

    def _held(self, W: Tensor) -> Tensor:
        """Return an unwritten residual, of a weight that may have been moved since the last."""
        self._from.add(W.device)
        return beside(W, self.residual_device)


def carries_over(precision: str, itemsize: int) -> bool:
    """Tell whether merges keep a residual of a weight of so many bytes an entry."""
    return itemsize < 8 and (precision == "residual" or (precision == "auto" and itemsize < 4))


def lost_share(sums: Iterable[float]) -> float:
    """Return 1 − ⟨kept, ΔW⟩ / ⟨ΔW, ΔW⟩ of the two products."""
    kept, whole = sums
    return 1 - kept / whole if whole else 0.0


def add_product(weight: Weight, kept: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return W + scale·left·right, rounded once to W's dtype.

    Args:
        weight: W, of shape (out, in).
        kept: What this process keeps of it, or another tensor laid out alike.
        left: Shape ``(out, r)``; of a stack one for each member, as of ``Product``.
        right: Shape ``(r, in)``.
        scale: A factor of the product.
    """
    product = Product(left, right, scale).to(kept.device, widest(kept.device))
    product = product.T if weight.transposed and not weight.turned else product
    result = kept.clone()
    for piece in weight.pieces(result):
        for part in chunks(piece):
            part.values.copy_(product.part(part) + part.values)
    return result
