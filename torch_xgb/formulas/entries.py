"""A matrix's entries: as W, in the widest dtype, a few rows at a time, as bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["as_bits", "as_matrix", "row_chunks", "widest"]

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 22  # entries widened at a time: 16 MB of float32
_CPU_CHUNK = 1 << 17  # what stays in a core's own cache


def as_matrix(stored: Tensor, transposed: bool = False) -> Tensor:
    """Return a stored Parameter as a matrix, sharing its memory: W (out, in).

    Of a bias that is a column (out, 1); of a stack of matrices, those below one another as stored.
    """
    if stored.ndim == 1:
        return stored.unsqueeze(1)
    if stored.ndim == 3:
        return stored.view(-1, stored.shape[-1])
    return stored.T if transposed else stored


def widest(device: torch.device) -> torch.dtype:
    """Return the widest floating dtype of a device: float64, but for Apple's."""
    return torch.float32 if device.type == "mps" else torch.float64


def row_chunks(W: Tensor) -> Iterator[slice]:
    """Cut the rows of a matrix into pieces that fit a small temporary."""
    entries = _CPU_CHUNK if W.device.type == "cpu" else _CHUNK
    step = max(1, entries // max(1, W.shape[1]))
    return (slice(start, start + step) for start in range(0, W.shape[0], step))


def as_bits(values: Tensor) -> Tensor:
    """Return floating values as the integers their bits spell."""
    return values.view(_BITS[values.element_size()])
