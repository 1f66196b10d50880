"""What a run was told, with the facts that follow from it: others must have been told alike."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from torch_xgb.schedule.course import Course
from torch_xgb.settings import Contract, Settings, canonical, plain
from torch_xgb.targets.selection import Selection

__all__ = ["told", "told_alike"]


def told(
    selection: Selection, settings: Settings, base: Optimizer, *contracts: Contract
) -> dict[str, Any]:
    """Return settings of some contracts, and what of the model and the base goes with them."""
    of_factors = getattr(base, "first", base)
    facts = {"optimizer_class": type(of_factors).__name__, **selection.facts}
    return {**facts, **settings.plain(*contracts)}


def told_alike(
    selection: Selection, settings: Settings, course: Course, base: Optimizer
) -> dict[str, str]:
    """Return what processes that train one model must share, as text that equal ones share."""
    own = told(selection, settings, base, Contract.RUN, Contract.RANKS)
    everything = {**own, **course.opening, **plain(base.defaults), **own}
    return {name: canonical(value) for name, value in everything.items()}
