"""A product on its way into a weight: it may be interrupted at any instruction, and goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from torch_xgb.formulas.entries import as_matrix, widest
from torch_xgb.formulas.rounding import round_stochastically, round_to_upper_half
from torch_xgb.formulas.streams import Field, mix
from torch_xgb.weights.fingerprints import of_rows, row_sums
from torch_xgb.weights.places import Piece, Whole, chunks
from torch_xgb.weights.product import Product
from torch_xgb.weights.transfers import fetched
from torch_xgb.weights.weight import Weight
from torch_xgb.weights.workspace import Workspace

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
    """How far an addition is: replaced as one, so that no interrupt finds half of it.

    Attributes:
        done: How many chunks are.
        sums: Over those.
        ready: What is to be written into the next one.
        version: How often W had been written to when the next one was about to be added to.
    """

    done: int
    sums: Tensor
    ready: _Ready | None = None
    version: int | None = None


class Addition:
    """Adds a product to a weight, a few rows at a time.

    What is computed is noted before it is written, and so is that it was: whoever goes on after an
    interrupt writes the same values once more, and adds nothing twice. Where a sum alone is
    computed it is added in place, and torch's count of writes tells whether it was.

    Args:
        weight: W, of shape (out, in).
        product: ΔW.
        precision: "nearest", "stochastic" or "residual".
        bits: What is drawn at random, of the latter two.
        residual: What earlier merges could not put into W, laid out like what is kept of it. If the
            weight has become of a dtype that needs none, W takes it up.
        forget: Drops the residual that W has taken up.
        measure: Whether somebody wants to know what rounding has lost.
        space: To compute in. Nobody else may while this is interrupted.

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
        measure: bool,
        space: Workspace,
    ) -> None:
        W = weight.place.local
        self.weight, self.precision = weight, precision
        rounds = precision != "nearest" or W.element_size() < 4
        self.measured = measure and rounds
        self._is_sum = not rounds and residual is None
        self._wide = torch.float32 if W.element_size() < 4 else widest(W.device)
        if self._is_sum:
            self._wide = W.dtype
        product = product.T if weight.transposed else product
        self._product = product.to(W.device, self._wide)
        self._bits, self._residual, self._forget = bits, residual, forget
        self._space = space
        sums = torch.zeros(2, dtype=widest(W.device), device=W.device)
        matrix = as_matrix(W)
        notes = type(weight.place) is Whole and matrix.stride(1) == 1
        self._rows = sums.new_empty(len(matrix), dtype=torch.int64) if notes else None
        self._state = _State(0, sums)

    @property
    def sums(self) -> Tensor:
        """⟨kept, ΔW⟩ and ⟨ΔW, ΔW⟩, what a residual carries over counted as kept.

        Of a sharded weight those of the part kept here: a merge communicates nothing.
        """
        return self._state.sums

    @property
    def note(self) -> Tensor | None:
        """The weight's ``quick_sum``, once all is done; None of one that is not whole or turned."""
        return None if self._rows is None else of_rows(self._rows)

    @torch.no_grad()
    def go_on(self) -> None:
        """Begin, or go on where an exception has ended it; at last do nothing."""
        place = self.weight.place
        for i, (W, E) in enumerate(self._chunks()):
            if i < self._state.done:
                continue
            if self._is_sum:
                self._add(W)
            else:
                self._replace(W, E)
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

    def _add(self, W: Piece) -> None:
        """Add to a chunk in place."""
        if self._state.version is None:
            self._state = self._state._replace(version=W.values._version)
        if self._state.version == W.values._version:
            self._product.add_to(W.values, W, partial(self._take, "delta", W))
        self._written(W)

    def _replace(self, W: Piece, E: Piece | None) -> None:
        """Compute a chunk's new values, and write them."""
        if self._state.ready is None:
            self._state = self._compute(W, E)
        ready = self._state.ready
        assert ready is not None
        W.values.copy_(ready.W)
        if E is not None and ready.E is not None:
            E.values.copy_(ready.E, non_blocking=True)
        self._written(W)

    def _written(self, W: Piece) -> None:
        """Take note of a chunk that was, while it is in the processor's cache."""
        if self._rows is not None:
            row_sums(W.values, self._rows[W.rows])
        self._state = _State(self._state.done + 1, self._state.sums)

    def _compute(self, W: Piece, E: Piece | None) -> _State:
        """Return the state in which a chunk's new values are ready."""
        exact = self._take("exact", W).copy_(W.values)
        if E is not None:
            # In its own dtype first: converted on the host it would be waited for.
            there = fetched(E.values, exact.device)
            exact.add_(self._take("carried", W).copy_(there))
        before = self._take("before", W).copy_(exact) if self.measured else None
        self._product.add_to(exact, W, partial(self._take, "delta", W))
        rounded = self._round(exact, W)
        left = None
        if E is not None and self.precision == "residual":
            left = exact.sub_(rounded)
        sums = self._state.sums
        if before is not None:
            delta = self._product.part(W, self._take("delta", W))
            kept = self._take("kept", W).copy_(rounded.to(W.values.dtype)).sub_(before)
            if E is not None and left is not None:
                kept.add_(left.to(E.values.dtype))
            sums = sums + torch.stack([kept.mul_(delta).sum(), delta.square_().sum()])
        return self._state._replace(sums=sums, ready=_Ready(rounded, left))

    def _round(self, exact: Tensor, W: Piece) -> Tensor:
        """Return values that W's dtype can hold, or is the nearest of when they are written."""
        if self._bits is None:
            return exact
        rows, columns = self._keys
        bits = mix(rows[W.rows], columns[W.columns], self._take("bits", W, torch.int16))
        out = self._take("rounded", W)
        if (exact.dtype, W.values.dtype) == (torch.float32, torch.bfloat16):
            return round_to_upper_half(exact, bits, out)
        margin = _MARGIN if self.precision == "residual" else 0.0
        spare = out, self._take("share", W)
        return round_stochastically(exact, W.values.dtype, bits, margin, spare)

    @cached_property
    def _keys(self) -> tuple[Tensor, Tensor]:
        """Of the stored matrix's rows and columns, by which an entry's bits are found."""
        assert self._bits is not None
        place = self.weight.place
        *above, last = (*place.shape, 1) if len(place.shape) == 1 else place.shape
        return self._bits.keys((math.prod(above), last), place.local.device)

    def _take(self, name: str, W: Piece, dtype: torch.dtype | None = None) -> Tensor:
        return self._space.take(name, W.values, dtype or self._wide)
