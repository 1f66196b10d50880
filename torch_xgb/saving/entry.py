"""A checkpoint's entry about the boosting: its keys, its version, and what it must share.

Version 1 did not hold every setting of a run, and of objects only their kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from torch_xgb.boosters.booster import Booster
from torch_xgb.boosters.carry import Carry
from torch_xgb.saving.pending import Pending
from torch_xgb.schedule.course import Course
from torch_xgb.settings import differences

__all__ = ["ENTRY", "VERSION", "Entry", "find"]

ENTRY = "booster"  # beside the base's own entries
VERSION = 2


def find(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of an optimizer's state.

    Raises:
        ValueError: If there is none, or it is of a version that is not read here.
    """
    saved = state_dict.get(ENTRY)
    if not isinstance(saved, Mapping):
        raise ValueError(f"not a state of BoostedLowRankOptimizer: it has no entry {ENTRY!r}")
    if saved.get("version") not in (1, VERSION):
        raise ValueError(
            f"the state has version {saved.get('version')!r}, this torch_xgb reads 1 to {VERSION}"
        )
    return saved


@dataclass(frozen=True, eq=False)
class Entry:
    """What it is made of: everything of the boosting that is neither settings nor ledger."""

    course: Course
    booster: Booster
    carry: Carry | None
    pending: Pending

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain types."""
        return {
            "version": VERSION,
            **self.course.state_dict(),
            "carry": None if self.carry is None else self.carry.state_dict(),
            "factors": [factor.detach() for factor in self.booster.factors],
            "weights": self.pending.state_dict(),
        }

    def check(self, saved: Mapping[str, Any], told: Mapping[str, Any]) -> set[str]:
        """Check an entry before anything is changed.

        Returns:
            Names of the weights that hold its pending booster at present.

        Raises:
            ValueError: If it is of another configuration or model.
            RuntimeError: If it does not belong to the model's weights.
        """
        _compare(saved, told)
        return self.pending.find_folded(saved["weights"])

    def load_state_dict(self, saved: Mapping[str, Any], folded: set[str], base: Optimizer) -> None:
        """Take over an entry that was checked."""
        self.course.load_state_dict(saved)
        draw = self.course.draw
        self.booster.bind(list(draw.layers), draw.r, draw.s)
        if self.carry is not None:
            self.carry.load_state_dict(saved["carry"], base)
        for parameter, value in zip(self.booster.factors, saved["factors"], strict=True):
            parameter.copy_(value)
        self.pending.load_state_dict(saved["weights"], folded)


def _compare(saved: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    theirs = saved["settings"]
    here = _as_version_1(told, theirs) if saved["version"] == 1 else told
    if unknown := theirs.keys() - here.keys():
        raise ValueError(
            f"the state has the settings {', '.join(sorted(unknown))}, which this torch_xgb does "
            "not know: a later version has saved it"
        )
    if differing := differences(theirs, here):
        details = "; ".join(f"{k}: saved {theirs.get(k)!r}, here {here[k]!r}" for k in differing)
        raise ValueError(
            f"the state was saved with another configuration or model: {details[:2000]}"
        )


def _as_version_1(told: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    def kind(key: str, value: Any) -> Any:  # noqa: ANN401
        if key == "targets" or not (isinstance(value, dict) and "of" in value):
            return value
        return value["of"] if key == "kappa" else "callable"

    return {key: kind(key, value) for key, value in told.items() if key in theirs}
