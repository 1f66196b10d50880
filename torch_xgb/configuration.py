"""Which settings go together, and what two runs must share: of a checkpoint, among processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

__all__ = ["VERSION", "check", "check_together", "comparable", "plain_kappa"]

VERSION = 1  # of the checkpoint's "booster" entry


def check_together(init: str, carry: float | None, shrinkage: object, record: object) -> None:
    """Refuse settings that are valid alone, but contradict each other.

    Raises:
        ValueError: With what goes together, and why.
    """
    if carry is None:
        return
    if init != "kaiming" or record:
        raise ValueError(
            "carry= goes with init='kaiming' and without record=: a booster that takes up an "
            "earlier one is no learner of its own, whatever begins or keeps it"
        )
    if any(alpha != 1 for alpha in (shrinkage if isinstance(shrinkage, Sequence) else [shrinkage])):
        raise ValueError(
            "carry= goes with shrinkage=1: a pair that is taken up is merged again, and would be "
            f"shrunk again each time, got shrinkage={shrinkage!r}"
        )


def check(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Compare a checkpoint's "booster" entry with the settings here.

    Raises:
        ValueError: If it is of another version, or of another configuration or model.
    """
    if saved.get("version") != VERSION:
        raise ValueError(
            f"the state has version {saved.get('version')!r}, this torch_xgb reads {VERSION}"
        )
    theirs = saved["settings"]
    differing = [key for key in settings if theirs.get(key) != settings[key]]
    if differing:
        details = "; ".join(
            f"{k}: saved {theirs.get(k)!r}, here {settings[k]!r}" for k in differing
        )
        raise ValueError(
            f"the state was saved with another configuration or model: {details[:2000]}"
        )


def comparable(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that can be compared: an object's text may hold its address."""
    plain = (bool, int, float, str, tuple, type(None))
    return {key: value for key, value in kwargs.items() if isinstance(value, plain)}


def plain_kappa(kappa: object) -> object:
    """Return κ as a checkpoint holds it: of a policy or callable, its class's name."""
    if kappa is None or isinstance(kappa, Integral):
        return None if kappa is None else int(kappa)
    if isinstance(kappa, Sequence):
        return [int(knot) for knot in kappa]
    return type(kappa).__name__
