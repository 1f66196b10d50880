"""The boosters of a chain in a store: one section each, and one for the original weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_xgb.record import BoosterRecord
from torch_xgb.store import Store

__all__ = ["History"]

_ORIGINALS = "base"


class History:
    """Boosters 0, 1, … in order, read one at a time.

    Args:
        store: Where they are.

    Raises:
        ValueError: If one is missing in between.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        held = {section for section in store.sections() if section != _ORIGINALS}
        self._length = len(held)
        self._scales: dict[str, dict[int, float]] | None = None
        for t in range(self._length):
            if _section(t) not in held:
                raise ValueError(
                    f"the ledger has lost booster {t}: it holds {len(held)}, up to {max(held)!r}"
                )

    def __len__(self) -> int:
        return self._length

    def record(self, t: int) -> BoosterRecord:
        """Return booster t."""
        return BoosterRecord.read(self.facts(t), self._store.tensors(_section(t)))

    def records(self, last: int) -> Iterable[BoosterRecord]:
        """Return boosters 0 to ``last``, one at a time."""
        return (self.record(t) for t in range(last + 1))

    def facts(self, t: int) -> dict[str, Any]:
        """Return booster t without its tensors."""
        return self._store.facts(_section(t))

    def append(self, record: BoosterRecord) -> None:
        """Write down the next booster, whole or not at all.

        Raises:
            RuntimeError: If somebody else has done so. Nothing is changed.
        """
        if _section(len(self)) in self._store:
            raise RuntimeError(
                f"booster {len(self)} of the ledger was written by another process, or by a copy "
                "of this one: each run needs a ledger of its own"
            )
        self._store.write(_section(len(self)), record.tensors, record.facts)
        self._length += 1
        self._scales = None

    def truncate(self, length: int) -> None:
        """Drop the boosters from ``length`` on, the last first: a kill leaves no gap."""
        for t in reversed(range(length, len(self))):
            self._store.remove(_section(t))
            self._length = t
        self._scales = None

    def delta(self, name: str, shape: tuple[int, int], last: int) -> tuple[Tensor, Tensor]:
        """Return a weight's update by boosters 0 to ``last``: factors side by side, in float64."""
        lefts = [torch.zeros(shape[0], 0, dtype=torch.float64)]
        rights = [torch.zeros(0, shape[1], dtype=torch.float64)]
        for t, scale in self._scales_of(name).items():
            if t <= last:
                keys = [f"left/{name}", f"right/{name}"]
                left, right = self._store.tensors(_section(t), keys).values()
                lefts.append(left.double() * scale)
                rights.append(right.double())
        return torch.cat(lefts, 1), torch.cat(rights)

    @property
    def has_originals(self) -> bool:
        """Whether the original weights are there."""
        return _ORIGINALS in self._store

    def keep_originals(self, tensors: Mapping[str, Tensor]) -> None:
        """Write down the original weights and saved Parameters."""
        self._store.write(_ORIGINALS, tensors, {})

    def original(self, name: str) -> Tensor:
        """Return an original weight or Parameter, as stored in the model."""
        return self._store.tensors(_ORIGINALS, [name])[name]

    def saved(self, names: Iterable[str], t: int) -> dict[str, Tensor]:
        """Return the Parameters trained in full as of after booster t, or −1 the original ones."""
        if t < 0:
            return self._store.tensors(_ORIGINALS, names)
        tensors = self._store.tensors(_section(t), [f"saved/{name}" for name in names])
        return {key.removeprefix("saved/"): tensor for key, tensor in tensors.items()}

    def _scales_of(self, name: str) -> dict[int, float]:
        """Return the boosters that hold a weight, with the scales of their updates."""
        if self._scales is None:
            self._scales = {}
            for t in range(len(self)):
                for weight, scale in self.facts(t)["scales"].items():
                    self._scales.setdefault(weight, {})[t] = scale
        return self._scales.get(name, {})


def _section(t: int) -> str:
    return f"booster-{t:06d}"
