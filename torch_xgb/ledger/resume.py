"""Where in a ledger a checkpoint's run was, and whether the ledger is that run's.

Boosters after a checkpoint are dropped by the run that goes on from it, and by nobody else: the
ledger must have its run's name, and everything that was merged until then must be what the
checkpoint's run had merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch_xgb.ledger.archive import Archive

__all__ = ["Bookmark"]


@dataclass(frozen=True)
class Bookmark:
    """Where a checkpoint's run was.

    Attributes:
        booster_index: How many boosters it had merged.
        booster_step: Steps taken in the one after them.
        run: Its ``chain.run``: None for a run that kept no ledger, or had not taken a step.
        tip: Of the boosters it had merged; None in checkpoints of earlier versions.
        fingerprints: Of the weights then, by name.
    """

    booster_index: int
    booster_step: int = 0
    run: str | None = None
    tip: str | None = None
    fingerprints: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Bookmark:
        """Read it from a checkpoint's entry."""
        return cls(
            saved["booster_index"],
            saved["booster_step"],
            saved.get("run"),
            saved.get("tip"),
            saved["weights"]["frozen"],
        )

    @property
    def is_fresh(self) -> bool:
        """Whether it was taken before anything was trained."""
        return self.run is None and not self.booster_index and not self.booster_step

    def require_within(self, archive: Archive) -> None:
        """Make sure that a ledger is the one of the checkpoint's run.

        Args:
            archive: With the header that is in the store.

        Raises:
            RuntimeError: If it is not, or has lost boosters.
            ValueError: If it is damaged.
        """
        index, held = self.booster_index, archive.held
        if not 0 <= index <= held:
            raise RuntimeError(
                f"the run is resumed at booster {index} and the ledger holds {held}: {LOST}"
            )
        if self.run is None:
            raise RuntimeError(
                f"the checkpoint is of a run that kept no ledger, at booster {index}, step "
                f"{self.booster_step}: boosters cannot be added later. Give record=None to go on "
                "with it"
            )
        if not archive.begun or archive.header.run != self.run:
            raise RuntimeError(f"the ledger is not the one of the checkpoint: {LOST}")
        if self.booster_step and index < held and self.tip == archive.sections.tip(index + 1):
            raise RuntimeError(
                f"the state was saved after finalize() had merged booster {index}, the run's last: "
                "there is nothing left to go on with. Begin a new run with the model's weights, a "
                "new optimizer and another path for record="
            )
        if not self._has_same_past(archive):
            raise RuntimeError(
                f"the ledger is of the checkpoint's run, but not as it was when it had merged "
                f"{index} boosters: it went on differently from an earlier checkpoint since, which "
                "is another run by now. Resume from a checkpoint of that, or give record=None"
            )

    def began_with(self, fingerprints: Mapping[str, int]) -> bool:
        """Tell whether the weights then were those of these fingerprints."""
        return all(fingerprints.get(name, mine) == mine for name, mine in self.fingerprints.items())

    def _has_same_past(self, archive: Archive) -> bool:
        if self.tip is not None:
            return self.tip == archive.sections.tip(self.booster_index)
        same_start = self.booster_index > 0 or self.began_with(archive.header.fingerprints)
        return same_start and archive.header.version < 3


LOST = (
    "the ledger is another run's, or lost its last boosters (one in memory ends with its process). "
    "Give record= the path the run was recorded to, or None"
)
