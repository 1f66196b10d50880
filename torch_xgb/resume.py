"""A pending booster in a checkpoint: folded into the weights, and taken out again on loading.

``model.state_dict()`` at any moment is the plain model's: a drawn target's entry is W + s·B A,
rounded once to W's dtype. Beside such weights an optimizer resumes by subtracting the same product.
Rounding both ways restores W but for a few entries, where an exponent changed; those travel in the
optimizer's state as a repair, so that a resumed run goes on bitwise. Fingerprints tell whether
weights and state belong together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_xgb.adapter import Adapter
from torch_xgb.lowrank import widest
from torch_xgb.merge import Merger, row_chunks
from torch_xgb.targets import Weight

__all__ = ["Pending", "add_product", "fingerprint", "fold", "unfold"]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def add_product(M: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return M + scale·left·right, rounded once to M's dtype."""
    wide = widest(M.device)
    left, right = left.to(M.device, wide), right.to(M.device, wide)
    rows = row_chunks(M)
    return torch.cat([((left[i] @ right).mul_(scale) + M[i]).to(M.dtype) for i in rows])


def fold(adapter: Adapter, weight: Weight, M: Tensor) -> Tensor:
    """Return a weight's matrix M with the adapter's pair merged in."""
    return add_product(M, *adapter.form.update(weight, M, _wide_factors(adapter), adapter.s))


def unfold(adapter: Adapter, weight: Weight, M: Tensor) -> Tensor:
    """Return M with the pair taken out: the first matrix again wherever both share an exponent."""
    return add_product(M, *adapter.form.undo(weight, M, _wide_factors(adapter), adapter.s))


def _wide_factors(adapter: Adapter) -> tuple[Tensor, ...]:
    device = adapter.target.weight.parameter.device
    return tuple(factor.detach().to(device, widest(device)) for factor in adapter.factors)


def fingerprint(W: Tensor) -> int:
    """Return a 64-bit number that changes with any bit of a matrix and any exchange of entries.

    A sum over entries of their mixed bits, weighted by row and by column, modulo 2⁶⁴: in integers,
    so that neither the order of summation nor the device matters.
    """
    bits = _bits(W)
    rows = torch.arange(1, W.shape[0] + 1, device=W.device) * 0x9E3779B1 + 0x85EBCA77
    columns = torch.arange(1, W.shape[1] + 1, device=W.device) * 0xC2B2AE3D + 0x27D4EB2F
    total = 0
    for chunk in row_chunks(W):
        wide = bits[chunk].to(torch.int64)
        wide = (wide ^ (wide << 21)) * columns
        total += int((wide.sum(1) * rows[chunk]).sum())
    return total & ((1 << 64) - 1)


def _bits(W: Tensor) -> Tensor:
    return W.view(_BITS[W.element_size()])


class Pending:
    """The state-dict hooks of every target, and the checkpoint's entries about weights.

    Args:
        adapters: The adapters of every layer.
        merger: Whose residuals belong to the weights.
    """

    def __init__(self, adapters: Iterable[Adapter], merger: Merger) -> None:
        self.adapters = list(adapters)
        self.merger = merger
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks."""
        for adapter in self.adapters:
            for module in adapter.target.modules:
                self._handles.append(module.register_state_dict_post_hook(_FoldIn(adapter)))
                hook = _StartOver(adapter, self.merger)
                self._handles.append(module.register_load_state_dict_pre_hook(hook))

    def detach(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Return what ties the state to the weights: fingerprints, repairs, residuals."""
        folded, repairs = {}, {}
        for adapter in self.adapters:
            for weight in adapter.form.weights(adapter.target) if adapter.pending else ():
                M = weight.matrix
                saved = fold(adapter, weight, M)
                differs = _bits(unfold(adapter, weight, saved)) != _bits(M)
                where = differs.nonzero(as_tuple=True)
                folded[weight.name] = fingerprint(saved)
                repairs[weight.name] = (*where, M[where])
        return {
            "frozen": {w.name: fingerprint(w.matrix) for _, w in self._weights()},
            "folded": folded,
            "repairs": repairs,
            "residuals": dict(self.merger.residuals),
        }

    def find_folded(self, state: dict[str, Any]) -> set[str]:
        """Return the weights that hold the saved booster at present, changing nothing.

        Raises:
            RuntimeError: If some weight is neither the saved one nor the saved one folded.
        """
        folded, strangers = set(), []
        for _, weight in self._weights():
            present = fingerprint(weight.matrix)
            if present == state["folded"].get(weight.name):
                folded.add(weight.name)
            elif present != state["frozen"][weight.name]:
                strangers.append(weight)
        if strangers:
            raise RuntimeError(
                "the optimizer's state does not belong to the model's weights: "
                f"{len(strangers)} of {len(state['frozen'])} differ, first {strangers[0].name!r} "
                f"({strangers[0].parameter.dtype}). Load the model saved together with this state, "
                "in the same dtype, first: model.load_state_dict(...), then "
                "optimizer.load_state_dict(...)"
            )
        return folded

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], folded: set[str]) -> None:
        """Take the booster just loaded out of the weights that hold it; restore the residuals."""
        residuals = {}
        for adapter, weight in self._weights():
            name, M = weight.name, weight.matrix
            if name in folded:
                M.copy_(unfold(adapter, weight, M))
                rows, columns, values = (tensor.to(M.device) for tensor in state["repairs"][name])
                M[rows, columns] = values.to(M.dtype)
            if name in state["residuals"]:
                device = self.merger.residual_device or M.device
                residuals[name] = state["residuals"][name].to(device, copy=True)
        self.merger.residuals = residuals

    def _weights(self) -> Iterator[tuple[Adapter, Weight]]:
        for adapter in self.adapters:
            for weight in adapter.form.weights(adapter.target):
                yield adapter, weight


class _FoldIn:
    """Replace a drawn target's entries by what computes what the model computes now."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    @torch.no_grad()
    def __call__(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: object
    ) -> None:
        if not self.adapter.pending:
            return
        for weight in _held(self.adapter, module):
            key = prefix + weight.attribute
            if key in state_dict:
                state_dict[key] = weight.as_stored(fold(self.adapter, weight, weight.matrix))


class _StartOver:
    """Empty a target's pair and residuals when its weight is loaded: they were the old one's."""

    def __init__(self, adapter: Adapter, merger: Merger) -> None:
        self.adapter = adapter
        self.merger = merger

    @torch.no_grad()
    def __call__(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
    ) -> None:
        loaded = [
            weight
            for weight in _held(self.adapter, module)
            if _fits(state_dict.get(prefix + weight.attribute), weight)
        ]
        for weight in loaded:
            self.merger.residuals.pop(weight.name, None)
        if loaded and self.adapter.bound is not None:
            for factor in self.adapter.bound[1:]:
                factor.zero_()


def _fits(value: object, weight: Weight) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.parameter.shape


def _held(adapter: Adapter, module: nn.Module) -> list[Weight]:
    weights = adapter.form.weights(adapter.target)
    return [weight for weight in weights if any(m is module for m in weight.modules)]
