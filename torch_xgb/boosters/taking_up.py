"""A ← A′, B ← c·B′ and W ← W − s·c·B′A′: may be interrupted at any instruction, and goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.carry import Carry, Held, Taken
from torch_xgb.weights.addition import Addition
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.product import Product
from torch_xgb.weights.transfers import state_beside

__all__ = ["TakingUp"]


class TakingUp:
    """Gives a target of booster t its last pair back, if it has one.

    Args:
        carry: Holds it.
        adapter: The target's, with a pair just made fresh; of a first booster it stays so.
        base: Gets the state back.
        merger: Takes the pair's product out of the weights, under its policy of precision.
        t: The booster's index.
        rho: ρ_t, how much of it is taken up.
    """

    def __init__(
        self, carry: Carry, adapter: Adapter, base: Optimizer, merger: Merger, t: int, rho: float
    ) -> None:
        self._carry, self._adapter, self._base, self._merger = carry, adapter, base, merger
        self._t, self._rho = t, rho
        self._out: list[Addition] | None = None

    @torch.no_grad()
    def go_on(self) -> None:
        """Begin, or go on where an exception has ended it; at last do nothing."""
        target = self._adapter.target
        held = self._carry.held.get(target.name)
        if held is None:
            return
        if self._out is None:
            k = min(held.r, self._adapter.r)
            self._fill(held, k)
            taken = self._products(k) if self._rho * held.share else {}
            self._carry.take_out(target, taken)
            self._out = self._additions(taken)
        for addition in self._out:
            addition.go_on()
        self._carry.taken_up(target)

    def _fill(self, held: Held, k: int) -> None:
        """Give the adapter the pair up to rank k, and the base its state; the rest stays fresh."""
        form, whole, s = self._adapter.form, self._adapter.parameters, self._adapter.s
        # On another device, if the model has been moved.
        factors = form.narrow(held.factors.map(lambda factor: factor.to(whole.A.device)), k)
        ratio = 1.0 if held.s is None else held.s / s
        last = form.scaled(factors, self._rho * held.share, ratio)
        for factor, value in zip(form.narrow(whole, k), last, strict=True):  # type: ignore[arg-type]
            factor.copy_(value)
        parts = whole.map(lambda factor: torch.zeros_like(factor, dtype=torch.bool))
        for part in form.narrow(parts, k):
            part.fill_(True)
        group = self._base.param_groups[0]
        for factor, state, part in zip(whole, held.state, parts, strict=True):
            fresh, inside = (
                self._base.state.get(factor, {}),
                part if k < whole.A.shape[-2] else None,
            )
            if state:
                self._base.state[factor] = {
                    key: _taken_up(value, fresh.get(key), inside)
                    for key, value in state_beside(state, factor, group).items()
                }

    def _products(self, k: int) -> Taken:
        """Return what the pair has of each weight, which it is to be taken out of."""
        adapter, found = self._adapter, {}
        narrow = adapter.form.narrow(adapter.parameters, k)  # type: ignore[arg-type]
        for weight in adapter.weights:
            kept = weight.place.local
            pair = narrow.map(lambda factor, device=kept.device: factor.detach().to(device))  # type: ignore[misc]
            left, right, scale = adapter.form.undo(weight, kept, pair, adapter.s)
            found[weight.name] = (_copied(left), _copied(right), -scale)
        return found

    def _additions(self, taken: Taken) -> list[Addition]:
        # Stochastic rounding draws by index; booster t's own merge has t.
        return [
            self._merger.addition(weight, Product(left, right, -scale), -1 - self._t, False)
            for weight in self._adapter.weights
            if weight.name in taken
            for left, right, scale in [taken[weight.name]]
        ]


def _copied(factor: Tensor) -> Tensor:
    """Return a copy in the layout of what a ledger replays, so that both round alike."""
    return factor.clone(memory_format=torch.contiguous_format)


def _taken_up(value: Any, fresh: Any, part: Tensor | None) -> Any:  # noqa: ANN401
    """Return a state of a factor; past its rank as before a step."""
    if not isinstance(value, Tensor) or part is None or value.shape != part.shape:
        return value
    if not (value.ndim and value.is_floating_point()):
        return value
    rest = fresh if isinstance(fresh, Tensor) else torch.zeros_like(value)
    return torch.where(part, value, rest)
