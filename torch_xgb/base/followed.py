"""The modules trained in full, followed when somebody puts other Parameters in their places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["Followed"]


class Named(Protocol):
    """Who knows the modules trained in full, and their Parameters."""

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
