"""A run's boosters, written down as they are merged."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from torch_xgb.boosters.forms import Form, Update
from torch_xgb.boosters.report import MergeReport
from torch_xgb.formulas.entries import as_matrix
from torch_xgb.ledger.archive import Archive, read_header
from torch_xgb.ledger.chain import Chain
from torch_xgb.ledger.records import BoosterRecord, ChainHeader, originals, snapshot
from torch_xgb.ledger.store import Folder, Memory, import_safetensors
from torch_xgb.processes import is_first
from torch_xgb.settings import Settings
from torch_xgb.targets.selection import Selection
from torch_xgb.weights.fingerprints import fingerprint
from torch_xgb.weights.weight import Weight

__all__ = ["Writer", "writer"]

Tensors = Mapping[str, Tensor]


class Writer:
    """Writes a chain, and answers whether a run may go on with it.

    Args:
        archive: Of this run, or of an earlier one that it goes on with.
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
        self._base = None if archive.begun or len(archive) else base
        self._trained = trained

    @classmethod
    def open(
        cls,
        record: bool | str | os.PathLike[str],
        header: ChainHeader,
        base: Callable[[], Tensors],
        trained: Callable[[], Tensors] = dict,
    ) -> Writer:
        """Begin a chain, or open a folder's to go on with it.

        Args:
            record: True for memory, or the path of a folder.
            header: What the boosters will have in common.
            base: As of the constructor.
            trained: As of the constructor.

        Raises:
            TypeError: If ``record`` is neither.
            ValueError: If the folder holds the boosters of a run with another configuration.
        """
        if record is True:
            return cls(Archive(Memory(), header), base, trained)
        if not isinstance(record, (str, os.PathLike)):
            raise TypeError(f"record must be None, True or a path, got {record!r}")
        import_safetensors()
        folder = Folder(Path(record))
        folder.prepare()
        archive = Archive(folder, header)
        if not len(archive):
            return cls(archive, base, trained)
        archive = Archive(folder)
        if differing := archive.header.differences(header):
            raise ValueError(
                f"{archive.where!r} holds {len(archive)} boosters of a run with another "
                f"configuration or model (it differs in {', '.join(differing)}): choose another "
                "path"
            )
        return cls(archive, base, trained)

    def check_next(self, booster_index: int) -> None:
        """Make sure that booster t is the next one; keep the original weights before the first.

        To be called before anything of booster t is trained.

        Raises:
            RuntimeError: If it is not the next one. Nothing is changed.
        """
        length = len(self._archive)
        if booster_index != length:
            raise RuntimeError(
                f"the ledger holds {length} boosters and the run is at booster {booster_index}: "
                + (_EARLIER_RUN if length > booster_index else _LOST)
            )
        if not self._archive.begun:
            self._begin()

    def write(self, report: MergeReport, updates: Iterable[tuple[Weight, Update]]) -> None:
        """Write down a booster that is about to be merged.

        Before the merge: if the disk is full, the model is unharmed, and the booster still pending.
        """
        self.append(BoosterRecord.of(report, updates, self._trained()))

    def append(self, record: BoosterRecord) -> None:
        """Write down the next booster, whole or not at all.

        Raises:
            RuntimeError: If it is not the next one. Nothing is changed.
        """
        self.check_next(record.booster_index)
        self._archive.append(record)

    def check_resumable(self, length: int, run: str | None = None) -> None:
        """Make sure that a run may go on from a checkpoint: see ``truncate``.

        Raises:
            RuntimeError: If the chain is another run's, or too short.
        """
        if not 0 <= length <= len(self._archive):
            raise RuntimeError(
                f"the run is resumed at booster {length} and the ledger holds "
                f"{len(self._archive)}: {_LOST}"
            )
        kept = self._archive.header if self._archive.begun else self._left_behind()
        if run is not None and (kept is None or kept.run != run):
            raise RuntimeError(f"the ledger is not the one of the checkpoint: {_LOST}")

    def truncate(self, length: int, run: str | None = None) -> None:
        """Drop the boosters from ``length`` on: a run goes on from a checkpoint taken there.

        Args:
            length: How many boosters the checkpoint's run had merged.
            run: That run's ``chain.run``; None leaves it unchecked.

        Raises:
            RuntimeError: If the chain is another run's, or too short. Nothing is changed.
        """
        self.check_resumable(length, run)
        kept = None if self._archive.begun else self._left_behind()
        if kept is not None:
            self._archive.go_on(kept)
        self._archive.truncate(length)

    def _begin(self) -> None:
        """Write down the original weights and the header."""
        if self._base is None:
            raise RuntimeError("the ledger has lost base.safetensors, the original weights")
        tensors = {name: snapshot(tensor) for name, tensor in self._base().items()}
        header = self._archive.header
        prints = {
            name: fingerprint(as_matrix(tensors[name], facts.transposed))
            for name, facts in header.weights.items()
        }
        self._archive.begin(dataclasses.replace(header, fingerprints=prints), tensors)

    def _left_behind(self) -> ChainHeader | None:
        """Return the header of a run like this one that ended before its first merge."""
        found = read_header(self._archive.store) if self._archive.has_originals else None
        return None if found is None or found.differences(self._archive.header) else found


_EARLIER_RUN = (
    "they are an earlier run's. Resume it with optimizer.load_state_dict(...), or choose another "
    "path for record="
)
_LOST = (
    "the ledger is another run's, or lost its last boosters (one in memory ends with its process). "
    "Give record= the path the run was recorded to, or None"
)


def writer(model: nn.Module, settings: Settings, selection: Selection, form: Form) -> Writer | None:
    """Return a writer, or None if nothing is to be recorded here.

    Of several processes, which all merge the same, only the first writes to a folder.

    Args:
        model: The model, with the weights the run begins with.
        settings: What the run was told.
        selection: What of the model it is about.
        form: What a pair is.

    Raises:
        TypeError: If ``record`` is neither None, True, nor a path.
        ValueError: If the folder holds a run of another configuration, or the model's weights are
            sharded over processes.
    """
    if settings.record is None:
        return None
    _require_whole(weight for target in selection.targets for weight in form.weights(target))
    if settings.record is not True and not is_first():
        return None
    header = ChainHeader.of(model, settings, selection, form)
    base = partial(originals, model, header)
    return Writer.open(settings.record, header, base, partial(_trained, selection))


def _trained(selection: Selection) -> Tensors:
    return selection.named


def _require_whole(weights: Iterable[Weight]) -> None:
    for weight in weights:
        stored = weight.parameter.detach()
        if type(stored) is not Tensor or not stored.numel():
            raise ValueError(
                f"{weight.name} is not a whole plain tensor here (a {type(stored).__name__} of "
                f"shape {tuple(stored.shape)}), and a ledger keeps whole weights: pass record=None "
                "for a model whose weights are sharded over processes"
            )
