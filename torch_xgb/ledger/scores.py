"""A score per booster, and what follows from them: the best one, and when to stop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping

from torch_xgb.checks import positive_integer
from torch_xgb.ledger.digests import sealed, unsealed
from torch_xgb.ledger.facts import entry, mapping, number
from torch_xgb.ledger.files import reading, writing
from torch_xgb.ledger.store import Store

__all__ = ["SCORES", "Scores", "best_of"]

SCORES = "scores"  # the document


class Scores(Mapping[int, float]):
    """The scores of a chain, written down at once.

    Scores that cannot be read are lost, with a warning: nothing else depends on them.

    Args:
        store: Where they are kept.
        length: The number of boosters; scores of later ones are an earlier run's.
    """

    def __init__(self, store: Store, length: int) -> None:
        self._store = store
        self._values: dict[int, float] = {}
        try:
            found = self._read()
        except ValueError as error:
            found = {}
            warnings.warn(
                f"{error}. Its scores are lost; the boosters are not affected, and "
                "chain.score(t, value) begins a new list",
                stacklevel=2,
            )
        self._values = {t: value for t, value in found.items() if t < length}

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
        try:
            held = self._read()  # somebody else may have given one since
        except ValueError:
            held = self._values
        self._keep({**held, t: value})
        self._values = {**self._values, t: value}

    def hide(self, length: int) -> None:
        """Know nothing of the boosters from ``length`` on, which are about to be dropped."""
        self._values = {t: value for t, value in self._values.items() if t < length}

    def truncate(self, length: int) -> None:
        """Drop the scores of boosters from ``length`` on."""
        self.hide(length)
        if self._store.holds(SCORES):
            self._keep(self._values)

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

    def _read(self) -> dict[int, float]:
        document = self._store.document(SCORES)
        with reading(self._store.place(SCORES)):
            found = {} if document is None else unsealed(mapping(document), required=False)
            return {_index(t): entry(found, t, number) for t in found}

    def _keep(self, values: dict[int, float]) -> None:
        plain = {str(t): values[t] for t in sorted(values)}
        with writing(
            f"{self._store.place(SCORES)!r} cannot be written. The scores are those of before: "
            "free space or make the folder writable, and give the score again"
        ):
            self._store.write_document(SCORES, sealed(plain))


def _index(key: str) -> int:
    if not key.isdecimal():
        raise ValueError(f"{key!r} is no booster's index")
    return int(key)


def best_of(scores: Mapping[int, float]) -> int:
    """Return the booster with the highest score, the first of equals."""
    return min(scores, key=lambda t: (-scores[t], t))
