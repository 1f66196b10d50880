"""A store's sections, compared with what was written: each with its run, its place and digests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from torch_xgb.boosters.forms import Update
from torch_xgb.ledger import digests
from torch_xgb.ledger.facts import Facts, entry, mapping_of, natural, text
from torch_xgb.ledger.files import damaged, reading
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.ledger.records import BoosterRecord, check_update, read_saved, read_terms
from torch_xgb.ledger.store import Store

__all__ = ["ORIGINALS", "Sections", "section_of"]

ORIGINALS = "base"


class Sections:
    """The original weights and the boosters of a chain, read one at a time.

    Every section carries its run and the digests of its tensors, every booster its place and the
    digest of the one before: its *tip*, which stands for all that was merged until then.

    Args:
        store: Where they are.
        header: What they have in common.
    """

    def __init__(self, store: Store, header: ChainHeader) -> None:
        self.store = store
        self.header = header
        self._tips: dict[int, str] = {}

    def record(self, t: int) -> BoosterRecord:
        """Return booster t."""
        facts = self.facts(t)
        tensors = dict(self.tensors(section_of(t), facts))
        with reading(self.store.place(section_of(t))):
            return BoosterRecord.read(facts, tensors, self.header)

    def records(self, last: int) -> Iterator[BoosterRecord]:
        """Return boosters 0 to ``last``, one at a time, each following the one before."""
        for t in range(last + 1):
            self._require_link(t)
            yield self.record(t)

    def verify(self, last: int, *, originals: bool) -> None:
        """Read all that boosters 0 to ``last`` are restored from, and keep nothing of it.

        Raises:
            ValueError: If anything of it is damaged.
        """
        if originals:
            for _ in self.originals():
                pass
        for _ in self.records(last):
            pass
        if last < 0:
            self.saved(last)

    def facts(self, t: int) -> Facts:
        """Return booster t without its tensors."""
        facts = self.store.facts(section_of(t))
        with reading(self.store.place(section_of(t))):
            if (index := entry(facts, "booster_index", natural)) != t:
                raise ValueError(f"it is booster {index} in the place of booster {t}")
            check_update(facts, self.header)
            self._require_run(facts)
        return facts

    def tip(self, length: int) -> str:
        """Return what stands for the original weights and boosters 0 to ``length`` − 1."""
        if length not in self._tips:
            of = self.header.start if length == 0 else self.facts(length - 1)
            self._tips[length] = digests.of_plain(of)
        return self._tips[length]

    def originals(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Return the original weights and Parameters trained in full, as stored in the model.

        Args:
            names: Some of them; None is all.
        """
        if ORIGINALS not in self.store:
            raise damaged(self.store.place(ORIGINALS), "the original weights are missing")
        facts = self.store.facts(ORIGINALS)
        names = [*self.header.weights, *self.header.saved] if names is None else list(names)
        with reading(self.store.place(ORIGINALS)):
            self._require_run(facts)
            if missing := set(names) - set(self.store.keys(ORIGINALS)):
                raise ValueError(f"it lacks {sorted(missing)[0]!r}")
        for name, tensor in self.tensors(ORIGINALS, facts, names):
            with reading(self.store.place(ORIGINALS)):
                self.header.check_original(name, tensor)
            yield name, tensor

    def saved(self, t: int) -> dict[str, Tensor]:
        """Return the Parameters trained in full as of after booster t, or −1 the original ones."""
        if t < 0:
            return dict(self.originals(self.header.saved))
        keys = [f"saved/{name}" for name in self.header.saved]
        tensors = dict(self.tensors(section_of(t), self.facts(t), keys))
        with reading(self.store.place(section_of(t))):
            return {name: read_saved(name, tensors, self.header) for name in self.header.saved}

    def grown(self, t: int, facts: Facts) -> None:
        """Take note that booster t was written, with these facts."""
        self._tips = {t + 1: digests.of_plain(facts)}

    def terms(self, t: int, name: str) -> list[Update]:
        """Return what booster t's change of a weight is the sum of, reading nothing else of it."""
        facts = self.facts(t)

        def read(keys: list[str]) -> dict[str, Tensor]:
            return dict(self.tensors(section_of(t), facts, keys))

        with reading(self.store.place(section_of(t))):
            return read_terms(name, facts, read, self.header)

    def sealed(self, record: BoosterRecord) -> Facts:
        """Return a booster's facts with its place in the chain and its tensors' digests."""
        told = {"run": self.header.run, "previous": self.tip(record.booster_index)}
        return {**record.facts, **told, "digests": digests.of_tensors(record.tensors)}

    def tensors(
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
        with reading(self.store.place(section_of(t))):
            if "previous" not in facts and self.header.version < 3:
                return
            if entry(facts, "previous", text) != self.tip(t):
                raise ValueError("it was not written after the booster that precedes it")


def section_of(t: int) -> str:
    """Return the name of booster t's section."""
    return f"booster-{t:06d}"
