"""A run's boosters, written down as they are merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

from torch import Tensor

from torch_xgb.boosters.forms import Update
from torch_xgb.boosters.report import MergeReport
from torch_xgb.formulas.entries import as_matrix
from torch_xgb.ledger.archive import Archive, read_header
from torch_xgb.ledger.chain import Chain
from torch_xgb.ledger.files import writing
from torch_xgb.ledger.owner import Owner
from torch_xgb.ledger.records import BoosterRecord, snapshot
from torch_xgb.ledger.resume import LOST, Bookmark
from torch_xgb.ledger.store import Folder
from torch_xgb.weights.fingerprints import NUMBERING
from torch_xgb.weights.weight import Weight

__all__ = ["Tensors", "Writer"]

Tensors = Mapping[str, Tensor]


class Writer:
    """Writes a chain, and answers whether a run may go on with it.

    Nothing is written, dropped or locked before the first step that is taken with it.

    Args:
        archive: Of this run, or of an earlier one that it may go on with.
        base: Returns the original weights and saved Parameters, as stored, by name. Called once,
            before the first booster is trained.
        trained: Returns the Parameters trained in full, by name.

    Attributes:
        chain: What was written, to be read.
    """

    def __init__(
        self, archive: Archive, base: Callable[[], Tensors], trained: Callable[[], Tensors] = dict
    ) -> None:
        self.chain = Chain(archive)
        self._archive = archive
        self._base, self._trained = base, trained
        self._folder = archive.store if isinstance(archive.store, Folder) else None
        self._owner = None if self._folder is None else Owner(self._folder.path)
        self._mine = False  # whether this one has begun the run that is there, or goes on with it

    @property
    def ready(self) -> bool:
        """Whether this run has begun here, or goes on, and nobody else writes."""
        return self._mine and (self._owner is None or self._owner.holds)

    @property
    def bookmark(self) -> dict[str, str | None]:
        """What a checkpoint says of the ledger: nothing before the first step."""
        if not self._mine:
            return {"run": None, "tip": None}
        return {
            "run": self._archive.header.run,
            "tip": self._archive.sections.tip(len(self._archive)),
        }

    def check_next(self, booster_index: int) -> None:
        """Make sure that booster t is the next one; keep the original weights before the first.

        To be called before anything of booster t is trained.

        Raises:
            RuntimeError: If it is not the next one, or another run writes here. Nothing is changed.
            OSError: If the folder cannot be written to.
        """
        length = len(self._archive)
        if booster_index != length or (length and not self._mine):
            raise RuntimeError(
                f"the ledger holds {length} boosters and the run is at booster {booster_index}: "
                + (_EARLIER_RUN if length > booster_index else LOST)
            )
        with self._said(booster_index):
            self._claim()
            if not self._mine:
                self._begin()

    def write(
        self,
        report: MergeReport,
        updates: Iterable[tuple[Weight, Update]],
        taken: Mapping[str, Update],
        shrinkage: float,
    ) -> None:
        """Write down a booster that is about to be merged.

        Before the merge: if the disk is full, the model is unharmed, and the booster still pending.

        Args:
            report: The booster's facts.
            updates: What is put into which weight.
            taken: What was taken out of weights when it began, by name.
            shrinkage: α_t.
        """
        self.append(BoosterRecord.of(report, updates, self._trained(), taken, shrinkage))

    def append(self, record: BoosterRecord) -> None:
        """Write down the next booster, whole or not at all; once, if an interrupt has it repeated.

        Raises:
            RuntimeError: If it is not the next one, or another run writes here. Nothing is changed.
            OSError: If it cannot be written.
        """
        if not self._archive.has_written(record):
            self.check_next(record.booster_index)
        with self._said(record.booster_index):
            self._archive.append(record)

    def check_resumable(self, bookmark: Bookmark) -> None:
        """Make sure that a run may go on from a checkpoint, changing nothing.

        Raises:
            RuntimeError: If the chain is another run's, or too short.
            ValueError: If what is needed of it is damaged.
        """
        if not bookmark.is_fresh:
            bookmark.require_within(self._kept())

    def resume(self, bookmark: Bookmark) -> None:
        """Go on from a checkpoint: the next booster that is written drops those from there on.

        A fresh optimizer's own state, which some frameworks load back into it, is none: with it,
        the boosters that are there go on being an earlier run's.

        Raises:
            RuntimeError: If the chain is another run's, or too short. Nothing is changed.
        """
        self.check_resumable(bookmark)
        if bookmark.is_fresh:
            if self._mine and bookmark.began_with(self._archive.header.fingerprints):
                self._archive.go_on(self._archive.header, 0)
            return
        self._archive.go_on(self._kept().header, bookmark.booster_index)
        self._mine = True

    def close(self) -> None:
        """Let others write here: the run has ended."""
        if self._owner is not None:
            self._owner.release()

    def _claim(self) -> None:
        """Become the folder's owner, and see whether it is what it was."""
        if self._folder is None or self._owner is None:
            return
        held = self._owner.holds
        self._owner.claim(self._archive.header.run)
        try:
            if self._mine:
                self._archive.check_unchanged()
            elif found := self._archive.held:
                raise RuntimeError(f"the ledger holds {found} boosters: {_EARLIER_RUN}")
            if not held:
                self._folder.sweep()
        except BaseException:
            self._owner.release()
            raise

    def _begin(self) -> None:
        """Write down the original weights and the header."""
        tensors = {name: snapshot(tensor) for name, tensor in self._base().items()}
        header = self._archive.header
        prints = {
            name: NUMBERING.of(as_matrix(tensors[name], facts.transposed))
            for name, facts in header.weights.items()
        }
        self._archive.begin(dataclasses.replace(header, fingerprints=prints), tensors)
        self._mine = True

    def _kept(self) -> Archive:
        """Return what is there, be it of a run like this one that ended before its first merge."""
        if self._archive.begun or not self._archive.has_originals:
            return self._archive
        found = read_header(self._archive.store)
        if found is None or found.differences(self._archive.header):
            return self._archive
        return Archive(self._archive.store)

    def _said(self, t: int) -> AbstractContextManager[None]:
        """Say what to do about what the system refuses."""
        kept = f"booster {t} is not lost: it is pending, and the model unharmed"
        return writing(
            f"the ledger {self._archive.where!r} cannot be written, and "
            f"{kept if self._mine else 'nothing was trained'}. Free space, make the folder "
            "writable or put it back, and go on: optimizer.merge() and the next step() try again. "
            "Or save the model's and the optimizer's state_dict(), copy the ledger elsewhere and "
            "resume with record= there"
        )


_EARLIER_RUN = (
    "they are an earlier run's. Resume it with optimizer.load_state_dict(...), or choose another "
    "path for record="
)
