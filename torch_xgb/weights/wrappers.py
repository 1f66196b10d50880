"""Who has wrapped a model, found wherever the wrapper is: it is told to nobody it wraps."""

from __future__ import annotations

import gc
import sys
from typing import TypeVar

from torch import distributed, nn

__all__ = ["around", "refuse_fsdp1", "said_of_fsdp1"]

W = TypeVar("W", bound=nn.Module)


def around(model: nn.Module, kind: type[W]) -> list[W]:
    """Return the modules of a class that hold a model, itself among them, somewhere within.

    A module does not know who holds it, so every object there is is looked at: not for every step.
    Without several processes none is.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    # By type: what isinstance reads of a proxy may be anything.
    wrappers = [found for found in gc.get_objects() if issubclass(type(found), kind)]
    return [w for w in wrappers if any(module is model for module in w.modules())]


def refuse_fsdp1(model: nn.Module, without: bool = True) -> None:
    """Refuse a model that FSDP1 has wrapped, whole or in part.

    Args:
        model: The model.
        without: Whether to look for those that hold it, and not only for those in it.

    Raises:
        RuntimeError: If it has.
    """
    if (fsdp := sys.modules.get("torch.distributed.fsdp")) is None:
        return
    kind = fsdp.FullyShardedDataParallel
    if any(isinstance(m, kind) for m in model.modules()) or (without and around(model, kind)):
        raise RuntimeError(said_of_fsdp1("the model is wrapped in"))


def said_of_fsdp1(how: str) -> str:
    """Return what is to be done instead."""
    return (
        f"{how} FullyShardedDataParallel (FSDP1), which flattens weights and factors into one "
        "tensor, and boosters cannot be merged into that. FSDP2 is served: call "
        "torch.distributed.fsdp.fully_shard on the plain model's blocks and on the model, before "
        "the optimizer is built or after (with accelerate or the Trainer, fsdp_version: 2)"
    )
