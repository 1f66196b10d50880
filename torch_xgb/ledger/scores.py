"""A score per booster, and what follows from them: the best one, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch_xgb.checks import positive_integer
from torch_xgb.ledger.store import Store

__all__ = ["SCORES", "Scores", "best_of"]

SCORES = "scores"  # the document


class Scores(Mapping[int, float]):
    """The scores of a chain, written down at once.

    Args:
        store: Where they are kept.
        length: The number of boosters; scores of later ones are an earlier run's.
    """

    def __init__(self, store: Store, length: int) -> None:
        self._store = store
        found = (store.document(SCORES) or {}).items()
        self._values = {int(t): float(value) for t, value in found if int(t) < length}

    def __getitem__(self, t: int) -> float:
        return self._values[t]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self.items()))

    def give(self, t: int, value: float) -> None:
        """Give booster t a score.

        Raises:
            ValueError: If it is not finite.
        """
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"a score must be finite, got {value!r} for booster {t}")
        self._keep({**self._values, t: value})

    def truncate(self, length: int) -> None:
        """Drop the scores of boosters from ``length`` on."""
        if any(t >= length for t in self._values):
            self._keep({t: value for t, value in self._values.items() if t < length})

    @property
    def best(self) -> int:
        """The booster with the highest score, the first of equals.

        Raises:
            RuntimeError: If none has one.
        """
        if not self._values:
            raise RuntimeError("no booster has a score: chain.score(t, value) gives one")
        return best_of(self._values)

    def should_stop(self, rounds: int) -> bool:
        """Tell whether as many boosters were scored after the best one.

        Raises:
            TypeError: If ``rounds`` is no integer.
            ValueError: If it is not positive.
        """
        positive_integer("early_stopping_rounds", rounds)
        return bool(self._values) and sum(t > self.best for t in self._values) >= rounds

    def _keep(self, values: dict[int, float]) -> None:
        self._store.write_document(SCORES, {str(t): values[t] for t in sorted(values)})
        self._values = values


def best_of(scores: Mapping[int, float]) -> int:
    """Return the booster with the highest score, the first of equals."""
    return min(scores, key=lambda t: (-scores[t], t))
