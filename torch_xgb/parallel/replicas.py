"""``DistributedDataParallel`` around the model, wherever it is and whenever it came.

It averages what required gradients when it was built. So one that came first is had to look again,
by its own way of coming out of a pickle; then both orders are one.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from torch_xgb.weights.wrappers import around

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Replicas"]


class Replicas:
    """The wrappers of a model.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._earlier: list[weakref.ref[DistributedDataParallel]] = []
        self._found: list[weakref.ref[DistributedDataParallel]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copy without wrappers, which are of the model alone that is copied."""
        return {"model": self.model, "_earlier": [], "_found": []}

    def attach(self) -> None:
        """Have those that are there already average the factors, and nothing that is frozen.

        Raises:
            RuntimeError: If one cannot.
        """
        wrappers = around(self.model, DistributedDataParallel)
        for wrapper in wrappers:
            if wrapper.process_group is not distributed.group.WORLD:
                raise RuntimeError(
                    "the model is wrapped in a DistributedDataParallel with a process group of its "
                    "own, which cannot take up the factors; build the optimizer first, then wrap"
                )
        self._earlier = [weakref.ref(wrapper) for wrapper in wrappers]
        for wrapper in wrappers:
            _look_again(wrapper)

    def detach(self) -> None:
        """Have those that came first average what the model trains without factors."""
        if distributed.is_available() and distributed.is_initialized():
            for wrapper in (known() for known in self._earlier):
                if wrapper is not None and any(p.requires_grad for p in wrapper.parameters()):
                    _look_again(wrapper)
        self._earlier = []

    def find(self) -> ProcessGroup | None:
        """Look for wrappers; return the processes over which one averages, None if none does."""
        wrappers = around(self.model, DistributedDataParallel)
        self._found = [weakref.ref(wrapper) for wrapper in wrappers]
        return wrappers[0].process_group if wrappers else None

    def active(self) -> ProcessGroup | None:
        """Return the processes of the wrapper in whose forward this is called, if it is of ours."""
        wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if wrapper is None or not any(m is self.model for m in wrapper.modules()):
            return None
        group: ProcessGroup = wrapper.process_group
        return group

    def refuse_uneven(self) -> None:
        """Refuse a step in which other processes may have no part.

        Raises:
            RuntimeError: In ``join()``.
        """
        for wrapper in (known() for known in self._found):
            if wrapper is not None and wrapper._join_config.enable:
                raise RuntimeError(
                    "step() inside DistributedDataParallel.join() or Join: a process that runs out "
                    "of batches stops counting steps, and would then train other blocks than the "
                    "rest. Give every process as many batches: a DistributedSampler, with "
                    "drop_last=True or padding, or even_batches=True under accelerate"
                )


def _look_again(wrapper: DistributedDataParallel) -> None:
    hooks = list(getattr(wrapper, "_comm_hooks", ()))
    wrapper.__setstate__(wrapper.__getstate__())
    wrapper._comm_hooks = []
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)
