"""What a store holds of a chain: a header, the original weights, a section a booster, scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from torch_xgb.ledger import digests
from torch_xgb.ledger.files import reading, writing
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.ledger.packed import Packed, pack
from torch_xgb.ledger.records import BoosterRecord
from torch_xgb.ledger.scores import SCORES, Scores
from torch_xgb.ledger.sections import ORIGINALS, Sections, section_of
from torch_xgb.ledger.store import Folder, Store

__all__ = ["Archive", "read_header"]

_HEADER = "chain"


class Archive:
    """Boosters 0, 1, … in order: how many there are, and one more.

    Args:
        store: Where they are.
        header: Of a run that has not begun to write; None reads the one that is there.

    Attributes:
        header: What all boosters have in common.
        sections: What is there, read one at a time.
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
        self.sections = Sections(store, found)
        self.begun = header is None and self.has_originals
        self._length = self._held = _count(store)
        self._attempt = -1, ""  # the booster that was begun to be written last, and its digest
        self._holding: dict[str, list[int]] | None = None
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
    def held(self) -> int:
        """How many boosters there are at present, with those that a resumed run will drop."""
        return _count(self.store)

    @property
    def where(self) -> str:
        """The store's path, or "memory"."""
        return str(getattr(self.store, "path", "memory"))

    # What is there

    def delta(self, name: str, last: int) -> tuple[Tensor, Tensor]:
        """Return a weight's update by boosters 0 to ``last``: factors side by side, in float64.

        Of each booster what it put in, and then what it took out.
        """
        *stack, rows, columns = self.header.weights[name].shape
        lefts = [torch.zeros(*stack, rows, 0, dtype=torch.float64, device="cpu")]
        rights = [torch.zeros(*stack, 0, columns, dtype=torch.float64, device="cpu")]
        for t in self._boosters_of(name):
            for left, right, scale in self.sections.terms(t, name) if t <= last else ():
                lefts.append(left.double() * scale)
                rights.append(right.double())
        return torch.cat(lefts, -1), torch.cat(rights, -2)

    @property
    def has_originals(self) -> bool:
        """Whether the original weights are there."""
        return ORIGINALS in self.store

    def require_begun(self) -> None:
        """Refuse to give anything before there is.

        Raises:
            RuntimeError: If nothing was written in this run.
        """
        if not self.begun:
            raise RuntimeError("the ledger is empty: nothing was trained with it yet")

    # What is written

    def begin(self, header: ChainHeader, originals: Mapping[str, Tensor]) -> None:
        """Write down the original weights and Parameters trained in full, then the header."""
        self.scores.truncate(0)
        facts = {"run": header.run, "digests": digests.of_tensors(originals)}
        self.store.write(ORIGINALS, originals, facts)
        self.store.write_document(_HEADER, header.plain)
        self.go_on(header, 0)

    def go_on(self, header: ChainHeader, length: int) -> None:
        """Take what is there for this run's, up to a booster; the next one drops those after."""
        self.header, self.begun, self._length = header, True, length
        self.sections = Sections(self.store, header)
        self._held = _count(self.store)
        self._holding = None
        self.scores.hide(length)

    def check_unchanged(self) -> None:
        """Make sure that nobody else has written here, or taken anything away.

        Raises:
            RuntimeError: If somebody has. Nothing is changed.
        """
        more = section_of(self._held) in self.store and not self._is_attempt(self._held)
        if more or (self._held and section_of(self._held - 1) not in self.store):
            raise RuntimeError(
                f"the ledger {self.where!r} no longer ends with booster {self._held - 1}: boosters "
                "were written by another process, by a copy of this optimizer, or taken away, and "
                "each run needs a ledger of its own. Resume from a checkpoint whose run is still "
                "in the ledger, or choose another path for record="
            )

    def append(self, record: BoosterRecord) -> None:
        """Write down the next booster, whole or not at all.

        Raises:
            RuntimeError: If somebody else has done so. Nothing is changed.
        """
        t, facts = record.booster_index, self.sections.sealed(record)
        if not self.has_written(record):  # else an interrupt kept it from being counted
            self.check_unchanged()
            self._attempt = t, digests.of_plain(facts)
            self.store.write(section_of(t), record.tensors, facts, self._drop_later)
        self._length = self._held = t + 1
        self.sections.grown(t, facts)
        self._holding = None

    def has_written(self, record: BoosterRecord) -> bool:
        """Return whether this object has written a booster, bit by bit the same, before."""
        t, digest = self._attempt
        return (
            record.booster_index == t
            and digest == digests.of_plain(self.sections.sealed(record))
            and self._is_attempt(t)
        )

    def save(self, path: Path) -> None:
        """Write everything into one file, which ``at`` reads."""
        sections = [ORIGINALS, *map(section_of, range(len(self)))]
        scores = digests.sealed({str(t): self.scores[t] for t in self.scores})
        documents = {_HEADER: self.header.plain, **({SCORES: scores} if self.scores else {})}
        with writing(f"{str(path)!r} cannot be written: free space, or choose another path"):
            pack(self.store, path, documents, sections)

    # Inside

    def _is_attempt(self, t: int) -> bool:
        """Tell whether booster t, which is not counted, was written here all the same."""
        of, digest = self._attempt
        there = t == of and section_of(t) in self.store
        return there and digests.of_plain(self.store.facts(section_of(t))) == digest

    def _drop_later(self) -> None:
        """Drop the boosters that are about to be replaced, the last first: a kill leaves no gap."""
        if self._held > self._length:
            self.scores.truncate(self._length)
        for t in reversed(range(self._length + 1, self._held)):
            self.store.remove(section_of(t))
            self._held = t

    def _boosters_of(self, name: str) -> list[int]:
        """Return the boosters that hold a weight."""
        if self._holding is None:
            self._holding = {}
            for t in range(len(self)):
                for weight in self.sections.facts(t)["scales"]:
                    self._holding.setdefault(weight, []).append(t)
        return self._holding.get(name, [])


def read_header(store: Store) -> ChainHeader | None:
    """Return the header in a store, or None.

    Raises:
        ValueError: If it is damaged, or of a later version.
    """
    document = store.document(_HEADER)
    with reading(store.place(_HEADER)):
        return None if document is None else ChainHeader.read(document)


def _count(store: Store) -> int:
    """Return how many boosters a store holds.

    Raises:
        ValueError: If one is missing in between.
    """
    held = {section for section in store.sections() if section != ORIGINALS}
    for t in range(len(held)):
        if section_of(t) not in held:
            raise ValueError(
                f"the ledger has lost booster {t}: it holds {len(held)}, up to {max(held)!r}. "
                "Restore its file from a copy"
            )
    return len(held)
