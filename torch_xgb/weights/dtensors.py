"""DTensors, known without importing them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["is_dtensor", "local", "whole"]


def is_dtensor(tensor: object) -> TypeGuard[DTensor]:
    """Tell a DTensor; none can exist unless somebody has imported the class."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return what this process keeps of a tensor, plain or DTensor."""
    if is_dtensor(tensor):
        kept: Tensor = tensor.to_local()
        return kept
    return tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; every process that shares a DTensor out must call it."""
    if is_dtensor(tensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor
