"""What a store holds of a chain: a header, the original weights, a section a booster, scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_xgb.ledger.packed import Packed
from torch_xgb.ledger.records import BoosterRecord, ChainHeader
from torch_xgb.ledger.scores import SCORES, Scores
from torch_xgb.ledger.store import Folder, Store

__all__ = ["DOCUMENTS", "Archive", "read_header"]

_HEADER, _ORIGINALS = "chain", "base"
DOCUMENTS = (_HEADER, SCORES)


class Archive:
    """Boosters 0, 1, … in order, read one at a time.

    Args:
        store: Where they are.
        header: Of a run that has not begun to write; None reads the one that is there.

    Attributes:
        header: What all boosters have in common.
        begun: Whether the original weights in the store are this run's.
        scores: The scores given so far, by booster.

    Raises:
        ValueError: If there is no ledger, or a booster is missing in between.
    """

    def __init__(self, store: Store, header: ChainHeader | None = None) -> None:
        self.store = store
        found = read_header(store) if header is None else header
        if found is None:
            raise ValueError(f"no ledger at {self.where!r}: a folder with chain.json is one")
        self.header = found
        self.begun = header is None and self.has_originals
        held = {section for section in store.sections() if section != _ORIGINALS}
        self._length = len(held)
        self._scales: dict[str, dict[int, float]] | None = None
        for t in range(self._length):
            if _section(t) not in held:
                raise ValueError(
                    f"the ledger has lost booster {t}: it holds {len(held)}, up to {max(held)!r}"
                )
        self.scores = Scores(store, self._length)

    @classmethod
    def at(cls, path: Path) -> Archive:
        """Open a folder, or a packed file; one still growing is read as it is now.

        Raises:
            ValueError: If there is no ledger.
        """
        return cls(Packed(path) if path.is_file() else Folder(path))

    def __len__(self) -> int:
        return self._length

    @property
    def where(self) -> str:
        """The store's path, or "memory"."""
        return str(getattr(self.store, "path", "memory"))

    def record(self, t: int) -> BoosterRecord:
        """Return booster t."""
        return BoosterRecord.read(self.facts(t), self.store.tensors(_section(t)))

    def records(self, last: int) -> Iterable[BoosterRecord]:
        """Return boosters 0 to ``last``, one at a time."""
        return (self.record(t) for t in range(last + 1))

    def facts(self, t: int) -> dict[str, Any]:
        """Return booster t without its tensors."""
        return self.store.facts(_section(t))

    def begin(self, header: ChainHeader, originals: Mapping[str, Tensor]) -> None:
        """Write down the original weights and Parameters trained in full, then the header."""
        self.scores.truncate(0)
        self.store.write(_ORIGINALS, originals, {})
        self.store.write_document(_HEADER, header.plain)
        self.go_on(header)

    def go_on(self, header: ChainHeader) -> None:
        """Take what is there for this run's."""
        self.header, self.begun = header, True

    def append(self, record: BoosterRecord) -> None:
        """Write down the next booster, whole or not at all.

        Raises:
            RuntimeError: If somebody else has done so. Nothing is changed.
        """
        if _section(len(self)) in self.store:
            raise RuntimeError(
                f"booster {len(self)} of the ledger was written by another process, or by a copy "
                "of this one: each run needs a ledger of its own"
            )
        self.store.write(_section(len(self)), record.tensors, record.facts)
        self._length += 1
        self._scales = None

    def truncate(self, length: int) -> None:
        """Drop the boosters from ``length`` on, the last first: a kill leaves no gap."""
        self.scores.truncate(length)
        for t in reversed(range(length, len(self))):
            self.store.remove(_section(t))
            self._length = t
        self._scales = None

    def delta(self, name: str, last: int) -> tuple[Tensor, Tensor]:
        """Return a weight's update by boosters 0 to ``last``: factors side by side, in float64."""
        rows, columns = self.header.weights[name].shape
        lefts = [torch.zeros(rows, 0, dtype=torch.float64)]
        rights = [torch.zeros(0, columns, dtype=torch.float64)]
        for t, scale in self._scales_of(name).items():
            if t <= last:
                keys = [f"left/{name}", f"right/{name}"]
                left, right = self.store.tensors(_section(t), keys).values()
                lefts.append(left.double() * scale)
                rights.append(right.double())
        return torch.cat(lefts, 1), torch.cat(rights)

    @property
    def has_originals(self) -> bool:
        """Whether the original weights are there."""
        return _ORIGINALS in self.store

    def original(self, name: str) -> Tensor:
        """Return an original weight or Parameter, as stored in the model."""
        return self.store.tensors(_ORIGINALS, [name])[name]

    def saved(self, t: int) -> dict[str, Tensor]:
        """Return the Parameters trained in full as of after booster t, or −1 the original ones."""
        if t < 0:
            return self.store.tensors(_ORIGINALS, self.header.saved)
        tensors = self.store.tensors(_section(t), [f"saved/{name}" for name in self.header.saved])
        return {key.removeprefix("saved/"): tensor for key, tensor in tensors.items()}

    def _scales_of(self, name: str) -> dict[int, float]:
        """Return the boosters that hold a weight, with the scales of their updates."""
        if self._scales is None:
            self._scales = {}
            for t in range(len(self)):
                for weight, scale in self.facts(t)["scales"].items():
                    self._scales.setdefault(weight, {})[t] = scale
        return self._scales.get(name, {})


def read_header(store: Store) -> ChainHeader | None:
    """Return the header in a store, or None."""
    facts = store.document(_HEADER)
    return None if facts is None else ChainHeader.read(facts)


def _section(t: int) -> str:
    return f"booster-{t:06d}"
