"""Lightning: ``configure_optimizers`` is called once for every ``fit()``, and for its LR finder.

Example:
    def configure_optimizers(self):
        return BoostedLowRankOptimizer(AdamW, plain(self), r=1, kappa=8, lr=self.lr)
"""

from __future__ import annotations

import gc
from typing import TypeVar

from torch import nn

from torch_xgb import BoostedLowRankOptimizer

__all__ = ["plain"]

Module = TypeVar("Module", bound=nn.Module)


def plain(module: Module) -> Module:
    """Finalize what an earlier ``fit()`` or the LR finder has left in a module.

    A Trainer keeps the optimizer of before until it has the new one, so that the module still
    belongs to that when ``configure_optimizers`` is called again.

    Args:
        module: The LightningModule, or whatever of it the optimizer is built on.

    Returns:
        The module, without boosters.
    """
    for one in gc.get_objects():
        if issubclass(type(one), BoostedLowRankOptimizer) and one.model is module:
            one.finalize()
    return module
