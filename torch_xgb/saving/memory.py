"""What is remembered of weights, and whether they are still those it is remembered of.

Residuals and carried pairs belong to certain values of a weight, and so does the fold of a pending
pair. Weights are written to by others too: loaded, averaged, swapped for an evaluation and back, or
in place. What belongs to values that are gone is dropped; what they had is given back with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.carry import Carry
from torch_xgb.formulas.entries import as_matrix
from torch_xgb.saving.fold import fold, is_whole
from torch_xgb.weights.addition import Addition
from torch_xgb.weights.fingerprints import NUMBERING, quick_sum
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.places import Whole
from torch_xgb.weights.transfers import told
from torch_xgb.weights.weight import Weight

__all__ = ["Memory"]

Values = Mapping[str, Tensor]  # of a target's weights, by name
Note = tuple[torch.dtype, Tensor]


@dataclass(frozen=True)
class _Aside:
    """What a target had before other weights were loaded over its own.

    Attributes:
        prints: Of its weights as a ``state_dict()`` held them, by name.
        frozen: Its weights, where a pair was pending in them.
        grown: B and b of that pair.
        residuals: Of its weights, where there were some.
        carried: Its last pair, and what was taken out, if pairs are carried.
        notes: Of its weights.
    """

    prints: dict[str, int]
    frozen: dict[str, Tensor]
    grown: tuple[Tensor, ...]
    residuals: dict[str, Tensor]
    carried: Any
    notes: dict[str, Note]


@dataclass(eq=False)
class Memory:
    """What merges remember of weights, and what the weights were after each write of ours.

    Whole weights alone are looked at: of one that is shared out each process knows a part.
    """

    merger: Merger
    carry: Carry | None
    _notes: dict[str, Note] = field(default_factory=dict)
    _aside: dict[str, _Aside] = field(default_factory=dict)
    _said: bool = False

    def note(
        self,
        adapters: Iterable[Adapter],
        anew: bool = True,
        merged: Iterable[Addition] = (),
    ) -> None:
        """Take note of what weights are.

        Args:
            adapters: Of the weights.
            anew: Whether also of those that have a note.
            merged: What has just been added to some: looked at on the way.
        """
        known = {one.weight.name: one.note for one in merged}
        for weight in (weight for adapter in adapters for weight in adapter.weights):
            if _is_whole(weight) and (anew or weight.name not in self._notes):
                W, found = weight.place.local, known.get(weight.name)
                self._notes[weight.name] = _note(W) if found is None else (W.dtype, found)

    def compared(self, weights: Iterable[Weight]) -> list[tuple[Weight, Tensor]]:
        """Return weights there is a note of, each with whether somebody else has written to it."""
        found: list[tuple[Weight, Tensor]] = []
        for weight in weights:
            dtype, note = self._notes.get(weight.name, (None, None))
            # One cast to another dtype holds no other values.
            if note is not None and _is_whole(weight) and weight.parameter.dtype == dtype:
                _, now = _note(weight.place.local)
                found.append((weight, now != note.to(now.device)))
        return found

    def written(self, weights: Iterable[Weight]) -> list[Weight]:
        """Return the weights that somebody else has written to; waits for the device once."""
        found = self.compared(weights)
        differs = told([flag for _, flag in found])
        return [weight for (weight, _), (other,) in zip(found, differs, strict=True) if other]

    def look(self, adapters: Sequence[Adapter]) -> None:
        """Drop what belongs to other values of the weights than they have."""
        self.drop(adapters, self.written([w for adapter in adapters for w in adapter.weights]))

    def drop(self, adapters: Iterable[Adapter], written: Sequence[Weight]) -> None:
        """Drop what is remembered of weights that somebody else has written to, and say so once."""
        self._aside.clear()
        targets = {w.name: a.target for a in adapters for w in a.weights}
        for weight in written:
            self._notes.pop(weight.name)
            self.merger.forget(weight)
            if self.carry is not None:
                self.carry.forget(targets[weight.name])
        if written and not self._said:
            self._said = True
            warnings.warn(
                f"{len(written)} weights, first {written[0].name!r}, were written to by something "
                "else than load_state_dict(). What rounding and carry= remembered of them is "
                "dropped; a pending pair stays on top of what was written. If that was a whole "
                "model's weights (a state_dict's, an average), the booster in it now counts twice: "
                "put such weights in with model.load_state_dict(...), or for a while inside "
                "optimizer.boosting.folded_in()",
                stacklevel=7,
            )

    def stepped(self) -> None:
        """Take note of a step: what other weights replaced does not come back."""
        if self._aside:
            self._aside.clear()

    def forget_all(self) -> None:
        """Know of no weight what it is."""
        self._notes.clear()
        self._aside.clear()

    # Weights that are loaded

    def loading(self, adapter: Adapter, values: Values) -> dict[str, Tensor] | None:
        """Answer weights that are about to be loaded.

        Args:
            adapter: The target's.
            values: What is loaded into its weights.

        Returns:
            What to load instead, everything else staying as it is or coming back: the values are
            what the target computes now, or did before others were loaded. None if they are other
            ones, and nothing that was remembered belongs to them.
        """
        weights = adapter.weights
        if len(values) < len(weights) or not is_whole(adapter):
            return None
        aside = self._aside.get(adapter.target.name)
        if aside is not None and aside.prints == self._prints(weights, values):
            return self._bring_back(adapter, aside)
        pending = adapter.bound is not None and adapter.pending
        if not pending and not self._has_something(adapter):
            return None
        if self._are_present(adapter, values, pending):
            return {w.name: w.place.local.clone() for w in weights} if pending else {}
        if aside is None:
            self._put_aside(adapter, pending)
        return None

    def forget(self, adapter: Adapter, loaded: Iterable[Weight]) -> None:
        """Drop what is remembered of weights that others are loaded over."""
        for weight in loaded:
            self._notes.pop(weight.name, None)
            self.merger.forget(weight)
        if self.carry is not None:
            self.carry.forget(adapter.target)

    def _has_something(self, adapter: Adapter) -> bool:
        held = self.carry is not None and any(self.carry.recall(adapter.target))
        return held or any(weight.name in self.merger.residuals for weight in adapter.weights)

    def _are_present(self, adapter: Adapter, values: Values, pending: bool) -> bool:
        """Tell whether values are what a target's weights are now, nobody else having written."""
        for weight in adapter.weights:
            W = fold(adapter, weight) if pending else weight.place.local
            value = values[weight.name]
            if value.is_meta or not torch.equal(W, value.detach().to(W.device, W.dtype)):
                return False
        return not self.written(adapter.weights)

    def _put_aside(self, adapter: Adapter, pending: bool) -> None:
        weights, target = adapter.weights, adapter.target
        if self.written(weights):
            return
        folded = {w.name: fold(adapter, w) if pending else w.place.local for w in weights}
        names = [weight.name for weight in weights]
        self._aside[target.name] = _Aside(
            self._prints(weights, folded),
            {w.name: w.place.local.clone() for w in weights} if pending else {},
            tuple(factor.detach().clone() for factor in adapter.parameters.grown)
            if pending
            else (),
            {n: self.merger.residuals[n] for n in names if n in self.merger.residuals},
            None if self.carry is None else self.carry.recall(target),
            {n: self._notes[n] for n in names if n in self._notes},
        )

    def _bring_back(self, adapter: Adapter, aside: _Aside) -> dict[str, Tensor]:
        del self._aside[adapter.target.name]
        for weight in adapter.weights:
            if weight.name in aside.residuals:
                self.merger.put_back(weight, aside.residuals[weight.name])
        if self.carry is not None:
            self.carry.put_back(adapter.target, aside.carried)
        self._notes.update(aside.notes)
        if aside.grown:
            for factor, value in zip(adapter.parameters.grown, aside.grown, strict=True):
                factor.detach().copy_(value)
        return dict(aside.frozen)

    def _prints(self, weights: Iterable[Weight], values: Values) -> dict[str, int]:
        return {
            w.name: NUMBERING.of(as_matrix(values[w.name].detach().to(w.parameter.dtype)))
            for w in weights
            if not values[w.name].is_meta
        }


def _is_whole(weight: Weight) -> bool:
    return type(weight.place) is Whole and not weight.parameter.is_meta


def _note(W: Tensor) -> Note:
    """Return a number that changes when a weight does, as fast as memory is read."""
    matrix = as_matrix(W.detach())
    return W.dtype, quick_sum(matrix if matrix.stride(1) == 1 else matrix.T)
