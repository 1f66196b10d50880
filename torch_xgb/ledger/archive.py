"""What a store holds of a chain: a header, the original weights, a section a booster, scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from torch_xgb.ledger import digests
from torch_xgb.ledger.facts import Facts, entry, mapping_of, natural, number, text
from torch_xgb.ledger.files import damaged, reading, writing
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.ledger.packed import Packed, pack
from torch_xgb.ledger.records import BoosterRecord, read_saved, read_update
from torch_xgb.ledger.scores import SCORES, Scores
from torch_xgb.ledger.store import Folder, Store

__all__ = ["Archive", "check_ours", "read_header"]

_HEADER, _ORIGINALS = "chain", "base"


class Archive:
    """Boosters 0, 1, … in order, read one at a time, and compared with what was written.

    Every section carries its run and the digests of its tensors, every booster its place and the
    digest of the one before: its *tip*, which stands for all that was merged until then.

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
        self._length = self._held = _count(store)
        self._tips: dict[int, str] = {}
        self._attempt = -1, ""  # the booster that was begun to be written last, and its digest
        self._scales: dict[str, dict[int, float]] | None = None
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

    def record(self, t: int) -> BoosterRecord:
        """Return booster t."""
        facts = self.facts(t)
        tensors = dict(self._tensors(_section(t), facts))
        with reading(self.store.place(_section(t))):
            return BoosterRecord.read(facts, tensors, self.header)

    def records(self, last: int) -> Iterator[BoosterRecord]:
        """Return boosters 0 to ``last``, one at a time, each following the one before."""
        for t in range(last + 1):
            self._require_link(t)
            yield self.record(t)

    def facts(self, t: int) -> Facts:
        """Return booster t without its tensors."""
        facts = self.store.facts(_section(t))
        with reading(self.store.place(_section(t))):
            if (index := entry(facts, "booster_index", natural)) != t:
                raise ValueError(f"it is booster {index} in the place of booster {t}")
            entry(facts, "rank", natural)
            entry(facts, "scales", mapping_of(number))
            entry(facts, "update_norm", mapping_of(number))
            self._require_run(facts)
        return facts

    def tip(self, length: int) -> str:
        """Return what stands for the original weights and boosters 0 to ``length`` − 1."""
        if length not in self._tips:
            of = self.header.start if length == 0 else self.facts(length - 1)
            self._tips[length] = digests.of_plain(of)
        return self._tips[length]

    def delta(self, name: str, last: int) -> tuple[Tensor, Tensor]:
        """Return a weight's update by boosters 0 to ``last``: factors side by side, in float64."""
        rows, columns = self.header.weights[name].shape
        lefts = [torch.zeros(rows, 0, dtype=torch.float64, device="cpu")]
        rights = [torch.zeros(0, columns, dtype=torch.float64, device="cpu")]
        for t, scale in self._scales_of(name).items():
            if t <= last:
                keys = [f"left/{name}", f"right/{name}"]
                tensors = dict(self._tensors(_section(t), self.facts(t), keys))
                with reading(self.store.place(_section(t))):
                    left, right, _ = read_update(name, scale, tensors, self.header)
                lefts.append(left.double() * scale)
                rights.append(right.double())
        return torch.cat(lefts, 1), torch.cat(rights)

    @property
    def has_originals(self) -> bool:
        """Whether the original weights are there."""
        return _ORIGINALS in self.store

    def originals(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Return the original weights and Parameters trained in full, as stored in the model.

        Args:
            names: Some of them; None is all.
        """
        if not self.has_originals:
            raise damaged(self.store.place(_ORIGINALS), "the original weights are missing")
        facts = self.store.facts(_ORIGINALS)
        names = [*self.header.weights, *self.header.saved] if names is None else list(names)
        with reading(self.store.place(_ORIGINALS)):
            self._require_run(facts)
            if missing := set(names) - set(self.store.keys(_ORIGINALS)):
                raise ValueError(f"it lacks {sorted(missing)[0]!r}")
        for name, tensor in self._tensors(_ORIGINALS, facts, names):
            with reading(self.store.place(_ORIGINALS)):
                self.header.check_original(name, tensor)
            yield name, tensor

    def saved(self, t: int) -> dict[str, Tensor]:
        """Return the Parameters trained in full as of after booster t, or −1 the original ones."""
        if t < 0:
            return dict(self.originals(self.header.saved))
        keys = [f"saved/{name}" for name in self.header.saved]
        tensors = dict(self._tensors(_section(t), self.facts(t), keys))
        with reading(self.store.place(_section(t))):
            return {name: read_saved(name, tensors, self.header) for name in self.header.saved}

    # What is written

    def begin(self, header: ChainHeader, originals: Mapping[str, Tensor]) -> None:
        """Write down the original weights and Parameters trained in full, then the header."""
        self.scores.truncate(0)
        facts = {"run": header.run, "digests": digests.of_tensors(originals)}
        self.store.write(_ORIGINALS, originals, facts)
        self.store.write_document(_HEADER, header.plain)
        self.go_on(header, 0)

    def go_on(self, header: ChainHeader, length: int) -> None:
        """Take what is there for this run's, up to a booster; the next one drops those after."""
        self.header, self.begun, self._length = header, True, length
        self._held = _count(self.store)
        self._tips = {}
        self._scales = None
        self.scores.hide(length)

    def check_unchanged(self) -> None:
        """Make sure that nobody else has written here, or taken anything away.

        Raises:
            RuntimeError: If somebody has. Nothing is changed.
        """
        more = _section(self._held) in self.store and not self._is_attempt(self._held)
        if more or (self._held and _section(self._held - 1) not in self.store):
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
        t, facts = record.booster_index, self._sealed(record)
        if not self.has_written(record):  # else an interrupt kept it from being counted
            self.check_unchanged()
            self._attempt = t, digests.of_plain(facts)
            self.store.write(_section(t), record.tensors, facts, self._drop_later)
        self._length = self._held = t + 1
        self._tips = {t + 1: digests.of_plain(facts)}
        self._scales = None

    def has_written(self, record: BoosterRecord) -> bool:
        """Return whether this object has written a booster, bit by bit the same, before."""
        t, digest = self._attempt
        return (
            record.booster_index == t
            and digest == digests.of_plain(self._sealed(record))
            and self._is_attempt(t)
        )

    def save(self, path: Path) -> None:
        """Write everything into one file, which ``at`` reads."""
        sections = [_ORIGINALS, *map(_section, range(len(self)))]
        scores = digests.sealed({str(t): self.scores[t] for t in self.scores})
        documents = {_HEADER: self.header.plain, **({SCORES: scores} if self.scores else {})}
        with writing(f"{str(path)!r} cannot be written: free space, or choose another path"):
            pack(self.store, path, documents, sections)

    # Inside

    def _sealed(self, record: BoosterRecord) -> Facts:
        """Return a booster's facts with its place in the chain and its tensors' digests."""
        told = {"run": self.header.run, "previous": self.tip(record.booster_index)}
        return {**record.facts, **told, "digests": digests.of_tensors(record.tensors)}

    def _is_attempt(self, t: int) -> bool:
        """Tell whether booster t, which is not counted, was written here all the same."""
        of, digest = self._attempt
        there = t == of and _section(t) in self.store
        return there and digests.of_plain(self.store.facts(_section(t))) == digest

    def _drop_later(self) -> None:
        """Drop the boosters that are about to be replaced, the last first: a kill leaves no gap."""
        if self._held > self._length:
            self.scores.truncate(self._length)
        for t in reversed(range(self._length + 1, self._held)):
            self.store.remove(_section(t))
            self._held = t

    def _tensors(
        self, section: str, facts: Facts, keys: list[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Return a section's tensors, compared with their digests."""
        known, place = None, self.store.place(section)
        with reading(place):
            if "digests" in facts or self.header.version >= 3:
                known = entry(facts, "digests", mapping_of(text))
            if keys is None and known is not None and known.keys() != set(self.store.keys(section)):
                raise ValueError("it holds other tensors than were written")
        for key, tensor in self.store.items(section, keys):
            if known is not None:
                with reading(place):
                    digests.require(known.get(key), digests.of_tensor(tensor))
            yield key, tensor

    def _require_run(self, facts: Facts) -> None:
        """Raise a ValueError if a section is not of this ledger's run."""
        if "run" not in facts and self.header.version < 3:
            return
        if (run := entry(facts, "run", text)) != self.header.run:
            raise ValueError(f"it is of the run {run!r} and not of {self.header.run!r}")

    def _require_link(self, t: int) -> None:
        """Raise a ValueError if a booster was not written after the one before it."""
        facts = self.facts(t)
        with reading(self.store.place(_section(t))):
            if "previous" not in facts and self.header.version < 3:
                return
            if entry(facts, "previous", text) != self.tip(t):
                raise ValueError("it was not written after the booster that precedes it")

    def _scales_of(self, name: str) -> dict[int, float]:
        """Return the boosters that hold a weight, with the scales of their updates."""
        if self._scales is None:
            self._scales = {}
            for t in range(len(self)):
                for weight, scale in self.facts(t)["scales"].items():
                    self._scales.setdefault(weight, {})[t] = scale
        return self._scales.get(name, {})


def read_header(store: Store) -> ChainHeader | None:
    """Return the header in a store, or None.

    Raises:
        ValueError: If it is damaged, or of a later version.
    """
    document = store.document(_HEADER)
    with reading(store.place(_HEADER)):
        return None if document is None else ChainHeader.read(document)


def check_ours(store: Store) -> None:
    """Make sure that what has the names of a ledger's parts is one's, for it will be overwritten.

    Raises:
        ValueError: If it is not.
    """
    kept = read_header(store) is not None
    if _ORIGINALS in store:  # written before the header
        store.facts(_ORIGINALS)
    with reading(store.place(SCORES)):
        if not kept and store.holds(SCORES):
            raise ValueError("there is no chain.json beside it. Choose another path for record=")


def _count(store: Store) -> int:
    """Return how many boosters a store holds.

    Raises:
        ValueError: If one is missing in between.
    """
    held = {section for section in store.sections() if section != _ORIGINALS}
    for t in range(len(held)):
        if _section(t) not in held:
            raise ValueError(
                f"the ledger has lost booster {t}: it holds {len(held)}, up to {max(held)!r}. "
                "Restore its file from a copy"
            )
    return len(held)


def _section(t: int) -> str:
    return f"booster-{t:06d}"
