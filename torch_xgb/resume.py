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

from torch_xgb.booster import Adapter
from torch_xgb.lowrank import widest
from torch_xgb.merge import Merger, row_chunks

__all__ = ["Pending", "fingerprint", "fold", "unfold"]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def fold(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """Return W + s·B A, rounded once to W's dtype."""
    return torch.cat([(delta + W[rows]).to(W.dtype) for rows, delta in _products(W, A, B, s)])


def unfold(folded: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """Return folded − s·B A, rounded once: W again wherever both share an exponent."""
    return torch.cat(
        [(folded[rows] - delta).to(folded.dtype) for rows, delta in _products(folded, A, B, s)]
    )


def _products(W: Tensor, A: Tensor, B: Tensor, s: float) -> Iterator[tuple[slice, Tensor]]:
    left, right = (factor.detach().to(W.device, widest(W.device)) for factor in (B, A))
    return ((rows, (left[rows] @ right).mul_(s)) for rows in row_chunks(W))


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
        for adapter in self._unfinished():
            name, W, (A, B) = adapter.target.name, adapter.target.W, adapter.factors
            saved = fold(W, A, B, adapter.s)
            where = (_bits(unfold(saved, A, B, adapter.s)) != _bits(W)).nonzero(as_tuple=True)
            folded[name] = fingerprint(saved)
            repairs[name] = (*where, W[where])
        return {
            "frozen": {a.target.name: fingerprint(a.target.W) for a in self.adapters},
            "folded": folded,
            "repairs": repairs,
            "residuals": dict(self.merger.residuals),
        }

    def find_folded(self, state: dict[str, Any]) -> list[str]:
        """Return the targets whose present weights hold the saved booster, changing nothing.

        Raises:
            RuntimeError: If some target's weight is neither the saved one nor the saved one folded.
        """
        folded, strangers = [], []
        for adapter in self.adapters:
            name = adapter.target.name
            current = fingerprint(adapter.target.W)
            if name in state["folded"] and current == state["folded"][name]:
                folded.append(name)
            elif current != state["frozen"][name]:
                strangers.append(name)
        if strangers:
            raise RuntimeError(
                "the optimizer's state does not belong to the model's weights: "
                f"{len(strangers)} of "
                f"{len(self.adapters)} targets differ, first {strangers[0]!r} "
                f"({self._dtype(strangers[0])}). Load the model saved together with this state, in "
                "the same dtype, first: model.load_state_dict(...), optimizer.load_state_dict(...)"
            )
        return folded

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], folded: list[str]) -> None:
        """Take the booster just loaded out of the weights that hold it; restore the residuals."""
        for adapter in self.adapters:
            name, W = adapter.target.name, adapter.target.W
            if name in folded:
                W.copy_(unfold(W, *adapter.factors, adapter.s))
                rows, columns, values = (tensor.to(W.device) for tensor in state["repairs"][name])
                W[rows, columns] = values.to(W.dtype)
        devices = {
            a.target.name: self.merger.residual_device or a.target.weight.device
            for a in self.adapters
        }
        self.merger.residuals = {
            n: E.to(devices[n], copy=True) for n, E in state["residuals"].items()
        }

    def _unfinished(self) -> list[Adapter]:
        return [a for a in self.adapters if a.bound is not None and a.factors[1].count_nonzero()]

    def _dtype(self, name: str) -> torch.dtype:
        return next(a.target.weight.dtype for a in self.adapters if a.target.name == name)


class _FoldIn:
    """Replace a drawn target's entry by the weight that computes what the model computes now."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    @torch.no_grad()
    def __call__(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: object
    ) -> None:
        key = f"{prefix}weight"
        if (
            self.adapter.bound is not None
            and key in state_dict
            and self.adapter.factors[1].count_nonzero()
        ):
            target = self.adapter.target
            folded = fold(target.W, *self.adapter.factors, self.adapter.s)
            state_dict[key] = folded.T.contiguous() if target.transposed else folded


class _StartOver:
    """Empty a target's pair and residual when its weight is loaded: they were the old one's."""

    def __init__(self, adapter: Adapter, merger: Merger) -> None:
        self.adapter = adapter
        self.merger = merger

    @torch.no_grad()
    def __call__(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
    ) -> None:
        if f"{prefix}weight" not in state_dict:
            return
        self.merger.residuals.pop(self.adapter.target.name, None)
        if self.adapter.bound is not None:
            self.adapter.factors[1].zero_()
