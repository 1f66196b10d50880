"""A checkpoint's entry about the boosting: its keys, its version, and what it must share.

Version 1 did not hold every setting of a run, and of objects only their kind; before 3, numbers of
float64 tensors missed some signs, and nothing told what stays frozen beside the boosters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from torch_xgb.boosters.booster import Booster
from torch_xgb.boosters.carry import Carry
from torch_xgb.saving.accumulated import Accumulated
from torch_xgb.saving.layout import (
    check_carried,
    check_factors,
    check_keys,
    check_taken,
    check_weights,
)
from torch_xgb.saving.pending import Pending
from torch_xgb.saving.rest import check_rest, rest
from torch_xgb.schedule.boundaries import Progress
from torch_xgb.schedule.course import Course
from torch_xgb.schedule.draws import Draw
from torch_xgb.settings import differences
from torch_xgb.weights.fingerprints import EARLIER, NUMBERING, Numbering

__all__ = ["ENTRY", "VERSION", "Entry", "Resumption", "find"]

ENTRY = "booster"  # beside the base's own entries
VERSION = 3
_KEYS = ("active", "policy", "carry", "factors", "weights")


def find(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of an optimizer's state.

    Raises:
        TypeError: If the state is no mapping.
        ValueError: If there is none, or it is of a version that is not read here.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"a state is a mapping, got a {type(state_dict).__name__}")
    saved = state_dict.get(ENTRY)
    if not isinstance(saved, Mapping):
        raise ValueError(
            f"not a state of BoostedLowRankOptimizer: it has no entry {ENTRY!r}. Give what "
            "optimizer.state_dict() returned; of another optimizer's checkpoint, load the model's "
            "weights alone and start anew"
        )
    if not any(saved.get("version") is known for known in range(1, VERSION + 1)):
        raise ValueError(
            f"the state has version {saved.get('version')!r}, this torch_xgb reads 1 to {VERSION}"
        )
    return saved


@dataclass(frozen=True, eq=False)
class Resumption:
    """An entry that was checked: what is to be taken over, nothing of it yet.

    Attributes:
        saved: The entry.
        progress: Where its run stands.
        draw: What its booster is.
        unfolded: Weights that hold its pending booster at present, by name, as they are without it.
    """

    saved: Mapping[str, Any]
    progress: Progress
    draw: Draw
    unfolded: Mapping[str, Tensor]

    @property
    def begins(self) -> bool:
        """Whether a booster is to begin: its run had ended."""
        return self.saved["active"] is None


class Heads(Protocol):
    """Who knows the Parameters trained in full."""

    @property
    def named(self) -> Mapping[str, nn.Parameter]:
        """Each by its name, looked up anew."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What it is made of: everything of the boosting that is neither settings nor ledger.

    Attributes:
        heads: Knows the Parameters trained in full.
        beside: What is merged beside weights.
    """

    course: Course
    booster: Booster
    carry: Carry | None
    pending: Pending
    heads: Heads
    beside: Accumulated

    @property
    def remembered(self) -> list[Tensor]:
        """What is kept beside the model: residuals, carried pairs, what was merged beside it."""
        carried = [] if self.carry is None else self.carry.kept
        return [*self.pending.merger.residuals.values(), *carried, *self.beside.kept]

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain types, none of which a later step writes to."""
        self.pending.memory.look(self.pending.adapters)
        return {
            "version": VERSION,
            **self.course.state_dict(),
            "carry": None if self.carry is None else self.carry.state_dict(),
            "taken": None if self.carry is None else copy.deepcopy(self.carry.taken),
            "factors": [factor.detach().clone() for factor in self.booster.factors],
            "weights": self.pending.state_dict(),
            "heads": NUMBERING.of_parameters(self.heads.named),
            "rest": rest(self.booster),
            "order": self._order,
            "beside": self.beside.state_dict(),
        }

    def compare(self, saved: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Compare what an entry's run was told with what is told here.

        Raises:
            ValueError: If it is of another configuration or model, or of other callables.
        """
        _compare(saved, told)
        check_keys(saved, _KEYS, "its entry")
        self._compare_order(saved.get("order", self._order))
        self.course.check(saved)

    @property
    def _order(self) -> dict[str, list[str]]:
        """What pairs and the base's state are kept in the order of."""
        targets = [adapter.target.name for adapter in self.booster.every_adapter]
        return {"targets": targets, "heads": list(self.heads.named)}

    def _compare_order(self, saved: object) -> None:
        """Compare it with that of an entry.

        Raises:
            ValueError: If the same modules stand in another order, as in another version of a
                model's code.
        """
        theirs = saved if isinstance(saved, Mapping) else {}
        for kind, here in self._order.items():
            there = theirs.get(kind)
            there = list(map(str, there)) if isinstance(there, list) else here
            if there != here and sorted(there) == sorted(here):
                was, name = next((a, b) for a, b in zip(there, here, strict=True) if a != b)
                raise ValueError(
                    f"the model's modules stand in another order than when the state was saved, "
                    f"first {name!r} where {was!r} was: pairs and the base's state are kept in "
                    "that order and would go to the wrong ones. Resume with the model's code of "
                    "then, or load the model's weights alone and start anew"
                )

    def check(self, saved: Mapping[str, Any]) -> Resumption:
        """Check an entry before anything is changed.

        Raises:
            ValueError: If it is damaged.
            RuntimeError: If it does not belong to the model's weights.
        """
        progress, draw = self.course.check(saved)
        lots = self.booster.lots(draw.layers) if saved["active"] is not None else []
        check_factors(saved["factors"], self.booster.factors)
        shapes_of, adapters = self.booster.slots.shapes_of, self.booster.every_adapter
        shapes = {
            a.target.name: [s for s in shapes_of(a.target) if s is not None] for a in adapters
        }
        check_carried(saved["carry"], None if self.carry is None else shapes)
        check_taken(saved.get("taken"), {} if self.carry is None else adapters)
        numbering = EARLIER if saved["version"] < 3 else NUMBERING
        self.beside.check(saved.get("beside"), numbering)
        drawn = [weight for adapter, _ in lots for weight in adapter.weights]
        check_weights(saved["weights"], self.pending.weights, drawn)
        self._check_heads(saved.get("heads", {}), numbering)
        lots = self.booster.lots(draw.layers, saved["factors"]) if lots else []
        pairs = [(adapter, lent.parameters) for adapter, lent in lots]
        sealed = "seal" in saved or saved["version"] == 1  # which had none
        unfolded = self.pending.unfold(saved["weights"], pairs, draw.r, draw.s, sealed, numbering)
        check_rest(saved.get("rest", {}), self.booster)
        return Resumption(saved, progress, draw, unfolded)

    def load_state_dict(self, resumption: Resumption, base: Optimizer) -> None:
        """Take over an entry that was checked."""
        saved, draw = resumption.saved, resumption.draw
        self.course.load_state_dict(saved, resumption.progress, draw)
        if self.carry is not None:
            known = saved.get("taken", None if resumption.progress.booster_index else {})
            self.carry.load_state_dict(saved["carry"], known, base)
        self.pending.load_state_dict(saved["weights"], resumption.unfolded)
        self.beside.load_state_dict(saved.get("beside"))
        if not resumption.begins:
            self.booster.bind(list(draw.layers), draw.r, draw.s)
            for parameter, value in zip(self.booster.factors, saved["factors"], strict=True):
                parameter.copy_(value)

    def _check_heads(self, saved: object, numbering: Numbering) -> None:
        if not isinstance(saved, Mapping):
            raise ValueError("the state is damaged: 'heads' is no mapping")
        here = numbering.of_parameters(self.heads.named)
        other = [name for name in saved if name in here and here[name] != saved[name]]
        if other:
            raise RuntimeError(
                "the optimizer's state does not belong to the model's weights: of those trained in "
                f"full {len(other)} differ, first {other[0]!r}. Load the model saved together with "
                "this state first: model.load_state_dict(...), then optimizer.load_state_dict(...)"
            )


def _compare(saved: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Compare an entry's settings with those here.

    Raises:
        ValueError: If they are of another configuration or model.
    """
    theirs = saved.get("settings")
    if not isinstance(theirs, Mapping):
        raise ValueError(f"the state is damaged: its settings are a {type(theirs).__name__}")
    here = _as_version_1(told, theirs) if saved["version"] == 1 else told
    if unknown := theirs.keys() - here.keys():
        raise ValueError(
            f"the state has the settings {', '.join(sorted(unknown))}, which this torch_xgb does "
            "not know: a later version has saved it"
        )
    if differing := differences(theirs, here):
        details = "; ".join(f"{k}: saved {theirs.get(k)!r}, here {here[k]!r}" for k in differing)
        raise ValueError(
            f"the state was saved with another configuration or model: {details[:2000]}. To go on, "
            "build the optimizer as it was then; to begin anew, load the model's weights alone"
        )


def _as_version_1(told: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    def kind(key: str, value: Any) -> Any:  # noqa: ANN401
        if key == "targets" or not (isinstance(value, dict) and "of" in value):
            return value
        return value["of"] if key == "kappa" else "callable"

    return {key: kind(key, value) for key, value in told.items() if key in theirs}
