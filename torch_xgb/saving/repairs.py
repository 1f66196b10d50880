"""The entries of weights that come out otherwise when a booster is put in and taken out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_xgb.formulas.entries import as_bits
from torch_xgb.processes import gather
from torch_xgb.weights.weight import Weight

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Entries", "differing", "everyones", "repair"]

Entries = tuple[Tensor, Tensor, Tensor]  # rows, columns, values of a matrix


def differing(weight: Weight, other: Tensor) -> Entries:
    """Return the entries of a weight, as kept here, in which another tensor differs from it."""
    found = []
    for own, theirs in zip(weight.pieces(), weight.pieces(other), strict=True):
        rows, columns = (as_bits(own.values) != as_bits(theirs.values)).nonzero(as_tuple=True)
        at = (rows + own.rows.start, columns + own.columns.start)
        found.append((*at, own.values[rows, columns]))
    if not found:
        none = torch.empty(0, dtype=torch.int64, device=other.device)
        return none, none, torch.empty(0, dtype=other.dtype, device=other.device)
    rows, columns, values = (torch.cat(part) for part in zip(*found, strict=True))
    return rows, columns, values


def repair(weight: Weight, kept: Tensor, entries: Entries) -> None:
    """Write those of a matrix's entries that are kept here into a tensor laid out alike."""
    for piece in weight.pieces(kept):
        rows, columns, values = (tensor.to(piece.values.device) for tensor in entries)
        here = (rows >= piece.rows.start) & (rows < piece.rows.stop)
        here &= (columns >= piece.columns.start) & (columns < piece.columns.stop)
        at = (rows[here] - piece.rows.start, columns[here] - piece.columns.start)
        piece.values[at] = values[here].to(piece.values.dtype)


def everyones(own: dict[str, Entries], group: ProcessGroup | None) -> dict[str, Entries]:
    """Put the entries of all processes together."""
    if group is None:
        return own
    shares = gather({n: tuple(t.cpu() for t in entries) for n, entries in own.items()}, group)
    together = {}
    for name in own:
        rows, columns, values = zip(*(share[name] for share in shares), strict=True)
        together[name] = (torch.cat(rows), torch.cat(columns), torch.cat(values))
    return together
