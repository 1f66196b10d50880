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
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.pair import Pair
from torch_xgb.targets.layers import Target
from torch_xgb.weights.addition import Addition
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.product import Product

__all__ = ["Carry", "Lot", "TakingUp"]

State = dict[str, Any]
Lot = tuple[Adapter, Pair[nn.Parameter]]  # a target's place, and what is lent to it


@dataclass(frozen=True)
class _Held:
    """A target's pair as merged.

    Attributes:
        factors: The pair.
        state: The base's state of each factor.
        rho: What the rate has left of it to be taken up, before the share that is asked for then.
    """

    factors: Pair[Tensor]
    state: Pair[State]
    rho: float = 1.0


@dataclass(eq=False)
class Carry:
    """The last pair of every target drawn so far."""

    held: dict[str, _Held] = field(default_factory=dict)

    @property
    def kept(self) -> list[Tensor]:
        """The tensors that are remembered: pairs, and the base's state of them."""
        held = [tensor for one in self.held.values() for tensor in one.factors]
        states = [state for one in self.held.values() for state in one.state]
        return held + [t for state in states for t in state.values() if isinstance(t, Tensor)]

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
    def put_down(self, lots: Iterable[Lot], base: Optimizer, rho: float) -> None:
        """Remember the pairs of a booster that was merged, and their optimizer state.

        The base has it too until it forgets. Done again, it does the same.

        Args:
            lots: The pairs.
            base: Whose state it is.
            rho: What the rate has left of them to be taken up.
        """
        for adapter, pair in lots:
            self.held[adapter.target.name] = _Held(
                pair.map(lambda factor: factor.detach().clone()),
                pair.map(lambda factor: base.state.get(factor, {})),
                rho,
            )

    def taking_up(
        self, adapter: Adapter, base: Optimizer, merger: Merger, t: int, rho: float
    ) -> TakingUp:
        """Return what gives a target of booster t its last pair back, if it has one.

        Args:
            adapter: The target's, with a pair just made fresh; of a first booster it stays so.
            base: Gets the state back.
            merger: Takes the pair's product out of the weights, under its policy of precision.
            t: The booster's index.
            rho: ρ_t, how much of B is taken up.
        """
        return TakingUp(self, adapter, base, merger, t, rho)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain types."""
        held = {
            name: {"factors": [*one.factors], "state": [*one.state], "rho": one.rho}
            for name, one in self.held.items()
        }
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
                float(held.get("rho", 1.0)),  # earlier versions had no such thing
            )
            for name, held in state.items()
        }


class TakingUp:
    """A ← A′, B ← ρ·B′ and W ← W − s·ρ·B′A′: may be interrupted at any instruction, and goes on."""

    def __init__(
        self, carry: Carry, adapter: Adapter, base: Optimizer, merger: Merger, t: int, rho: float
    ) -> None:
        self._carry, self._adapter, self._base, self._merger = carry, adapter, base, merger
        self._t, self._rho = t, rho
        self._out: list[Addition] | None = None

    @torch.no_grad()
    def go_on(self) -> None:
        """Begin, or go on where an exception has ended it; at last do nothing."""
        held = self._carry.held.get(self._adapter.target.name)
        if held is None:
            return
        if self._out is None:
            self._fill(held)
            self._out = self._taken_out() if self._rho * held.rho else []
        for addition in self._out:
            addition.go_on()
        self._carry.forget(self._adapter.target)

    def _fill(self, held: _Held) -> None:
        """Give the adapter the pair, and the base its state."""
        parameters = self._adapter.parameters
        device = parameters.A.device  # another one, if the model has been moved
        factors = held.factors.map(lambda factor: factor.to(device))
        A = factors.A
        # Rows of A that no booster has had yet, the rank being lower, are this one's.
        A = torch.where(A.any(-1, keepdim=True), A, parameters.A)
        values = Pair(A, *(self._rho * held.rho * one for one in factors.grown))
        for factor, value, state in zip(parameters, values, held.state, strict=True):
            factor.copy_(value)
            if state:  # moved, if the model has been
                self._base.state[factor] = {k: _beside(one, factor) for k, one in state.items()}

    def _taken_out(self) -> list[Addition]:
        adapter, found = self._adapter, []
        for weight in adapter.weights:
            kept = weight.place.local
            pair = Pair(*(factor.detach().to(kept.device) for factor in adapter.pair))
            product = Product(*adapter.form.undo(weight, kept, pair, adapter.s))
            # Stochastic rounding draws by index; booster t's own merge has t.
            found.append(self._merger.addition(weight, product, -1 - self._t))
        return found


def _beside(value: Any, factor: Tensor) -> Any:  # noqa: ANN401
    return value.to(factor.device) if isinstance(value, Tensor) and value.ndim else value
