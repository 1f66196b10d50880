"""Models that ``torch.compile`` has wrapped, and the names of what is inside."""

from __future__ import annotations

from torch import nn

__all__ = ["is_compiled", "plain_name", "uncompiled"]

_WRAPPED = "_orig_mod"


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the model inside the wrapper that ``torch.compile(model)`` returns, or the model."""
    inner = model._modules.get(_WRAPPED) if isinstance(model, nn.Module) else None
    return model if inner is None else inner


def is_compiled(model: nn.Module) -> bool:
    """Tell a model that is compiled, whole or in part."""
    return any(m._compiled_call_impl is not None or _WRAPPED in m._modules for m in model.modules())


def plain_name(name: str) -> str:
    """Return a module's name without the wrappers ``torch.compile`` puts around modules."""
    return ".".join(part for part in name.split(".") if part != _WRAPPED)
