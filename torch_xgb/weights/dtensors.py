"""DTensors, known without importing them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["computes_on", "is_dtensor", "local", "whole"]


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
    """Return all of a tensor; every process that shares a DTensor out must call it.

    What the host keeps goes by way of the mesh's device, as not every backend sends from the host.
    """
    if is_dtensor(tensor):
        there: Any = tensor.to(computes_on(tensor))
        full: Tensor = there.full_tensor()
        return full.to(tensor.device)
    return tensor


def computes_on(parameter: Tensor) -> torch.device:
    """Return the device that is computed on with a Parameter, which FSDP2 may keep on the host."""
    if is_dtensor(parameter) and parameter.device.type != parameter.device_mesh.device_type:
        return torch.device(parameter.device_mesh.device_type)  # the current one of these
    return parameter.device
