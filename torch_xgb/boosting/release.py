"""The way out of a model whose optimizer is gone: an interrupted cell, a copy, a file."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torch_xgb.boosters.accumulator import Accumulator
from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.freeze import Freeze
from torch_xgb.boosters.hooks import hooks_in
from torch_xgb.boosters.owner import claimed
from torch_xgb.boosters.readers import Readers
from torch_xgb.boosters.recompute import Recomputed
from torch_xgb.boosters.slots import Slots
from torch_xgb.saving.fold import FoldIn, fold
from torch_xgb.targets.compiled import uncompiled
from torch_xgb.weights.own import require_own
from torch_xgb.weights.places import Place

__all__ = ["release", "vacate"]

_OURS = __name__.partition(".")[0]
# What weights become, until it is in them and the pair is out of the forward pass.
_FOLDED: weakref.WeakKeyDictionary[Adapter, list[tuple[Place, Tensor]]] = (
    weakref.WeakKeyDictionary()
)


def release(model: nn.Module) -> nn.Module:
    """Give a model back whose optimizer object is gone: plain, computing what it computes now.

    An optimizer is gone when nothing refers to it any more, as after an interrupted function, and
    never came along with a copy of the model or a pickled one. The pending booster is merged, hooks
    and factors leave, and ``requires_grad`` is given back. A new optimizer does the same first.

    Args:
        model: Whole, or wrapped.

    Returns:
        The model. One without boosters is returned as it is.

    Raises:
        TypeError: If it is no ``nn.Module``.
        RuntimeError: If its optimizer is alive: that has ``finalize()``. Or if the model is a part
            of what an optimizer was built on. Nothing is changed.

    Example:
        >>> import copy
        >>> from torch import nn
        >>> from torch.optim import AdamW
        >>> from torch_xgb import BoostedLowRankOptimizer, release
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> optimizer = BoostedLowRankOptimizer(AdamW, model, lr=1e-2)
        >>> plain = release(copy.deepcopy(model))
        >>> all(p.requires_grad for p in plain.parameters())
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    vacate(uncompiled(model))
    return model


def vacate(model: nn.Module) -> None:
    """Release a model, or a part of it, from boosters that nobody drives.

    Raises:
        RuntimeError: If somebody does. Nothing is changed.
    """
    _require_unowned(model)
    hooks = list(_hooks(model))
    if not hooks and not any(isinstance(m, Slots) for m in model.modules()):
        return
    freezes = [hook for hook, _ in hooks if isinstance(hook, Freeze)]
    if not freezes:
        raise RuntimeError(
            "the model is a part of one that a BoostedLowRankOptimizer was built on: call "
            "torch_xgb.release(model) with that one, whole"
        )
    adapters = {id(hook.adapter): hook.adapter for hook, _ in hooks if isinstance(hook, FoldIn)}
    for hook, _ in hooks:
        if isinstance(hook, Readers):
            hook.rest()
    _merge(list(adapters.values()), model)
    for hook, remove in hooks:
        if not isinstance(hook, Freeze):  # by which the rest is found, if this is interrupted
            remove()
    for module in model.modules():
        for name in [n for n, child in module._modules.items() if isinstance(child, Slots)]:
            del module._modules[name]
        if isinstance(forward := vars(module).get("forward"), Recomputed):
            forward.remove()
    for freeze in freezes:
        freeze.detach()
    for _, remove in hooks:
        remove()
    claimed().pop(model, None)


def _require_unowned(model: nn.Module) -> None:
    for attempt in ("as it is", "with what a cycle alone keeps alive collected"):
        if not (found := _driven(model)):
            return
        if attempt == "as it is":
            gc.collect()
    raise RuntimeError(
        f"the model already belongs to a BoostedLowRankOptimizer{found}: call finalize() on that "
        "optimizer first. If you have lost it, something still refers to it (a scheduler, a "
        "Trainer, in a notebook the traceback of the last error: del sys.last_exc, "
        "sys.last_traceback); drop that, and call torch_xgb.release(model)"
    )


def _driven(model: nn.Module) -> str:
    """Tell whether somebody drives boosters in a model, in a part of it, or in what it is part of.

    Returns:
        Empty if nobody does.
    """
    owners = [hook.owner for hook, _ in _hooks(model) if isinstance(hook, Freeze)]
    if any(owner.alive for owner in owners):
        return " (its factors are in it, and its pending booster belongs to the present weights)"
    own = {id(module) for module in model.modules()}
    for other, owner in list(claimed().items()):
        if owner.alive and any(id(module) in own for module in other.modules()):
            return f", which was built on a {type(other).__name__} that shares modules with it"
    return ""


@torch.no_grad()
def _merge(adapters: list[Adapter], model: nn.Module) -> None:
    pending = [adapter for adapter in adapters if adapter.pending]
    require_own([weight for adapter in pending for weight in adapter.weights], model)
    for adapter in pending:
        if adapter not in _FOLDED:  # else somebody was interrupted below, and begins again
            _FOLDED[adapter] = [(weight.place, fold(adapter, weight)) for weight in adapter.weights]
        for place, values in _FOLDED[adapter]:
            place.local.copy_(values)
            place.changed()
        adapter.put_beside(adapter.accumulator)
        adapter.give_back()
        del _FOLDED[adapter]


def _hooks(model: nn.Module) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Return our hooks in a model: each object that is called, and what removes it."""
    for module in model.modules():
        for found, remove in hooks_in(module):
            if isinstance(found, Accumulator):
                continue  # stays: the model computes with it
            if (_module_of(found) or "").partition(".")[0] == _OURS:
                yield found, remove


def _module_of(hook: Any) -> str | None:  # noqa: ANN401
    return hook.__module__ if isinstance(hook, type(release)) else type(hook).__module__
