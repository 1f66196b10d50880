"""Where a run lives: what it was told, its checkpoints, and what it ends as."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RunFolder"]

_FACTS = "run.json"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    While it runs it holds ``checkpoints`` and ``run.json``; in the end the model's files, the card,
    the picture, and ``run.json`` with what came of it.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the Trainer keeps its own."""
        return self.path / "checkpoints"

    @property
    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says; empty if there is none."""
        try:
            read = json.loads((self.path / _FACTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValueError(
                f"{self.path / _FACTS} is damaged ({error}): choose another out"
            ) from None
        return dict(read) if isinstance(read, dict) else {}

    def last_checkpoint(self) -> Path | None:
        """Return the last checkpoint that is complete: a kill may have hit one half written.

        The Trainer writes ``trainer_state.json`` last.
        """
        found = [p for p in self.checkpoints.glob("checkpoint-*") if _is_complete(p)]
        return max(found, key=_step, default=None)

    def require_own(self, told: Mapping[str, Any]) -> None:
        """Refuse a folder that holds another run, or files of somebody else.

        Args:
            told: What this run is told, in JSON's types.

        Raises:
            ValueError: If it does. Nothing is changed.
        """
        facts, told = self.facts, json.loads(json.dumps(told))
        if not facts:
            if self.path.exists() and not (self.path.is_dir() and self._is_bare()):
                raise ValueError(f"{str(self.path)!r} holds something already: choose another out")
            return
        if self.last_checkpoint() is None and "result" not in facts:
            return  # it trained nothing that is kept
        theirs = facts.get("told", {})
        if differing := [n for n in told if theirs.get(n) != told[n]]:
            name = differing[0]
            raise ValueError(
                f"{str(self.path)!r} holds a run that was told otherwise: {', '.join(differing)}; "
                f"{name} is {theirs.get(name)!r} there and {told[name]!r} here. Give it what it "
                "was told, or choose another out"
            )

    def _is_bare(self) -> bool:
        """Whether it holds nothing, or what a run that was refused has left: no checkpoint yet."""
        return not any(p != self.checkpoints or _holds_any(p) for p in self.path.iterdir())

    def write(self, told: Mapping[str, Any], result: Mapping[str, Any] | None = None) -> None:
        """Write ``run.json``, at once or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        facts = {"told": told, **({} if result is None else {"result": result})}
        part = self.path / f".{_FACTS}.part"
        part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        os.replace(part, self.path / _FACTS)

    def set_aside(self, ledger: Path) -> Path | None:
        """Move a ledger of boosters that no checkpoint has out of the way of a run begun anew."""
        if not ledger.exists():
            return None
        names = (ledger.with_name(f"{ledger.name}-aside-{i}") for i in range(1, 1000))
        aside = next(path for path in names if not path.exists())
        return ledger.rename(aside)

    def clear_checkpoints(self) -> None:
        """Remove them: the run is over, and its model beside them."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def _holds_any(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())


def _is_complete(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and (checkpoint / "optimizer.pt").exists()


def _step(checkpoint: Path) -> int:
    return int(re.sub(r"\D", "", checkpoint.name) or -1)
