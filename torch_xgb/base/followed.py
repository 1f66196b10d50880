"""The modules trained in full, followed when somebody puts other Parameters in their places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.transfers import state_beside

__all__ = ["Followed"]


class Named(Protocol):
    """Who knows the modules trained in full, and their Parameters."""

    @property
    def model(self) -> nn.Module:
        """The model."""

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """The modules."""

    @property
    def named(self) -> Mapping[str, nn.Parameter]:
        """The Parameters, looked up anew."""


class Followed:
    """Gives the base the Parameters that are in the model now, with the state of those before.

    ``load_state_dict(assign=True)`` makes new ones, and the base would go on training the old.

    Args:
        selection: Knows them.

    Attributes:
        stale: Whether some have been loaded since ``settle`` looked last; set by itself as a hook.
    """

    def __init__(self, selection: Named) -> None:
        self.selection = selection
        self.stale = False
        self._known = dict(selection.named)
        self._places = _places(selection.heads)
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Begin to hear of states that the modules load."""
        modules = {m: None for head in self.selection.heads.values() for m in head.modules()}
        self._handles = [m.register_load_state_dict_post_hook(self) for m in modules]

    def detach(self) -> None:
        """End that."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __call__(self, *_: Any) -> None:  # noqa: ANN401
        """Take note that a module has loaded a state."""
        self.stale = True

    def keep_up(self, base: Optimizer) -> None:
        """Look whether they are still those the base has, if a state was loaded."""
        if self.stale:
            self.settle(base)

    def look(self, base: Optimizer) -> None:
        """Look whether they are what the model computes with, whoever has changed it.

        Raises:
            RuntimeError: If a module has been replaced, or given Parameters that the base has not.
        """
        heads = self.selection.heads
        if any(_at(self.selection.model, name) is not head for name, head in heads.items()):
            present = {id(module) for module in self.selection.model.modules()}
            for name, head in heads.items():
                if id(head) not in present:
                    raise RuntimeError(
                        _estranged(name, "has been taken out of the model, or replaced,")
                    )
        in_full = [p for group in base.param_groups[1:] for p in group["params"]]
        if self._are_kept() or any(map(is_dtensor, [*in_full, *self.selection.model.parameters()])):
            return  # of a sharded model others stand there while it is gathered
        self.settle(base)
        for _, _, p, dtype, _ in self._places:
            _cast(base.state.get(p, {}), dtype, p)
        for group in base.param_groups[1:]:
            for p in (p for p in group["params"] if p in base.state):
                base.state[p] = state_beside(base.state[p], p, group)
        now = self.selection.named
        # What was there before stays known where a framework trains copies of it instead.
        known = {id(p) for group in base.param_groups for p in group["params"]}
        known |= {id(p) for _, _, p, _, _ in self._places}
        if strange := [name for name, p in now.items() if id(p) not in known]:
            raise RuntimeError(_estranged(strange[0], "has come to the model"))
        self._places = _places(heads)

    def _are_kept(self) -> bool:
        try:
            return all(
                (module._parameters[name] is p and p.dtype == dtype and p.device == device)
                or is_dtensor(p)
                or is_dtensor(module._parameters[name])
                for module, name, p, dtype, device in self._places
            )
        except (AttributeError, KeyError):
            return False

    def settle(self, base: Optimizer) -> None:
        """Look whether they are still those the base has."""
        self.stale = False
        now = self.selection.named
        replaced = {
            old: now[name]
            for name, old in self._known.items()
            if name in now and now[name] is not old
        }
        for group in base.param_groups if replaced else ():
            group["params"] = [replaced.get(p, p) for p in group["params"]]
        for old, new in replaced.items():
            if old in base.state:
                base.state[new] = base.state.pop(old)
        self._known = dict(now)


def _places(
    heads: Mapping[str, nn.Module],
) -> list[tuple[nn.Module, str, nn.Parameter, torch.dtype, torch.device]]:
    modules = {module: None for head in heads.values() for module in head.modules()}
    held = [(module, name, p) for module in modules for name, p in module._parameters.items()]
    return [(module, name, p, p.dtype, p.device) for module, name, p in held if p is not None]


def _cast(state: dict[str, Any], before: torch.dtype, p: nn.Parameter) -> None:
    """Make a Parameter's state of its new dtype, as loading it beside such a one does."""
    for key, value in state.items() if before != p.dtype else ():
        if isinstance(value, Tensor) and value.dtype == before and key != "step":
            state[key] = value.to(p.dtype)


def _at(model: nn.Module, path: str) -> nn.Module | None:
    module: nn.Module | None = model
    for name in path.split("."):
        module = None if module is None else module._modules.get(name)
    return module


def _estranged(name: str, what: str) -> str:
    return (
        f"{name!r}, which was to be trained in full, {what} since the optimizer was built: the "
        "base would go on training what was there then; nothing was changed. Take that back "
        "(values go into a Parameter by load_state_dict() or copy_()), or finalize() and build a "
        "new optimizer"
    )
