"""The hook that ``load_state_dict()`` meets: a pair that belonged to other weights starts over."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.saving.fold import fits, held_by
from torch_xgb.saving.memory import Memory

__all__ = ["Resumed", "StartOver"]


@dataclass(eq=False)
class Resumed:
    """Whether a state was loaded and no step taken since; shared with the hooks on loading."""

    _untouched: bool = False

    def loaded(self) -> None:
        """Take note that a state was loaded."""
        self._untouched = True

    def stepped(self) -> None:
        """Take note of a step."""
        self._untouched = False

    def overwritten(self) -> None:
        """Say once that weights were loaded over it."""
        if self._untouched:
            self._untouched = False
            warnings.warn(
                "weights were loaded after the optimizer's state, whose pending booster starts "
                "over: to go on exactly, load the model first and the optimizer's state then",
                stacklevel=3,
            )


class StartOver:
    """Forget a target's pairs and residuals when other weights are loaded: they were the old ones'.

    They stay where the weights loaded are those the target computes with already, and come back
    with the weights they belong to, if no step was taken meanwhile.
    """

    def __init__(self, adapter: Adapter, memory: Memory, resumed: Resumed) -> None:
        self.adapter = adapter
        self.memory = memory
        self.resumed = resumed

    @torch.no_grad()
    def __call__(  # noqa: D102
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
    ) -> None:
        loaded = {
            weight: state_dict[prefix + weight.attribute]
            for weight in held_by(self.adapter, module)
            if fits(state_dict.get(prefix + weight.attribute), weight)
        }
        if not loaded:
            return
        values = {weight.name: value for weight, value in loaded.items()}
        instead = self.memory.loading(self.adapter, values)
        if instead is not None:
            keys = {weight.name: prefix + weight.attribute for weight in loaded}
            state_dict.update({keys[name]: value for name, value in instead.items()})
            return
        self.memory.forget(self.adapter, loaded)
        if self.adapter.bound is not None and not self.adapter.waits:
            if self.adapter.pending:
                self.resumed.overwritten()
            self.adapter.start_over()
