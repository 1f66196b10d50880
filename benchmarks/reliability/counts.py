"""What became of the faults that were put in."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch_xgb

__all__ = ["OWN", "Counts", "is_ours"]

OWN = (TypeError, ValueError, RuntimeError)
_HERE = str(Path(torch_xgb.__file__).resolve().parent)


@dataclass
class Counts:
    """The sums of a part.

    Attributes:
        injected: Faults put in.
        survived: Faults after which everything was what it would have been without.
        refused: Faults answered by an error of the library, with nothing changed.
        lost: What was there before a fault and not after it, a line each.
        wrong: What differed without a word, or was said by another library, a line each.
        figures: Measurements, by name.
    """

    injected: int = 0
    survived: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether nothing was lost and nothing wrong."""
        return not self.lost and not self.wrong

    @contextmanager
    def fault(self, name: str) -> Iterator[Fault]:
        """Put one fault in: what is said of it in the block is counted; silence is survival."""
        self.injected += 1
        fault = Fault(name)
        try:
            yield fault
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            fault.wrong = (
                f"{type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})"
            )
        for kind, said in (("lost", fault.lost), ("wrong", fault.wrong)):
            if said:
                getattr(self, kind).append(f"{name}: {said}")
        if not (fault.lost or fault.wrong):
            self.refused += fault.refused
            self.survived += not fault.refused

    def add(self, other: Counts) -> None:
        """Add another part's sums."""
        self.injected += other.injected
        self.survived += other.survived
        self.refused += other.refused
        self.lost += other.lost
        self.wrong += other.wrong
        self.figures.update(other.figures)

    def line(self) -> str:
        """Lay them out in a line."""
        sums = (
            f"injected {self.injected}, survived {self.survived}, refused {self.refused}, "
            f"lost {len(self.lost)}, wrong {len(self.wrong)}"
        )
        return "; ".join([sums, *(f"{n} {value:.4g}" for n, value in self.figures.items())])

    def plain(self) -> dict[str, Any]:
        """Return them in plain types."""
        return asdict(self)


@dataclass
class Fault:
    """What became of one fault."""

    name: str
    refused: bool = False
    lost: str = ""
    wrong: str = ""

    def raised(self, error: BaseException) -> None:
        """Count an error: a refusal if it is in the library's own words."""
        if is_ours(error):
            self.refused = True
        else:
            self.wrong = f"another's error: {type(error).__name__}: {str(error)[:200]}"


def is_ours(error: BaseException) -> bool:
    """Tell an error that the library raised itself, with words."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and str(Path(frames[-1].filename).resolve()).startswith(_HERE)
    return ours and isinstance(error, (*OWN, OSError)) and len(str(error)) > 20
