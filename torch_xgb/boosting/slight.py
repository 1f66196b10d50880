"""Boosters that move their weights by nothing, or next to it: who trains by such is told once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.report import Listeners, MergeReport
from torch_xgb.weights.places import Whole
from torch_xgb.weights.weight import Weight

__all__ = ["tell_if_slight", "tell_if_still"]

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


def tell_if_still(report: MergeReport | None, optimizer: Optimizer) -> None:
    """Warn if the first booster has moved nothing at all in two steps or more.

    Args:
        report: Of what was merged, if anything was.
        optimizer: The base.
    """
    if report is None or report.booster_index or report.steps < 2 or any(_moved(report, optimizer)):
        return
    base = type(optimizer).__name__
    warnings.warn(
        f"booster 0 took {report.steps} steps and moved none of its weights: {base} makes none in "
        "the first steps after its state began, as each booster has it begin (RAdam waits for its "
        "variance, AdaShift for old gradients), or none from a factor of zeros (Nero scales by the "
        "norm); or every gradient was zero, as below a last map of zeros that is not trained. Take "
        "a larger kappa, or another base. This is said once",
        stacklevel=2,
    )


def _moved(report: MergeReport, optimizer: Optimizer) -> Iterator[bool]:
    yield optimizer.param_groups[0].get("lr") == 0  # which is meant to move nothing
    yield from (norm != 0 for norm in report.update_norm.values())


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
