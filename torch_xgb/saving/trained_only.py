"""The hook that ``state_dict()`` meets for savers that keep only what requires a gradient.

Weights that boosters are merged into are trained, and never require one: such a saver would leave
them out without a word.
"""

from __future__ import annotations

from torch import nn

from torch_xgb.callers import callers

__all__ = ["refuse_trained_only"]


def refuse_trained_only(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Refuse ``torch.distributed.checkpoint``'s ``StateDictOptions(ignore_frozen_params=True)``.

    Raises:
        RuntimeError: If the ``state_dict()`` about to be made is for such a saver.
    """
    for frame in callers():
        getter = frame.f_globals.get("__name__") == "torch.distributed.checkpoint.state_dict"
        if getter and getattr(frame.f_locals.get("info"), "ignore_frozen_params", False):
            raise RuntimeError(
                "ignore_frozen_params=True would leave out every weight that the boosters are "
                "merged into: they are trained, and never require a gradient. Save without it, "
                "or after finalize(); optimizer.chain.to_peft(folder) writes the small file "
                "of what was trained (record=True)"
            )
