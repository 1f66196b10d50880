"""Our optimizer, out of whatever a framework has wrapped it in."""

from __future__ import annotations

from torch_xgb import BoostedLowRankOptimizer

__all__ = ["find_boosted"]


def find_boosted(wrapper: object) -> BoostedLowRankOptimizer | None:
    """Follow ``optimizer`` attributes to a BoostedLowRankOptimizer; None if there is none."""
    while wrapper is not None and not isinstance(wrapper, BoostedLowRankOptimizer):
        wrapper = getattr(wrapper, "optimizer", None)
    return wrapper
