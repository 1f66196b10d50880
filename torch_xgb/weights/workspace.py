"""Memory for a few rows of a matrix, which merges compute in one after another."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Workspace"]


class Workspace:
    """Buffers, each as large as the largest piece asked of it: what is asked for again is reused.

    Memory that is taken anew for every few rows costs the system more than what is computed in it.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def take(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return an unwritten tensor of a shape and on the device of another.

        Args:
            name: What it is for: what the same name was given before is overwritten.
            like: Has the shape and the device.
            dtype: Of the tensor.
        """
        key = name, like.device, dtype
        held = self._buffers.get(key)
        if held is None or held.numel() < like.numel():
            held = self._buffers[key] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return held[: like.numel()].view(like.shape)
