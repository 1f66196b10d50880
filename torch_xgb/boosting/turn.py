"""From one booster to the next, by deeds each of which may be interrupted and done again.

An exception, a signal or a full disk may end a turn at any instruction. What of it was done is
known then, so that whoever goes on does the rest, and nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torch_xgb.boosters.accumulator import Accumulation
from torch_xgb.boosters.report import MergeReport
from torch_xgb.weights.addition import Addition
from torch_xgb.weights.merge import lost_share
from torch_xgb.weights.transfers import told

__all__ = ["Additions", "Deed", "Turn"]

Deed = Callable[[], object]
Additions = Mapping[str, Sequence[Addition | Accumulation]]  # of each target, its weight's first


@dataclass(eq=False)
class Turn:
    """A list of deeds, and how many of them are done.

    Args:
        deeds: What is to be done, in order; each does nothing, or the same, when it is done again.
        harmless: How many of the first change neither weights nor pairs.
        merged: What is said of the booster that is merged, if one is.
        additions: What is merged.

    Attributes:
        done: How many are done.
    """

    deeds: Sequence[Deed]
    harmless: int = 0
    merged: MergeReport | None = None
    additions: Additions = field(default_factory=dict)
    done: int = 0

    @property
    def is_over(self) -> bool:
        """Whether everything is done."""
        return self.done == len(self.deeds)

    @property
    def has_begun(self) -> bool:
        """Whether weights or pairs may have been changed, so that the rest must follow."""
        return self.done >= self.harmless

    @torch.no_grad()
    def go_on(self) -> None:
        """Do what is not done."""
        while not self.is_over:
            self.deeds[self.done]()
            self.done += 1

    def report(self) -> MergeReport | None:
        """Return what was merged, with what was lost: waits for the device once."""
        first = {name: several[0] for name, several in self.additions.items()}
        into = {n: a.sums for n, a in first.items() if isinstance(a, Addition) and a.measured}
        beside = {n: a.dropped for n, a in first.items() if isinstance(a, Accumulation)}
        lost = {name: lost_share(one) for name, one in _read(into).items()}
        dropped = _read({name: one for name, one in beside.items() if one is not None})
        return None if self.merged is None else replace(self.merged, lost=lost, dropped=dropped)


def _read(measured: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return small tensors as numbers: one of a scalar, a list of others."""
    values = told(list(measured.values()))
    each = zip(measured.items(), values, strict=True)
    return {name: value if one.ndim else value[0] for (name, one), value in each}
