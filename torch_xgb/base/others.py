"""Other optimizers of the same model, which hold what was frozen for this one, or what it trains.

A script may train embeddings and norms by an optimizer of their own. Building this one freezes
them, and whoever steps a Parameter without gradient does nothing and says nothing.

One hook of the process looks for all of them, and stays: torch goes through such hooks at each
step of any optimizer, and one that is removed meanwhile, by the garbage collector or another
thread, ends that step in an error.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from torch_xgb.base.wrapped import Wrapped

__all__ = ["Others"]


class Others:
    """Looks at every other optimizer of the process once, when it steps.

    Args:
        model: Before anything of it is frozen.
        wrapped: The base.
    """

    def __init__(self, model: nn.Module, wrapped: Wrapped) -> None:
        self._model, self._wrapped = model, wrapped
        self._required = {id(p) for p in model.parameters() if p.requires_grad}
        self._seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        """Copy without what was seen here: a copy begins to watch with its first step."""
        return {**vars(self), "_required": set(), "_seen": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _seen=weakref.WeakSet())

    def watch(self) -> None:
        """Begin to watch, where this is not done."""
        _WATCHING.add(self)
        if not _HOOKED:
            _HOOKED.append(register_optimizer_step_pre_hook(_look_at))

    def leave(self) -> None:
        """End it."""
        _WATCHING.discard(self)

    def look(self, optimizer: Optimizer) -> None:
        """Look at an optimizer that is about to step, the first time it does."""
        groups, own = optimizer.param_groups, self._wrapped.optimizer.param_groups
        if self._wrapped.stepping or groups is own or optimizer in self._seen:
            return
        self._seen.add(optimizer)
        held, ours = ({id(p) for group in of for p in group["params"]} for of in (groups, own))
        named = [(name, p) for name, p in self._model.named_parameters() if id(p) in held]
        if twice := [name for name, p in named if id(p) in ours and p.grad is not None]:
            self._say(optimizer, twice, _TWICE)
        frozen = [(n, p) for n, p in named if id(p) in self._required and not p.requires_grad]
        if without := [name for name, p in frozen if p.grad is None]:
            self._say(optimizer, without, _FROZEN)

    @staticmethod
    def _say(optimizer: Optimizer, names: Sequence[str], what: str) -> None:
        kind = type(optimizer).__name__
        first = f"{len(names)} weights of the model, first {names[0]!r}, that"
        warnings.warn(f"another optimizer, {kind}, steps {first} {what}", stacklevel=4)


_WATCHING: weakref.WeakSet[Others] = weakref.WeakSet()
_HOOKED: list[RemovableHandle] = []  # the one hook, from the first that watches on


def _look_at(optimizer: Optimizer, *_: Any) -> None:
    if not torch.compiler.is_compiling():
        for others in list(_WATCHING):
            others.look(optimizer)


_FROZEN = (
    "were frozen when BoostedLowRankOptimizer was built: it trains none of them. Have this one "
    "train their modules in full, modules_to_save=[…]; or call requires_grad_(True) on them once "
    "it is built, for the other one to train them. What boosters are merged into stays frozen"
)
_TWICE = (
    "BoostedLowRankOptimizer trains too: each of its steps is taken twice. Leave them out of the "
    "other one, or out of this one by modules_to_save=[…], which names what this one is to train"
)
