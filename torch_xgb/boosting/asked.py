"""What a merge has to know before it changes anything, asked of the device all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from torch_xgb.boosters.report import Updates, finite_norms, norms
from torch_xgb.saving.memory import Memory
from torch_xgb.weights.addition import overflows
from torch_xgb.weights.product import Product
from torch_xgb.weights.transfers import told
from torch_xgb.weights.weight import Weight

__all__ = ["Answers", "ask"]

Flagged = Sequence[tuple[Weight, Tensor]]


class Answers(NamedTuple):
    """What is to be known of a booster that may be merged.

    Attributes:
        norms: ‖ΔW‖ of every target.
        written: The weights that somebody else has written to.
    """

    norms: Mapping[str, float]
    written: Sequence[Weight]


def ask(updates: Updates, booster: Updates, memory: Memory, t: int) -> Answers:
    """Look whether a booster may be merged; waits for the device once.

    Args:
        updates: What is to be added to which weights.
        booster: What the booster is, as ``carry`` takes out of weights what was put in before.
        memory: What is known of these.
        t: The booster's index.

    Raises:
        RuntimeError: If an update is not finite, or beyond what a weight can hold. Nothing is
            changed.
    """
    pairs = [pair for several in updates.values() for pair in several]
    compared = memory.compared(weight for weight, _ in pairs)
    room = [(w, flag) for w, one in pairs if (flag := overflows(w, Product(*one))) is not None]
    flags = [flag for _, flag in (*compared, *room)]
    found, *answers = told([norms(booster), *flags])
    finite = finite_norms(booster, found, t)
    _require_room(_set(room, answers[len(compared) :]), t)
    return Answers(finite, _set(compared, answers[: len(compared)]))


def _set(flagged: Flagged, answers: Sequence[list[float]]) -> list[Weight]:
    return [weight for (weight, _), (flag,) in zip(flagged, answers, strict=True) if flag]


def _require_room(beyond: Sequence[Weight], t: int) -> None:
    """Refuse an update that weights of float16 cannot hold.

    Raises:
        RuntimeError: If there are such.
    """
    if beyond:
        raise RuntimeError(
            f"booster {t} takes {len(beyond)} weights, first {beyond[0].name!r}, beyond float16's "
            "range and was not merged; the weights are unharmed. Lower the learning rate, or train "
            "in bfloat16 or float32; finalize(discard=True) drops the booster"
        )
