"""What a target takes up of its last booster when it is drawn again, instead of starting anew.

The paper throws a merged pair away. But a fresh random A sees 1/in of a gradient's square, and it
is A's direction that a restart loses most. Here a target's pair is remembered, a few numbers a
weight, and its next booster begins with

    A ← A′,   B ← c·B′,   W ← W − s·c·B′A′,        c = ρ·α′·s′/s,

and with the base's state of A′ and B′. The function is kept: c·s is ρ of what the pair was merged
with, α′·s′. The share 1 − ρ is in W for good, and so are the directions of a higher rank than the
booster's; the rank of what W has learned grows with every booster. ρ = 1 with every layer drawn is
LoRA, whatever the knots.

A booster is what it puts in less what it took out: that much of the model it has changed, and that
is what α shrinks, a ledger keeps, and dropping it undoes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.forms import Update
from torch_xgb.boosters.pair import Pair
from torch_xgb.boosters.report import Updates
from torch_xgb.formulas.lowrank import joined
from torch_xgb.targets.layers import Target
from torch_xgb.weights.addition import Addition
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.product import Product

__all__ = ["Carry", "Held", "Lot", "Taken"]

State = dict[str, Any]
Lot = tuple[Adapter, Pair[nn.Parameter]]  # a target's place, and what is lent to it
Taken = dict[str, Update]  # of each of a target's weights, what was taken out of it


@dataclass(frozen=True)
class Held:
    """A target's pair as merged.

    Attributes:
        factors: The pair, with room for the highest rank.
        state: The base's state of each factor.
        r: The rank it was trained at.
        s: Its scaling; None for that of the booster which takes it up.
        share: How much of it is to be taken up, but for ρ: α it was merged with, and what the rate
            has left.
    """

    factors: Pair[Tensor]
    state: Pair[State]
    r: int
    s: float | None
    share: float


@dataclass(eq=False)
class Carry:
    """The last pair of every target drawn so far, and what the active booster has taken up.

    Attributes:
        held: The pairs that are in the weights, by target.
        taken: What was taken out of the weights of the targets that have taken theirs up.
        untold: Whether that is not known: a state of an earlier version was loaded.
    """

    held: dict[str, Held] = field(default_factory=dict)
    taken: dict[str, Taken] = field(default_factory=dict)
    untold: bool = False

    @property
    def kept(self) -> list[Tensor]:
        """The tensors that are remembered: pairs, the base's state of them, and what was taken."""
        held = [tensor for one in self.held.values() for tensor in one.factors]
        states = [state for one in self.held.values() for state in one.state]
        taken = [t for one in self.taken.values() for update in one.values() for t in update[:2]]
        values = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        return held + values + taken

    @property
    def pending(self) -> bool:
        """Whether the active booster holds what was taken out of the weights."""
        return self.untold or any(self.taken.values())

    @property
    def taken_by_weight(self) -> Taken:
        """What was taken out of every weight."""
        return {name: update for one in self.taken.values() for name, update in one.items()}

    def recall(self, target: Target) -> tuple[Held | None, Taken | None]:
        """Return all that is remembered of a target."""
        return self.held.get(target.name), self.taken.get(target.name)

    def put_back(self, target: Target, recalled: tuple[Held | None, Taken | None]) -> None:
        """Remember what was forgotten of a target: its weight is back."""
        held, taken = recalled
        if held is not None:
            self.held[target.name] = held
        if taken is not None:
            self.taken[target.name] = taken

    def forget(self, target: Target) -> None:
        """Forget a target's pair, and what was taken out: its weight is another one now."""
        self.held.pop(target.name, None)
        self.taken.pop(target.name, None)

    def with_taken(self, updates: Updates, factor: float) -> Updates:
        """Return updates plus a factor times what was taken out, each as one product."""
        if not factor or not self.taken:
            return updates
        return {
            name: [
                (weight, joined(update, taken[weight.name], factor) if taken else update)
                for weight, update in pairs
            ]
            for name, pairs in updates.items()
            for taken in [self.taken.get(name, {})]
        }

    @torch.no_grad()
    def put_down(self, lots: Iterable[Lot], base: Optimizer, share: float) -> None:
        """Remember the pairs of a booster that was merged, and their optimizer state.

        The base has it too until it forgets. Done again, it does the same.

        Args:
            lots: The pairs.
            base: Whose state it is.
            share: How much of them is to be taken up, but for ρ.
        """
        for adapter, pair in lots:
            self.held[adapter.target.name] = Held(
                pair.map(lambda factor: factor.detach().clone()),
                pair.map(lambda factor: base.state.get(factor, {})),
                adapter.r,
                adapter.s,
                share,
            )
            self.taken.pop(adapter.target.name, None)
        self.untold = False

    def take_out(self, target: Target, taken: Taken) -> None:
        """Take note of what is about to be taken out of a target's weights."""
        self.taken[target.name] = taken

    def taken_up(self, target: Target) -> None:
        """Take note that a target has its last pair back: it is in the weights no more."""
        self.held.pop(target.name, None)

    def putting_back(self, adapter: Adapter, merger: Merger, t: int) -> list[Addition]:
        """Return what puts back into a target's weights what booster t took out of them.

        Raises:
            RuntimeError: If that is not known.
        """
        if self.untold:
            raise RuntimeError(
                "the pending booster holds what carry= took out of the weights, and was saved by a "
                "version that did not note what that was: dropping it would lose earlier boosters "
                "too. Load a checkpoint of before it instead, or merge() first"
            )
        taken = self.taken.get(adapter.target.name) or {}
        return [
            merger.addition(weight, Product(*taken[weight.name]), t, False)
            for weight in adapter.weights
            if weight.name in taken
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the pairs that are held, in tensors and plain types."""
        held = {
            name: {
                "factors": [*one.factors],
                "state": [*one.state],
                "r": one.r,
                "s": one.s,
                "share": one.share,
            }
            for name, one in self.held.items()
        }
        return copy.deepcopy(held)  # the base writes to what it is given back

    def load_state_dict(
        self, state: Mapping[str, Any], taken: Mapping[str, Any] | None, base: Optimizer
    ) -> None:
        """Take such a state over, by copy, to where the base's factors are.

        Args:
            state: The pairs that are held.
            taken: What was taken out; None if that is not known.
            base: The base.
        """
        group = base.param_groups[0]
        device = group["params"][0].device
        on_device = bool(group.get("fused") or group.get("capturable"))

        def own(value: Any) -> Any:  # noqa: ANN401
            if not isinstance(value, Tensor):
                return copy.deepcopy(value)
            # Counters of steps stay on the CPU, unless the base's kernels read them.
            return (
                value.clone() if value.ndim == 0 and not on_device else value.to(device, copy=True)
            )

        self.held = {}
        for name, held in state.items():
            factors = Pair(*map(own, held["factors"]))
            state_of = Pair(*({k: own(v) for k, v in one.items()} for one in held["state"]))
            # Earlier versions took a pair up with all rows of A that were ever trained.
            r = held["r"] if "r" in held else _trained_rows(factors.A)
            self.held[name] = Held(factors, state_of, r, held.get("s"), held.get("share", 1.0))
        self.untold = taken is None
        self.taken = {
            name: {of: (own(L), own(R), float(scale)) for of, (L, R, scale) in one.items()}
            for name, one in (taken or {}).items()
        }


def _trained_rows(A: Tensor) -> int:
    trained = A.any(-1).view(-1, A.shape[-2]).any(0)
    return max(1, int(trained.sum()))
