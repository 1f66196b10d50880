"""What is merged beside weights, in a checkpoint: it is nowhere in the model's ``state_dict()``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from torch_xgb.boosters.booster import Booster
from torch_xgb.weights.fingerprints import NUMBERING, Numbering

__all__ = ["Accumulated"]

_KEYS = {"left", "right"}


class Bases(Protocol):
    """Who knows the weights that merges go beside."""

    @property
    def bases(self) -> Mapping[str, Tensor]:
        """What they are made of, by name."""


class Accumulated:
    """The checkpoint's entry about it.

    Args:
        booster: Has the accumulators.
        selection: Knows their weights.
    """

    def __init__(self, booster: Booster, selection: Bases) -> None:
        self._booster, self._selection = booster, selection

    @property
    def kept(self) -> list[Tensor]:
        """The tensors that the sums are kept in."""
        held = [adapter.accumulator for adapter in self._booster.beside.values()]
        return [side for one in held if one is not None for side in one.buffers()]

    def state_dict(self) -> dict[str, Any] | None:
        """Return the sums by target, and what the weights are known by again; None without any."""
        if not self._booster.beside:
            return None
        sums = {}
        for name, adapter in self._booster.beside.items():
            assert adapter.accumulator is not None
            left, right = adapter.accumulator.product
            sums[name] = {"left": left.clone(), "right": right.clone()}
        return {"bases": NUMBERING.of_tensors(self._selection.bases), "sums": sums}

    def check(self, saved: object, numbering: Numbering) -> None:
        """Check an entry before anything is changed.

        Args:
            saved: The entry.
            numbering: That of the version that has saved it.

        Raises:
            ValueError: If it is damaged.
            RuntimeError: If it does not belong to the model's weights.
        """
        if not self._booster.beside:
            if saved is not None:
                raise ValueError(
                    "the state is of a run beside quantised weights, and the model here has none: "
                    "load it beside the base that the run began with"
                )
            return
        parts = ("bases", "sums")
        if not isinstance(saved, Mapping) or not all(
            isinstance(saved.get(p), Mapping) for p in parts
        ):
            raise ValueError(
                "the state has nothing that was merged beside quantised weights: it is of a run on "
                "plain ones, or damaged"
            )
        here = numbering.of_tensors(self._selection.bases)
        if differing := [name for name, one in here.items() if saved["bases"].get(name) != one]:
            raise RuntimeError(
                "the optimizer's state does not belong to the model's weights: of what the "
                f"quantised ones are made of {len(differing)} tensors differ, first "
                f"{differing[0]!r}. Load the base that the run began with, quantised alike, first"
            )
        for name, adapter in self._booster.beside.items():
            assert adapter.accumulator is not None
            if not _fits(saved["sums"].get(name), adapter.target.shape, adapter.accumulator.rank):
                raise ValueError(f"the state is damaged: what was merged beside {name!r}")

    def load_state_dict(self, saved: Mapping[str, Any] | None) -> None:
        """Take over an entry that was checked, by copy."""
        for name, adapter in self._booster.beside.items():
            assert adapter.accumulator is not None and saved is not None
            adapter.accumulator.put(saved["sums"][name]["left"], saved["sums"][name]["right"])


def _fits(held: object, shape: tuple[int, ...], rank: int) -> bool:
    if not isinstance(held, Mapping) or held.keys() != _KEYS:
        return False
    left, right = held["left"], held["right"]
    if not all(isinstance(one, Tensor) and one.is_floating_point() for one in (left, right)):
        return False
    used = right.shape[0] if right.ndim else -1
    return 0 <= used <= rank and (left.shape, right.shape) == ((shape[0], used), (used, shape[1]))
