"""What a target takes up of its last booster when it is drawn again, instead of starting anew.

The paper throws a merged pair away. But a fresh random A sees 1/in of a gradient's square, and it
is A's direction that a restart loses most. Here a target's pair is remembered, a few numbers a
weight, and its next booster begins with

    A ← A′,   B ← ρ·B′,   W ← W − s·ρ·B′A′,

and with the base's state of A′ and B′. The function is kept, the share 1 − ρ of the pair is in W
for good, and the rank of what W has learned grows with every booster. ρ = 1 with every layer drawn
is LoRA, whatever the knots.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.pair import Pair
from torch_xgb.checks import share
from torch_xgb.targets.layers import Target
from torch_xgb.weights.merge import Merger

__all__ = ["Carry"]


State = dict[str, Any]


@dataclass(frozen=True)
class _Held:
    """A target's pair as merged, and the base's state of each factor."""

    factors: Pair[Tensor]
    state: Pair[State]


@dataclass(eq=False)
class Carry:
    """The last pair of every target drawn so far.

    Args:
        share: ρ in [0, 1], how much of B is taken up again.
    """

    share: float
    held: dict[str, _Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.share = share("carry", self.share)

    def holds(self, target: Target) -> bool:
        """Tell whether a target's pair is remembered."""
        return target.name in self.held

    def put_back(self, target: Target, held: _Held) -> None:
        """Remember a pair that was forgotten: its weight is back."""
        self.held[target.name] = held

    def forget(self, target: Target) -> None:
        """Forget a target's pair: its weight is another one now."""
        self.held.pop(target.name, None)

    @torch.no_grad()
    def put_down(self, adapters: Iterable[Adapter], base: Optimizer) -> None:
        """Remember the pairs of a booster that was merged, and take over their optimizer state."""
        for adapter in adapters:
            self.held[adapter.target.name] = _Held(
                adapter.parameters.map(lambda factor: factor.detach().clone()),
                adapter.parameters.map(lambda factor: base.state.pop(factor, {})),
            )

    @torch.no_grad()
    def take_up(self, adapters: Iterable[Adapter], base: Optimizer, merger: Merger, t: int) -> None:
        """Give targets their pairs back, taking what these hold out of the weights.

        Args:
            adapters: Those of booster t, just reset; one drawn for the first time stays so.
            base: Gets the state back.
            merger: Takes the pairs' product out, under its policy of precision.
            t: The booster's index.
        """
        for adapter in adapters:
            held = self.held.pop(adapter.target.name, None)
            if held is None:
                continue
            device = adapter.parameters.A.device  # another one, if the model has been moved
            factors = held.factors.map(lambda factor: factor.to(device))  # noqa: B023
            A = factors.A
            # Rows of A that no booster has had yet, the rank being lower, are this one's.
            A = torch.where(A.any(1, keepdim=True), A, adapter.parameters.A)
            values = Pair(A, *(self.share * one for one in factors.grown))
            for factor, value, state in zip(adapter.parameters, values, held.state, strict=True):
                factor.copy_(value)
                if state:  # moved, if the model has been
                    base.state[factor] = {key: _beside(one, factor) for key, one in state.items()}
            if self.share:
                _take_out(adapter, merger, t)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain types."""
        held = {n: {"factors": [*h.factors], "state": [*h.state]} for n, h in self.held.items()}
        return copy.deepcopy(held)  # the base writes to what it is given back

    def load_state_dict(self, state: Mapping[str, Any], base: Optimizer) -> None:
        """Take such a state over, by copy, to where the base's factors are."""
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

        self.held = {
            name: _Held(
                Pair(*map(own, held["factors"])),
                Pair(*({key: own(value) for key, value in one.items()} for one in held["state"])),
            )
            for name, held in state.items()
        }


def _beside(value: Any, factor: Tensor) -> Any:  # noqa: ANN401
    return value.to(factor.device) if isinstance(value, Tensor) and value.ndim else value


def _take_out(adapter: Adapter, merger: Merger, t: int) -> None:
    for weight in adapter.weights:
        kept = weight.place.local
        pair = Pair(*(factor.detach().to(kept.device) for factor in adapter.pair))
        # Stochastic rounding draws by index; booster t's own merge has t.
        merger.merge(weight, *adapter.form.undo(weight, kept, pair, adapter.s), -1 - t)
