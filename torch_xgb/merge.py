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

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_xgb.lowrank import widest
from torch_xgb.samplers import stream
from torch_xgb.targets import Weight

__all__ = ["MERGE_PRECISIONS", "Merger", "round_stochastically", "row_chunks"]

MERGE_PRECISIONS = ("auto", "nearest", "stochastic", "residual")

_CHUNK = 1 << 22  # elements a low-precision merge widens at a time: 16 MB of float32
_MARGIN = 1 / 128  # more than a residual of 8 bits loses: a value merged and taken back returns
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(eq=False)
class Merger:
    """Merges updates into weights; under "residual" it holds what their dtype could not.

    Args:
        precision: One of ``MERGE_PRECISIONS``. "auto" is "residual" for weights of less than 32
            bits and "nearest" for the others; docs/precision.md has the measurement behind it.
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

    def __post_init__(self) -> None:
        if self.precision not in MERGE_PRECISIONS:
            raise ValueError(
                f"merge_precision must be one of {list(MERGE_PRECISIONS)}, got {self.precision!r}"
            )
        if self.residual_device is not None:
            try:
                self.residual_device = torch.device(self.residual_device)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"residual_device must be a device such as 'cpu' or None (beside the weights), "
                    f"got {self.residual_device!r}"
                ) from error

    @torch.no_grad()
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
            The share of the update lost to rounding, 1 − ⟨kept, ΔW⟩ / ⟨ΔW, ΔW⟩, what a residual
            carries over counted as kept; None where it was not measured, in float32 and float64.
            Of a sharded weight that of the part kept here: a merge communicates nothing.
        """
        place = weight.place
        W = place.local
        precision = self._precision(W)
        pieces = weight.pieces()
        if weight.transposed:
            pieces, left, right = [piece.T for piece in pieces], right.T, left.T
        if precision == "nearest" and W.dtype in (torch.float32, torch.float64):
            left, right = left.to(W), right.to(W)
            for piece in pieces:
                piece.values.addmm_(left[piece.rows], right[:, piece.columns], alpha=scale)
            place.changed()
            return None
        wide = torch.float32 if W.element_size() < 4 else widest(W.device)
        left, right = left.to(W.device, wide), right.to(W.device, wide)
        residuals = place.pieces(self._residual(weight.name, W)) if precision == "residual" else ()
        sums = torch.zeros(2, dtype=widest(W.device), device=W.device)
        for i, piece in enumerate(pieces):
            # Shards of a weight draw numbers of their own, its replicas the same.
            corner = f"@{a},{b}" if (a := piece.rows.start) | (b := piece.columns.start) else ""
            rounding = self._rounding(precision, W, weight.name + corner, booster_index)
            L, R = left[piece.rows], right[:, piece.columns]
            E = residuals[i].values if residuals else None
            for rows in row_chunks(piece.values):
                delta = (L[rows] @ R).mul_(scale)
                kept = _merge_rows(piece.values[rows], delta, E if E is None else E[rows], rounding)
                sums += torch.stack([kept.mul_(delta).sum(), delta.square_().sum()])
        place.changed()
        kept_share, whole = sums.tolist()
        return 1 - kept_share / whole if whole else 0.0

    def _precision(self, W: Tensor) -> str:
        if self.precision != "auto":
            return self.precision
        return "residual" if W.element_size() < 4 else "nearest"

    def _residual(self, name: str, W: Tensor) -> Tensor:
        if name not in self.residuals:
            self.residuals[name] = torch.zeros_like(W, device=self.residual_device)
        return self.residuals[name]

    def _rounding(self, precision: str, W: Tensor, name: str, booster_index: int) -> Rounding:
        if precision == "nearest":
            return round_to_nearest
        if precision == "stochastic":
            generator = stream(self.seed, booster_index, f"rounding/{name}", W.device)
            return lambda exact, dtype: round_stochastically(exact, dtype, generator)
        thresholds = stream(self.seed, 0, f"thresholds/{name}", W.device)
        return lambda exact, dtype: round_stochastically(exact, dtype, thresholds, _MARGIN)


Rounding = Callable[[Tensor, torch.dtype], Tensor]


def _merge_rows(W: Tensor, delta: Tensor, E: Tensor | None, rounding: Rounding) -> Tensor:
    """Add delta and the residual E to rows of W; return what of delta W and E keep together."""
    before = W.to(delta.dtype)
    exact = before + delta
    if E is not None:
        carried = E.to(delta)
        exact += carried
        before += carried
    rounded = rounding(exact, W.dtype)
    W.copy_(rounded)
    kept = rounded.to(delta.dtype).sub_(before)
    if E is not None:
        E.copy_(exact.sub_(rounded))
        kept += E.to(delta)
    return kept


def row_chunks(W: Tensor) -> Iterator[slice]:
    """Cut the rows of a matrix into pieces that fit a small temporary."""
    step = max(1, _CHUNK // max(1, W.shape[1]))
    return (slice(start, start + step) for start in range(0, W.shape[0], step))


def round_to_nearest(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the nearest values of a dtype, ties to even."""
    return exact.to(dtype)


def round_stochastically(
    exact: Tensor, dtype: torch.dtype, generator: torch.Generator, margin: float = 0.0
) -> Tensor:
    """Return one of the two neighbouring values of a dtype, so that the expectation is exact.

    The same numbers drawn, a greater value never becomes a smaller one.

    Args:
        exact: Values of a wider dtype.
        dtype: What to round to.
        generator: On the device of ``exact``.
        margin: Of the distance between neighbours; nearer than that to one, a value becomes it.
    """
    if (exact.dtype, dtype) == (torch.float32, torch.bfloat16):
        return _round_bits(exact, generator, margin)
    nearest = exact.to(dtype)
    below = torch.where(nearest.to(exact.dtype) > exact, _neighbour(nearest, up=False), nearest)
    above = _neighbour(below, up=True)
    gap = above.to(exact.dtype) - below.to(exact.dtype)
    share = (exact - below.to(exact.dtype)) / gap
    chance = torch.rand(exact.shape, generator=generator, device=exact.device, dtype=torch.float32)
    if margin:
        chance.mul_(1 - 2 * margin).add_(margin)
    return torch.where(chance < share, above, below)


def _round_bits(exact: Tensor, generator: torch.Generator, margin: float) -> Tensor:
    """Round to bfloat16, the upper half of a float32: what is added to the lower half may carry."""
    least = int(margin * (1 << 16))
    bits = torch.empty(exact.shape, dtype=torch.int32, device=exact.device)
    bits.random_(least, (1 << 16) - least, generator=generator)
    bits.add_(exact.view(torch.int32)).bitwise_and_(-(1 << 16))
    return torch.where(exact.isnan(), exact, bits.view(torch.float32)).to(torch.bfloat16)


def _neighbour(values: Tensor, up: bool) -> Tensor:
    """Return the adjacent values: a float's bits, read as an integer, count its magnitude."""
    bits = values.view(_BITS[values.element_size()])
    step = torch.where((values > 0) == up, 1, -1).to(bits.dtype)
    smallest = 1 if up else torch.iinfo(bits.dtype).min + 1
    return torch.where(values == 0, smallest, bits + step).view(values.dtype)
