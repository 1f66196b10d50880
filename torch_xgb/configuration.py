"""What two runs must share to be one run: of a checkpoint, and among processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

__all__ = ["VERSION", "check", "comparable", "plain_kappa"]

VERSION = 1  # of the checkpoint's "booster" entry


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
