"""A product on its way into a weight: it may be interrupted at any instruction, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torch_xgb.formulas.entries import widest
from torch_xgb.formulas.rounding import round_stochastically, round_to_nearest
from torch_xgb.formulas.streams import Field
from torch_xgb.weights.places import Piece, chunks
from torch_xgb.weights.product import Product
from torch_xgb.weights.weight import Weight

__all__ = ["Addition", "overflows"]

_MARGIN = 1 / 128  # more than a residual of 8 bits loses: a value merged and taken back returns


@torch.no_grad()
def overflows(weight: Weight, product: Product) -> Tensor | None:
    """Return whether a sum is beyond float16's range; None of a dtype of a wider one."""
    W = weight.place.local
    if W.dtype != torch.float16:
        return None
    beyond = torch.zeros((), dtype=torch.bool, device=W.device)
    product = product.to(W.device, torch.float32)
    for piece in weight.pieces():
        for part in chunks(piece):
            exact = product.part(part).add_(part.values)
            beyond |= (exact.abs_() > torch.finfo(torch.float16).max).any()
    return beyond


class _Ready(NamedTuple):
    """New values of a chunk of W, and of its residual, that are about to be written."""

    W: Tensor
    E: Tensor | None


class _State(NamedTuple):
    """How far an addition is: replaced as one, so that no interrupt finds half of it."""

    done: int
    sums: Tensor
    ready: _Ready | None


class Addition:
    """Adds a product to a weight, a few rows at a time.

    What is computed is noted before it is written, and so is that it was: whoever goes on after an
    interrupt writes the same values once more, and adds nothing twice.

    Args:
        weight: W, of shape (out, in).
        product: ΔW.
        precision: "nearest", "stochastic" or "residual".
        bits: What is drawn at random, of the latter two.
        residual: What earlier merges could not put into W, laid out like what is kept of it. If the
            weight has become of a dtype that needs none, W takes it up.
        forget: Drops the residual that W has taken up.

    Attributes:
        measured: Whether ``sums`` has anything.
    """

    def __init__(
        self,
        weight: Weight,
        product: Product,
        precision: str,
        bits: Field | None,
        residual: Tensor | None,
        forget: Callable[[Weight], None],
    ) -> None:
        W = weight.place.local
        self.weight, self.precision = weight, precision
        self.measured = precision != "nearest" or W.element_size() < 4
        self._wide = torch.float32 if W.element_size() < 4 else widest(W.device)
        if not self.measured and residual is None:
            self._wide = W.dtype
        product = product.T if weight.transposed else product
        self._product = product.to(W.device, self._wide)
        self._bits, self._residual, self._forget = bits, residual, forget
        sums = torch.zeros(2, dtype=widest(W.device), device=W.device)
        self._state = _State(0, sums, None)

    @property
    def sums(self) -> Tensor:
        """⟨kept, ΔW⟩ and ⟨ΔW, ΔW⟩, what a residual carries over counted as kept.

        Of a sharded weight those of the part kept here: a merge communicates nothing.
        """
        return self._state.sums

    @torch.no_grad()
    def go_on(self) -> None:
        """Begin, or go on where an exception has ended it; at last do nothing."""
        place = self.weight.place
        for i, (W, E) in enumerate(self._chunks()):
            if i < self._state.done:
                continue
            if self._state.ready is None:
                self._state = self._compute(W, E)
            done, sums, ready = self._state
            assert ready is not None
            W.values.copy_(ready.W)
            if E is not None and ready.E is not None:
                E.values.copy_(ready.E, non_blocking=True)
            self._state = _State(done + 1, sums, None)
        place.changed()
        if self.precision != "residual" and self._residual is not None:
            self._forget(self.weight)

    def _chunks(self) -> Iterator[tuple[Piece, Piece | None]]:
        place = self.weight.place
        pieces = place.pieces(place.local)
        beside = [] if self._residual is None else place.pieces(self._residual)
        for i, piece in enumerate(pieces):
            residuals = chunks(beside[i]) if beside else None
            for W in chunks(piece):
                yield W, None if residuals is None else next(residuals)

    def _compute(self, W: Piece, E: Piece | None) -> _State:
        """Return the state in which a chunk's new values are ready."""
        delta = self._product.part(W)
        done, sums, _ = self._state
        if not self.measured and E is None:
            return _State(done, sums, _Ready(delta.add_(W.values), None))
        before = W.values.to(delta.dtype, copy=True)
        exact = before + delta
        if E is not None:
            # In its own dtype first: converted on the host it would be waited for.
            carried = E.values.to(delta.device, non_blocking=True).to(delta.dtype)
            exact += carried
            before += carried
        rounded = self._round(exact, W)
        kept = rounded.to(delta.dtype) - before
        left = None
        if E is not None and self.precision == "residual":
            left = exact.sub_(rounded).to(E.values.dtype)
            kept += left.to(delta)
        sums = sums + torch.stack([kept.mul_(delta).sum(), delta.square_().sum()])
        return _State(done, sums, _Ready(rounded, left))

    def _round(self, exact: Tensor, W: Piece) -> Tensor:
        if self._bits is None:
            return round_to_nearest(exact, W.values.dtype)
        bits = self._bits.bits(W.rows, W.columns, exact.device)
        margin = _MARGIN if self.precision == "residual" else 0.0
        return round_stochastically(exact, W.values.dtype, bits, margin)
