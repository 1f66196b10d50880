"""accelerate: ``accelerator.prepare(model, optimizer, loader, scheduler)`` works as with AdamW.

Saving does too, but under FSDP2: accelerate then saves what it can name by a Parameter, and a
booster's place in the run has no such name. ``checkpoint`` puts that right.

Example:
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    checkpoint(accelerator, optimizer)
    ...
    accelerator.save_state("out")
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator, DistributedType
from torch.optim import Optimizer

from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.saving.one_piece import gathered
from torch_xgb.weights.sharded import is_parallel

from .unwrapping import find_boosted

__all__ = ["checkpoint"]


def checkpoint(accelerator: Accelerator, optimizer: Optimizer) -> None:
    """Make ``accelerator.save_state`` and ``load_state`` keep the optimizer, also under FSDP2.

    Call it after ``prepare``; elsewhere than under FSDP2 it does nothing.

    Args:
        accelerator: That has prepared the optimizer.
        optimizer: The BoostedLowRankOptimizer, prepared or not.

    Raises:
        TypeError: If there is no BoostedLowRankOptimizer in ``optimizer``.
        RuntimeError: If the accelerator has not prepared it, or its model is cut by tensor
            parallelism alone, which ``save_state`` cannot write.
    """
    own = find_boosted(optimizer)
    if own is None:
        raise TypeError(
            f"optimizer must be a BoostedLowRankOptimizer, got {type(optimizer).__name__}"
        )
    prepared = [o for o in accelerator._optimizers if getattr(o, "optimizer", None) is own]
    if not prepared:
        raise RuntimeError("call accelerator.prepare(model, optimizer, …) before checkpoint()")
    if accelerator.distributed_type != DistributedType.FSDP:
        if any(map(is_parallel, accelerator._models)):
            raise RuntimeError(
                "accelerate's save_state cannot write a model that tensor parallelism cuts: give "
                '{"model": model, "optimizer": optimizer} to torch.distributed.checkpoint, the '
                "optimizer as you built it, and leave checkpoint() out"
            )
        return
    # What accelerate lists as optimizers it saves by Parameter names; what is registered, as it is.
    # For all else, unscaling first of all, it stays listed.
    accelerator.save_state = _unlisted(accelerator, own, accelerator.save_state)
    accelerator.load_state = _unlisted(accelerator, own, accelerator.load_state)
    accelerator.register_for_checkpointing(_Whole(own))


def _unlisted(
    accelerator: Accelerator, own: Optimizer, call: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a method of the accelerator in which it does not list the optimizer."""

    @functools.wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        listed = accelerator._optimizers
        accelerator._optimizers = [o for o in listed if getattr(o, "optimizer", None) is not own]
        try:
            return call(*args, **kwargs)
        finally:
            accelerator._optimizers = listed

    return called


class _Whole:
    """The optimizer's state with whole tensors: one process writes it for all."""

    def __init__(self, optimizer: BoostedLowRankOptimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Gather; every process must call it."""
        state: dict[str, Any] = gathered(self.optimizer.state_dict())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this process's part."""
        self.optimizer.load_state_dict(state_dict)
