"""Boosters that move their weights by next to nothing: whoever trains by such is told, once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from statistics import median

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.report import Listeners, MergeReport
from torch_xgb.weights.places import Whole
from torch_xgb.weights.weight import Weight

__all__ = ["tell_if_slight"]

# Rates that full fine-tuning has and boosters seldom. Of others nobody is asked to wait for norms.
_SLOW = 1e-4
# Of ‖W‖, by a booster: MiniLM's first on TREC, r = 1 and κ = 8, moves 0.026 at lr = 1e-3 and 0.0005
# at full fine-tuning's 2e-5. At 1e-3 and at 2e-3, twice that, it trains equally well.
_SLIGHT, _CUSTOMARY = 0.003, 0.05


def tell_if_slight(listeners: Listeners, weights: Sequence[Weight], base: Optimizer) -> None:
    """Warn after one of the first merges if the learning rate trains next to nothing.

    Only a rate that may be one of full fine-tuning is looked into, and for one merge the device is
    waited for.

    Args:
        listeners: Hear of merges.
        weights: All that may be merged into.
        base: Trains the factors.
    """
    lr = base.param_groups[0].get("lr")
    if isinstance(lr, float) and 0 < lr <= _SLOW:
        look = _Look(weights, base, lr)
        look.handle = listeners.add(look)


class _Look:
    """Looks at the first booster whose rate is the one given, and no longer a warm-up's."""

    handle: RemovableHandle

    def __init__(self, weights: Sequence[Weight], base: Optimizer, lr: float) -> None:
        self._weights, self._base, self._lr = weights, base, lr

    def __call__(self, report: MergeReport) -> None:
        lr = float(self._base.param_groups[0]["lr"])
        if report.steps < 2 or lr < 0.5 * self._lr:
            return
        self.handle.remove()
        moved = self._moved(report)
        if 0 < moved < _SLIGHT:
            warnings.warn(
                f"booster {report.booster_index} changed its weights by {moved:.1g} of their norm "
                f"(the median of ‖ΔW‖/‖W‖) at lr={lr:g}, which trains next to nothing: a booster "
                "begins at zero and has few steps, and wants a larger rate than full fine-tuning. "
                f"Try lr={lr * _CUSTOMARY / moved:.0e}, as LoRA's are. This is said once",
                stacklevel=2,
            )

    def _moved(self, report: MergeReport) -> float:
        """Return the median of ‖ΔW‖/‖W‖ over the targets; 0 where weights are shared out."""
        weights = {weight.name: weight for weight in self._weights}
        found = {name: weights.get(f"{name}.weight") for name in report.update_norm}
        whole = {n: w for n, w in found.items() if w is not None and isinstance(w.place, Whole)}
        if not whole:
            return 0.0
        norms = torch.stack([w.parameter.detach().float().norm().cpu() for w in whole.values()])
        ratios = [
            report.update_norm[name] / norm
            for name, norm in zip(whole, norms.tolist(), strict=True)
            if norm
        ]
        return median(ratios) if ratios else 0.0
